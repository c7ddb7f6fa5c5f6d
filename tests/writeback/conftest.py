"""A log over a ring and a space table, with a disk in memory below it: the write-back room without the rest."""

from __future__ import annotations

import pytest

from holdfast.memory.group import Group
from holdfast.pool.block import KIND_DATA, SEED_DATA
from holdfast.pool.space import SpaceTable
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.ports import PREPARE, Io
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from holdfast.writeback.flusher import Flusher
from holdfast.writeback.log import Log, Room
from holdfast.writeback.ring import RING_HEADER_BYTES, Ring
from tests.engine.hand_disk import HandDisk

TAG = 0x1234
EPOCH = 1 << 32 | 7
SEGMENT_BLOCKS = 256
RESERVE_BLOCKS = 128


class Rig:
    """Write-back on its own. `blocks` are those of the ring."""

    def __init__(self, blocks: int = 512, segments: int = 16) -> None:
        self.ring = Ring(aligned_buffer(RING_HEADER_BYTES + blocks * BLOCK_SIZE_BYTES), segment_blocks=SEGMENT_BLOCKS)
        self.ring.format(tag=TAG, epoch=EPOCH, boot=1)
        self.disk = HandDisk()
        self.space = SpaceTable(segments, 8, reserve_segments=2)
        for _ in range(segments):
            segment = self.space.take_absent()
            assert segment is not None
            self.disk.run(Io(PREPARE, segment, length=MIB))
            self.space.prepared(segment)
        self.groups = Group("all")
        self.system = Group("server", self.groups, number=1)
        self.log = Log(self.ring, self.space, tag=TAG, epoch=EPOCH, system=self.system, reserve_blocks=RESERVE_BLOCKS)
        self.log.start_empty(next_ordinal=1)
        self.releases = 0
        self.flusher = Flusher(self.log, self.disk, released=self._released)
        self.answers: list[int] = []

    def _released(self) -> None:
        self.releases += 1

    def append(self, count: int = 1, *, value: int = 1, lba: int = 0) -> Room:
        """Append blocks as far as they find room; what stood in the way."""
        for index in range(count):
            if not self.log.room:
                room = self.log.make_room()
                if room is not Room.YES:
                    return room
            self.log.append(bytes([value]) * BLOCK_SIZE_BYTES, lba + index, SEED_DATA, KIND_DATA)
        return Room.YES

    def flush(self) -> None:
        self.flusher.when_durable(self.answers.append)
        self.flusher.pump()

    def settle(self) -> None:
        while self.disk.in_flight:
            self.disk.complete_one()

    def stored(self, position: int) -> bytes:
        """What the segment files hold at a log position, after a power failure now."""
        segment = next(segment for segment, ordinal in self.log.window.items() if ordinal == position >> 8)
        at = (position & SEGMENT_BLOCKS - 1) * BLOCK_SIZE_BYTES
        return self.disk.files[segment].stable.tobytes()[at : at + BLOCK_SIZE_BYTES]


@pytest.fixture
def rig() -> Rig:
    return Rig()

"""A power failure, after the fact: what a killed server had not made durable is torn, and its memory is gone.

The ring says how far the log was durable.  Positions from there to the end of the last sealed commit may have been on
their way to the disk: each of their blocks may hold what was there before, what was written, or parts of both by
sectors, and with disks that do worse, zeroes or garbage.  Nothing else may have changed: what lies below the durable
position was synced, and the open commit is never written.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from holdfast.units import BLOCK_SIZE_BYTES
from holdfast.writeback.ring import Ring
from tests.crash.harness import read_superblock, ring_path, segment_path

SECTOR_BYTES = 512
Snapshot = dict[str, bytes]


def snapshot(pool: Path) -> Snapshot:
    """The segment files as they are now, while nobody serves the pool: the old contents of whatever is torn later."""
    return {path.name: path.read_bytes() for path in (pool / "segments").glob("*.seg")}


def open_ring(pool: Path) -> tuple[Ring, bytearray]:
    """A copy of the ring that a dead server left, and its memory."""
    memory = bytearray(ring_path(pool).read_bytes())
    return Ring(memoryview(memory), segment_blocks=read_superblock(pool).segment_blocks), memory


def power_failure(pool: Path, before: Snapshot, random: Random) -> int:
    """Tear what was not durable and remove the ring; returns the number of blocks that were at risk."""
    path = ring_path(pool)
    if not path.exists():
        return 0  # the server died before it had one
    ring, _ = open_ring(pool)
    path.unlink()
    identity = ring.identity()
    publication = None if identity is None else ring.publication(identity.epoch)
    if publication is None:
        return 0
    shift = ring.segment_blocks.bit_length() - 1
    end = publication.commit_position or publication.head_position
    tear = _Tear(random)
    for position in range(publication.durable_position, end):
        segment = ring.window(position >> shift)
        assert segment is not None
        offset = (position & ring.segment_blocks - 1) * BLOCK_SIZE_BYTES
        file = segment_path(pool, segment)
        old = before.get(file.name, b"")[offset : offset + BLOCK_SIZE_BYTES].ljust(BLOCK_SIZE_BYTES, b"\0")
        with file.open("r+b") as opened:
            opened.seek(offset)
            now = opened.read(BLOCK_SIZE_BYTES)
            block = tear.block(old=old, now=now, written=bytes(ring.slot(position)))
            if block != now:
                opened.seek(offset)
                opened.write(block)
    return max(0, end - publication.durable_position)


class _Tear:
    """One failure's ways with the blocks: how likely each outcome is differs from failure to failure."""

    def __init__(self, random: Random) -> None:
        self.random = random
        kind = random.randrange(5)
        #                 old, as it is, written, sectors of both, zeroes, garbage
        self.weights = [
            (1, 0, 0, 0, 0, 0),
            (0, 0, 1, 0, 0, 0),
            (1, 1, 40, 1, 0, 0),
            (4, 4, 4, 2, 0, 0),
            (2, 2, 20, 2, 1, 1),
        ][kind]

    def block(self, *, old: bytes, now: bytes, written: bytes) -> bytes:
        random = self.random
        match random.choices(range(6), self.weights)[0]:
            case 0:
                return old
            case 1:
                return now
            case 2:
                return written
            case 3:
                sectors = range(0, BLOCK_SIZE_BYTES, SECTOR_BYTES)
                return b"".join((old if random.random() < 0.5 else written)[at : at + SECTOR_BYTES] for at in sectors)
            case 4:
                return bytes(BLOCK_SIZE_BYTES)
            case _:
                return random.randbytes(BLOCK_SIZE_BYTES)

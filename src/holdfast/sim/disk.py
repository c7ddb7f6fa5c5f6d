"""The simulated disk: time, order, failures and what is left after a crash, all drawn from the seed.

Each file has two contents. `now` is what a read sees. `stable` is what is sure to be left after a power failure: where
the two differ, each 512-byte sector goes one way or the other. A durable write and a SYNC make them equal. What a
failed SYNC was to cover is lost to all later ones, as it is with a kernel that marks pages clean after an error: it
must be written again.

Operations are carried out by workers, each of which has one at a time; how long it takes is drawn, so they complete in
any order. Of those in flight when the server dies each happens, happens in part (sector by sector), or does not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from errno import EIO, ENOENT
from functools import partial
from random import Random

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from holdfast.pool.superblock import SLOT_OFFSETS, SUPERBLOCK_FILE_BYTES, decode_superblock
from holdfast.runtime.ports import PREPARE, READ, REMOVE, SUPERBLOCK, SYNC, WRITE, Io
from holdfast.sim.fate import Crashed, Fate
from holdfast.sim.faults import ERRNOS, FLIP, FORGET, MISDIRECT, ROT, SHORT, Faults, point_of
from holdfast.sim.loop import SimLoop
from holdfast.sim.trace import Trace
from holdfast.units import BLOCK_SIZE_BYTES

SECTOR = 512
# Readings between two wrong ones of the same file, at least.
FLIP_READS_MIN = 16
_Mask = npt.NDArray[np.bool_]
_NAMES = ("read", "write", "sync", "prepare", "remove")


@dataclass(slots=True)
class DiskCharacter:
    """What a disk is like. Times in nanoseconds; each operation takes up to twice the mean."""

    cached: float = 0.5  # how often `read_now` has the answer
    latency_ns: int = 100_000
    slow: float = 0.0  # how often an operation takes a hundred times as long
    workers: int = 4


class _File:
    def __init__(self, length: int) -> None:
        self.now = np.zeros((length // SECTOR, SECTOR), np.uint8)
        self.stable = np.zeros((length // SECTOR, SECTOR), np.uint8)
        self.unsynced = np.zeros(length // SECTOR, np.bool_)
        self.forgotten = np.zeros(length // SECTOR, np.bool_)  # unsynced, and no SYNC will change that any more
        self.written_at = np.zeros(length // SECTOR, np.int64)  # the number of the last write of each sector
        self.writes = 0

    def write(self, offset: int, data: memoryview, chosen: slice | _Mask) -> None:
        first = offset // SECTOR
        count = len(data) // SECTOR
        self.now[first : first + count][chosen] = np.frombuffer(data, np.uint8).reshape(-1, SECTOR)[chosen]
        self.writes += 1
        self.written_at[first : first + count][chosen] = self.writes
        self.unsynced[first : first + count][chosen] = True
        self.forgotten[first : first + count][chosen] = False

    def sync(self, first: int = 0, stop: int | None = None, *, writes: int | None = None) -> None:
        """Make sectors stable: those of the first so many writes, or all."""
        chosen = self.unsynced[first:stop] & ~self.forgotten[first:stop]
        if writes is not None and writes < self.writes:
            chosen &= self.written_at[first:stop] <= writes
        self.stable[first:stop][chosen] = self.now[first:stop][chosen]
        self.unsynced[first:stop][chosen] = False


class SimDisk:
    """The `Disk` port. `loop` is that of the server that is alive, and replaced with it."""

    def __init__(self, loop: SimLoop, rng: Random, faults: Faults, fate: Fate, trace: Trace) -> None:
        self.loop = loop
        self.character = DiskCharacter()
        self.files: dict[int, _File] = {}
        self._rng = rng
        self._faults = faults
        self._fate = fate
        self._trace = trace
        self._in_flight: dict[int, tuple[Io, int]] = {}  # with a digest of what is being written
        self._covered: dict[Io, int] = {}  # SYNCs in flight: how many writes of the file they cover
        self._waiting: deque[int] = deque()  # those of them that no worker has begun
        self._at_work = 0
        self._sequence = 0
        self._reads = 0
        self._flipped_at: dict[int, int] = {}  # file -> number of the last reading that was wrong

    # ---- the port

    def read_now(self, file: int, offset: int, view: memoryview) -> bool:
        if self._rng.random() >= self.character.cached or (file not in self.files):
            return False
        io = Io(READ, file, offset, view)
        self._perform(io, "read cached")
        return io.result == 0

    def drop_cached(self, file: int, offset: int, length: int) -> None:
        """There is no cache: each read sees what is stored."""

    def will_read(self, file: int, offset: int, length: int) -> None:
        """A hint, which this disk has no use for."""

    def start(self, io: Io) -> None:
        self._begin(io)
        self._sequence += 1
        self._in_flight[self._sequence] = io, _digest(io)
        if io.op == SYNC and io.file in self.files:
            self._covered[io] = self.files[io.file].writes
        self._waiting.append(self._sequence)
        self._set_to_work()

    def run(self, io: Io) -> int:
        try:
            self._begin(io)
        except Crashed:
            if io.op == WRITE:
                self._write_in_part(io)
            raise
        self._perform(io)
        return io.result

    def segments(self) -> list[int]:
        return sorted(file for file in self.files if file >= 0)

    def exists(self, file: int) -> bool:
        return file in self.files

    # ---- the world

    @property
    def busy(self) -> bool:
        return bool(self._in_flight)

    def server_dies(self) -> None:
        """What was in flight happens, happens in part, or does not."""
        for io, _ in self._in_flight.values():
            if io.op == WRITE:
                self._write_in_part(io)
            elif self._rng.random() < 0.5 and io.op in (SYNC, PREPARE, REMOVE):
                self._perform_well(io)
        self._in_flight.clear()
        self._covered.clear()
        self._waiting.clear()
        self._at_work = 0

    def power_fails(self) -> None:
        """Of what was never made durable, any sectors are left."""
        self.server_dies()
        for number in sorted(self.files):
            file = self.files[number]
            unsynced = np.flatnonzero(file.unsynced)
            if len(unsynced):
                kept = unsynced[self._mask(len(unsynced), self._rng.choice([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]))]
                file.stable[kept] = file.now[kept]
                file.now[unsynced] = file.stable[unsynced]
                file.unsynced[:] = False
                file.forgotten[:] = False

    def lose_slot(self) -> None:
        """The newer superblock slot turns out to be unreadable: the other one must do."""
        file = self.files.get(SUPERBLOCK)
        if file is None:
            return
        raw = [bytes(file.now.reshape(-1)[at : at + BLOCK_SIZE_BYTES]) for at in SLOT_OFFSETS]
        slots = [decode_superblock(slot) for slot in raw]
        if None in slots:
            return  # the other one is all there is
        newer = max(range(len(slots)), key=lambda index: slots[index].sequence)  # type: ignore[union-attr]  # both are
        sector = SLOT_OFFSETS[newer] // SECTOR
        file.now[sector] = file.stable[sector] = np.frombuffer(self._rng.randbytes(SECTOR), np.uint8)
        self._trace.note(self.loop.clock.at_ns, "world", "slot lost", newer)

    # ---- workers

    def _set_to_work(self) -> None:
        while self._waiting:
            # Where not even one can be had, the loop itself does the work: there always is somebody.
            if self._at_work and (self._at_work >= self.character.workers or self._faults.strike("worker")):
                return
            number = self._waiting.popleft()
            self._at_work += 1
            delay_ns = int(self.character.latency_ns * 2 * self._rng.random())
            if self.character.slow and self._rng.random() < self.character.slow:
                delay_ns *= 100
            self.loop.call_later(delay_ns, partial(self._complete, number))

    def _complete(self, number: int) -> None:
        io, digest = self._in_flight.pop(number)
        self._at_work -= 1
        assert _digest(io) == digest, f"{io}: the bytes changed while they were being written"
        self._perform(io)
        self._trace.note(self.loop.clock.at_ns, "disk", "done", io)
        self._set_to_work()
        if io.done is not None:
            io.done(io)

    # ---- operations

    def _begin(self, io: Io) -> None:
        trace = self._trace
        trace.note(self.loop.clock.at_ns, "disk", _NAMES[io.op], io)
        trace.digest(b"%d %d %d %d" % (io.file, io.offset, io.length, io.durable))
        if io.op == WRITE and io.view is not None:
            trace.digest(io.view)
            assert not _address(io.view) % BLOCK_SIZE_BYTES, f"{io}: not aligned in memory"
            assert not (io.offset | io.length) % BLOCK_SIZE_BYTES, f"{io}: not aligned"
        self._fate.effect()

    def _perform(self, io: Io, point: str = "") -> None:
        kind = self._faults.strike(point or point_of(io))
        if not kind:
            io.result = self._perform_well(io)
            return
        self._trace.note(self.loop.clock.at_ns, "fault", kind, io)
        if kind in ERRNOS or kind == SHORT:
            io.result = -ERRNOS.get(kind, EIO)
            if io.op == WRITE and (io.file in self.files or io.file == SUPERBLOCK):
                self._write_in_part(io)
            elif io.op == SYNC and io.file in self.files:
                file = self.files[io.file]
                unsynced = np.flatnonzero(file.unsynced)
                file.forgotten[unsynced[self._mask(len(unsynced), 0.5)]] = True
        else:
            io.result = self._perform_damaged(io, kind)

    def _perform_damaged(self, io: Io, kind: str) -> int:
        assert io.view is not None
        if kind == FORGET:
            return 0
        if kind == MISDIRECT:
            file = self._rng.choice(self.segments())
            blocks = (self.files[file].now.size - io.length) // BLOCK_SIZE_BYTES
            stray = Io(WRITE, file, self._rng.randrange(blocks + 1) * BLOCK_SIZE_BYTES, io.view, durable=io.durable)
            return self._perform_well(stray)
        result = self._perform_well(io)
        if result == 0:
            at = self._rng.randrange(io.length)
            bit = 1 << self._rng.randrange(8)
            if kind == FLIP:
                # Whoever looks again gets to see what is there: two wrong readings in a row are not one accident.
                if self._reads - self._flipped_at.get(io.file, -FLIP_READS_MIN) >= FLIP_READS_MIN:
                    self._flipped_at[io.file] = self._reads
                    io.view[at] ^= bit
            else:
                assert kind == ROT
                sector, byte = divmod(io.offset + at, SECTOR)
                self.files[io.file].now[sector, byte] ^= bit
                self.files[io.file].stable[sector, byte] ^= bit
        return result

    def _perform_well(self, io: Io) -> int:
        number = io.file
        if io.op == PREPARE:
            if number not in self.files:
                self.files[number] = _File(io.length)
            return 0
        if io.op == REMOVE:
            self.files.pop(number, None)
            return 0
        if number not in self.files:
            if number != SUPERBLOCK or io.op != WRITE:
                return -ENOENT
            self.files[number] = _File(SUPERBLOCK_FILE_BYTES)
        file = self.files[number]
        if io.op == SYNC:
            # Only what was complete when it was asked for: anything else would be more than a real disk promises.
            file.sync(writes=self._covered.pop(io, None))
            return 0
        assert io.view is not None
        if io.offset + io.length > file.now.size:
            return -EIO
        if io.op == WRITE:
            file.write(io.offset, io.view, slice(None))
            if io.durable:
                file.sync(io.offset // SECTOR, (io.offset + io.length) // SECTOR)
        else:
            self._reads += 1
            io.view[:] = file.now.reshape(-1)[io.offset : io.offset + io.length].data
        return 0

    def _write_in_part(self, io: Io) -> None:
        assert io.view is not None
        if io.file == SUPERBLOCK and io.file not in self.files:
            self.files[io.file] = _File(SUPERBLOCK_FILE_BYTES)
        file = self.files.get(io.file)
        if file is not None:
            mask = self._mask(io.length // SECTOR, self._rng.choice([0.0, 0.5, 1.0]))
            file.write(io.offset, io.view, mask)

    def _mask(self, count: int, rate: float) -> _Mask:
        if rate in (0.0, 1.0):
            return np.full(count, rate == 1.0)
        return np.frombuffer(self._rng.randbytes(count), np.uint8) < int(rate * 256)


def _digest(io: Io) -> int:
    return xxh3_64_intdigest(io.view) if io.op == WRITE and io.view is not None else 0


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)

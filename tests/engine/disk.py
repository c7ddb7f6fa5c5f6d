"""A disk in memory whose every choice comes out of a seeded generator: order, failures, what a power failure leaves.

Each file has two contents. `now` is what a read sees. `stable` is what is sure to be left after a power failure: where
the two differ, each 512-byte sector goes one way or the other. A durable write and a SYNC make them equal. What a
failed SYNC was to cover is lost to all later ones, as it is with a kernel that marks pages clean after an error: it
must be written again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from errno import EIO
from random import Random

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from holdfast.pool.superblock import SUPERBLOCK_FILE_BYTES
from holdfast.runtime.ports import PREPARE, READ, SUPERBLOCK, SYNC, WRITE, Io

SECTOR = 512


class Crashed(BaseException):
    """The server died inside a call of the disk. Not an Exception: nothing in the engine may catch it."""


@dataclass(slots=True)
class Fault:
    """Operations of kind `op` fail with `errno`, `rate` of them."""

    op: int
    errno: int
    rate: float = 1.0
    only: Callable[[Io], bool] = lambda _io: True


class _File:
    def __init__(self, length: int) -> None:
        self.now = np.zeros((length // SECTOR, SECTOR), np.uint8)
        self.stable = np.zeros((length // SECTOR, SECTOR), np.uint8)
        self.unsynced = np.zeros(length // SECTOR, np.bool_)
        self.forgotten = np.zeros(length // SECTOR, np.bool_)  # unsynced, and no SYNC will change that any more

    def write(self, offset: int, data: memoryview, chosen: slice | np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        first = offset // SECTOR
        count = len(data) // SECTOR
        self.now[first : first + count][chosen] = np.frombuffer(data, np.uint8).reshape(-1, SECTOR)[chosen]
        self.unsynced[first : first + count][chosen] = True
        self.forgotten[first : first + count][chosen] = False

    def sync(self, first: int = 0, stop: int | None = None) -> None:
        chosen = self.unsynced[first:stop] & ~self.forgotten[first:stop]
        self.stable[first:stop][chosen] = self.now[first:stop][chosen]
        self.unsynced[first:stop][chosen] = False


class SeededDisk:
    """The `Disk` port. Completions are called by whoever drives the world, one by one, through `complete_one`."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.files: dict[int, _File] = {}
        self.in_flight: list[tuple[Io, int]] = []
        self.faults: list[Fault] = []
        self.cached = 0.5  # how often `read_now` has the answer
        self.effects_left = -1  # the server dies at the effect after so many; -1: it does not
        self.effects = 0
        self.trace = xxh3_64()
        self.log: list[str] | None = None  # a test that looks for a fault sets it to []

    # ---- the port

    def read_now(self, file: int, offset: int, view: memoryview) -> bool:
        if self.rng.random() >= self.cached or any(fault.op == READ for fault in self.faults):
            return False
        self._read(file, offset, view)
        return True

    def drop_cached(self, file: int, offset: int, length: int) -> None:
        return

    def will_read(self, file: int, offset: int, length: int) -> None:
        pass

    def start(self, io: Io) -> None:
        self._count(io)
        self.in_flight.append((io, self._digest(io)))

    def run(self, io: Io) -> int:
        self._count(io)
        self._perform(io)
        return io.result

    def segments(self) -> list[int]:
        return sorted(file for file in self.files if file >= 0)

    def exists(self, file: int) -> bool:
        return file in self.files

    # ---- driving it

    def complete_one(self) -> None:
        """Finish one of the operations in flight, any of them."""
        self.complete(self.rng.randrange(len(self.in_flight)))

    def complete(self, index: int) -> None:
        io, digest = self.in_flight.pop(index)
        assert self._digest(io) == digest, f"{io}: the bytes changed while they were being written"
        self._perform(io)
        assert io.done is not None
        io.done(io)

    def server_dies(self) -> None:
        """What was in flight happens, happens in part, or does not."""
        for io, _ in self.in_flight:
            if io.op == WRITE:
                self._write_in_part(io)
            elif self.rng.random() < 0.5 and io.op in (SYNC, PREPARE):
                self._perform_well(io)
        self.in_flight.clear()
        self.effects_left = -1

    def power_fails(self) -> None:
        """Of what was never made durable, any sectors are left."""
        self.server_dies()
        for file in self.files.values():
            unsynced = np.flatnonzero(file.unsynced)
            if len(unsynced):
                survives = self.rng.choice([0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
                kept = unsynced[self._mask(len(unsynced), survives)]
                file.stable[kept] = file.now[kept]
                file.now[unsynced] = file.stable[unsynced]
                file.unsynced[:] = False
                file.forgotten[:] = False

    # ---- inside

    def _count(self, io: Io) -> None:
        self.effects += 1
        self.trace.update(f"{io.op} {io.file} {io.offset} {io.length} {io.durable} ".encode())
        if io.op == WRITE and io.view is not None:
            self.trace.update(io.view)
            assert np.frombuffer(io.view, np.uint8).ctypes.data % 4096 == 0, f"{io}: not aligned in memory"
            assert not (io.offset | io.length) % 4096, f"{io}: not aligned"
        if self.log is not None:
            self.log.append(repr(io))
        if self.effects_left == 0:
            raise Crashed
        self.effects_left -= 1

    def _digest(self, io: Io) -> int:
        return xxh3_64_intdigest(io.view) if io.op == WRITE and io.view is not None else 0

    def _perform(self, io: Io) -> None:
        for fault in self.faults:
            if fault.op == io.op and fault.only(io) and self.rng.random() < fault.rate:
                io.result = -fault.errno
                if io.op == WRITE:
                    self._write_in_part(io)
                elif io.op == SYNC:
                    file = self.files[io.file]
                    unsynced = np.flatnonzero(file.unsynced)
                    file.forgotten[unsynced[self._mask(len(unsynced), 0.5)]] = True
                return
        io.result = self._perform_well(io)

    def _perform_well(self, io: Io) -> int:
        if io.op == PREPARE:
            assert io.file not in self.files, f"{io}: it is there already"
            self.files[io.file] = _File(io.length)
        elif io.op == SYNC:
            self.files[io.file].sync()
        elif io.op == WRITE:
            assert io.view is not None
            file = self._file(io.file)
            if io.offset + io.length > file.now.size:
                return -EIO
            file.write(io.offset, io.view, slice(None))
            if io.durable:
                file.sync(io.offset // SECTOR, (io.offset + io.length) // SECTOR)
        else:
            assert io.op == READ
            assert io.view is not None
            return self._read(io.file, io.offset, io.view)
        return 0

    def _read(self, number: int, offset: int, view: memoryview) -> int:
        file = self._file(number)
        if offset + len(view) > file.now.size:
            return -EIO
        view[:] = file.now.reshape(-1)[offset : offset + len(view)].data
        return 0

    def _write_in_part(self, io: Io) -> None:
        assert io.view is not None
        mask = self._mask(io.length // SECTOR, self.rng.choice([0.0, 0.5, 1.0]))
        self._file(io.file).write(io.offset, io.view, mask)

    def _file(self, number: int) -> _File:
        if number == SUPERBLOCK and number not in self.files:
            self.files[number] = _File(SUPERBLOCK_FILE_BYTES)
        return self.files[number]

    def _mask(self, count: int, rate: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        if rate in (0.0, 1.0):
            return np.full(count, rate == 1.0)
        dice = np.frombuffer(self.rng.randbytes(count), np.uint8)
        return dice < int(rate * 256)

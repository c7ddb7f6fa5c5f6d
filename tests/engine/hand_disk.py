"""Disks whose operations end when a test says so: each by itself, or all but those that are held back.

`HandDisk` is the `Disk` port for rooms that are tested without a loop. `HoldingDisk` is the disk of a simulated world
that keeps some operations back. What either stores, how it fails and what a power failure leaves are the simulated
disk's.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from xxhash import xxh3_64_intdigest

from holdfast.runtime.ports import WRITE, Io
from holdfast.sim.disk import SimDisk
from holdfast.sim.fate import Fate
from holdfast.sim.faults import Faults
from holdfast.sim.loop import SimClock, SimLoop
from holdfast.sim.trace import Trace


class HandDisk:
    """Operations stay in flight until they are completed, in any order, by `complete` and `complete_one`."""

    def __init__(self, seed: int = 1) -> None:
        rng = Random(seed)
        self.faults = Faults(rng)
        self.stored = SimDisk(SimLoop(SimClock(), rng), rng, self.faults, Fate(), Trace())
        self.files = self.stored.files
        self.in_flight: list[Io] = []
        self._digests: dict[Io, int] = {}
        self._rng = rng

    # ---- the port

    def read_now(self, file: int, offset: int, view: memoryview) -> bool:
        return self.stored.read_now(file, offset, view)

    def will_read(self, file: int, offset: int, length: int) -> None:
        self.stored.will_read(file, offset, length)

    def drop_cached(self, file: int, offset: int, length: int) -> None:
        self.stored.drop_cached(file, offset, length)

    def start(self, io: Io) -> None:
        self.in_flight.append(io)
        self._digests[io] = _digest(io)

    def run(self, io: Io) -> int:
        return self.stored.run(io)

    def segments(self) -> list[int]:
        return self.stored.segments()

    def exists(self, file: int) -> bool:
        return self.stored.exists(file)

    # ---- by hand

    def complete_one(self) -> None:
        """Finish one of the operations in flight, any of them."""
        self.complete(self._rng.randrange(len(self.in_flight)))

    def complete(self, index: int) -> None:
        io = self.in_flight.pop(index)
        assert self._digests.pop(io) == _digest(io), f"{io}: the bytes changed while they were being written"
        self.stored.run(io)
        if io.done is not None:
            io.done(io)


class HoldingDisk(SimDisk):
    """The disk of a world, which does not begin the operations that `holds` is true of; they wait in `held`."""

    def __init__(self, loop: SimLoop, rng: Random, faults: Faults, fate: Fate, trace: Trace) -> None:
        super().__init__(loop, rng, faults, fate, trace)
        self.holds: Callable[[Io], bool] = _nothing
        self.held: list[Io] = []

    def start(self, io: Io) -> None:
        if self.holds(io):
            self.held.append(io)
        else:
            super().start(io)

    @property
    def busy(self) -> bool:
        return bool(self.held) or super().busy

    def release_one(self) -> None:
        """Begin the oldest operation that was held; the others stay where they are."""
        super().start(self.held.pop(0))

    def release(self) -> None:
        """Hold nothing any more."""
        self.holds = _nothing
        while self.held:
            self.release_one()

    def server_dies(self) -> None:
        self.release()  # what the server had handed over was in flight, like all the rest
        super().server_dies()


def _nothing(_io: Io) -> bool:
    return False


def _digest(io: Io) -> int:
    return xxh3_64_intdigest(io.view) if io.op == WRITE and io.view is not None else 0

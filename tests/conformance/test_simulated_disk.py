"""The simulated disk, and simulated shared memory, held to the contracts of the ports."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.ports import Disk
from holdfast.sim.disk import DiskCharacter, SimDisk
from holdfast.sim.fate import Fate
from holdfast.sim.faults import Faults
from holdfast.sim.loop import SimClock, SimLoop
from holdfast.sim.prng import stream
from holdfast.sim.ring import RingShelf, SimRing
from holdfast.sim.trace import Trace

from .disk_conformance import DiskConformance, OpenRing, RingConformance

TURNS_MAX = 10_000


class SimDiskWorld:
    def __init__(self, character: DiskCharacter) -> None:
        self._clock = SimClock()
        self._loop = SimLoop(self._clock, stream(1, "loop"))
        self._simulated = SimDisk(self._loop, stream(1, "disk"), Faults(stream(1, "faults")), Fate(), Trace())
        self._simulated.character = character
        self.disk: Disk = self._simulated

    def buffer(self, size_bytes: int) -> memoryview:
        return aligned_buffer(size_bytes)

    def run_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(TURNS_MAX):
            if condition():
                return
            self._loop.turn()
        raise AssertionError("what was waited for does not come")

    def reopen(self) -> None:
        self._simulated.server_dies()
        self._loop = self._simulated.loop = SimLoop(self._clock, stream(2, "loop"))


CHARACTERS = {
    "cold": DiskCharacter(cached=0.0),
    "cached": DiskCharacter(cached=1.0),
    "one worker": DiskCharacter(workers=1, slow=0.2),
}


class TestSimDisk(DiskConformance):
    @pytest.fixture(params=CHARACTERS)
    def world(self, request: pytest.FixtureRequest) -> SimDiskWorld:
        return SimDiskWorld(CHARACTERS[request.param])


class TestSimRing(RingConformance):
    @pytest.fixture
    def open_ring(self) -> OpenRing:
        shelf = RingShelf(aligned_buffer)
        return lambda size_bytes: shelf.open("test", size_bytes)


class TestSimRingOfADeadServer(RingConformance):
    @pytest.fixture
    def open_ring(self) -> OpenRing:
        shelf = RingShelf(aligned_buffer)

        def open_after_a_death(size_bytes: int) -> SimRing:
            shelf.server_dies()
            return shelf.open("test", size_bytes)

        return open_after_a_death

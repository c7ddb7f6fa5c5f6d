"""The simulated loop, connections, clock and randomness, held to the contracts of the ports."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.runtime.ports import Clock, Loop, Prng, Socket
from holdfast.sim.loop import SimClock, SimLoop
from holdfast.sim.network import SimSocket
from holdfast.sim.prng import SeededPrng, stream
from holdfast.units import KIB

from .clock_conformance import ClockConformance, PassTime, PrngConformance
from .network_conformance import LoopConformance, Peer, SocketConformance
from .network_endings import LoopEndings, SocketEndings

# Far more than any of these tests needs. A loop that has nothing to do turns all the same: it cannot hang.
TURNS_MAX = 200_000


class SimPeer:
    def __init__(self, far: SimSocket) -> None:
        self._far = far

    def send(self, data: bytes) -> int:
        return self._far.push(memoryview(data))

    def receive(self) -> bytes:
        return self._far.pull()

    @property
    def ended(self) -> bool:
        return self._far.closed and not self._far.to_client

    def leave(self) -> None:
        self._far.hang_up(reset=False)

    def vanish(self) -> None:
        self._far.hang_up(reset=True)


class SimNetwork:
    def __init__(self, seed: int, *, portions: float) -> None:
        self._clock = SimClock()
        self._loop = SimLoop(self._clock, stream(seed, "loop"))
        self.loop: Loop = self._loop
        self.clock: Clock = self._clock
        self._rng = stream(seed, "network")
        self._portions = portions
        self._next_fd = 3

    def connect(self) -> tuple[Socket, Peer]:
        socket = SimSocket(self._next_fd, self._rng, room_bytes=64 * KIB, portions=self._portions)
        self._next_fd += 1
        self._loop.sockets[socket.fileno()] = socket
        return socket, SimPeer(socket)

    def run_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(TURNS_MAX):
            self._loop.turn()
            if condition():
                return
        raise AssertionError("what was waited for does not come")


class TestSimLoop(LoopConformance, LoopEndings):
    @pytest.fixture(params=range(4))
    def world(self, request: pytest.FixtureRequest) -> SimNetwork:
        return SimNetwork(request.param, portions=0.0)


class TestSimSocket(SocketConformance, SocketEndings):
    @pytest.fixture(params=[0.0, 0.8])
    def world(self, request: pytest.FixtureRequest) -> SimNetwork:
        return SimNetwork(1, portions=request.param)


class TestSimClock(ClockConformance):
    @pytest.fixture
    def clock(self) -> SimClock:
        return SimClock()

    @pytest.fixture
    def pass_time(self, clock: SimClock) -> PassTime:
        def pass_time(duration_ns: int) -> None:
            loop = SimLoop(clock, stream(1, "loop"))
            over: list[bool] = []
            loop.call_later(duration_ns, lambda: over.append(True))
            while not over:
                loop.turn()

        return pass_time


class TestSeededPrng(PrngConformance):
    @pytest.fixture
    def prng(self) -> Prng:
        return SeededPrng(stream(1, "conformance"))

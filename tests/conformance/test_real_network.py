"""The event loop over epoll, the kernel's sockets, clock and randomness, held to the contracts of the ports."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from holdfast.runtime.clock import SystemClock
from holdfast.runtime.loop import EventLoop
from holdfast.runtime.ports import Clock, Loop, Prng, Socket
from holdfast.runtime.prng import SystemPrng

from .clock_conformance import ClockConformance, PassTime, PrngConformance
from .network_conformance import LoopConformance, Peer, SocketConformance
from .network_endings import LoopEndings, SocketEndings


class RealPeer:
    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._ended = False

    def send(self, data: bytes) -> int:
        try:
            return self._end.send(data)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes:
        received = b""
        try:
            while part := self._end.recv(1 << 20):
                received += part
        except BlockingIOError:
            return received
        self._ended = True
        return received

    @property
    def ended(self) -> bool:
        return self._ended

    def leave(self) -> None:
        self.receive()
        self._end.close()

    def vanish(self) -> None:
        self._end.close()  # with what it has not received, if there is any: the kernel tells us of a reset then


class RealNetwork:
    def __init__(self) -> None:
        self._loop = EventLoop()
        self.loop: Loop = self._loop
        self.clock: Clock = SystemClock()
        self._ends: list[socket.socket] = []

    def connect(self) -> tuple[Socket, Peer]:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
            self._ends.append(end)
        return ours, RealPeer(theirs)

    def run_until(self, condition: Callable[[], bool]) -> None:
        def stop_when_it_holds() -> None:
            if condition():
                self._loop.stop()

        self._loop.before_sleep.append(stop_when_it_holds)
        self._loop.run()
        self._loop.before_sleep.remove(stop_when_it_holds)

    def close(self) -> None:
        for end in self._ends:
            end.close()
        self._loop.dispose()


@pytest.fixture
def network() -> Iterator[RealNetwork]:
    network = RealNetwork()
    yield network
    network.close()


class TestEventLoop(LoopConformance, LoopEndings):
    @pytest.fixture
    def world(self, network: RealNetwork) -> RealNetwork:
        return network


class TestKernelSocket(SocketConformance, SocketEndings):
    @pytest.fixture
    def world(self, network: RealNetwork) -> RealNetwork:
        return network


class TestSystemClock(ClockConformance):
    @pytest.fixture
    def clock(self) -> Clock:
        return SystemClock()

    @pytest.fixture
    def pass_time(self) -> PassTime:
        return lambda duration_ns: time.sleep(duration_ns / 1e9)


class TestSystemPrng(PrngConformance):
    @pytest.fixture
    def prng(self) -> Prng:
        return SystemPrng()

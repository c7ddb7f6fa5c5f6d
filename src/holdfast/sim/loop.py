"""Simulated time, and the loop of a simulated server: one event after another, in an order that the seed chooses.

Time stands still while code runs. When nothing is ready, it jumps to the next event: a completion of the disk, a timer
of the server, a client that wakes up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Protocol

Callback = Callable[[], object]

# What a turn of the loop takes. Also what keeps a turn that leads to the next one, for ever, from looking like no time.
TURN_NS = 2_000
BATCH_NS = 20_000


class SimClock:
    """The `Clock` port: it moves when the loop moves it."""

    def __init__(self) -> None:
        self.at_ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.at_ns

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.at_ns


class SimTimer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Pollable(Protocol):
    """A socket, as the loop looks at it."""

    def readable(self) -> bool: ...
    def writable(self) -> bool: ...


class SimLoop:
    """The `Loop` port. Made anew for each life of the server, over the same clock.

    batch_ns: events so close together are served in one turn
    """

    def __init__(self, clock: SimClock, rng: Random, *, batch_ns: int = BATCH_NS) -> None:
        self.clock = clock
        self.before_sleep: list[Callback] = []
        self.looks = 2  # in vain: while code runs time stands still, and nobody sends anything
        self._batch_ns = batch_ns
        self.sockets: dict[int, Pollable] = {}
        self._rng = rng
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._events: list[tuple[int, int, SimTimer]] = []
        self._sequence = 0
        self._again = True

    # ---- the port

    def add_reader(self, fd: int, callback: Callback) -> None:
        self._readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        self._readers.pop(fd, None)

    def set_writer(self, fd: int, callback: Callback | None) -> None:
        if callback is None:
            self._writers.pop(fd, None)
        else:
            self._writers[fd] = callback

    def close(self, fd: int) -> None:
        self._readers.pop(fd, None)
        self._writers.pop(fd, None)
        self.sockets.pop(fd, None)

    def call_later(self, delay_ns: int, callback: Callback) -> SimTimer:
        timer = SimTimer(callback)
        self._sequence += 1
        heapq.heappush(self._events, (self.clock.at_ns + delay_ns, self._sequence, timer))
        return timer

    def turn_again(self) -> None:
        self._again = True

    # ---- driving it

    def turn(self) -> None:
        """One turn: what is due, sockets that are ready, the hooks. Jumps ahead in time if there is nothing to do."""
        clock = self.clock
        clock.at_ns += TURN_NS
        ready = self._ready()
        events = self._events
        if not (ready or self._again) and events:
            clock.at_ns = max(clock.at_ns, events[0][0])
        self._again = False
        due_ns = clock.at_ns + self._batch_ns
        newest = self._sequence
        while events and events[0][0] <= due_ns and events[0][1] <= newest:
            at_ns, _, timer = heapq.heappop(events)
            callback = timer.callback
            if callback is not None:
                clock.at_ns = max(clock.at_ns, at_ns)
                callback()
        if len(ready) > 1:
            self._rng.shuffle(ready)
        for callbacks, fd in ready:
            callback = callbacks.get(fd)  # one called before may have closed it
            if callback is not None:
                callback()
        for hook in self.before_sleep:
            hook()

    def _ready(self) -> list[tuple[dict[int, Callback], int]]:
        """Sockets that somebody waits for and that are ready: the table of the callback, and the descriptor."""
        sockets = self.sockets
        ready = [(self._readers, fd) for fd in self._readers if sockets[fd].readable()]
        if self._writers:
            ready += [(self._writers, fd) for fd in self._writers if sockets[fd].writable()]
        return ready

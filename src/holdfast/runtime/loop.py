"""The event loop: epoll, timers, calls from other threads and signals, with little Python between them.

Everything that serves runs in its thread.  asyncio was measured and left out (docs/decisions/0001-event-loop.md): what
it adds a wake-up costs as much as answering a request.

One turn: wait in epoll; callbacks of ready descriptors; timers that are due; calls from other threads; `call_soon`;
then the `before_sleep` hooks.  A server collects requests in the callbacks and answers all of them in the hook, so that
a turn is a batch.

1. Callbacks run in the loop's thread only.  `post` is the only method that other threads may call.
2. A wake-up may be spurious: a callback earlier in the turn may have closed a descriptor whose number was given out
   anew at once.  Descriptors are non-blocking, and callbacks take EAGAIN for an answer.
3. Nothing is lost when a callback raises: descriptors are level-triggered, timers and calls are taken off their queue
   one at a time.  `on_error` gets the exception; the default lets it out of `run`.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

Callback = Callable[[], object]

# How long a server looks for the next request before it goes to sleep, after one came: a client that waits for each
# answer sends its next request 15 to 25 us after it, and being woken costs as much again, in a virtual machine more.
SPIN_NS = 30_000
# The same while the disk is at work for somebody: about what a flush or a cold read takes on a fast disk.
SPIN_DISK_NS = 200_000
# How often the rest of a message is looked for, in vain, before what is there of it is dealt with: the peer is woken
# when its socket has room again and takes some 50 us to fill it, while an empty look takes little more than one.
LOOKS = 40
# Ready descriptors taken in one wait.  42 events fit into what Python's small-object allocator serves (512 bytes);
# the kernel hands the rest out, in turn, at the next wait, so that no descriptor starves.
_EVENTS_MAX = 42
_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_IN_OR_FAILED = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP | select.EPOLLPRI
_OUT_OR_FAILED = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
# Cancelled timers stay in the heap until due; beyond this many, and more than half of it, they are swept out.
_CANCELLED_MAX = 256


class Timer:
    """What `call_later` returns. `cancel` may be called at any time, also after it ran."""

    __slots__ = ("_loop", "callback")

    def __init__(self, loop: EventLoop, callback: Callback) -> None:
        self._loop = loop
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._loop._timer_cancelled()


class EventLoop:
    # L: loop thread only. A: any thread (single operations on a deque or a flag, which the interpreter keeps atomic).
    def __init__(self, *, on_error: Callable[[Exception], None] | None = None, spin_ns: int = 0) -> None:
        self.before_sleep: list[Callback] = []  # L
        self._on_error = on_error
        # With a single processor the one whose request is awaited could not run meanwhile.
        spins = spin_ns > 0 and len(os.sched_getaffinity(0)) > 1
        self._spin_ns = spin_ns if spins else 0
        self.looks = LOOKS if spins else 0
        self.disk_at_work: Callable[[], object] = bool  # L: true while a disk has operations in flight; set by it
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}  # L
        self._writers: dict[int, Callback] = {}  # L
        self._soon: deque[Callback] = deque()  # L
        self._last: list[Callback] = []  # L
        self._timers: list[tuple[int, int, Timer]] = []  # L: a heap by (due, sequence)
        self._timer_sequence = 0
        self._cancelled_count = 0
        self._stopping = False
        self._posted: deque[Callback] = deque()  # A
        self._asleep = False  # A: set before waiting; whoever posts while it is set clears it and wakes the loop
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Edge-triggered: every write wakes once and the counter never has to be read, which saves a system call a wake.
        self._epoll.register(self._wake_fd, select.EPOLLIN | select.EPOLLET)
        self._signals: dict[int, Callback] = {}  # L
        self._signals_before: dict[int, Any] = {}
        self._signal_sockets: tuple[socket.socket, socket.socket] | None = None
        self._wakeup_fd_before = -1

    # Descriptors.

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` is readable, at its end or broken. Replaces an earlier one."""
        before = self._mask(fd)
        self._readers[fd] = callback
        self._update(fd, before)

    def remove_reader(self, fd: int) -> None:
        before = self._mask(fd)
        if self._readers.pop(fd, None) is not None:
            self._update(fd, before)

    def set_writer(self, fd: int, callback: Callback | None) -> None:
        """Call `callback` whenever `fd` is writable or broken; None ends that."""
        before = self._mask(fd)
        if callback is not None:
            self._writers[fd] = callback
        elif self._writers.pop(fd, None) is None:
            return
        self._update(fd, before)

    def close(self, fd: int) -> None:
        """Forget reader and writer of `fd`. To be called before the descriptor itself is closed, by its owner."""
        before = self._mask(fd)
        self._readers.pop(fd, None)
        self._writers.pop(fd, None)
        self._update(fd, before)

    def _mask(self, fd: int) -> int:
        return (_IN if fd in self._readers else 0) | (_OUT if fd in self._writers else 0)

    def _update(self, fd: int, before: int) -> None:
        mask = self._mask(fd)
        if mask == before:
            return
        # A descriptor that nobody waits for is taken out altogether: epoll reports HUP and ERR even for an empty mask,
        # and a paused connection whose peer is gone would spin.
        if not before:
            self._epoll.register(fd, mask)
        elif not mask:
            self._epoll.unregister(fd)
        else:
            self._epoll.modify(fd, mask)

    # Calls.

    def call_soon(self, callback: Callback) -> None:
        """Call it in this turn, or in the next if called from the queue itself or from a `before_sleep` hook."""
        self._soon.append(callback)

    def turn_again(self) -> None:
        """Turn once more without waiting, whether anything is ready or not."""
        self._soon.append(_nothing)

    def call_last(self, callback: Callback) -> None:
        """Call once, after the `before_sleep` hooks of this turn: what they have gathered can go out together."""
        self._last.append(callback)

    def call_later(self, delay_ns: int, callback: Callback) -> Timer:
        """Call it after `delay_ns`, to the millisecond that epoll counts in, never early."""
        timer = Timer(self, callback)
        self._timer_sequence += 1
        heapq.heappush(self._timers, (time.monotonic_ns() + delay_ns, self._timer_sequence, timer))
        return timer

    def post(self, callback: Callback) -> None:
        """Call it in the loop's thread. From any thread; costs a system call only if the loop is waiting."""
        self._posted.append(callback)
        # The loop sets the flag before it looks at the queue for the last time, we look at the flag after the append:
        # one of the two sees the other.
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._wake_fd, 1)

    def add_signal(self, signum: int, callback: Callback) -> None:
        """Call it in the loop when the process gets `signum`. Only in the main thread."""
        if self._signal_sockets is None:
            receiver, sender = socket.socketpair()
            receiver.setblocking(False)
            sender.setblocking(False)
            self._signal_sockets = receiver, sender
            self._wakeup_fd_before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            self.add_reader(receiver.fileno(), self._on_signals)
        self._signals[signum] = callback
        before = signal.signal(signum, _ignore)
        self._signals_before.setdefault(signum, before)
        signal.siginterrupt(signum, False)

    def _on_signals(self) -> None:
        assert self._signal_sockets is not None
        try:
            numbers = self._signal_sockets[0].recv(4096)
        except BlockingIOError:
            return
        for signum in numbers:
            callback = self._signals.get(signum)
            if callback is not None:
                self._soon.append(callback)

    # Running.

    def run(self) -> None:
        """Turn until `stop`. The turn in which that is called is completed, its `before_sleep` hooks included."""
        while True:
            # The first turn does not wait, so that the hooks run before every wait, also after an exception cut a turn
            # short.
            self.turn_again()
            try:
                self._turns()
            except Exception as error:
                if self._on_error is None:
                    raise
                self._on_error(error)
                if not self._stopping:
                    continue
            break
        self._stopping = False

    def stop(self) -> None:
        """End `run` after this turn; before `run`, after its first. From other threads: `post(loop.stop)`."""
        self._stopping = True

    def _turns(self) -> None:
        # Locals: this is the innermost Python of the server.
        poll = self._epoll.poll
        reader_of = self._readers.get
        soon = self._soon
        posted = self._posted
        last = self._last
        spin_ns = self._spin_ns
        timers = self._timers
        monotonic_ns = time.monotonic_ns
        busy = False
        while True:
            if soon:
                timeout_s: float | None = 0
            else:
                timeout_s = self._until_next_timer_s() if timers else None
                self._asleep = True
                if posted:
                    timeout_s = 0
            ready = poll(0, _EVENTS_MAX) if busy else ()
            if not ready and busy and spin_ns and timeout_s != 0:
                # The next request of a client that waits for its answer comes within microseconds; going to sleep and
                # being woken costs more than that, several times more in a virtual machine.
                spin_until_ns = monotonic_ns() + (SPIN_DISK_NS if self.disk_at_work() else spin_ns)
                while not ready and not posted and monotonic_ns() < spin_until_ns:
                    ready = poll(0, _EVENTS_MAX)
            busy = bool(ready)
            if not ready:
                ready = poll(0 if posted else timeout_s, _EVENTS_MAX)
                busy = bool(ready)
            self._asleep = False
            for fd, mask in ready:
                if mask & _IN_OR_FAILED:
                    callback = reader_of(fd)
                    if callback is not None:
                        callback()
                if mask & _OUT_OR_FAILED:
                    callback = self._writers.get(fd)
                    if callback is not None:
                        callback()
            if timers:
                self._run_timers()
            # As many as there are now: a callback that queues itself again waits for the next turn.
            for _ in range(len(posted)):
                posted.popleft()()
            for _ in range(len(soon)):
                soon.popleft()()
            for hook in self.before_sleep:
                hook()
            while last:
                last.pop()()
            if self._stopping:
                return

    def _until_next_timer_s(self) -> float:
        return max(0, self._timers[0][0] - time.monotonic_ns()) / 1e9

    def _run_timers(self) -> None:
        now_ns = time.monotonic_ns()
        timers = self._timers
        # Those that are made by the callbacks are due at or after `now_ns` + their delay; a delay of zero could keep us
        # here for ever, so only those that exist now are run.
        newest = self._timer_sequence
        while timers and timers[0][0] <= now_ns and timers[0][1] <= newest:
            timer = heapq.heappop(timers)[2]
            callback = timer.callback
            if callback is None:
                self._cancelled_count -= 1
            else:
                timer.callback = None
                callback()

    def _timer_cancelled(self) -> None:
        self._cancelled_count += 1
        if self._cancelled_count > _CANCELLED_MAX and self._cancelled_count * 2 > len(self._timers):
            self._timers[:] = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled_count = 0

    def dispose(self) -> None:
        """Close what the loop itself owns and give the signals back. The loop may not be running."""
        if self._signal_sockets is not None:
            signal.set_wakeup_fd(self._wakeup_fd_before, warn_on_full_buffer=False)
            for signum, handler in self._signals_before.items():
                signal.signal(signum, handler)
            for end in self._signal_sockets:
                end.close()
            self._signal_sockets = None
        self._epoll.close()
        os.close(self._wake_fd)


def _nothing() -> None:
    """Queued so that the next wait does not wait."""


def _ignore(signum: int, frame: FrameType | None) -> None:
    """A handler has to be there for Python to write the number to the wakeup descriptor; the loop does the rest."""

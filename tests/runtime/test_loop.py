"""The event loop: order within a turn, calls from threads, timers, signals, callbacks that fail or remove others."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from holdfast.runtime.loop import EventLoop

MS = 1_000_000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


Pair = tuple[socket.socket, socket.socket]


def receive_all(end: socket.socket) -> None:
    while end.recv(1 << 20):
        pass


def recorder(loop: EventLoop, seen: list[str], name: str) -> Callable[[], None]:
    """A callback that notes its name and ends the loop."""

    def record() -> None:
        seen.append(name)
        loop.stop()

    return record


def test_a_reader_is_called_when_bytes_arrive(loop: EventLoop, pair: Pair) -> None:
    ours, theirs = pair
    seen: list[bytes] = []

    def receive() -> None:
        seen.append(ours.recv(10))
        loop.stop()

    loop.add_reader(ours.fileno(), receive)
    loop.call_soon(lambda: theirs.send(b"hello"))
    loop.run()
    assert seen == [b"hello"]


def test_a_reader_is_called_when_the_peer_goes_away(loop: EventLoop, pair: Pair) -> None:
    ours, theirs = pair
    seen: list[str] = []
    loop.add_reader(ours.fileno(), recorder(loop, seen, "end"))
    theirs.close()
    loop.run()
    assert seen == ["end"]


def test_a_removed_reader_is_not_called_and_does_not_spin(loop: EventLoop, pair: Pair) -> None:
    ours, theirs = pair
    turns: list[None] = []
    seen: list[str] = []
    loop.add_reader(ours.fileno(), recorder(loop, seen, "reader"))
    loop.remove_reader(ours.fileno())
    theirs.close()  # a hang-up, which epoll reports to whoever is registered at all
    loop.before_sleep.append(lambda: turns.append(None))
    loop.call_later(20 * MS, loop.stop)
    loop.run()
    assert seen == []
    assert len(turns) <= 3


def test_a_reader_can_be_added_again(loop: EventLoop, pair: Pair) -> None:
    ours, theirs = pair
    seen: list[str] = []
    loop.add_reader(ours.fileno(), recorder(loop, seen, "first"))
    loop.remove_reader(ours.fileno())
    loop.add_reader(ours.fileno(), recorder(loop, seen, "second"))
    theirs.send(b"x")
    loop.run()
    assert seen == ["second"]


def test_a_writer_is_called_once_the_socket_takes_bytes_again(loop: EventLoop, pair: Pair) -> None:
    ours, theirs = pair
    ours.send(bytes(1 << 24))  # takes what the socket holds, which is less
    seen: list[str] = []

    def drain() -> None:
        seen.append("drain")
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            receive_all(theirs)

    loop.set_writer(ours.fileno(), recorder(loop, seen, "writer"))
    loop.call_later(5 * MS, drain)
    loop.run()
    assert seen == ["drain", "writer"]


def test_a_writer_set_to_none_is_not_called_and_the_reader_stays(loop: EventLoop, pair: Pair) -> None:
    ours, theirs = pair
    seen: list[str] = []
    loop.add_reader(ours.fileno(), recorder(loop, seen, "reader"))
    loop.set_writer(ours.fileno(), recorder(loop, seen, "writer"))
    loop.set_writer(ours.fileno(), None)
    theirs.send(b"x")
    loop.run()
    assert seen == ["reader"]


def test_reader_and_writer_of_one_descriptor_are_both_called(loop: EventLoop, pair: Pair) -> None:
    ours, theirs = pair
    seen: list[str] = []
    theirs.send(b"x")
    loop.add_reader(ours.fileno(), recorder(loop, seen, "reader"))
    loop.set_writer(ours.fileno(), recorder(loop, seen, "writer"))
    loop.run()
    assert seen == ["reader", "writer"]


def test_a_callback_may_remove_another_that_is_ready_in_the_same_turn(loop: EventLoop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    fds = [ours.fileno() for ours, _ in pairs]
    seen: list[int] = []

    def remove_the_other(mine: int, other: int) -> Callable[[], None]:
        def callback() -> None:
            seen.append(mine)
            loop.close(other)
            loop.stop()

        return callback

    loop.add_reader(fds[0], remove_the_other(fds[0], fds[1]))
    loop.add_reader(fds[1], remove_the_other(fds[1], fds[0]))
    for _, theirs in pairs:
        theirs.send(b"x")
    loop.run()
    assert len(seen) == 1
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_call_soon_calls_in_order(loop: EventLoop) -> None:
    seen: list[int] = []
    for n in range(3):
        loop.call_soon(partial(seen.append, n))
    loop.call_soon(loop.stop)
    loop.run()
    assert seen == [0, 1, 2]


def test_a_callback_that_queues_itself_does_not_starve_the_rest(loop: EventLoop, pair: Pair) -> None:
    ours, theirs = pair
    seen: list[str] = []

    def again() -> None:
        loop.call_soon(again)

    again()
    loop.add_reader(ours.fileno(), recorder(loop, seen, "reader"))
    theirs.send(b"x")
    loop.run()
    assert seen == ["reader"]


def test_a_timer_runs_after_its_delay_and_never_early(loop: EventLoop) -> None:
    started_ns = time.monotonic_ns()
    ended_ns: list[int] = []

    def due() -> None:
        ended_ns.append(time.monotonic_ns())
        loop.stop()

    loop.call_later(3 * MS, due)
    loop.run()
    assert ended_ns[0] - started_ns >= 3 * MS


def test_timers_run_in_the_order_in_which_they_are_due(loop: EventLoop) -> None:
    seen: list[str] = []
    loop.call_later(4 * MS, recorder(loop, seen, "late"))
    loop.call_later(1 * MS, lambda: seen.append("early"))
    loop.call_later(1 * MS, lambda: seen.append("early too"))
    loop.run()
    assert seen == ["early", "early too", "late"]


def test_a_cancelled_timer_does_not_run(loop: EventLoop) -> None:
    seen: list[str] = []
    loop.call_later(1 * MS, lambda: seen.append("cancelled")).cancel()
    loop.call_later(3 * MS, loop.stop)
    loop.run()
    assert seen == []


def test_a_timer_may_be_cancelled_after_it_ran_and_twice(loop: EventLoop) -> None:
    timer = loop.call_later(0, loop.stop)
    loop.run()
    timer.cancel()
    timer.cancel()


def test_cancelled_timers_do_not_pile_up(loop: EventLoop) -> None:
    for _ in range(10_000):
        loop.call_later(3_600_000 * MS, loop.stop).cancel()
    assert len(loop._timers) < 1000


def test_a_timer_of_no_delay_that_renews_itself_does_not_starve_the_rest(loop: EventLoop, pair: Pair) -> None:
    ours, theirs = pair
    seen: list[str] = []

    def again() -> None:
        loop.call_later(0, again)

    again()
    loop.add_reader(ours.fileno(), recorder(loop, seen, "reader"))
    theirs.send(b"x")
    loop.run()
    assert seen == ["reader"]


def test_post_wakes_a_loop_that_sleeps(loop: EventLoop) -> None:
    asleep = threading.Event()
    loop.before_sleep.append(asleep.set)
    callers: list[int] = []

    def post_when_asleep() -> None:
        asleep.wait()
        loop.post(lambda: callers.append(threading.get_ident()))
        loop.post(loop.stop)

    thread = threading.Thread(target=post_when_asleep)
    thread.start()
    loop.run()
    thread.join()
    assert callers == [threading.get_ident()]


def test_no_post_is_lost_between_threads(loop: EventLoop) -> None:
    count = 0

    def posted() -> None:
        nonlocal count
        count += 1
        if count == 4 * 5000:
            loop.stop()

    def post_many() -> None:
        for _ in range(5000):
            loop.post(posted)

    threads = [threading.Thread(target=post_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    loop.run()
    for thread in threads:
        thread.join()
    assert count == 4 * 5000


def test_what_was_posted_before_run_is_called(loop: EventLoop) -> None:
    loop.post(loop.stop)
    loop.run()


def test_the_hooks_run_once_a_turn_after_all_callbacks(loop: EventLoop, pair: Pair) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    seen: list[str] = []
    loop.before_sleep.append(lambda: seen.append("hook"))
    loop.add_reader(ours.fileno(), recorder(loop, seen, "reader"))
    loop.call_soon(lambda: seen.append("soon"))
    loop.run()
    assert seen == ["reader", "soon", "hook"]


def test_what_a_hook_queues_is_called_without_waiting(loop: EventLoop) -> None:
    def hook() -> None:
        loop.before_sleep.clear()
        loop.call_soon(loop.stop)

    loop.before_sleep.append(hook)
    loop.call_soon(lambda: None)
    loop.run()


def test_stop_completes_the_turn(loop: EventLoop) -> None:
    seen: list[str] = []
    loop.before_sleep.append(lambda: seen.append("answers sent"))
    loop.call_soon(loop.stop)
    loop.call_soon(lambda: seen.append("another"))
    loop.run()
    assert seen == ["another", "answers sent"]


def test_run_can_be_called_again_after_stop(loop: EventLoop) -> None:
    seen: list[str] = []
    for name in ("first", "second"):
        loop.call_soon(recorder(loop, seen, name))
        loop.run()
    assert seen == ["first", "second"]


def _fail() -> None:
    raise LookupError("a callback failed")


def test_an_exception_leaves_run_by_default(loop: EventLoop) -> None:
    loop.call_soon(_fail)
    with pytest.raises(LookupError):
        loop.run()


def test_on_error_gets_the_exception_and_nothing_else_is_lost(pair: Pair) -> None:
    ours, theirs = pair
    errors: list[Exception] = []
    seen: list[str] = []
    loop = EventLoop(on_error=errors.append)

    def receive() -> None:
        seen.append("reader")
        loop.remove_reader(ours.fileno())

    loop.call_soon(_fail)
    loop.call_soon(lambda: seen.append("soon"))
    loop.post(lambda: seen.append("posted"))
    theirs.send(b"x")
    loop.add_reader(ours.fileno(), receive)
    loop.call_later(2 * MS, recorder(loop, seen, "timer"))
    loop.run()
    loop.dispose()
    assert [str(error) for error in errors] == ["a callback failed"]
    assert sorted(seen) == ["posted", "reader", "soon", "timer"]


def test_the_hooks_run_in_the_turn_after_an_exception(loop: EventLoop) -> None:
    loop = EventLoop(on_error=lambda error: None)
    loop.before_sleep.append(loop.stop)
    loop.call_soon(_fail)
    loop.run()  # would wait for ever if the hook were skipped for good
    loop.dispose()


def test_a_signal_is_called_in_the_loop(loop: EventLoop) -> None:
    seen: list[str] = []
    loop.add_signal(signal.SIGUSR1, recorder(loop, seen, "usr1"))
    loop.call_later(1 * MS, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    loop.run()
    assert seen == ["usr1"]


def test_dispose_gives_the_signals_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    loop = EventLoop()
    loop.add_signal(signal.SIGUSR1, loop.stop)
    loop.dispose()
    assert signal.getsignal(signal.SIGUSR1) == before

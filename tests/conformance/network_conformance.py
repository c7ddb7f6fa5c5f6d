"""The contracts of the `Loop` and `Socket` ports, as tests that every implementation inherits.

A test class derives from `LoopConformance` or `SocketConformance` and gives it the fixture that makes a world: a loop,
its clock, and connections, each with the far end that a test plays itself. What a connection that ends looks like is in
`network_endings.py`. What only one of them has (signals, posts of other threads, portions that a seed chooses) is
tested beside it, not here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import pytest

from holdfast.runtime.ports import Clock, Loop, Socket

MS = 1_000_000
HOUR_NS = 3_600_000 * MS
MORE_THAN_ROOM_BYTES = 1 << 24  # than any of these connections holds


class Peer(Protocol):
    """The far end of a connection."""

    def send(self, data: bytes) -> int:
        """Send what there is room for; returns how much that was."""
        ...

    def receive(self) -> bytes:
        """All that has come so far."""
        ...

    @property
    def ended(self) -> bool:
        """True if nothing will come any more: the near end was closed, and all that it had sent was received."""
        ...

    def leave(self) -> None:
        """Close the connection; what was sent before that arrives."""
        ...

    def vanish(self) -> None:
        """Break the connection, whatever is still under way."""
        ...


class NetworkWorld(Protocol):
    loop: Loop
    clock: Clock

    def connect(self) -> tuple[Socket, Peer]: ...

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until `condition` holds, which is looked at after each turn."""
        ...


def let_pass(world: NetworkWorld, duration_ns: int) -> None:
    over: list[bool] = []
    world.loop.call_later(duration_ns, lambda: over.append(True))
    world.run_until(lambda: bool(over))


def receive_some(socket: Socket, size_bytes: int = 1 << 16) -> bytes:
    buffer = memoryview(bytearray(size_bytes))
    return bytes(buffer[: socket.recv_into(buffer)])


def receive_exactly(socket: Socket, length: int) -> bytes:
    """For what has been sent already: a receive may bring any part of it."""
    received = b""
    while len(received) < length:
        received += receive_some(socket, length - len(received))
    return received


def send_until_full(socket: Socket) -> int:
    """Send until the peer's buffer takes no more; returns how much it took."""
    sent = 0
    while True:
        try:
            sent += socket.send(bytes(MORE_THAN_ROOM_BYTES))
        except BlockingIOError:
            return sent


class LoopConformance:
    @pytest.fixture
    def world(self) -> NetworkWorld:
        raise NotImplementedError("the deriving class makes the world")

    @pytest.fixture
    def seen(self) -> list[str]:
        """The names of the callbacks that were called, in order."""
        return []

    # Readers.

    def test_a_reader_is_called_when_bytes_arrive(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        received: list[bytes] = []
        world.loop.add_reader(socket.fileno(), lambda: received.append(receive_some(socket)))
        world.loop.call_later(MS, lambda: peer.send(b"x"))
        world.run_until(lambda: bool(received))
        assert received == [b"x"]

    def test_a_reader_is_not_called_while_there_is_nothing_to_read(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, _peer = world.connect()
        world.loop.add_reader(socket.fileno(), lambda: seen.append("reader"))
        let_pass(world, 5 * MS)
        assert seen == []

    def test_a_reader_is_called_until_all_is_read(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        received: list[bytes] = []
        world.loop.add_reader(socket.fileno(), lambda: received.append(receive_some(socket, 1)))
        peer.send(b"abc")
        world.run_until(lambda: len(received) == 3)
        let_pass(world, 5 * MS)
        assert received == [b"a", b"b", b"c"]

    def test_another_reader_takes_the_place_of_the_first(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, peer = world.connect()
        world.loop.add_reader(socket.fileno(), lambda: seen.append("first"))
        world.loop.add_reader(socket.fileno(), lambda: seen.append("second"))
        peer.send(b"x")
        world.run_until(lambda: bool(seen))
        assert set(seen) == {"second"}

    def test_a_removed_reader_is_not_called(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, peer = world.connect()
        world.loop.add_reader(socket.fileno(), lambda: seen.append("reader"))
        world.loop.remove_reader(socket.fileno())
        world.loop.remove_reader(socket.fileno())
        peer.send(b"x")
        peer.vanish()
        let_pass(world, 5 * MS)
        assert seen == []

    def test_a_reader_can_be_added_again(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, peer = world.connect()
        world.loop.add_reader(socket.fileno(), lambda: seen.append("first"))
        world.loop.remove_reader(socket.fileno())
        peer.send(b"x")
        world.loop.add_reader(socket.fileno(), lambda: seen.append("second"))
        world.run_until(lambda: bool(seen))
        assert set(seen) == {"second"}

    def test_each_connection_has_a_reader_of_its_own(self, world: NetworkWorld, seen: list[str]) -> None:
        connections = [world.connect() for _ in range(5)]
        for number, (socket, _peer) in enumerate(connections):
            world.loop.add_reader(socket.fileno(), partial(seen.append, f"{number}"))
        connections[3][1].send(b"x")
        world.run_until(lambda: bool(seen))
        assert set(seen) == {"3"}

    # Writers.

    def test_a_writer_is_called_while_the_socket_takes_bytes(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, _peer = world.connect()
        world.loop.set_writer(socket.fileno(), lambda: seen.append("writer"))
        world.run_until(lambda: len(seen) == 3)

    def test_a_writer_is_called_once_the_socket_takes_bytes_again(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, peer = world.connect()
        send_until_full(socket)
        world.loop.set_writer(socket.fileno(), lambda: seen.append("writer"))
        let_pass(world, 5 * MS)
        assert seen == []
        peer.receive()
        world.run_until(lambda: bool(seen))

    def test_a_writer_set_to_none_is_not_called_and_the_reader_stays(
        self, world: NetworkWorld, seen: list[str]
    ) -> None:
        socket, peer = world.connect()
        world.loop.add_reader(socket.fileno(), lambda: seen.append("reader"))
        world.loop.set_writer(socket.fileno(), lambda: seen.append("writer"))
        world.loop.set_writer(socket.fileno(), None)
        world.loop.set_writer(socket.fileno(), None)
        peer.send(b"x")
        let_pass(world, 5 * MS)
        assert set(seen) == {"reader"}

    def test_reader_and_writer_of_one_connection_are_both_called(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, peer = world.connect()
        peer.send(b"x")
        world.loop.add_reader(socket.fileno(), lambda: seen.append("reader"))
        world.loop.set_writer(socket.fileno(), lambda: seen.append("writer"))
        world.run_until(lambda: set(seen) == {"reader", "writer"})

    # What is forgotten.

    # Timers.

    @pytest.mark.parametrize("delay_ns", [1, 1000, 3 * MS])
    def test_a_timer_is_never_early(self, world: NetworkWorld, delay_ns: int) -> None:
        """Whatever else keeps the loop turning."""
        socket, _peer = world.connect()
        world.loop.set_writer(socket.fileno(), lambda: None)
        early_ns: list[int] = []

        def start() -> None:
            due_ns = world.clock.now_ns() + delay_ns
            world.loop.call_later(delay_ns, lambda: ran(due_ns))

        def ran(due_ns: int) -> None:
            early_ns.append(due_ns - world.clock.now_ns())
            start()

        start()
        world.run_until(lambda: len(early_ns) == 20)
        assert max(early_ns) <= 0

    def test_timers_run_in_the_order_in_which_they_are_due(self, world: NetworkWorld, seen: list[str]) -> None:
        for delay_ms in (9, 1, 5):
            world.loop.call_later(delay_ms * MS, partial(seen.append, f"{delay_ms}"))
        world.run_until(lambda: len(seen) == 3)
        assert seen == ["1", "5", "9"]

    def test_a_cancelled_timer_does_not_run(self, world: NetworkWorld, seen: list[str]) -> None:
        world.loop.call_later(MS, lambda: seen.append("cancelled")).cancel()
        let_pass(world, 5 * MS)
        assert seen == []

    def test_a_timer_may_be_cancelled_after_it_ran_and_twice(self, world: NetworkWorld, seen: list[str]) -> None:
        timer = world.loop.call_later(0, lambda: seen.append("ran"))
        world.run_until(lambda: bool(seen))
        timer.cancel()
        timer.cancel()

    def test_a_timer_may_cancel_another_that_is_due_as_well(self, world: NetworkWorld, seen: list[str]) -> None:
        def first() -> None:
            seen.append("first")
            second.cancel()

        world.loop.call_later(MS, first)
        second = world.loop.call_later(MS, lambda: seen.append("second"))
        let_pass(world, 5 * MS)
        assert seen == ["first"]

    def test_a_timer_of_no_delay_that_renews_itself_does_not_starve_the_rest(
        self, world: NetworkWorld, seen: list[str]
    ) -> None:
        socket, peer = world.connect()

        def again() -> None:
            world.loop.call_later(0, again)

        again()
        world.loop.add_reader(socket.fileno(), lambda: seen.append("reader"))
        peer.send(b"x")
        world.run_until(lambda: bool(seen))

    def test_a_connection_that_is_always_ready_does_not_starve_timers(
        self, world: NetworkWorld, seen: list[str]
    ) -> None:
        socket, _peer = world.connect()
        world.loop.set_writer(socket.fileno(), lambda: None)
        world.loop.call_later(MS, lambda: seen.append("timer"))
        world.run_until(lambda: bool(seen))

    # Turns.

    def test_the_hooks_end_each_turn_in_their_order(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, peer = world.connect()

        def read() -> None:
            receive_some(socket)
            seen.append("reader")

        world.loop.before_sleep += [lambda: seen.append("first"), lambda: seen.append("second")]
        world.loop.add_reader(socket.fileno(), read)
        peer.send(b"x")
        world.run_until(lambda: "reader" in seen)
        at = seen.index("reader")
        assert seen[at : at + 3] == ["reader", "first", "second"]
        assert seen[:at] == ["first", "second"] * (at // 2)

    def test_a_hook_that_was_taken_out_is_not_called_any_more(self, world: NetworkWorld, seen: list[str]) -> None:
        def once() -> None:
            seen.append("hook")
            world.loop.before_sleep.remove(once)

        world.loop.before_sleep.append(once)
        let_pass(world, 5 * MS)
        assert seen == ["hook"]

    def test_turning_again_does_not_wait(self, world: NetworkWorld, seen: list[str]) -> None:
        def hook() -> None:
            seen.append("hook")
            world.loop.turn_again()

        before_ns = world.clock.now_ns()
        world.loop.call_later(HOUR_NS, lambda: seen.append("an hour later"))
        world.loop.before_sleep.append(hook)
        world.run_until(lambda: len(seen) == 10)
        world.loop.before_sleep.remove(hook)
        assert seen == ["hook"] * 10
        assert world.clock.now_ns() - before_ns < HOUR_NS

    def test_a_callback_is_never_called_from_within_another(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, peer = world.connect()

        def busy() -> None:
            world.loop.remove_reader(socket.fileno())
            world.loop.call_later(0, lambda: seen.append("timer"))
            world.loop.set_writer(socket.fileno(), lambda: seen.append("writer"))
            world.loop.turn_again()
            assert seen == []

        world.loop.add_reader(socket.fileno(), busy)
        peer.send(b"x")
        world.run_until(lambda: {"timer", "writer"} <= set(seen))


class SocketConformance:
    @pytest.fixture
    def world(self) -> NetworkWorld:
        raise NotImplementedError("the deriving class makes the world")

    def test_open_sockets_have_different_numbers_which_stay(self, world: NetworkWorld) -> None:
        sockets = [world.connect()[0] for _ in range(5)]
        numbers = [socket.fileno() for socket in sockets]
        assert len(set(numbers)) == 5
        assert [socket.fileno() for socket in sockets] == numbers

    # Receiving.

    def test_receiving_before_anything_has_come_does_not_wait(self, world: NetworkWorld) -> None:
        socket, _peer = world.connect()
        with pytest.raises(BlockingIOError):
            receive_some(socket)

    def test_what_has_come_is_put_at_the_beginning_of_the_buffer(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        peer.send(b"x")
        buffer = memoryview(bytearray(b"....."))
        assert socket.recv_into(buffer[1:]) == 1
        assert bytes(buffer) == b".x..."

    def test_what_does_not_fit_into_the_buffer_comes_next(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        peer.send(b"abcdef")
        assert receive_exactly(socket, 4) == b"abcd"
        assert receive_exactly(socket, 2) == b"ef"
        with pytest.raises(BlockingIOError):
            receive_some(socket)

    # Sending.

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_bytes_of_every_kind_are_sent(self, world: NetworkWorld, kind: Callable[[bytes], bytes]) -> None:
        socket, peer = world.connect()
        assert socket.send(kind(b"x")) == 1
        assert peer.receive() == b"x"

    def test_what_was_taken_arrives_in_order_and_nothing_else(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        taken = 0
        received = b""
        for number in range(200):
            data = bytes([number]) * 10
            while data:
                sent = socket.send(data)
                data = data[sent:]
                taken += sent
            received += peer.receive()
        assert len(received) == taken
        assert received == b"".join(bytes([number]) * 10 for number in range(200))

    def test_a_full_peer_is_not_waited_for_and_has_room_after_it_has_received(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        sent = send_until_full(socket)
        assert 0 < sent < MORE_THAN_ROOM_BYTES
        assert len(peer.receive()) == sent
        assert socket.send(b"x") == 1

    def test_several_buffers_are_sent_one_behind_the_other(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        parts: list[bytes | bytearray | memoryview] = [b"ab", bytearray(b"cd"), memoryview(b"ef")]
        sent = socket.sendmsg(parts)
        assert 1 <= sent <= 6
        assert peer.receive() == b"abcdef"[:sent]

    def test_several_buffers_are_taken_in_part_and_then_not_at_all_by_a_peer_that_is_full(
        self, world: NetworkWorld
    ) -> None:
        socket, peer = world.connect()
        whole = b"".join(bytes([number]) * (MORE_THAN_ROOM_BYTES // 8) for number in range(8))
        sent = 0
        try:
            while True:
                sent += socket.sendmsg([whole[sent : sent + 100], whole[sent + 100 :]])
        except BlockingIOError:
            assert 0 < sent < len(whole)
        assert peer.receive() == whole[:sent]

    # The end.

    # All of it together.

    def test_a_megabyte_goes_there_and_back_through_the_loop(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        data = b"".join(number.to_bytes(4, "big") for number in range(1 << 18))
        unsent = bytearray()
        to_go, back = data, b""

        def echo() -> None:
            nonlocal unsent
            unsent += receive_some(socket)
            write()

        def write() -> None:
            nonlocal unsent
            try:
                del unsent[: socket.send(unsent)]
            except BlockingIOError:
                pass
            if unsent:
                world.loop.remove_reader(socket.fileno())
                world.loop.set_writer(socket.fileno(), write)
            else:
                world.loop.set_writer(socket.fileno(), None)
                world.loop.add_reader(socket.fileno(), echo)

        def play_the_peer() -> None:
            nonlocal to_go, back
            to_go = to_go[peer.send(to_go) :]
            back += peer.receive()
            if len(back) < len(data):
                world.loop.turn_again()

        world.loop.add_reader(socket.fileno(), echo)
        world.loop.before_sleep.append(play_the_peer)
        world.run_until(lambda: len(back) >= len(data))
        assert back == data

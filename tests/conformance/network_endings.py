"""What a connection that ends, or breaks, looks like: of the contracts of the `Loop` and `Socket` ports, that part.

Inherited like the rest of them (`network_conformance.py`), whose worlds and helpers it uses.
"""

from __future__ import annotations

import pytest

from holdfast.runtime.ports import Socket

from .network_conformance import MS, NetworkWorld, let_pass, receive_exactly, receive_some, send_until_full


class LoopEndings:
    @pytest.fixture
    def world(self) -> NetworkWorld:
        raise NotImplementedError("the deriving class makes the world")

    @pytest.fixture
    def seen(self) -> list[str]:
        """The names of the callbacks that were called, in order."""
        return []

    @pytest.mark.parametrize("end", ["leave", "vanish"])
    def test_a_reader_is_called_at_the_end(self, world: NetworkWorld, seen: list[str], end: str) -> None:
        socket, peer = world.connect()
        world.loop.add_reader(socket.fileno(), lambda: seen.append("reader"))
        getattr(peer, end)()
        world.run_until(lambda: bool(seen))

    def test_a_writer_is_called_when_the_connection_is_broken(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, peer = world.connect()
        send_until_full(socket)
        world.loop.set_writer(socket.fileno(), lambda: seen.append("writer"))
        peer.vanish()
        world.run_until(lambda: bool(seen))

    def test_nothing_is_called_for_a_closed_connection(self, world: NetworkWorld, seen: list[str]) -> None:
        socket, peer = world.connect()
        world.loop.add_reader(socket.fileno(), lambda: seen.append("reader"))
        world.loop.set_writer(socket.fileno(), lambda: seen.append("writer"))
        peer.send(b"x")
        world.loop.close(socket.fileno())
        socket.close()
        let_pass(world, 5 * MS)
        assert seen == []

    def test_a_connection_without_reader_and_writer_can_be_closed(self, world: NetworkWorld) -> None:
        socket, _peer = world.connect()
        world.loop.close(socket.fileno())
        socket.close()

    def test_a_callback_may_close_another_that_is_ready_in_the_same_turn(
        self, world: NetworkWorld, seen: list[str]
    ) -> None:
        connections = [world.connect() for _ in range(2)]
        for number, (socket, peer) in enumerate(connections):

            def close_the_other(name: str = f"{number}", other: Socket = connections[1 - number][0]) -> None:
                if not seen:
                    world.loop.close(other.fileno())
                    other.close()
                seen.append(name)

            world.loop.add_reader(socket.fileno(), close_the_other)
            peer.send(b"x")
        let_pass(world, 5 * MS)
        assert len(set(seen)) == 1, "the reader of a connection was called after that was closed"

    @pytest.mark.parametrize("forget", ["reader and writer", "all"])
    def test_a_callback_may_end_the_other_one_of_its_own_connection(
        self, world: NetworkWorld, seen: list[str], forget: str
    ) -> None:
        socket, peer = world.connect()

        def callback(name: str) -> None:
            seen.append(name)
            if forget == "all":
                world.loop.close(socket.fileno())
                socket.close()
            else:
                world.loop.remove_reader(socket.fileno())
                world.loop.set_writer(socket.fileno(), None)

        world.loop.add_reader(socket.fileno(), lambda: callback("reader"))
        world.loop.set_writer(socket.fileno(), lambda: callback("writer"))
        peer.send(b"x")
        let_pass(world, 5 * MS)
        assert len(seen) == 1, "a callback was called after it had been taken back"

    def test_nothing_is_called_for_a_connection_that_a_timer_has_closed(
        self, world: NetworkWorld, seen: list[str]
    ) -> None:
        socket, peer = world.connect()

        def close() -> None:
            seen.append("closed")
            world.loop.close(socket.fileno())
            socket.close()

        peer.send(b"x")  # which nobody reads
        world.loop.add_reader(socket.fileno(), lambda: seen.append("reader"))
        world.loop.call_later(MS, close)
        let_pass(world, 5 * MS)
        assert seen[-1] == "closed"


class SocketEndings:
    @pytest.fixture
    def world(self) -> NetworkWorld:
        raise NotImplementedError("the deriving class makes the world")

    def test_the_end_comes_after_everything_that_was_sent_and_stays(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        peer.send(b"abc")
        peer.leave()
        assert receive_exactly(socket, 3) == b"abc"
        assert receive_some(socket) == b""
        assert receive_some(socket) == b""

    def test_receiving_over_a_broken_connection_does_not_look_like_waiting(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        socket.send(b"unread")
        peer.vanish()
        try:
            received = receive_some(socket)
        except BlockingIOError:
            pytest.fail("nobody would ever come back to it")
        except OSError:
            return
        assert received == b""

    @pytest.mark.parametrize("gathered", [False, True])
    @pytest.mark.parametrize("end", ["leave", "vanish"])
    def test_sending_to_a_peer_that_is_gone_is_an_error_and_no_waiting(
        self, world: NetworkWorld, end: str, gathered: bool
    ) -> None:
        socket, peer = world.connect()
        getattr(peer, end)()
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends on what the peer left unread
            socket.sendmsg([b"a", b"b"]) if gathered else socket.send(b"a")
        assert not isinstance(caught.value, BlockingIOError)

    def test_a_closed_socket_ends_behind_what_it_has_sent(self, world: NetworkWorld) -> None:
        socket, peer = world.connect()
        socket.send(b"x")
        assert not peer.ended
        world.loop.close(socket.fileno())
        socket.close()
        assert peer.receive() == b"x"
        assert peer.ended

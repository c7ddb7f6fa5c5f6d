"""The socket of a control connection: what a client can make the server hold, and when it is cut off."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import msgspec
import pytest

from holdfast.control.api import VolumeInfo
from holdfast.runtime.loop import EventLoop
from holdfast.serving.control_connection import ControlSocket
from holdfast.units import GIB, KIB, MIB

from .fake_service import FakeService
from .http_messages import parse_answers, request

MS = 1_000_000
PATIENCE_NS = 20 * MS
LIST = request("GET", "/v1/volumes")


class CountingService(FakeService):
    def __init__(self) -> None:
        super().__init__()
        self.lists = 0

    def volumes(self) -> list[VolumeInfo]:
        self.lists += 1
        return super().volumes()


class Room:
    """A loop with one control connection on it, whose client is `client`; the loop ends with the connection."""

    def __init__(self, *, send_ns_max: int = 60_000 * MS) -> None:
        self.loop = EventLoop()
        self.service = CountingService()
        for number in range(100):
            self.service.add(f"disk{number}", GIB)
        ours, self.client = socket.socketpair()
        for end in (ours, self.client):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
        self.closed = False
        self.control = ControlSocket(self.loop, ours, self.service, on_close=self._note_closed, send_ns_max=send_ns_max)

    def _note_closed(self, _control: ControlSocket) -> None:
        self.closed = True
        self.loop.stop()

    def send_until_refused(self) -> int:
        """Pipeline requests, a turn of the loop after each batch, until neither end takes any more; gives the bytes."""
        requests = LIST * 20000
        sent_bytes = 0
        while sent_bytes < len(requests):
            try:
                sent_bytes += self.client.send(requests[sent_bytes : sent_bytes + 100 * len(LIST)])
            except BlockingIOError:
                break
            self.turn()
        return sent_bytes

    def turn(self) -> None:
        """One turn of the loop, without waiting: what a socket pair was given is readable at once."""
        self.loop.stop()
        self.loop.run()

    def receive_all(self) -> bytes:
        """All that comes until the server has nothing left, taken as it comes."""
        received = bytearray()

        def take() -> None:
            data = self.client.recv(1 << 20)
            received.extend(data)
            if not data:
                self.loop.remove_reader(self.client.fileno())

        self.loop.add_reader(self.client.fileno(), take)
        self.loop.run()
        return bytes(received)


@pytest.fixture
def make_room() -> Iterator[Callable[..., Room]]:
    rooms: list[Room] = []

    def make(*, send_ns_max: int = 60_000 * MS) -> Room:
        rooms.append(Room(send_ns_max=send_ns_max))
        return rooms[-1]

    yield make
    for room in rooms:
        room.control.close()
        room.client.close()
        room.loop.dispose()


def test_a_client_that_does_not_read_is_not_read_from(make_room: Callable[..., Room]) -> None:
    room = make_room()
    count = room.send_until_refused() // len(LIST)
    answer_bytes = len(msgspec.json.encode(room.service.volumes()))
    # What both ends' buffers hold and some 64 KiB; answers to all that was sent would be more than 10 MiB.
    assert room.service.lists * answer_bytes < MIB < 10 * MIB < count * answer_bytes
    assert not room.closed


def test_a_client_that_reads_at_last_gets_every_answer(make_room: Callable[..., Room]) -> None:
    room = make_room()
    count = room.send_until_refused() // len(LIST)
    room.client.shutdown(socket.SHUT_WR)
    assert room.receive_all().count(b"HTTP/1.1 200 ") == count
    assert room.closed


def test_a_client_that_takes_nothing_is_cut_off(make_room: Callable[..., Room]) -> None:
    room = make_room(send_ns_max=PATIENCE_NS)
    room.client.send(LIST * 300)
    room.loop.run()  # ends with the connection
    assert room.closed


def test_a_client_that_sent_its_last_byte_and_reads_nothing_is_cut_off(make_room: Callable[..., Room]) -> None:
    room = make_room(send_ns_max=PATIENCE_NS)
    room.client.send(LIST * 300)
    room.client.shutdown(socket.SHUT_WR)
    room.loop.run()
    assert room.closed


def test_a_quiet_client_is_not_cut_off(make_room: Callable[..., Room]) -> None:
    room = make_room(send_ns_max=PATIENCE_NS)
    room.client.send(request("GET", "/v1/pool"))
    room.loop.call_later(3 * PATIENCE_NS, room.loop.stop)
    room.loop.run()
    assert parse_answers(room.client.recv(1 << 16))[0][0] == 200
    assert not room.closed


def test_a_late_answer_goes_out_and_the_next_request_is_read(make_room: Callable[..., Room]) -> None:
    room = make_room()
    room.service.hold_replies = True
    room.client.send(request("POST", "/v1/volumes", {"name": "new", "size_bytes": GIB}))
    room.turn()
    room.client.send(request("GET", "/v1/pool"))
    room.turn()
    room.service.release()
    room.turn()
    assert [status for status, _ in parse_answers(room.client.recv(1 << 20))] == [201, 200]

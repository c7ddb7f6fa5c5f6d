"""A simulated client: speaks NBD over a simulated connection, from the handshake on, and hears the answers.

It wakes up when something has come for it, a little later; a slow one much later, one that has stopped reading not at
all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.errors import GoneError
from holdfast.nbd.client import DATA, ERROR, HOLE, STATUS, ClientHandshake, Reply, ReplyReader, request
from holdfast.nbd.protocol import CMD_DISC, CMD_READ
from holdfast.runtime.ports import Peer
from holdfast.serving.clients import Clients
from holdfast.serving.connection import Connection
from holdfast.sim.loop import SimLoop
from holdfast.sim.network import SimSocket


@dataclass(slots=True)
class Answer:
    """What a client was told. `heard` is called when the last part of the reply has come."""

    heard: Callable[[Answer], None] | None = None
    ready: bool = False
    errno: int = 0
    data: bytearray = field(default_factory=bytearray)
    covered: int = 0
    extents: list[tuple[int, int]] = field(default_factory=list)


class SimClient:
    """`wake_ns`: draws how long it takes to wake up. `on_wake` is called each time, after the replies were heard."""

    def __init__(
        self,
        loop: SimLoop,
        clients: Clients,
        socket: SimSocket,
        volume: str,
        *,
        structured: bool,
        wake_ns: Callable[[], int],
        uid: int | None = None,
    ) -> None:
        self.volume = volume
        self.socket = socket
        self.waiting: dict[int, tuple[Answer, int]] = {}  # cookie -> answer, offset of the request
        self.reading = True
        self.gone = False  # hung up, by either side
        self.on_wake: Callable[[], None] = lambda: None
        self.on_vanish: Callable[[], None] = lambda: None  # gone just when the server had something for it
        self.structured = False
        self.size_bytes = 0
        self._loop = loop
        self._wake_ns = wake_ns
        self._wake_scheduled = False
        self._handshake: ClientHandshake | None = ClientHandshake(volume, structured=structured)
        self._replies: ReplyReader | None = None
        self._unsent = bytearray()
        self._unread = b""
        self._cookie = 0
        loop.sockets[socket.fileno()] = socket
        socket.on_received = self._received
        self.connection: Connection = clients.accept(socket, Peer(f"client-{socket.fileno()}", uid))
        self._schedule()

    # ---- requests

    @property
    def ready(self) -> bool:
        """True once the handshake is over and requests can be sent."""
        return self._replies is not None and not self.gone

    def send(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes = b"",
        flags: int = 0,
        *,
        heard: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """Send a request; the answer gets ready some time later."""
        assert self._replies is not None
        self._cookie += 1
        answer = Answer(heard)
        self.waiting[self._cookie] = answer, offset
        if command == CMD_READ:
            answer.data = bytearray(length)
            self._replies.expect_read(self._cookie, offset, length)
        self._unsent += request(command, flags, self._cookie, offset, len(payload) or length)
        self._unsent += payload
        self._push()
        return answer

    def hang_up(self, *, reset: bool) -> None:
        """Go away, with whatever is under way."""
        self.gone = True
        self.socket.hang_up(reset=reset)

    def disconnect(self) -> None:
        """Go away as the protocol wants it: what is under way is finished first."""
        self._unsent += request(CMD_DISC, 0, 0, 0, 0)
        self._push()

    def stop_reading(self) -> None:
        self.reading = False

    def read_again(self) -> None:
        self.reading = True
        self._schedule()

    def last_words(self) -> None:
        """The server has died: hear what it had sent until then."""
        if not self.gone:
            self._hear(self.socket.pull())
            self.gone = True

    def poke(self) -> None:
        """Wake up some time soon, though nothing has come."""
        self._schedule()

    # ---- waking up

    def sent(self) -> None:
        """The server has sent something, or hung up."""
        if self.reading:
            self._schedule()

    def _received(self) -> None:
        if self._unsent:
            self._schedule()

    def _schedule(self) -> None:
        if not self._wake_scheduled:
            self._wake_scheduled = True
            self._loop.call_later(self._wake_ns(), self._wake)

    def _wake(self) -> None:
        self._wake_scheduled = False
        if self.gone:
            return
        if self.reading:
            data = self.socket.pull()
            if self._handshake is not None:
                self._shake_hands(self._handshake, data)
            else:
                self._hear(data)
            if self.socket.closed:
                self.gone = True
        self._push()
        self.on_wake()

    def _shake_hands(self, handshake: ClientHandshake, data: bytes) -> None:
        try:
            handshake.receive_data(data)
        except GoneError:  # the server is on its way out, and says so
            self.hang_up(reset=False)
            return
        self._unsent += handshake.data_to_send()
        terms = handshake.terms
        if terms is not None:
            self.structured = terms.structured
            self.size_bytes = terms.size_bytes
            self._handshake = None
            self._replies = ReplyReader(terms)

    def _push(self) -> None:
        if self._unsent:
            count = self.socket.push(memoryview(self._unsent))
            del self._unsent[:count]

    def _hear(self, data: bytes) -> None:
        if self._replies is None or not data:
            return
        received = self._unread + data
        events: list[Reply] = []
        used = self._replies.parse(memoryview(received), 0, len(received), events)
        self._unread = received[used:]
        for event in events:
            self._take(event)

    def _take(self, event: Reply) -> None:
        answer, offset = self.waiting[event.cookie]
        if event.kind == DATA:
            at = event.offset - offset
            answer.data[at : at + event.length] = event.payload
            answer.covered += event.length
        elif event.kind == HOLE:
            answer.covered += event.length
        elif event.kind == STATUS:
            answer.extents += event.extents
        elif event.kind == ERROR:
            answer.errno = event.errno
        if event.final:
            answer.ready = True
            del self.waiting[event.cookie]
            if answer.heard is not None:
                answer.heard(answer)

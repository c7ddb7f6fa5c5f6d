"""What a session says outside of the hot path: the replies of its tasks, behind those of the batch.

Replies gather in `later`. The connection takes them when it sends, at the end of the turn; when there are many, or data
too large to be copied, they are sent from here at once.

Invariants:

 1. `Log.publish` comes before every send, here as there: what a reply tells of must outlive the server.
 2. While a reply that takes several sends is under way (`exclusive`) nothing comes between its parts. Whatever else
    comes up is `held`, and follows it.
 3. A client that does not take its replies (`blocked`) costs no more than the replies there are: whoever would make a
    long one waits for `room` first.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.nbd import replies
from holdfast.nbd.protocol import CMD_READ, LARGE_READ_BYTES
from holdfast.units import KIB
from holdfast.work.task import Scheduler, Waitlist
from holdfast.work.waits import CLIENT
from holdfast.writeback.log import Log

LATER_BYTES_MAX = 64 * KIB


class Outgoing:
    """Fields: I fixed when made, L loop thread, C the connection's to set (in the loop thread)."""

    def __init__(
        self,
        scheduler: Scheduler,
        log: Log,
        *,
        structured: bool,
        transmit: Callable[[], None],
        ready: Callable[[], None],
    ) -> None:
        self.structured = structured  # I
        self.later = bytearray()  # L, C
        self.held = bytearray()  # L
        self.direct: memoryview | None = None  # L: a large piece to be sent behind `later`, without a copy
        self.blocked = False  # C
        self.exclusive = False  # L
        self.broken = False  # L: a reply could not be completed; the connection must be closed
        self.room = Waitlist(scheduler, "the client to take its replies", ended_by=(CLIENT,), meant=True)
        self._log = log  # I
        self._transmit = transmit  # I: sends what there is
        self._ready = ready  # I: there is something to send, or to go on with

    def unblock(self) -> None:
        """The client has taken its replies."""
        self.blocked = False
        self.room.wake()

    # ---- sending

    def append(self, reply: bytes | bytearray | memoryview) -> None:
        """Add a reply, or the end of one, to what is sent at the end of the turn."""
        if self.exclusive:
            self.held += reply
            return
        self.later += reply
        self._ready()
        if len(self.later) > LATER_BYTES_MAX:
            self._log.publish()
            self._transmit()

    def send_data(self, header: bytes | memoryview, data: memoryview) -> None:
        """Send a data reply: a large one at once and without a copy, a small one with the others of this turn. The
        caller may use the memory of `data` again afterwards."""
        if self.exclusive:
            self.held += header
            self.held += data
            return
        self.later += header
        if len(data) <= LARGE_READ_BYTES:
            self.append(data)
        else:
            self._send_directly(data)

    def _send_directly(self, data: memoryview) -> None:
        self.direct = data
        self._log.publish()
        self._transmit()
        self.direct = None

    # ---- a reply in several sends

    def begin_exclusive(self, header: memoryview) -> None:
        """Begin a reply whose data come with `send_part`. From here to the end nothing else is sent."""
        assert not self.exclusive
        self.append(header)
        self.exclusive = True

    def send_part(self, data: memoryview) -> None:
        assert self.exclusive
        self._send_directly(data)

    def end_exclusive(self) -> None:
        assert self.exclusive
        self.exclusive = False
        self.append(self.held)
        self.held.clear()
        self.room.wake()
        self._ready()

    def break_off(self) -> None:
        """The rest of a reply cannot be had, but its header promised success: all that is left is to hang up."""
        self.broken = True
        self._ready()

    # ---- replies

    def read_header(self, cookie: int, offset: int, length: int, *, final: bool) -> memoryview:
        """What comes before the data of a READ. Without structured replies all data are one piece."""
        header = memoryview(bytearray(replies.DATA_CHUNK_BYTES))
        if self.structured:
            used = replies.data_chunk(header, 0, cookie, offset, length, final)
        else:
            used = replies.read_header_simple(header, 0, cookie)
        return header[:used]

    def done(self, cookie: int) -> None:
        reply = bytearray(replies.SIMPLE_REPLY_BYTES)
        replies.done(memoryview(reply), 0, cookie)
        self.append(reply)

    def empty(self, command: int, cookie: int) -> None:
        """The answer to a request of length 0: success, without anything."""
        if self.structured and command == CMD_READ:
            reply = memoryview(bytearray(replies.CHUNK_HEADER_BYTES))
            replies.none_chunk(reply, 0, cookie)
            self.append(reply)
        else:
            self.done(cookie)

    def error(self, cookie: int, errno: int, *, chunk: bool) -> None:
        """`chunk`: the command is one that is answered in chunks where structured replies were negotiated."""
        reply = memoryview(bytearray(replies.ERROR_CHUNK_BYTES))
        if chunk and self.structured:
            used = replies.error_chunk(reply, 0, cookie, errno)
        else:
            used = replies.error(reply, 0, cookie, errno)
        self.append(reply[:used])

    def read_error(self, cookie: int, errno: int, where: int) -> None:
        """A READ that failed; `where` is the first offset that cannot be read."""
        if not self.structured:
            self.error(cookie, errno, chunk=False)
            return
        reply = memoryview(bytearray(replies.ERROR_OFFSET_CHUNK_BYTES))
        used = replies.error_offset_chunk(reply, 0, cookie, errno, where)
        self.append(reply[:used])

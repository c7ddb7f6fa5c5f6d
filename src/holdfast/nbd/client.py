"""The client's side of the transmission phase, sans-I/O: for `holdfast copy`, and for tests of the server.

`ClientHandshake` comes to terms with a server, `request` encodes the header of a request, and `ReplyReader` turns what
the server sends into events.

Invariants
 1. Replies are checked as they come: what does not follow the protocol raises ProtocolError, upon which the connection
    must be closed.  Whether chunks overlap, or cover what was asked, is for the caller, who knows what was asked.
 2. `ReplyReader` holds no bytes at all: it leaves fewer than UNCONSUMED_BYTES_MAX bytes unconsumed, so that a buffer of
    that size always makes progress, and hands data out in pieces as it comes.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from holdfast.nbd.client_handshake import ClientHandshake, ServerTerms
from holdfast.nbd.protocol import (
    REPLY_FLAG_DONE,
    REPLY_TYPE_BLOCK_STATUS,
    REPLY_TYPE_ERROR_OFFSET,
    REPLY_TYPE_FLAG_ERROR,
    REPLY_TYPE_NONE,
    REPLY_TYPE_OFFSET_DATA,
    REPLY_TYPE_OFFSET_HOLE,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRING_BYTES_MAX,
    STRUCTURED_REPLY_MAGIC,
    ProtocolError,
)

__all__ = ["ClientHandshake", "Reply", "ReplyReader", "ServerTerms", "request"]

_REQUEST: Final = Struct(">IHHQQI")
_MAGIC: Final = Struct(">I")
_SIMPLE: Final = Struct(">IIQ")
_CHUNK: Final = Struct(">IHHQI")
_ERROR: Final = Struct(">IH")
_OFFSET: Final = Struct(">Q")
_HOLE: Final = Struct(">QI")
_CONTEXT: Final = Struct(">I")
_EXTENT: Final = Struct(">II")

# The longest unit that is only understood as a whole is an error chunk with a message and an offset.
_ERROR_PAYLOAD_BYTES_MAX: Final = _ERROR.size + STRING_BYTES_MAX + _OFFSET.size
UNCONSUMED_BYTES_MAX: Final = _CHUNK.size + _ERROR_PAYLOAD_BYTES_MAX

# Kinds of events.
DONE: Final = 0  # the end of a reply, without content
DATA: Final = 1  # `payload` is what the export holds from `offset` on
HOLE: Final = 2  # `length` bytes from `offset` on read as zeroes
STATUS: Final = 3  # `extents`, (length, flags) each, begin `offset` bytes behind the offset of the request
ERROR: Final = 4  # the request failed with `errno`, at `offset` if that is not negative

_NO_PAYLOAD: Final = memoryview(b"")


class Reply(NamedTuple):
    """One event: a part of the reply to the request with this cookie. `final` marks the last part of the reply."""

    cookie: int
    kind: int
    final: bool
    offset: int = 0
    length: int = 0
    payload: memoryview = _NO_PAYLOAD
    errno: int = 0
    extents: tuple[tuple[int, int], ...] = ()
    message: bytes = b""


def request(command: int, flags: int, cookie: int, offset: int, length: int) -> bytes:
    """The header of a request; the payload of a WRITE must follow."""
    return _REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)


class ReplyReader:
    """The state of one connection's reply stream."""

    __slots__ = (
        "_context",
        "_part_cookie",
        "_part_final",
        "_part_kind",
        "_part_offset",
        "_reads",
        "_rest_bytes",
        "_structured",
    )

    def __init__(self, terms: ServerTerms) -> None:
        self._structured = terms.structured
        self._context = terms.base_allocation_context
        self._reads: dict[int, tuple[int, int]] = {}
        # Content that is handed out in pieces: what is still to come of it.
        self._rest_bytes = 0
        self._part_kind = DATA
        self._part_cookie = 0
        self._part_offset = 0
        self._part_final = False

    def expect_read(self, cookie: int, offset: int, length: int) -> None:
        """Announce a READ that is sent: a simple reply does not say whether data follows, or how much."""
        if not self._structured:
            assert cookie not in self._reads, cookie
            self._reads[cookie] = (offset, length)

    def parse(self, buffer: memoryview, start: int, end: int, events: list[Reply]) -> int:
        """Append the events in `buffer[start:end]` and return the index of the first byte not consumed.

        The buffer is the caller's; payloads are slices of it.  Raises ProtocolError after the events before it were
        appended.
        """
        at = start
        while True:
            before = at
            at = self._content(buffer, at, end, events) if self._rest_bytes else self._head(buffer, at, end, events)
            if at == before:
                return at

    def _head(self, buffer: memoryview, at: int, end: int, events: list[Reply]) -> int:
        """Take a reply's or chunk's head, with all of it that is not content handed out in pieces."""
        if end - at < _SIMPLE.size:
            return at
        (magic,) = _MAGIC.unpack_from(buffer, at)
        if magic == SIMPLE_REPLY_MAGIC:
            _, errno, cookie = _SIMPLE.unpack_from(buffer, at)
            self._simple(cookie, errno, events)
            return at + _SIMPLE.size
        if magic != STRUCTURED_REPLY_MAGIC or not self._structured:
            raise ProtocolError(f"a reply begins with {magic:#010x}")
        if end - at < _CHUNK.size:
            return at
        length: int
        _, flags, kind, cookie, length = _CHUNK.unpack_from(buffer, at)
        final = bool(flags & REPLY_FLAG_DONE)
        body = at + _CHUNK.size
        available = end - body
        if kind & REPLY_TYPE_FLAG_ERROR:
            if not _ERROR.size <= length <= _ERROR_PAYLOAD_BYTES_MAX:
                raise ProtocolError(f"an error chunk of {length} bytes")
            if available < length:
                return at
            events.append(_error_event(buffer[body : body + length], cookie=cookie, kind=kind, final=final))
        elif kind == REPLY_TYPE_OFFSET_DATA:
            if length <= _OFFSET.size:
                raise ProtocolError("a chunk of data without data")
            if available < _OFFSET.size:
                return at
            offset: int = _OFFSET.unpack_from(buffer, body)[0]
            self._begin(DATA, cookie, offset, length - _OFFSET.size, final=final)
            return body + _OFFSET.size
        elif kind == REPLY_TYPE_BLOCK_STATUS:
            count, odd = divmod(length - _CONTEXT.size, _EXTENT.size)
            if odd or count < 1:
                raise ProtocolError(f"a chunk of block status of {length} bytes")
            if available < _CONTEXT.size:
                return at
            (context,) = _CONTEXT.unpack_from(buffer, body)
            if context != self._context:
                raise ProtocolError(f"the status of context {context}, which was not selected")
            self._begin(STATUS, cookie, 0, length - _CONTEXT.size, final=final)
            return body + _CONTEXT.size
        elif kind == REPLY_TYPE_OFFSET_HOLE:
            if length != _HOLE.size:
                raise ProtocolError(f"a chunk of a hole of {length} bytes")
            if available < length:
                return at
            hole_offset, hole_bytes = _HOLE.unpack_from(buffer, body)
            if not hole_bytes:
                raise ProtocolError("a hole without length")
            events.append(Reply(cookie, HOLE, final, hole_offset, hole_bytes))
        elif kind == REPLY_TYPE_NONE:
            if length or not final:
                raise ProtocolError("an empty chunk that is not the end of its reply")
            events.append(Reply(cookie, DONE, True))
        else:
            raise ProtocolError(f"a chunk of the unknown type {kind}")
        return body + length

    def _simple(self, cookie: int, errno: int, events: list[Reply]) -> None:
        offset, length = self._reads.pop(cookie, (0, 0))
        if errno:
            events.append(Reply(cookie, ERROR, True, -1, errno=errno))
        elif length:
            self._begin(DATA, cookie, offset, length, final=True)
        else:
            events.append(Reply(cookie, DONE, True))

    def _begin(self, kind: int, cookie: int, offset: int, rest_bytes: int, *, final: bool) -> None:
        self._part_kind, self._part_cookie, self._part_offset = kind, cookie, offset
        self._rest_bytes, self._part_final = rest_bytes, final

    def _content(self, buffer: memoryview, at: int, end: int, events: list[Reply]) -> int:
        """Hand out what is there of the content that is under way."""
        taken = min(self._rest_bytes, end - at)
        if self._part_kind == STATUS:
            taken -= taken % _EXTENT.size
        if not taken:
            return at
        piece = buffer[at : at + taken]
        self._rest_bytes -= taken
        final = self._part_final and not self._rest_bytes
        offset = self._part_offset
        if self._part_kind == DATA:
            events.append(Reply(self._part_cookie, DATA, final, offset, taken, piece))
            self._part_offset += taken
        else:
            extents = tuple(_EXTENT.iter_unpack(piece))
            length = sum(extent[0] for extent in extents)
            if not all(extent[0] for extent in extents):
                raise ProtocolError("an extent without length")
            events.append(Reply(self._part_cookie, STATUS, final, offset, length, extents=extents))
            self._part_offset += length
        return at + taken


def _error_event(payload: memoryview, *, cookie: int, kind: int, final: bool) -> Reply:
    """The event of an error chunk. One of an unknown type is an error like any other, says the protocol."""
    errno, message_bytes = _ERROR.unpack_from(payload)
    tail = _ERROR.size + message_bytes
    offset_bytes = _OFFSET.size if kind == REPLY_TYPE_ERROR_OFFSET else 0
    if not errno or tail + offset_bytes > len(payload):
        raise ProtocolError("an error chunk without an error, or with a message beyond its end")
    offset = _OFFSET.unpack_from(payload, tail)[0] if offset_bytes else -1
    return Reply(cookie, ERROR, final, offset, errno=errno, message=bytes(payload[_ERROR.size : tail]))

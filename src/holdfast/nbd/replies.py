"""Replies of the transmission phase, encoded into the caller's buffer.

The last stop of a request: the engine has decided on an answer, and these functions lay its bytes into the reply
buffer of the connection, which is then sent with one gathered send.  Each takes the buffer (owned by the caller,
writable, large enough), the index to write at, and returns the index after what it wrote.  Nothing is allocated and
nothing is kept.  Where even a function call costs too much, the prebuilt structs and words at the top do the same.

Which reply is due: with structured replies negotiated, a READ is answered by chunks, its errors too, and BLOCK_STATUS
by chunks; all else by simple replies.  Without them, everything by simple replies.

Invariants
 1. The cookie is echoed as it came; here it is an integer of 64 bits that nobody interprets.
 2. Content chunks are never empty (the protocol forbids it): a READ of length 0 is answered by `none_chunk` alone.
 3. An error value on the wire is never 0 and always one that the protocol knows (`wire_errno`).
 4. `final` marks the last chunk of a reply.  It may be set on content only if no error is possible any more: that is
    the caller's to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from holdfast.nbd.protocol import (
    BASE_ALLOCATION_CONTEXT,
    BLOCK_STATUS_EXTENTS_MAX,
    REPLY_FLAG_DONE,
    REPLY_TYPE_BLOCK_STATUS,
    REPLY_TYPE_ERROR,
    REPLY_TYPE_ERROR_OFFSET,
    REPLY_TYPE_NONE,
    REPLY_TYPE_OFFSET_DATA,
    REPLY_TYPE_OFFSET_HOLE,
    SIMPLE_REPLY_MAGIC,
    STRING_BYTES_MAX,
    STRUCTURED_REPLY_MAGIC,
    wire_errno,
)


def _chunk_word(kind: int, *, final: bool) -> int:
    """The first eight bytes of a chunk, magic, flags and type, as one integer: one field less to pack."""
    return STRUCTURED_REPLY_MAGIC << 32 | (REPLY_FLAG_DONE if final else 0) << 16 | kind


# A simple reply is (word, cookie); the word is the magic above the error, so plain success is SIMPLE_DONE.
SIMPLE: Final = Struct(">QQ")
SIMPLE_DONE: Final = SIMPLE_REPLY_MAGIC << 32

# A chunk is (word, cookie, payload length), for OFFSET_DATA followed by the offset and then the data.
CHUNK: Final = Struct(">QQI")
DATA_CHUNK: Final = Struct(">QQIQ")
HOLE_CHUNK: Final = Struct(">QQIQI")
ERROR_CHUNK: Final = Struct(">QQIIH")
BLOCK_STATUS_CHUNK: Final = Struct(">QQII")
_EXTENT: Final = Struct(">II")
_OFFSET: Final = Struct(">Q")

DATA_MORE: Final = _chunk_word(REPLY_TYPE_OFFSET_DATA, final=False)
DATA_FINAL: Final = _chunk_word(REPLY_TYPE_OFFSET_DATA, final=True)
HOLE_MORE: Final = _chunk_word(REPLY_TYPE_OFFSET_HOLE, final=False)
HOLE_FINAL: Final = _chunk_word(REPLY_TYPE_OFFSET_HOLE, final=True)
NONE_FINAL: Final = _chunk_word(REPLY_TYPE_NONE, final=True)
_ERROR_MORE: Final = _chunk_word(REPLY_TYPE_ERROR, final=False)
_ERROR_FINAL: Final = _chunk_word(REPLY_TYPE_ERROR, final=True)
_ERROR_OFFSET_MORE: Final = _chunk_word(REPLY_TYPE_ERROR_OFFSET, final=False)
_ERROR_OFFSET_FINAL: Final = _chunk_word(REPLY_TYPE_ERROR_OFFSET, final=True)
_BLOCK_STATUS_MORE: Final = _chunk_word(REPLY_TYPE_BLOCK_STATUS, final=False)
_BLOCK_STATUS_FINAL: Final = _chunk_word(REPLY_TYPE_BLOCK_STATUS, final=True)

SIMPLE_REPLY_BYTES: Final = SIMPLE.size  # 16
CHUNK_HEADER_BYTES: Final = CHUNK.size  # 20, also the whole of `none_chunk`
DATA_CHUNK_BYTES: Final = DATA_CHUNK.size  # 28, before the data
HOLE_CHUNK_BYTES: Final = HOLE_CHUNK.size  # 32
ERROR_CHUNK_BYTES: Final = ERROR_CHUNK.size  # 26, before the message
ERROR_OFFSET_CHUNK_BYTES: Final = ERROR_CHUNK_BYTES + _OFFSET.size  # 34, and the message
BLOCK_STATUS_CHUNK_BYTES: Final = BLOCK_STATUS_CHUNK.size  # 24, before the extents
EXTENT_BYTES: Final = _EXTENT.size  # 8

_pack_simple = SIMPLE.pack_into
_pack_chunk = CHUNK.pack_into
_pack_data = DATA_CHUNK.pack_into
_pack_hole = HOLE_CHUNK.pack_into
_pack_error = ERROR_CHUNK.pack_into


def done(out: memoryview, at: int, cookie: int) -> int:
    """A simple reply: success, without data."""
    _pack_simple(out, at, SIMPLE_DONE, cookie)
    return at + 16


def error(out: memoryview, at: int, cookie: int, errno: int) -> int:
    """A simple reply: failure with what this errno of the host becomes on the wire."""
    _pack_simple(out, at, SIMPLE_DONE | wire_errno(errno), cookie)
    return at + 16


def read_header_simple(out: memoryview, at: int, cookie: int) -> int:
    """The head of a successful READ without structured replies.  Exactly the requested length of data must follow:
    after this an error can only be told by disconnecting."""
    _pack_simple(out, at, SIMPLE_DONE, cookie)
    return at + 16


def data_chunk(out: memoryview, at: int, cookie: int, offset: int, length: int, final: bool) -> int:
    """The head of a chunk that carries `length` bytes of the export from `offset` on; the bytes must follow."""
    assert length > 0, length
    _pack_data(out, at, DATA_FINAL if final else DATA_MORE, cookie, 8 + length, offset)
    return at + 28


def hole_chunk(out: memoryview, at: int, cookie: int, offset: int, length: int, final: bool) -> int:
    """A chunk that says: these `length` bytes read as zeroes."""
    assert length > 0, length
    _pack_hole(out, at, HOLE_FINAL if final else HOLE_MORE, cookie, 12, offset, length)
    return at + 32


def none_chunk(out: memoryview, at: int, cookie: int) -> int:
    """A chunk without content that ends a reply."""
    _pack_chunk(out, at, NONE_FINAL, cookie, 0)
    return at + 20


def error_chunk(out: memoryview, at: int, cookie: int, errno: int, message: bytes = b"", final: bool = True) -> int:
    """A chunk that fails the request as a whole.  The message (UTF-8, no NUL) is for people."""
    assert len(message) <= STRING_BYTES_MAX, len(message)
    word = _ERROR_FINAL if final else _ERROR_MORE
    _pack_error(out, at, word, cookie, 6 + len(message), wire_errno(errno), len(message))
    at += ERROR_CHUNK_BYTES
    end = at + len(message)
    out[at:end] = message
    return end


def error_offset_chunk(
    out: memoryview, at: int, cookie: int, errno: int, offset: int, message: bytes = b"", final: bool = True
) -> int:
    """A chunk that fails the request at `offset` of the export: what other chunks carried stays valid up to there.
    The content that covers `offset`, if it is sent at all, must have been sent before."""
    assert len(message) <= STRING_BYTES_MAX, len(message)
    word = _ERROR_OFFSET_FINAL if final else _ERROR_OFFSET_MORE
    _pack_error(out, at, word, cookie, 14 + len(message), wire_errno(errno), len(message))
    at += ERROR_CHUNK_BYTES
    end = at + len(message)
    out[at:end] = message
    _OFFSET.pack_into(out, end, offset)
    return end + 8


def block_status_chunk(
    out: memoryview,
    at: int,
    cookie: int,
    extents: Sequence[tuple[int, int]],
    final: bool = True,
    context: int = BASE_ALLOCATION_CONTEXT,
) -> int:
    """The status of consecutive extents, from the offset of the request on: (length, flags) each.

    The flags of base:allocation are STATE_HOLE and STATE_ZERO.  Every length is positive, and all but the last extent
    lie within the request; with REQ_ONE there is exactly one, no longer than the request.
    """
    assert 0 < len(extents) <= BLOCK_STATUS_EXTENTS_MAX, len(extents)
    word = _BLOCK_STATUS_FINAL if final else _BLOCK_STATUS_MORE
    BLOCK_STATUS_CHUNK.pack_into(out, at, word, cookie, 4 + 8 * len(extents), context)
    at += BLOCK_STATUS_CHUNK_BYTES
    pack_extent = _EXTENT.pack_into
    for length, flags in extents:
        assert length > 0, length
        pack_extent(out, at, length, flags)
        at += 8
    return at

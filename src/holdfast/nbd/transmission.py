"""Requests out of bytes: the parser of the transmission phase.

The first stop of the data path.  The owner of a connection receives into a buffer and hands the filled part to
`RequestReader.parse`, which appends one tuple a request to a list and says how much of the buffer it has used.  The
engine executes the tuples, `replies` encodes the answers.  This is the hot path of the server: no object, closure or
exception a request, one precompiled struct, and the common case (a whole WRITE or READ within bounds) at the top of
the loop.  Everything else goes through `_refusal`, where the rules are written one by one.

A request is `(command, flags, cookie, offset, length, payload)`.  Besides the commands of the protocol there are two:

    WRITE_PIECE  an early part of a WRITE of which not all has arrived; it needs no reply.  The rest follows, at last as
                 CMD_WRITE with the same cookie and flags.  Offset, length and payload are those of the part.
    REJECT       not to be executed but answered with an error: `length` is its errno, and `offset` the original
                 command, for a READ must be refused by a chunk where structured replies were negotiated.

Invariants
 1. What the engine sees is valid: known command and flags that apply to it, within the export, aligned to its minimum
    block size, allowed on it.
 2. The requests depend on the bytes alone, not on how they were cut into buffers, save for where a WRITE is cut into
    pieces: pieces end at a multiple of 4096 of the *export offset*, so that only the last one can end inside a block.
 3. When no budget ended the loop, what is left unconsumed is less than REQUEST_BYTES + piece_size_bytes_min + 4096
    bytes.  A buffer of that size can therefore always make progress, whatever the client sends.
 4. `payload` is a slice of the caller's buffer and valid only until the caller changes it.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from holdfast.nbd.negotiated import Negotiated
from holdfast.nbd.protocol import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_DISC,
    CMD_FLAG_DF,
    CMD_FLAG_FAST_ZERO,
    CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE,
    CMD_FLAG_REQ_ONE,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    EINVAL,
    ENOSPC,
    EOVERFLOW,
    EPERM,
    LARGE_READ_BYTES,
    REQUEST_BYTES,
    REQUEST_MAGIC,
    WRITE_DRAIN_BYTES_MAX,
    ProtocolError,
)
from holdfast.nbd.replies import (
    BLOCK_STATUS_CHUNK_BYTES,
    DATA_CHUNK_BYTES,
    ERROR_CHUNK_BYTES,
    EXTENT_BYTES,
    SIMPLE_REPLY_BYTES,
)
from holdfast.units import BLOCK_SIZE_BYTES, KIB

Request = tuple[int, int, int, int, int, memoryview]

# Numbers that no command of the protocol has; a client that sends one gets a REJECT, as for any unknown command.
WRITE_PIECE: Final = 0x101
REJECT: Final = 0x102

# Room that a BLOCK_STATUS is given in the reply budget, and so how many extents the engine may always return.
BLOCK_STATUS_EXTENTS: Final = 128
BLOCK_STATUS_REPLY_BYTES: Final = BLOCK_STATUS_CHUNK_BYTES + BLOCK_STATUS_EXTENTS * EXTENT_BYTES

_NO_PAYLOAD: Final = memoryview(b"")

# Flags and type are unpacked as one number, so that a command without flags is told by one comparison.
_unpack_request = Struct(">IIQQI").unpack_from
_WRITE_FUA: Final = CMD_FLAG_FUA << 16 | CMD_WRITE
_READ_FUA: Final = CMD_FLAG_FUA << 16 | CMD_READ

# FUA applies to every command once SEND_FUA is announced, though to most it means nothing.
_FLAGS_ALLOWED: Final = {
    CMD_READ: CMD_FLAG_FUA,
    CMD_WRITE: CMD_FLAG_FUA,
    CMD_FLUSH: CMD_FLAG_FUA,
    CMD_TRIM: CMD_FLAG_FUA,
    CMD_CACHE: CMD_FLAG_FUA,
    CMD_WRITE_ZEROES: CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
    CMD_BLOCK_STATUS: CMD_FLAG_FUA | CMD_FLAG_REQ_ONE,
}


class RequestReader:
    """The state of one connection's request stream.

    size_bytes: the export's size, for the bounds of requests whose header is parsed from now on; the owner changes it
    on a resize.  A WRITE whose first piece was handed out before a shrink keeps its bounds.
    """

    __slots__ = (
        "_block_status",
        "_disconnected",
        "_flags_allowed",
        "_hot_read_bytes_max",
        "_hot_write_bytes_max",
        "_maximum_payload_bytes",
        "_minimum_block_mask",
        "_piece_size_bytes_min",
        "_read_only",
        "_rest_bytes",
        "_rest_cookie",
        "_rest_flags",
        "_rest_offset",
        "_skip_bytes",
        "_skipped",
        "missing_bytes",
        "size_bytes",
    )

    def __init__(self, negotiated: Negotiated, *, piece_size_bytes_min: int = 16 * KIB) -> None:
        # Below a block a piece could come out empty, and the reader would wait for ever.
        assert piece_size_bytes_min >= BLOCK_SIZE_BYTES, piece_size_bytes_min
        export = negotiated.export
        self.size_bytes = export.size_bytes
        self._read_only = export.read_only
        self._maximum_payload_bytes = export.maximum_payload_bytes
        self._minimum_block_mask = export.minimum_block_bytes - 1
        self._block_status = negotiated.block_status
        self._flags_allowed = dict(_FLAGS_ALLOWED)
        if negotiated.structured:
            self._flags_allowed[CMD_READ] |= CMD_FLAG_DF
        self._piece_size_bytes_min = piece_size_bytes_min
        # The short path checks length and bounds only.  Where there is more to check, no length is short enough for it.
        self._hot_read_bytes_max = export.maximum_payload_bytes if export.minimum_block_bytes == 1 else -1
        self._hot_write_bytes_max = -1 if export.read_only else self._hot_read_bytes_max
        # A WRITE that was handed out in part: where its rest goes.
        self._rest_bytes = 0
        self._rest_offset = 0
        self._rest_cookie = 0
        self._rest_flags = 0
        # The payload of a refused WRITE: what of it is still to come, and the refusal that follows it.  Not before: a
        # client may look for its own request among those that it has sent, and this one is still being sent.
        self._skip_bytes = 0
        self._skipped: Request | None = None
        self._disconnected = False
        self.missing_bytes = 0

    def parse(
        self,
        buffer: memoryview,
        start: int,
        end: int,
        requests: list[Request],
        *,
        reply_budget_bytes: int,
        request_budget: int,
        pieces: bool = True,
    ) -> int:
        """Append the requests in `buffer[start:end]` and return the index of the first byte not consumed.

        Without `pieces`, a WRITE of which not all has arrived stays in the buffer, and `missing_bytes` says how much of
        it is still to come; who cannot wait for that parses again with `pieces`.

        Stops early when `request_budget` requests were appended, or when the replies to them would pass
        `reply_budget_bytes`; one request is always taken.  A READ counts with its data and one chunk's head, one above
        LARGE_READ_BYTES nothing (it is streamed); a BLOCK_STATUS counts BLOCK_STATUS_REPLY_BYTES; a refusal, an error
        without a message; all else, a simple reply.  The buffer is the caller's; payloads are slices of it.
        Raises ProtocolError where the stream cannot be followed; the requests before that point were appended.
        """
        assert request_budget > 0, request_budget
        requests_left = request_budget
        reply_left = reply_budget_bytes
        at = start
        self.missing_bytes = 0
        if self._disconnected:
            return end
        if self._skip_bytes:
            at = self._skip(start, end)
            if self._skip_bytes:
                return at
            assert self._skipped is not None
            requests.append(self._skipped)
            requests_left -= 1
            reply_left -= ERROR_CHUNK_BYTES
        elif self._rest_bytes:
            if not pieces and end - start < self._rest_bytes:
                self.missing_bytes = self._rest_bytes - (end - start)
                return at
            at = self._hand_out(buffer, start, end, requests)
            if self._rest_bytes:
                return at
            requests_left -= 1
            reply_left -= SIMPLE_REPLY_BYTES
        append = requests.append
        unpack = _unpack_request
        size_bytes = self.size_bytes
        hot_write_bytes_max = self._hot_write_bytes_max
        hot_read_bytes_max = self._hot_read_bytes_max
        last = end - REQUEST_BYTES
        while at <= last and requests_left:
            magic, kind, cookie, offset, length = unpack(buffer, at)
            if magic != REQUEST_MAGIC:
                raise ProtocolError(f"a request begins with {magic:#010x} in place of {REQUEST_MAGIC:#010x}")
            body = at + REQUEST_BYTES
            if kind == CMD_WRITE or kind == _WRITE_FUA:  # noqa: PLR1714, SIM109 (`in` costs more)
                after = body + length
                if after <= end and length <= hot_write_bytes_max and offset + length <= size_bytes:
                    reply_left -= SIMPLE_REPLY_BYTES
                    if reply_left < 0 and requests_left != request_budget:
                        break
                    append((CMD_WRITE, kind >> 16, cookie, offset, length, buffer[body:after]))
                    at = after
                    requests_left -= 1
                    continue
            elif kind == CMD_READ or kind == _READ_FUA:  # noqa: PLR1714, SIM102, SIM109 (as above, and in its shape)
                if length <= hot_read_bytes_max and offset + length <= size_bytes:
                    if length <= LARGE_READ_BYTES:
                        reply_left -= DATA_CHUNK_BYTES + length
                        if reply_left < 0 and requests_left != request_budget:
                            break
                    append((CMD_READ, kind >> 16, cookie, offset, length, _NO_PAYLOAD))
                    at = body
                    requests_left -= 1
                    continue

            # The long path: any other command, and whatever is incomplete, unaligned or wrong.
            command = kind & 0xFFFF
            flags = kind >> 16
            if command == CMD_DISC:
                # Whatever comes after it, against the protocol, is nobody's business any more.
                self._disconnected = True
                append((CMD_DISC, flags, cookie, offset, length, _NO_PAYLOAD))
                return end
            refusal = self._refusal(command, flags, offset, length)
            reply_left -= _reply_bytes(command, length, refusal)
            if reply_left < 0 and requests_left != request_budget:
                break
            if refusal:
                refused = (REJECT, flags, cookie, command, refusal, _NO_PAYLOAD)
                at = body
                if command == CMD_WRITE:
                    self._skip_bytes = length
                    at = self._skip(body, end)
                if self._skip_bytes:
                    self._skipped = refused
                    return at
                append(refused)
            elif command != CMD_WRITE:
                append((command, flags, cookie, offset, length, _NO_PAYLOAD))
                at = body
            elif body + length <= end:
                at = body + length
                append((CMD_WRITE, flags, cookie, offset, length, buffer[body:at]))
            elif not pieces:
                self.missing_bytes = body + length - end
                return at
            elif end - body >= self._piece_size_bytes_min:
                self._rest_bytes, self._rest_offset = length, offset
                self._rest_cookie, self._rest_flags = cookie, flags
                return self._hand_out(buffer, body, end, requests)
            else:
                break
            requests_left -= 1
        return at

    def _skip(self, at: int, end: int) -> int:
        """Pass over the payload of a refused WRITE, as far as it is there."""
        skipped = min(self._skip_bytes, end - at)
        self._skip_bytes -= skipped
        return at + skipped

    def _hand_out(self, buffer: memoryview, at: int, end: int, requests: list[Request]) -> int:
        """Append the rest of the WRITE that is under way if it is all there, else a piece if one is worth its while."""
        available = end - at
        rest, offset = self._rest_bytes, self._rest_offset
        if available >= rest:
            command, length = CMD_WRITE, rest
        elif available >= self._piece_size_bytes_min:
            command, length = WRITE_PIECE, ((offset + available) & -BLOCK_SIZE_BYTES) - offset
        else:
            return at
        assert 0 < length <= available
        after = at + length
        requests.append((command, self._rest_flags, self._rest_cookie, offset, length, buffer[at:after]))
        self._rest_offset = offset + length
        self._rest_bytes = rest - length
        return after

    def _refusal(self, command: int, flags: int, offset: int, length: int) -> int:
        """The errno with which to refuse this request, or 0 where it is valid. Raises ProtocolError for what is too
        large even to be drained."""
        if command == CMD_WRITE and length > self._maximum_payload_bytes:
            if length > WRITE_DRAIN_BYTES_MAX:
                raise ProtocolError(
                    f"a WRITE of {length} bytes; the maximum payload is {self._maximum_payload_bytes} bytes"
                )
            return EINVAL
        allowed = self._flags_allowed.get(command)
        if allowed is None or flags & ~allowed:
            return EINVAL
        if command == CMD_FLUSH:
            # Offset and length must be zero, says the document to clients; nothing depends on it.
            return 0
        writes = command in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES)
        if writes and self._read_only:
            return EPERM
        if (offset | length) & self._minimum_block_mask:
            return EINVAL
        if offset + length > self.size_bytes:
            return ENOSPC if writes and command != CMD_TRIM else EINVAL
        if command == CMD_READ and length > self._maximum_payload_bytes:
            # The document reserves EOVERFLOW for reads that may not be fragmented.
            return EOVERFLOW if flags & CMD_FLAG_DF else EINVAL
        if command == CMD_BLOCK_STATUS and not (self._block_status and length):
            # No context was selected; or no extent, which may not be empty, could answer it.
            return EINVAL
        return 0


def _reply_bytes(command: int, length: int, refusal: int) -> int:
    """The room that the reply will take in the reply buffer."""
    if refusal:
        return ERROR_CHUNK_BYTES
    if command == CMD_READ:
        return DATA_CHUNK_BYTES + length if length <= LARGE_READ_BYTES else 0
    if command == CMD_BLOCK_STATUS:
        return BLOCK_STATUS_REPLY_BYTES
    return SIMPLE_REPLY_BYTES

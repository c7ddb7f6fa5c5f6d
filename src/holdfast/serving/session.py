"""A session: one client of one volume. Requests in, replies out; between them the engine.

The hot path of the server runs through `submit`: a batch of requests, parsed out of one receive, is carried out in
order and answered into the reply buffer that all connections share, to be sent at once. What cannot be done at once
becomes a task that answers later, into a buffer of the session's own.

Bounded, whatever the client does:
 - at most `REQUESTS_IN_FLIGHT_MAX` tasks and `BYTES_IN_FLIGHT_MAX` of copied payload; then the rest of the batch waits
   in `backlog` and the connection is not read from (`stalled`)
 - while the client does not take its replies (`blocked`) no task of the session holds a read buffer: what was read for
   it is dropped and read again when there is room

A WRITE is answered after `Log.publish`, FLUSH and FUA after the flusher's word. Nothing here waits for another session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from errno import ENOTSUP

from holdfast.engine import Engine
from holdfast.errors import HoldfastError
from holdfast.nbd import replies
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
    LARGE_READ_BYTES,
    STATE_HOLE,
    STATE_ZERO,
)
from holdfast.nbd.transmission import REJECT, WRITE_PIECE, Request
from holdfast.pool.block import first_mismatch
from holdfast.runtime.ports import Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, KIB, MIB
from holdfast.volume.read import ReadError
from holdfast.volume.volume import Volume
from holdfast.volume.write import Obstacle
from holdfast.work.task import Task, Waitlist, Work

REQUESTS_IN_FLIGHT_MAX = 128
BYTES_IN_FLIGHT_MAX = 512 * KIB
# Pieces of a large read, while there is memory for them. Larger ones mean fewer steps: with reads of 1 MiB at depth 4,
# pieces of 128, 256, 512 and 1024 KiB gave 1.7, 1.5, 2.0 and 2.1 GiB/s.
READ_PIECE_BYTES = 1 * MIB
# A read that must be answered in one piece is buffered up to this size; a longer one is read twice.
WHOLE_READ_BYTES_MAX = 1 * MIB
TWICE_PIECE_BYTES = 256 * KIB
LATER_BYTES_MAX = 64 * KIB

_pack_simple = replies.SIMPLE.pack_into
_pack_data = replies.DATA_CHUNK.pack_into
_DATA_HEADER = replies.DATA_CHUNK
_SIMPLE_DONE = replies.SIMPLE_DONE
_DATA_FINAL = replies.DATA_FINAL
_BLOCK_MASK = BLOCK_SIZE_BYTES - 1
# Obstacles that every writer meets alike: the session waits with all that follows, rather than pile up copies.
_STALLING = (Obstacle.RING_FULL, Obstacle.NO_SEGMENT, Obstacle.TOO_DIRTY)


class _PiecedWrite:
    """A WRITE that arrived in pieces: it is answered when its last piece has come and all have ended."""

    __slots__ = ("errno", "flags", "last_seen", "pending")

    def __init__(self) -> None:
        self.errno = 0
        self.flags = 0
        self.pending = 0
        self.last_seen = False


class Session:
    """Fields: L loop thread (all). `out` and `piece` are shared by all sessions: `out` is in use only within `submit`
    and the send after it, `piece` (READ_PIECE_BYTES) only between reading into it and the send in the same step."""

    def __init__(
        self,
        engine: Engine,
        volume: Volume,
        negotiated: Negotiated,
        out: memoryview,
        piece: memoryview,
        *,
        transmit: Callable[[], None],
        answered: Callable[[Session], None],
        resume: Callable[[], None],
        piece_limit: Callable[[], int] = lambda: READ_PIECE_BYTES,
    ) -> None:
        self.engine = engine
        self.volume = volume
        self.structured = negotiated.structured
        self.out = out
        self.piece = piece
        self.at = 0
        self.later = bytearray()
        self.held = bytearray()  # replies that came up while `exclusive`
        self.direct: memoryview | None = None  # a large piece to be sent behind `later`, without a copy
        self.blocked = False  # set by the connection: the client does not take its replies
        self.exclusive = False  # a reply in several sends is under way: nothing may come between
        self.closed = False
        self.disconnect_requested = False
        self.broken = False  # a reply could not be completed: the connection must be closed
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.backlog: deque[Request] = deque()
        self.output_room = Waitlist(engine.scheduler, "the client to take its replies")
        self._transmit = transmit
        self._answered = answered
        self._resume = resume
        self._piece_limit = piece_limit  # bytes of a large read that may be handed over at a time now
        self._tasks: dict[Task, None] = {}
        self._pieces: _PiecedWrite | None = None
        volume.connections += 1

    @property
    def kept_bytes(self) -> int:
        """Payload that the session holds copies of, and replies not handed over yet."""
        waiting = sum(len(request[5]) for request in self.backlog) if self.backlog else 0
        return waiting + self.bytes_in_flight + len(self.held)

    @property
    def stalled(self) -> bool:
        return bool(self.backlog) or self.exclusive

    def close(self) -> None:
        """The connection is gone: what it began and did not finish is cancelled; nothing of it touches the volume
        again."""
        if self.closed:
            return
        self.closed = True
        self.backlog.clear()
        self.later.clear()
        self.volume.connections -= 1
        for task in list(self._tasks):
            task.cancel()
        self._tasks.clear()

    # ---- the hot path

    def submit(self, requests: list[Request]) -> None:
        """Carry out a batch. Afterwards `out[:at]` and `later` hold replies; the caller publishes and sends them."""
        if self.backlog:
            self.backlog.extend(_kept(request) for request in requests)
            return
        volume = self.volume
        write_block = self.engine.writer.write_block
        read_block = self.engine.reader.read_block
        structured = self.structured
        out = self.out
        at = self.at
        for number, request in enumerate(requests):
            rest = request
            command, flags, cookie, offset, length, payload = request
            if command == CMD_WRITE:
                if length == 4096 and not offset & 4095 and not flags and self._pieces is None:
                    obstacle = write_block(volume, offset >> 12, payload)
                    if not obstacle:
                        _pack_simple(out, at, _SIMPLE_DONE, cookie)
                        at += 16
                        continue
                elif not (length | offset) & 4095 and not flags and length and self._pieces is None:
                    done, obstacle = self.engine.writer.write_run(volume, offset >> 12, payload)
                    if not obstacle:
                        _pack_simple(out, at, _SIMPLE_DONE, cookie)
                        at += 16
                        continue
                    if done:
                        done <<= BLOCK_SHIFT
                        rest = (command, flags, cookie, offset + done, length - done, payload[done:])
            elif command == CMD_READ and length <= LARGE_READ_BYTES and not (offset | length) & 4095 and length:
                if structured:
                    body = at + 28
                    view = out[body : body + length]
                    if length == 4096:
                        done = read_block(volume, offset >> 12, view)
                    else:
                        done = self.engine.reader.read_run(volume, offset >> 12, view)
                    if done:
                        _pack_data(out, at, _DATA_FINAL, cookie, 8 + length, offset)
                        at = body + length
                        continue
                    if not flags and self._begin_cold_read(cookie, offset, length):
                        continue
                else:
                    body = at + 16
                    if self.engine.reader.read_run(volume, offset >> 12, out[body : body + length]):
                        _pack_simple(out, at, _SIMPLE_DONE, cookie)
                        at = body + length
                        continue
            self.at = at
            waiting = self._begin(rest)
            if waiting is not None:
                self.backlog.append(_kept(waiting))
                self.backlog.extend(map(_kept, requests[number + 1 :]))
                self.engine.log.publish()
                return
            at = self.at
        self.at = at
        self.engine.log.publish()

    def work_off(self) -> None:
        """Go on with the backlog as far as it goes now. Afterwards `later` holds replies, as after `submit`."""
        if self.exclusive:
            return
        while self.backlog:
            waiting = self._begin(self.backlog[0])
            if waiting is not None:
                self.backlog[0] = waiting
                break
            self.backlog.popleft()
        self.engine.log.publish()  # what was answered here is sent before the next turn ends

    # ---- what takes longer

    def _begin(self, request: Request) -> Request | None:
        """Begin a request that the hot path does not take. If the session must wait, the request, or what is left of
        it, comes back, to be begun again."""
        command, flags, cookie, offset, length, payload = request
        if self.exclusive:
            return request
        if command == REJECT:
            self._reply_error(cookie, length, chunk=offset in (CMD_READ, CMD_BLOCK_STATUS))
            return None
        if command == CMD_DISC:
            self.disconnect_requested = True
            return None
        if command == CMD_FLUSH:
            self.in_flight += 1
            self.engine.flusher.when_durable(lambda errno: self._finished(cookie, errno))
            return None
        if self.in_flight >= REQUESTS_IN_FLIGHT_MAX or self.bytes_in_flight > BYTES_IN_FLIGHT_MAX:
            return request
        if command in (CMD_WRITE, WRITE_PIECE):
            return self._begin_write(command, flags, cookie, offset, payload)
        if length == 0:
            self._reply_empty(command, cookie)
        elif command == CMD_READ:
            self._spawn(self._read(cookie, flags, offset, length), self._read_finished)
        elif command == CMD_TRIM:
            self._spawn(self._checked(self.engine.writer.trim(self.volume, offset, length)), cookie=cookie, flags=flags)
        elif command == CMD_WRITE_ZEROES:
            self._begin_zeroes(cookie, flags, offset, length)
        elif command == CMD_CACHE:
            work = self._checked(self.engine.reader.prefetch(self.volume, offset, length))
            self._spawn(work, cookie=cookie, flags=flags)
        else:
            assert command == CMD_BLOCK_STATUS, command
            self._spawn(self._block_status(cookie, flags, offset, length), self._read_finished)
        return None

    def _begin_zeroes(self, cookie: int, flags: int, offset: int, length: int) -> None:
        allocate = bool(flags & CMD_FLAG_NO_HOLE)
        if allocate and flags & CMD_FLAG_FAST_ZERO:
            self._reply_error(cookie, ENOTSUP, chunk=False)  # zeroes that must be allocated are as slow as writes
            return
        work = self.engine.writer.zero(self.volume, offset, length, allocate=allocate)
        self._spawn(self._checked(work), cookie=cookie, flags=flags)

    def _begin_write(self, command: int, flags: int, cookie: int, offset: int, payload: memoryview) -> Request | None:
        done = 0
        if payload and not offset & _BLOCK_MASK:
            whole = len(payload) & -BLOCK_SIZE_BYTES
            blocks, obstacle = self.engine.writer.write_run(self.volume, offset >> BLOCK_SHIFT, payload[:whole])
            done = blocks << BLOCK_SHIFT
            if obstacle in _STALLING:
                return command, flags, cookie, offset + done, len(payload) - done, payload[done:]
        pieces = self._pieces
        if command == WRITE_PIECE and pieces is None:
            pieces = self._pieces = _PiecedWrite()
        if command == CMD_WRITE:
            self._pieces = None
            if pieces is not None:
                pieces.flags = flags
                pieces.last_seen = True
        if done == len(payload):
            if pieces is not None:
                self._piece_ended(cookie, pieces)
            else:
                self.in_flight += 1
                self._ended(cookie, flags, 0)
            return None
        rest = memoryview(bytes(payload[done:]))
        work = self._checked(self.engine.writer.write(self.volume, offset + done, rest))
        self.bytes_in_flight += len(rest)

        def finished(errno: int) -> None:
            self.bytes_in_flight -= len(rest)
            if pieces is None:
                self._ended(cookie, flags, errno)
                return
            self.in_flight -= 1
            pieces.pending -= 1
            pieces.errno = pieces.errno or errno
            self._piece_ended(cookie, pieces)
            self._after_answer()  # without an answer as well: the next piece may have waited for what this one held

        if pieces is not None:
            pieces.pending += 1
        self._spawn(work, finished)
        return None

    def _piece_ended(self, cookie: int, pieces: _PiecedWrite) -> None:
        if pieces.last_seen and not pieces.pending:
            self.in_flight += 1
            self._ended(cookie, pieces.flags, pieces.errno)

    def _spawn(
        self, work: Work, finished: Callable[[int], None] | None = None, *, cookie: int = 0, flags: int = 0
    ) -> None:
        """Run a task of this session. Its outcome goes to `finished`, or is answered to `cookie`."""
        self.in_flight += 1
        holder: list[Task] = []

        def ended(outcome: int) -> None:
            if holder:
                self._tasks.pop(holder[0], None)
            if self.closed:
                return
            if finished is not None:
                finished(outcome)
            else:
                self._ended(cookie, flags, outcome)

        task = self.engine.scheduler.spawn(work, self.volume.name, ended)
        if task in self.engine.scheduler.tasks:
            holder.append(task)
            self._tasks[task] = None

    def _checked(self, work: Work) -> Work:
        """Run work that changes the volume; returns 0 or the errno of the HoldfastError that it ends with."""
        try:
            yield from work
        except HoldfastError as error:
            self.engine.complain(f"volume {self.volume.name}: {error}")
            return error.errno
        return 0

    def _ended(self, cookie: int, flags: int, errno: int) -> None:
        """A change has been made, or not; with FUA it is answered once it is durable."""
        if errno == 0 and flags & CMD_FLAG_FUA:
            self.engine.flusher.when_durable(lambda outcome: self._finished(cookie, outcome))
        else:
            self._finished(cookie, errno)

    def _finished(self, cookie: int, errno: int) -> None:
        self.in_flight -= 1
        if self.closed:
            return
        if errno:
            self._reply_error(cookie, errno, chunk=False)
        else:
            self._reply_done(cookie)
        self._after_answer()

    def _read_finished(self, _outcome: int) -> None:
        self.in_flight -= 1
        self._after_answer()

    def _after_answer(self) -> None:
        if self.backlog or self.disconnect_requested:
            self._resume()

    # ---- reads that wait

    def _begin_cold_read(self, cookie: int, offset: int, length: int) -> bool:
        """Begin a small read whose blocks lie in one piece on the disk: the usual case of a read that has to wait,
        without a task. Whatever is out of the ordinary, before or after, is left to a task, which begins from the
        start."""
        engine = self.engine
        if self.blocked or self.exclusive or self.in_flight >= REQUESTS_IN_FLIGHT_MAX:
            return False
        if engine.read_buffer_bytes_left < length:
            return False
        found = engine.reader.on_disk(self.volume, offset >> BLOCK_SHIFT, length >> BLOCK_SHIFT)
        if found is None:
            return False
        io, entries = found
        engine.read_buffer_bytes_left -= length
        engine.space.pin(io.file)
        self.in_flight += 1

        def read(io: Io) -> None:
            engine.space.unpin(io.file)
            self._release(length)
            if self.closed:
                return
            self.in_flight -= 1
            assert io.view is not None
            owner = self.volume.key_base | offset >> BLOCK_SHIFT
            if io.result < 0 or self.blocked or self.exclusive or first_mismatch(io.view, owner, entries) >= 0:
                self._spawn(self._read(cookie, 0, offset, length), self._read_finished)
                return
            self.later += _DATA_HEADER.pack(_DATA_FINAL, cookie, 8 + length, offset)
            self._append_later(io.view)
            self._after_answer()

        io.done = read
        engine.disk.start(io)
        return True

    def _read(self, cookie: int, flags: int, offset: int, length: int) -> Work:
        chunked = self.structured and not flags & CMD_FLAG_DF
        if length > WHOLE_READ_BYTES_MAX and not chunked:
            yield from self._read_twice(cookie, offset, length)
            return 0
        at = 0
        while at < length:
            count = min(self._piece_limit() & -BLOCK_SIZE_BYTES, length - at) if chunked else length
            final = at + count == length
            if chunked and self.engine.reader.is_hole(self.volume, offset + at, count):
                hole = memoryview(bytearray(replies.HOLE_CHUNK_BYTES))
                replies.hole_chunk(hole, 0, cookie, offset + at, count, final)
                self._append_later(hole)
                at += count
                continue
            buffer = self._read_cached(offset + at, count)
            budgeted = 0
            if buffer is None:
                buffer, errno, where = yield from self._read_piece(offset + at, count)
                budgeted = count
                if errno:
                    self._reply_read_error(cookie, errno, where)
                    return 0
            header = memoryview(bytearray(replies.DATA_CHUNK_BYTES))
            if self.structured:
                used = replies.data_chunk(header, 0, cookie, offset + at, count, final)
            else:
                used = replies.read_header_simple(header, 0, cookie)
            self._send_data(header[:used], buffer)
            if budgeted:
                self._release(budgeted)
            at += count
        return 0

    def _read_cached(self, offset: int, count: int) -> memoryview | None:
        """The piece in the buffer that all sessions share, if it can be had and sent without waiting; else None."""
        if self.blocked or self.exclusive or count > READ_PIECE_BYTES or (offset | count) & _BLOCK_MASK:
            return None
        buffer = self.piece[:count]
        return buffer if self.engine.reader.read_run(self.volume, offset >> BLOCK_SHIFT, buffer) else None

    def _read_piece(self, offset: int, count: int) -> Work:
        """Read `count` bytes once the client takes replies; returns (buffer, errno, first bad offset). The caller gives
        the `count` bytes of budget back with `_release`, unless there was an error."""
        engine = self.engine
        while True:
            if self.blocked:
                yield self.output_room
                continue
            if engine.read_buffer_bytes_left < count:
                yield engine.buffer_room
                continue
            engine.read_buffer_bytes_left -= count
            kept = False
            try:
                buffer = memoryview(bytearray(count))
                yield from engine.reader.read(self.volume, offset, buffer)
                kept = not self.blocked
            except ReadError as error:
                engine.complain(f"volume {self.volume.name}: {error}")
                return memoryview(b""), error.errno, error.offset
            finally:
                if not kept:
                    self._release(count)
            if kept:
                return buffer, 0, 0

    def _release(self, count: int) -> None:
        self.engine.read_buffer_bytes_left += count
        self.engine.buffer_room.wake()

    def _read_twice(self, cookie: int, offset: int, length: int) -> Work:
        """A long read that must be one piece: read it all to be sure that it can be, then again to send it."""
        for sending in (False, True):
            if sending:
                header = memoryview(bytearray(replies.DATA_CHUNK_BYTES))
                if self.structured:
                    used = replies.data_chunk(header, 0, cookie, offset, length, True)
                else:
                    used = replies.read_header_simple(header, 0, cookie)
                while self.exclusive:
                    yield self.output_room
                self._append_later(header[:used])
                self.exclusive = True  # from here to the end only `_send_exclusively` may add to the output
            for at in range(0, length, TWICE_PIECE_BYTES):
                count = min(TWICE_PIECE_BYTES, length - at)
                buffer, errno, where = yield from self._read_piece(offset + at, count)
                if errno:
                    if sending:
                        self.broken = True  # the header promised success: all that is left is to hang up
                        self._answered(self)
                    else:
                        self._reply_read_error(cookie, errno, where)
                    return
                if sending:
                    self._send_exclusively(buffer)
                self._release(count)
        self.exclusive = False
        self._append_later(self.held)
        self.held.clear()
        self.output_room.wake()
        self._resume()

    def _block_status(self, cookie: int, flags: int, offset: int, length: int) -> Work:
        try:
            # An answer can have 64 KiB: for a client that takes none it is not kept, but made again when there is room.
            while True:
                while self.blocked:
                    yield self.output_room
                extents = yield from self.engine.reader.extents(self.volume, offset, length)
                if not self.blocked:
                    break
        except HoldfastError as error:
            self.engine.complain(f"volume {self.volume.name}: {error}")
            self._reply_error(cookie, error.errno, chunk=True)
            return 0
        if flags & CMD_FLAG_REQ_ONE:
            extents = extents[:1]
        words = [(size, STATE_HOLE | STATE_ZERO if hole else 0) for size, hole in extents]
        chunk = memoryview(bytearray(replies.BLOCK_STATUS_CHUNK_BYTES + replies.EXTENT_BYTES * len(words)))
        replies.block_status_chunk(chunk, 0, cookie, words, True)
        self._append_later(chunk)
        return 0

    # ---- replies outside of the hot path

    def _append_later(self, reply: memoryview | bytearray) -> None:
        if self.exclusive:
            self.held += reply
            return
        self.later += reply
        self._answered(self)
        if len(self.later) > LATER_BYTES_MAX:
            self.engine.log.publish()
            self._transmit()

    def _send_data(self, header: memoryview, data: memoryview) -> None:
        """Send a data reply: a large one at once and without a copy, a small one with the others of this turn."""
        if self.exclusive:
            self.held += header
            self.held += data
            return
        self.later += header
        if len(data) <= LARGE_READ_BYTES:
            self._append_later(data)
            return
        self._send_exclusively(data)

    def _send_exclusively(self, data: memoryview) -> None:
        self.direct = data
        self.engine.log.publish()
        self._transmit()
        self.direct = None

    def _reply_done(self, cookie: int) -> None:
        reply = bytearray(replies.SIMPLE_REPLY_BYTES)
        replies.done(memoryview(reply), 0, cookie)
        self._append_later(reply)

    def _reply_error(self, cookie: int, errno: int, *, chunk: bool) -> None:
        reply = memoryview(bytearray(replies.ERROR_CHUNK_BYTES))
        if chunk and self.structured:
            used = replies.error_chunk(reply, 0, cookie, errno)
        else:
            used = replies.error(reply, 0, cookie, errno)
        self._append_later(reply[:used])

    def _reply_read_error(self, cookie: int, errno: int, where: int) -> None:
        if not self.structured:
            self._reply_error(cookie, errno, chunk=False)
            return
        reply = memoryview(bytearray(replies.ERROR_OFFSET_CHUNK_BYTES))
        used = replies.error_offset_chunk(reply, 0, cookie, errno, where)
        self._append_later(reply[:used])

    def _reply_empty(self, command: int, cookie: int) -> None:
        """The answer to a request of length 0: success, without anything."""
        if self.structured and command == CMD_READ:
            reply = memoryview(bytearray(replies.CHUNK_HEADER_BYTES))
            replies.none_chunk(reply, 0, cookie)
            self._append_later(reply)
        else:
            self._reply_done(cookie)


def _kept(request: Request) -> Request:
    """A request whose payload is its own copy, for the buffer that it lies in is about to be used again."""
    command, flags, cookie, offset, length, payload = request
    if payload:
        payload = memoryview(bytes(payload))
    return command, flags, cookie, offset, length, payload

"""Reads that the hot path could not answer from memory.

Between `Session` and the engine's `Reader`. Such a read goes one of these ways:

 - up to 64 KiB, its blocks in one piece on the disk: one I/O, without a task (`begin_cold`)
 - otherwise as a task: in chunks, each sent when it has been read; or, where the client wants one piece (no structured
   replies, or DF), in one buffer up to `WHOLE_READ_BYTES_MAX`, and beyond that read twice

Invariants:

 1. A buffer of a read that waits is charged to the group that pays for as long as it is held.
 2. No buffer is held while the client does not take its replies: what was read for it is dropped, and read again when
    there is room.
 3. A header goes out only when its data can follow. A piece that is read twice can still be damaged in between: then
    the connection is broken off, and the client does not take for data what is none.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.engine import Engine
from holdfast.memory.context import CLIENT
from holdfast.memory.group import Group, Kind
from holdfast.memory.policy import NEVER_NS, obtain
from holdfast.nbd import replies
from holdfast.nbd.protocol import CMD_FLAG_DF
from holdfast.pool.block import first_mismatch
from holdfast.runtime.ports import Io
from holdfast.serving.in_flight import REQUESTS_IN_FLIGHT_MAX, InFlight
from holdfast.serving.outgoing import Outgoing
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, KIB, MIB
from holdfast.volume.read import ReadError
from holdfast.volume.volume import Volume
from holdfast.work.task import Work

# Pieces of a large read, while there is memory for them. Larger ones mean fewer steps: with reads of 1 MiB at depth 4,
# pieces of 128, 256, 512 and 1024 KiB gave 1.7, 1.5, 2.0 and 2.1 GiB/s.
READ_PIECE_BYTES = 1 * MIB
# A read that must be answered in one piece is buffered up to this size; a longer one is read twice.
WHOLE_READ_BYTES_MAX = 1 * MIB
TWICE_PIECE_BYTES = 256 * KIB

_DATA_HEADER = replies.DATA_CHUNK
_DATA_FINAL = replies.DATA_FINAL
_BLOCK_MASK = BLOCK_SIZE_BYTES - 1


class WaitingReads:
    """Of one session. All fields are fixed when it is made.

    `piece` (READ_PIECE_BYTES) is shared by all sessions: it is in use only between reading into it and the send in the
    same step. `piece_limit` says how many bytes of a large read may be handed over at a time now.
    """

    def __init__(
        self,
        engine: Engine,
        volume: Volume,
        in_flight: InFlight,
        outgoing: Outgoing,
        *,
        payer: Group | None,
        piece: memoryview,
        piece_limit: Callable[[], int],
    ) -> None:
        self.engine = engine
        self.volume = volume
        self.in_flight = in_flight
        self.outgoing = outgoing
        self._payer = payer  # None: the volume's group
        self.piece = piece
        self._piece_limit = piece_limit

    # ---- beginning

    def begin(self, cookie: int, flags: int, offset: int, length: int) -> None:
        self.in_flight.spawn(self._read(cookie, flags, offset, length), "READ", self.in_flight.end)

    def begin_cold(self, cookie: int, offset: int, length: int) -> bool:
        """Begin a small read whose blocks lie in one piece on the disk: the usual case of a read that has to wait,
        without a task. It is answered in one chunk. Whatever is out of the ordinary, before or after, is left to a
        task, which begins from the start; False: the caller is to see to that."""
        engine, outgoing, in_flight = self.engine, self.outgoing, self.in_flight
        if outgoing.blocked or outgoing.exclusive or in_flight.count >= REQUESTS_IN_FLIGHT_MAX:
            return False
        payer = self.payer
        if payer.try_charge(Kind.READ_BUFFERS, length) is not None:
            return False
        found = engine.reader.on_disk(self.volume, offset >> BLOCK_SHIFT, length >> BLOCK_SHIFT)
        if found is None:
            payer.release(Kind.READ_BUFFERS, length)
            return False
        io, entries = found
        engine.space.pin(io.file)
        in_flight.count += 1
        in_flight.cold_reads[io] = engine.scheduler.now_ns

        def read(io: Io) -> None:
            del in_flight.cold_reads[io]
            engine.space.unpin(io.file)
            self._release(payer, length)
            if in_flight.closed:
                return
            assert io.view is not None
            lba = offset >> BLOCK_SHIFT
            if io.result < 0 or outgoing.blocked or outgoing.exclusive or first_mismatch(io.view, lba, entries) >= 0:
                in_flight.count -= 1  # the task counts it anew
                self.begin(cookie, 0, offset, length)
                return
            outgoing.send_data(_DATA_HEADER.pack(_DATA_FINAL, cookie, 8 + length, offset), io.view)
            in_flight.end()

        io.done = read
        engine.disk.start(io)
        return True

    # ---- reading

    def _read(self, cookie: int, flags: int, offset: int, length: int) -> Work:
        outgoing = self.outgoing
        chunked = outgoing.structured and not flags & CMD_FLAG_DF
        if length > self._within_limit(WHOLE_READ_BYTES_MAX) and not chunked:
            yield from self._read_twice(cookie, offset, length)
            return
        at = 0
        while at < length:
            count = _piece(offset, at, length, self._piece_limit()) if chunked else length
            final = at + count == length
            if chunked and self.engine.reader.is_hole(self.volume, offset + at, count):
                hole = memoryview(bytearray(replies.HOLE_CHUNK_BYTES))
                replies.hole_chunk(hole, 0, cookie, offset + at, count, final)
                outgoing.append(hole)
                at += count
                continue
            buffer = self._read_cached(offset + at, count)
            payer = self.payer
            budgeted = 0
            if buffer is None:
                buffer, errno, where = yield from self._read_piece(offset + at, count, payer)
                budgeted = count
                if errno:
                    outgoing.read_error(cookie, errno, where)
                    return
            outgoing.send_data(outgoing.read_header(cookie, offset + at, count, final=final), buffer)
            if budgeted:
                self._release(payer, budgeted)
            at += count

    def _read_cached(self, offset: int, count: int) -> memoryview | None:
        """The piece in the buffer that all sessions share, if it can be had and sent without waiting; else None."""
        outgoing = self.outgoing
        if outgoing.blocked or outgoing.exclusive or count > READ_PIECE_BYTES or (offset | count) & _BLOCK_MASK:
            return None
        buffer = self.piece[:count]
        return buffer if self.engine.reader.read_run(self.volume, offset >> BLOCK_SHIFT, buffer) else None

    @property
    def payer(self) -> Group:
        return self._payer or self.volume.group.memory

    def _within_limit(self, most: int) -> int:
        """At most a quarter of what the group may have: a buffer that is larger would never come free."""
        return min(most, self.payer.limit_bytes >> 2)

    def _read_piece(self, offset: int, count: int, payer: Group) -> Work:
        """Read `count` bytes once the client takes replies; returns (buffer, errno, first bad offset). The caller gives
        the `count` bytes back to `payer` with `_release`, unless there was an error."""
        engine, outgoing = self.engine, self.outgoing
        while True:
            if outgoing.blocked:
                yield outgoing.room
                continue
            yield from obtain(
                payer,
                Kind.READ_BUFFERS,
                count,
                CLIENT,
                room=engine.waitlists.buffer_room,
                until_ns=NEVER_NS,
                now_ns=engine.clock.now_ns,
                first=True,
            )
            if self.outgoing.blocked:  # meanwhile
                self._release(payer, count)
                continue
            kept = False
            held = engine.scheduler.hold(engine.waitlists.buffer_room, count)
            try:
                buffer = memoryview(bytearray(count))
                yield from engine.reader.read(self.volume, offset, buffer)
                kept = not outgoing.blocked
            except ReadError as error:
                engine.complaints.answer(error, self.volume.name)
                return memoryview(b""), error.errno, error.offset
            finally:
                held.release()
                if not kept:
                    self._release(payer, count)
            if kept:
                return buffer, 0, 0

    def _release(self, payer: Group, count: int) -> None:
        payer.release(Kind.READ_BUFFERS, count)
        self.engine.waitlists.buffer_room.wake()

    def _read_twice(self, cookie: int, offset: int, length: int) -> Work:
        """A long read that must be one piece: read it all to be sure that it can be, then again to send it."""
        outgoing = self.outgoing
        for sending in (False, True):
            if sending:
                while outgoing.exclusive:
                    yield outgoing.room
                outgoing.begin_exclusive(outgoing.read_header(cookie, offset, length, final=True))
            at = 0
            while at < length:
                count = _piece(offset, at, length, self._within_limit(TWICE_PIECE_BYTES))
                payer = self.payer
                buffer, errno, where = yield from self._read_piece(offset + at, count, payer)
                if errno:
                    if sending:
                        outgoing.break_off()
                    else:
                        outgoing.read_error(cookie, errno, where)
                    return
                if sending:
                    outgoing.send_part(buffer)
                self._release(payer, count)
                at += count
        outgoing.end_exclusive()


def _piece(offset: int, at: int, length: int, limit: int) -> int:
    """The length of the piece that begins `at` bytes into a READ. Pieces end where blocks do, so that each block is
    read at one moment, whole."""
    return min((limit & -BLOCK_SIZE_BYTES) - (offset + at) % BLOCK_SIZE_BYTES, length - at)

"""A session: one client of one volume. Requests in, replies out; between them the engine.

The hot path of the server runs through `submit`: a batch of requests, parsed out of one receive, is carried out in
order and answered into the reply buffer that all connections share, to be sent at once. What cannot be done at once is
begun here and answers later:

    waiting_read.py    reads from the disk, in chunks or in one piece
    block_status.py    what is a hole, and what changed since a snapshot
    waiting_write.py   writes with flags, of parts of blocks, in pieces
    in_flight.py       what was begun and is not answered, and how it ends
    outgoing.py        the replies of these, behind those of the batch

Bounded, whatever the client does:
 - at most `REQUESTS_IN_FLIGHT_MAX` requests in flight and `BYTES_IN_FLIGHT_MAX` of copied payload; then the rest of the
   batch waits in `backlog` and the connection is not read from (`stalled`)
 - while the client does not take its replies no request in flight holds a read buffer

A WRITE is answered after `Log.publish`, FLUSH and FUA after the flusher's word. Nothing here waits for another session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from errno import ENOTSUP, EPERM

from holdfast.engine import Engine
from holdfast.errors import Resource
from holdfast.memory.group import Group
from holdfast.nbd import replies
from holdfast.nbd.negotiated import Negotiated
from holdfast.nbd.protocol import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_DISC,
    CMD_FLAG_FAST_ZERO,
    CMD_FLAG_NO_HOLE,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    LARGE_READ_BYTES,
)
from holdfast.nbd.transmission import REJECT, WRITE_PIECE, Request
from holdfast.serving.block_status import BlockStatus
from holdfast.serving.in_flight import InFlight
from holdfast.serving.outgoing import Outgoing
from holdfast.serving.waiting_read import READ_PIECE_BYTES, WaitingReads
from holdfast.serving.waiting_write import WaitingWrites
from holdfast.units import BLOCK_SHIFT
from holdfast.volume.volume import Volume, read_only_error

_pack_simple = replies.SIMPLE.pack_into
_pack_data = replies.DATA_CHUNK.pack_into
_SIMPLE_DONE = replies.SIMPLE_DONE
_DATA_FINAL = replies.DATA_FINAL


class Session:
    """Fields: I fixed when made, L loop thread. `out` is shared by all sessions: it is in use only within `submit` and
    the send after it."""

    def __init__(
        self,
        engine: Engine,
        volume: Volume,
        negotiated: Negotiated,
        out: memoryview,
        piece: memoryview,
        *,
        transmit: Callable[[], None],
        ready: Callable[[], None],
        payer: Group | None = None,
        piece_limit: Callable[[], int] = lambda: READ_PIECE_BYTES,
    ) -> None:
        """`transmit` sends what there is; `ready` is told when there is something to send, or to go on with. `payer`:
        the group that pays for this client; None: the volume's."""
        self.engine = engine  # I
        self.volume = volume  # I
        base = negotiated.changed_since
        self.base = None if base is None else engine.by_name[base]  # I: the snapshot that it is compared with
        self._peer_group = payer  # I
        self.structured = negotiated.structured  # I
        self.out = out  # I
        self.at = 0  # L: where the replies in `out` end
        self.disconnect_requested = False  # L
        self.backlog: deque[Request] = deque()  # L
        self.stalled_ns = 0  # L: when the backlog last got on (to the tick)
        self.outgoing = Outgoing(  # I
            engine.scheduler, engine.log, structured=negotiated.structured, transmit=transmit, ready=ready
        )
        self.in_flight = InFlight(engine, volume, self.outgoing, go_on=self._go_on)  # I
        self.reads = WaitingReads(  # I
            engine, volume, self.in_flight, self.outgoing, payer=payer, piece=piece, piece_limit=piece_limit
        )
        self.block_status = BlockStatus(  # I
            engine, volume, self.base, self.in_flight, self.outgoing, allocation=negotiated.base_allocation
        )
        self.writes = WaitingWrites(engine, volume, self.in_flight, payer=payer)  # I
        self._ready = ready  # I
        volume.connections += 1
        if self.base is not None:
            self.base.connections += 1  # it must not be removed under its client either

    @property
    def kept_bytes(self) -> int:
        """Payload that the session holds copies of, and replies not handed over yet."""
        waiting = sum(len(request[5]) for request in self.backlog) if self.backlog else 0
        return waiting + self.in_flight.payload_bytes + len(self.outgoing.held)

    @property
    def payer(self) -> Group:
        """The group to which the memory of its requests is charged."""
        return self._peer_group or self.volume.group.memory

    @property
    def closed(self) -> bool:
        return self.in_flight.closed

    @property
    def stalled(self) -> bool:
        """True if it takes no more requests for now."""
        return bool(self.backlog) or self.outgoing.exclusive

    @property
    def idle(self) -> bool:
        """True if the client waits for nothing of it."""
        return not (self.in_flight.count or self.backlog)

    def close(self) -> None:
        """The connection is gone: what it began and did not finish is cancelled; nothing of it touches the volume
        again."""
        if self.closed:
            return
        self.backlog.clear()
        self.outgoing.later.clear()
        self.volume.connections -= 1
        if self.base is not None:
            self.base.connections -= 1
        self.in_flight.close()

    # ---- the hot path

    def submit(self, requests: list[Request]) -> None:
        """Carry out a batch. Afterwards `out[:at]` and `outgoing` hold replies; the caller publishes and sends them."""
        volume = self.volume
        if self.backlog:
            self.backlog.extend(_kept(request) for request in requests)
            return
        if volume.read_only:
            self.backlog.extend(requests)
            self.work_off()
            self.backlog = deque(map(_kept, self.backlog))
            return
        log = self.engine.log
        payer = self._peer_group or volume.group.memory
        if payer is not log.payer:
            log.bill(payer)
        write_block = self.engine.writer.write_block
        read_block = self.engine.reader.read_block
        writes = self.writes
        structured = self.structured
        out = self.out
        at = self.at
        for number, request in enumerate(requests):
            rest = request
            command, flags, cookie, offset, length, payload = request
            if command == CMD_WRITE:
                if length == 4096 and not offset & 4095 and not flags and writes.pieces is None:
                    obstacle = write_block(volume, offset >> 12, payload)
                    if not obstacle:
                        _pack_simple(out, at, _SIMPLE_DONE, cookie)
                        at += 16
                        continue
                elif not (length | offset) & 4095 and not flags and length and writes.pieces is None:
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
                    if not flags and self.reads.begin_cold(cookie, offset, length):
                        continue
                else:
                    body = at + 16
                    if self.engine.reader.read_run(volume, offset >> 12, out[body : body + length]):
                        _pack_simple(out, at, _SIMPLE_DONE, cookie)
                        at = body + length
                        continue
            self.at = at
            waiting = self._begin(rest)
            if self.closed:
                return  # it answered something, and that could not be sent
            # A long read that must be one piece may have begun: until its end nothing else may be answered.
            if waiting is not None or self.outgoing.exclusive:
                if waiting is not None:
                    self.backlog.append(_kept(waiting))
                self.backlog.extend(map(_kept, requests[number + 1 :]))
                self.stalled_ns = self.engine.scheduler.now_ns
                self.engine.log.publish()
                return
            at = self.at
        self.at = at
        self.engine.log.publish()

    def work_off(self) -> None:
        """Go on with the backlog as far as it goes now. Afterwards `outgoing` holds replies, as after `submit`."""
        if self.outgoing.exclusive:
            return
        self.engine.log.bill(self.payer)
        while self.backlog:
            waiting = self._begin(self.backlog.popleft())
            if self.closed:
                return  # it answered something, and that could not be sent
            if waiting is not None:
                self.backlog.appendleft(waiting)
                break
            self.stalled_ns = self.engine.scheduler.now_ns
        self.engine.log.publish()  # what was answered here is sent before the next turn ends

    # ---- what takes longer

    def _begin(self, request: Request) -> Request | None:
        """Begin a request that the hot path does not take. If the session must wait, the request, or what is left of
        it, comes back, to be begun again."""
        command, flags, cookie, offset, length, _payload = request
        if self.outgoing.exclusive:
            return request
        if command == REJECT:
            self.engine.complaints.count(length, Resource.REQUEST)
            self.outgoing.error(cookie, length, chunk=offset in (CMD_READ, CMD_BLOCK_STATUS))
            return None
        if command == CMD_DISC:
            self.disconnect_requested = True
            return None
        if command == CMD_FLUSH:
            self.in_flight.begin_flush(cookie)
            return None
        if self.in_flight.full:
            return request
        if command in (CMD_WRITE, WRITE_PIECE):
            return self.writes.begin(request)
        if length == 0:
            self.outgoing.empty(command, cookie)
        elif command == CMD_READ:
            self.reads.begin(cookie, flags, offset, length)
        elif command == CMD_TRIM:
            self.in_flight.spawn_change(
                self.engine.long_writer.trim(self.volume, offset, length), "TRIM", cookie, flags
            )
        elif command == CMD_WRITE_ZEROES:
            self._begin_zeroes(cookie, flags, offset, length)
        elif command == CMD_CACHE:
            work = self.engine.reader.prefetch(self.volume, offset, length)
            self.in_flight.spawn_change(work, "CACHE", cookie, flags)
        else:
            assert command == CMD_BLOCK_STATUS, command
            self.block_status.begin(cookie, flags, offset, length)
        return None

    def _begin_zeroes(self, cookie: int, flags: int, offset: int, length: int) -> None:
        if self.volume.read_only:
            self.engine.complaints.answer(read_only_error(self.volume), self.volume.name)
            self.outgoing.error(cookie, EPERM, chunk=False)
            return
        allocate = bool(flags & CMD_FLAG_NO_HOLE)
        if allocate and flags & CMD_FLAG_FAST_ZERO:
            self.outgoing.error(cookie, ENOTSUP, chunk=False)  # zeroes that must be allocated are as slow as writes
            return
        work = self.engine.long_writer.zero(self.volume, offset, length, allocate=allocate, payer=self.payer)
        self.in_flight.spawn_change(work, "WRITE_ZEROES", cookie, flags)

    def _go_on(self) -> None:
        """Something in flight has ended: what waited for that may go on."""
        if self.backlog or self.disconnect_requested:
            self._ready()


def _kept(request: Request) -> Request:
    """A request whose payload is its own copy, for the buffer that it lies in is about to be used again."""
    command, flags, cookie, offset, length, payload = request
    if payload:
        payload = memoryview(bytes(payload))
    return command, flags, cookie, offset, length, payload

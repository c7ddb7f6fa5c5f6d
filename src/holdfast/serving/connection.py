"""A connection: the socket of one NBD client, its handshake, then its session.

Received bytes go into a buffer that all connections share; what is left of an incomplete request is kept aside
(`_stash`). Replies lie in another shared buffer and are sent at once; what the socket does not take is kept
(`_unsent`), and until it is gone nothing more is received: a client that does not read its replies stands still, at the
cost of one batch of replies. Both are charged to the group that pays, and batches get smaller as its share is used up.
"""

from __future__ import annotations

import logging
from typing import Protocol

from holdfast.engine import Engine
from holdfast.errors import log_fields
from holdfast.memory.context import CONTROL
from holdfast.memory.group import UNLIMITED_BYTES, Group, Kind
from holdfast.memory.policy import refused
from holdfast.memory.throttle import pause_ns
from holdfast.nbd.handshake import Handshake
from holdfast.nbd.negotiated import ExportDirectory, Negotiated
from holdfast.nbd.protocol import LARGE_READ_BYTES, ProtocolError
from holdfast.nbd.transmission import Request, RequestReader
from holdfast.runtime.ports import Loop, Peer, Socket, Timer
from holdfast.serving.session import Session
from holdfast.serving.waiting_read import READ_PIECE_BYTES
from holdfast.units import BLOCK_SHIFT, KIB, MIB
from holdfast.volume.volume import Volume

log_output = logging.getLogger("holdfast.nbd")

RECEIVE_BYTES_MAX = 1 * MIB + 64 * KIB  # a large WRITE in one
RECEIVE_BYTES_MIN = 48 * KIB  # an incomplete request can be 20 KiB and a batch must get further than that
REPLY_BYTES_MAX = 512 * KIB
REPLY_BYTES_MIN = LARGE_READ_BYTES + 64
REQUESTS_A_BATCH_MAX = 1024
HANDSHAKE_TIMEOUT_NS = 10_000_000_000
# What a connection takes in memory whatever it does: 5.5 KiB here, measured with 200 of them, and the kernel's part.
CONNECTION_STATE_BYTES = 8 * KIB


class Host(Protocol):
    """What a connection needs of the server that accepted it."""

    engine: Engine
    loop: Loop
    receive_buffer: memoryview
    reply_buffer: memoryview
    piece_buffer: memoryview
    closing: bool
    kept_changes: int  # how often a connection has begun to keep more or less

    @property
    def exports(self) -> ExportDirectory: ...
    def payer_of(self, peer: Peer) -> Group | None: ...
    def volume_of(self, negotiated: Negotiated) -> Volume: ...
    def answered(self, connection: Connection) -> None: ...
    def connection_closed(self, connection: Connection) -> None: ...


class Connection:
    """Fields: L loop thread (all)."""

    def __init__(self, host: Host, sock: Socket, peer: Peer) -> None:
        self.host = host
        self.peer = peer
        self.session: Session | None = None
        self.closed = False
        self._sock = sock
        self._fd = sock.fileno()
        self._handshake: Handshake | None = Handshake(host.exports, shutting_down=lambda: host.closing)
        self._reader: RequestReader | None = None
        self._stash = b""
        self._unsent = bytearray()
        self.blocked_ns = 0  # when the client last took something of `_unsent` (to the tick)
        self._payer = host.payer_of(peer)  # None: the volume's group
        self.group = self._payer or host.engine.accounts.system  # pays for what is kept
        self._counted = 0  # bytes that this connection has charged to it
        self._share_bytes = 0  # how much of what is left to the group a batch may take now
        self._share_at = -1  # `host.kept_changes` when that was looked up
        self._throttled: Timer | None = None
        self._slowed = False  # it was, after its last write: batches are small, so that others come in between
        self._reading = False
        self._ended = False  # the client sends no more
        self._queued = False  # in the host's list of those with answers
        self._timeout = host.loop.call_later(HANDSHAKE_TIMEOUT_NS, self._handshake_timed_out)
        if not self._charge_state(self.group):
            self._timeout.cancel()
            self.closed = True
            sock.close()
            return
        self._watch(True)
        self._send_handshake()

    def _charge_state(self, group: Group) -> bool:
        refuser = group.try_charge(Kind.STATE, CONNECTION_STATE_BYTES, CONTROL)
        if refuser is not None:
            error = refused(refuser, Kind.STATE, CONNECTION_STATE_BYTES)
            self.host.engine.complaints.say(f"{self.peer}: hung up on: {error}", log_fields(error.resource))
        return refuser is None

    # ---- handshake

    def _handshake_timed_out(self) -> None:
        if self._handshake is not None and not self.closed:
            log_output.info("%s: did not finish its handshake in time", self.peer)
            self.close()

    def _send_handshake(self) -> None:
        assert self._handshake is not None
        data = self._handshake.data_to_send()
        if data:
            self._send([memoryview(data)])
        if self._handshake.closed and not self._unsent:
            self.close()

    def _receive_handshake(self, data: memoryview) -> None:
        handshake = self._handshake
        assert handshake is not None
        handshake.receive_data(data)
        self._send_handshake()
        negotiated = handshake.negotiated
        if negotiated is None or self.closed:
            return
        self._timeout.cancel()
        self._handshake = None
        host = self.host
        volume = host.volume_of(negotiated)
        group = self._payer or volume.group.memory
        if group is not self.group:
            if not self._charge_state(group):
                self.close()
                return
            self._leave_group()
            self.group = group
            self._share_at = -1
        self._reader = RequestReader(negotiated)
        self.session = Session(
            host.engine,
            volume,
            negotiated,
            host.reply_buffer,
            host.piece_buffer,
            transmit=self._transmit,
            ready=self._session_ready,
            payer=self._payer,
            piece_limit=self._piece_limit,
        )
        self.session.in_flight.peer = str(self.peer)
        trailing = bytes(handshake.trailing)
        if trailing:
            host.receive_buffer[: len(trailing)] = trailing
            self._take_share()
            self._process(len(trailing))

    def _leave_group(self) -> None:
        """Give back everything that is charged to the group."""
        self.host.kept_changes += 1
        self.group.release(Kind.CONNECTIONS, self._counted)
        self.group.release(Kind.STATE, CONNECTION_STATE_BYTES)
        self._counted = 0

    # ---- receiving

    def _batch_bytes(self, least: int, most: int) -> int:
        """How large a batch may be: the fuller the group's share, the smaller."""
        share = least if self._slowed else self._share_bytes
        return least if share < least else min(share, most)

    def _take_share(self) -> None:
        """Look how much is left to the group. It is only looked up anew when any connection keeps more or less than
        before, or the group has a limit of all that it uses, which other kinds of memory use up as well."""
        group = self.group
        if self._share_at != self.host.kept_changes or group.limit_bytes < UNLIMITED_BYTES:
            self._share_at = self.host.kept_changes
            self._share_bytes = group.room_bytes(Kind.CONNECTIONS) >> 3

    def _piece_limit(self) -> int:
        self._take_share()
        return self._batch_bytes(LARGE_READ_BYTES, READ_PIECE_BYTES)

    def _watch(self, wanted: bool) -> None:
        if wanted != self._reading and not self.closed:
            self._reading = wanted
            if wanted:
                self.host.loop.add_reader(self._fd, self._on_readable)
            else:
                self.host.loop.remove_reader(self._fd)

    def _on_readable(self) -> None:
        buffer = self.host.receive_buffer
        start = len(self._stash)
        if start:
            buffer[:start] = self._stash
            self._stash = b""
        self._take_share()
        limit = start + self._batch_bytes(RECEIVE_BYTES_MIN, RECEIVE_BYTES_MAX)
        try:
            received = self._sock.recv_into(buffer[start:limit])
        except (BlockingIOError, InterruptedError):
            self._keep(bytes(buffer[:start]))
            return
        except OSError as error:
            log_output.info("%s: %s", self.peer, error.strerror)
            self.close()
            return
        if not received:
            self._end_of_input()
        elif self._handshake is not None:
            self._receive_handshake(buffer[:received])
        else:
            self._process(start + received)

    def _process(self, end: int) -> None:
        """Take requests out of the receive buffer until it is empty or the session must wait."""
        session, reader = self.session, self._reader
        assert session is not None
        assert reader is not None
        buffer = self.host.receive_buffer
        engine = self.host.engine
        log = engine.log
        position = log.position
        pieces = False
        at = 0
        try:
            while at < end and not session.stalled and not self._unsent:
                requests: list[Request] = []
                try:
                    at = reader.parse(
                        buffer,
                        at,
                        end,
                        requests,
                        reply_budget_bytes=self._batch_bytes(REPLY_BYTES_MIN, REPLY_BYTES_MAX),
                        request_budget=REQUESTS_A_BATCH_MAX,
                        pieces=pieces,
                    )
                except ProtocolError as error:
                    log_output.warning("%s: disconnected: %s", self.peer, error)
                    session.submit(requests)
                    self._transmit()
                    self.close()
                    return
                if not requests:
                    if pieces or not reader.missing_bytes:
                        break
                    gathered = self._gather(end, reader.missing_bytes)
                    pieces = gathered < reader.missing_bytes
                    end += gathered
                    continue
                session.submit(requests)
                self._transmit()
                if not self._is_open():
                    return  # what is left of the batch is that of a client which is gone
                if session.disconnect_requested:
                    self._end_of_input()
                    return
        finally:
            if not self.closed:
                self._keep(bytes(buffer[at:end]))
        if engine.throttles and log.position != position:
            self._throttle()
        self._watch(not (session.stalled or self._unsent or self._ended or self._throttled))

    def _watch_as_it_may(self) -> None:
        session = self.session
        assert session is not None
        self._watch(not (session.stalled or self._unsent or self._ended or self._throttled))

    def _throttle(self) -> None:
        """Leave the client alone for a while, if its group is near its limit of dirty data."""
        assert self.session is not None
        engine, payer = self.host.engine, self.session.payer
        log = engine.log
        self._slowed = False
        # What is not settled yet is taken for the payer's: most often it is.
        unsettled_bytes = (log.position - log.dirty.settled) << BLOCK_SHIFT
        if payer.usage[Kind.RING] + unsettled_bytes <= payer.watermark_bytes and not engine.slows_all:
            return
        log.settle()
        pause = pause_ns(payer, engine.accounts.reclaimer.pressure)
        self._slowed = pause > 0
        if pause and self._throttled is None:
            payer.throttled_ns += pause
            engine.accounts.reclaimer.io_wanted.add(Kind.RING)  # what is dirty is written, rather than at the limit
            self._throttled = self.host.loop.call_later(pause, self._throttle_ends)

    def _throttle_ends(self) -> None:
        self._throttled = None
        if not self.closed:
            self._watch_as_it_may()

    def _gather(self, end: int, missing: int) -> int:
        """Receive the rest of a WRITE behind `end`, as far as it comes at once and fits; returns how many bytes came.

        A socket holds less than a large WRITE, so that it comes in portions; to carry out each of them by itself costs
        more than a look for the next.
        """
        at = end
        limit = min(end + missing, self._batch_bytes(RECEIVE_BYTES_MIN, RECEIVE_BYTES_MAX))
        looks_left = self.host.loop.looks
        while at < limit and looks_left:
            try:
                received = self._sock.recv_into(self.host.receive_buffer[at:limit])
            except (BlockingIOError, InterruptedError):
                looks_left -= 1
                continue
            except OSError:
                break  # reported again, and handled, by the receive that follows
            if not received:
                break
            at += received
        return at - end

    def _keep(self, stash: bytes) -> None:
        self._stash = stash
        self._count()

    @property
    def kept_bytes(self) -> int:
        """What is kept aside for this connection, received or to be sent."""
        kept = len(self._stash) + len(self._unsent)
        return kept if self.session is None else kept + self.session.kept_bytes

    def _count(self) -> None:
        kept = self.kept_bytes
        if kept != self._counted:
            self.host.kept_changes += 1
            self.group.charge(Kind.CONNECTIONS, kept - self._counted)
            self._counted = kept

    def _end_of_input(self) -> None:
        """The client is done: finish what is in flight, then close."""
        self._ended = True
        self._watch(False)
        session = self.session
        if session is None or session.disconnect_requested is False:
            self.close()  # it vanished: what it has not been answered may go undone
        elif session.idle and not self._unsent:
            self.close()

    def resume(self) -> None:
        """Go on after a stall: the backlog, then what was received already."""
        session = self.session
        if session is None or self.closed:
            return
        session.work_off()
        self._transmit()
        if not self._is_open():
            return
        if session.disconnect_requested:
            self._end_of_input()
        elif not session.stalled and not self._unsent:
            stash = self._stash
            self._stash = b""
            self.host.receive_buffer[: len(stash)] = stash
            self._take_share()
            self._process(len(stash))

    # ---- sending

    def _session_ready(self) -> None:
        if not self._queued:
            self._queued = True
            self.host.answered(self)

    def send_answers(self) -> None:
        """Called at the end of a turn in which the session had something to say or to go on with."""
        self._queued = False
        session = self.session
        if self.closed or session is None:
            return
        if session.outgoing.broken:
            self.close()
            return
        self._transmit()
        if self._is_open():
            self._count()  # what was answered is not kept any more
            if session.backlog or session.disconnect_requested or not self._reading:
                self.resume()

    def _transmit(self) -> None:
        """Send what the session has; keep what the socket does not take."""
        session = self.session
        if session is None or self.closed:
            return
        parts: list[memoryview | bytearray] = []
        if session.at:
            parts.append(session.out[: session.at])
            session.at = 0
        outgoing = session.outgoing
        if outgoing.later:
            parts.append(outgoing.later)
            outgoing.later = bytearray()
        if outgoing.direct is not None:
            parts.append(outgoing.direct)
        if parts:
            self._send(parts)

    def _send(self, parts: list[memoryview | bytearray] | list[memoryview]) -> None:
        sent = 0
        if not self._unsent:
            try:
                sent = self._sock.send(parts[0]) if len(parts) == 1 else self._sock.sendmsg(parts)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                log_output.info("%s: %s", self.peer, error.strerror)
                self.close()
                return
        for part in parts:
            if sent >= len(part):
                sent -= len(part)
                continue
            self._unsent += part[sent:]
            sent = 0
        if self._unsent:
            self._block()

    def _block(self) -> None:
        self._count()
        self.blocked_ns = self.host.engine.scheduler.now_ns
        if self.session is not None:
            self.session.outgoing.blocked = True
        self.host.loop.set_writer(self._fd, self._on_writable)
        if self.session is not None:
            self._watch(False)

    def _on_writable(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            log_output.info("%s: %s", self.peer, error.strerror)
            self.close()
            return
        del self._unsent[:sent]
        self.blocked_ns = self.host.engine.scheduler.now_ns
        self._count()
        if self._unsent:
            return
        self._unsent = bytearray()
        self.host.loop.set_writer(self._fd, None)
        session = self.session
        if session is None:
            if self._handshake is not None and self._handshake.closed:
                self.close()
            return
        session.outgoing.unblock()
        self._session_ready()

    # ---- end

    def _is_open(self) -> bool:
        """To be asked again after anything that sends: a failing send closes."""
        return not self.closed

    @property
    def unsent_bytes(self) -> int:
        """Replies that its client has not taken."""
        return len(self._unsent)

    @property
    def stalled(self) -> bool:
        """True if it waits for the engine, not for its client."""
        return self.session is not None and self.session.stalled

    @property
    def idle(self) -> bool:
        """True if the client waits for nothing."""
        return self.session is None or (self.session.idle and not self._unsent)

    def close(self) -> None:
        """Close at once. What the client has not been answered may be undone; what it has been answered stays."""
        if self.closed:
            return
        self.closed = True
        self._timeout.cancel()
        if self._throttled is not None:
            self._throttled.cancel()
        self._leave_group()
        if self.session is not None:
            self.session.close()
        self.host.loop.close(self._fd)
        self._sock.close()
        self.host.connection_closed(self)

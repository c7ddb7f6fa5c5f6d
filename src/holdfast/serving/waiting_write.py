"""Writes that the hot path could not take whole: with flags, with parts of blocks, in pieces, or without room yet.

Between `Session` and the engine's `Writer`. The whole blocks at the beginning are written at once, as far as there is
room; where something stands in the way of all writers alike the session waits (its backlog keeps the request), and what
is left for another reason, as the part of a block at the end, becomes a task with a copy of it.

Invariants:

 1. A WRITE that came in pieces is answered once: when its last piece has come and all have ended, with the first error.
 2. Its pieces are begun in order, so the piece that is begun belongs to the WRITE in `pieces`: a connection sends one
    request after another.
 3. Copies of payload count in `InFlight.payload_bytes` until their task has ended.
"""

from __future__ import annotations

from errno import EPERM

from holdfast.engine import Engine
from holdfast.memory.group import Group
from holdfast.nbd.protocol import CMD_WRITE
from holdfast.nbd.transmission import WRITE_PIECE, Request
from holdfast.serving.in_flight import InFlight
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.volume import Volume, read_only_error
from holdfast.volume.write import Obstacle

_BLOCK_MASK = BLOCK_SIZE_BYTES - 1
# Obstacles that every writer meets alike: the session waits with all that follows, rather than pile up copies.
_STALLING = (Obstacle.RING_FULL, Obstacle.GROUP_FULL, Obstacle.NO_SEGMENT, Obstacle.TOO_DIRTY)


class PiecedWrite:
    """A WRITE that arrives in pieces."""

    __slots__ = ("errno", "flags", "last_seen", "pending")

    def __init__(self) -> None:
        self.errno = 0
        self.flags = 0
        self.pending = 0  # pieces that have a task
        self.last_seen = False


class WaitingWrites:
    """Of one session. Fields: I fixed when made, L loop thread."""

    def __init__(self, engine: Engine, volume: Volume, in_flight: InFlight, *, payer: Group | None) -> None:
        self.engine = engine  # I
        self.volume = volume  # I
        self.in_flight = in_flight  # I
        self._payer = payer  # I: None: the volume's group
        self.pieces: PiecedWrite | None = None  # L: the WRITE whose last piece has not come yet
        self.obstacle: int = Obstacle.NONE  # L: why the session stands still, if it does for a write's sake

    def begin(self, request: Request) -> Request | None:
        """Begin a WRITE or a piece of one. If the session must wait, what is left of it comes back, to be begun
        again."""
        command, flags, cookie, offset, _length, payload = request
        if self.volume.read_only:
            self._refuse(command, flags, cookie)
            return None
        done = 0
        if payload and not offset & _BLOCK_MASK:
            whole = len(payload) & -BLOCK_SIZE_BYTES
            blocks, obstacle = self.engine.writer.write_run(self.volume, offset >> BLOCK_SHIFT, payload[:whole])
            done = blocks << BLOCK_SHIFT
            if obstacle in _STALLING:
                self.obstacle = obstacle
                return command, flags, cookie, offset + done, len(payload) - done, payload[done:]
        pieces = self._take_part(command, flags)
        if done < len(payload):
            self._spawn(flags, cookie, offset + done, memoryview(bytes(payload[done:])), pieces)
        elif pieces is not None:
            self._piece_ended(cookie, pieces)
        else:
            self.in_flight.count += 1
            self.in_flight.changed(cookie, flags, 0)
        return None

    def _refuse(self, command: int, flags: int, cookie: int) -> None:
        """The volume takes no writes now."""
        volume = self.volume
        self.engine.complaints.answer(read_only_error(volume), volume.name)
        pieces = self._take_part(command, flags)
        if pieces is None:
            self.in_flight.count += 1
            self.in_flight.changed(cookie, flags, EPERM)
        else:
            pieces.errno = pieces.errno or EPERM
            self._piece_ended(cookie, pieces)

    def _take_part(self, command: int, flags: int) -> PiecedWrite | None:
        """The WRITE in pieces that this request is a piece of, or None if it is a WRITE by itself."""
        pieces = self.pieces
        if command == WRITE_PIECE and pieces is None:
            pieces = self.pieces = PiecedWrite()
        if command == CMD_WRITE:
            self.pieces = None
            if pieces is not None:
                pieces.flags = flags
                pieces.last_seen = True
        return pieces

    def _spawn(self, flags: int, cookie: int, offset: int, rest: memoryview, pieces: PiecedWrite | None) -> None:
        in_flight = self.in_flight
        in_flight.payload_bytes += len(rest)

        def finished(errno: int) -> None:
            in_flight.payload_bytes -= len(rest)
            if pieces is None:
                in_flight.changed(cookie, flags, errno)
                return
            pieces.pending -= 1
            pieces.errno = pieces.errno or errno
            self._piece_ended(cookie, pieces)
            in_flight.end()  # without an answer as well: the next piece may have waited for what this one held

        if pieces is not None:
            pieces.pending += 1
        work = self.engine.long_writer.write(self.volume, offset, rest, self._payer or self.volume.group.memory)
        checked = in_flight.checked(work, lambda: pieces is None or not pieces.errno)
        in_flight.spawn(checked, "WRITE", finished, payload_bytes=len(rest))

    def _piece_ended(self, cookie: int, pieces: PiecedWrite) -> None:
        if pieces.last_seen and not pieces.pending:
            self.in_flight.count += 1
            self.in_flight.changed(cookie, pieces.flags, pieces.errno)

"""BLOCK_STATUS: what of a volume is a hole, and what changed since a snapshot, in one answer.

Bounded by the engine: an answer has at most `EXTENTS_MAX` extents for each context, and is not kept for a client that
does not take it.
"""

from __future__ import annotations

from holdfast.engine import Engine
from holdfast.errors import HoldfastError
from holdfast.nbd import replies
from holdfast.nbd.protocol import (
    BASE_ALLOCATION_CONTEXT,
    CHANGED_SINCE_CONTEXT,
    CMD_FLAG_REQ_ONE,
    STATE_CHANGED,
    STATE_HOLE,
    STATE_ZERO,
)
from holdfast.serving.in_flight import InFlight
from holdfast.serving.outgoing import Outgoing
from holdfast.volume.volume import Volume
from holdfast.work.task import Work

_STATES = {BASE_ALLOCATION_CONTEXT: STATE_HOLE | STATE_ZERO, CHANGED_SINCE_CONTEXT: STATE_CHANGED}
_PROVISIONED = _STATES | {BASE_ALLOCATION_CONTEXT: STATE_ZERO}  # a hole can be written to, whatever else there is


class BlockStatus:
    """Of one session. All fields are fixed when it is made."""

    def __init__(
        self,
        engine: Engine,
        volume: Volume,
        base: Volume | None,
        in_flight: InFlight,
        outgoing: Outgoing,
        *,
        allocation: bool,
    ) -> None:
        """`base`: the snapshot that the client wants to know the changes since; `allocation`: it wants to know the
        holes."""
        self._engine = engine
        self._volume = volume
        self._base = base
        self._in_flight = in_flight
        self._outgoing = outgoing
        self._allocation = allocation

    def begin(self, cookie: int, flags: int, offset: int, length: int) -> None:
        self._in_flight.spawn(self._answer(cookie, flags, offset, length), "BLOCK_STATUS", self._in_flight.end)

    def _answer(self, cookie: int, flags: int, offset: int, length: int) -> Work:
        outgoing = self._outgoing
        try:
            # An answer can have 64 KiB and more: for a client that takes none it is not kept, but made again when there
            # is room.
            while True:
                while outgoing.blocked:
                    yield outgoing.room
                found = yield from self._find(offset, length)
                if not outgoing.blocked:
                    break
        except HoldfastError as error:
            self._engine.complaints.answer(error, self._volume.name)
            outgoing.error(cookie, error.errno, chunk=True)
            return
        last = max(found)
        states = _PROVISIONED if self._volume.provisioned else _STATES
        reply = bytearray()
        for context, extents in found.items():
            told = extents[:1] if flags & CMD_FLAG_REQ_ONE else extents
            words = [(size, states[context] if state else 0) for size, state in told]
            chunk = bytearray(replies.BLOCK_STATUS_CHUNK_BYTES + replies.EXTENT_BYTES * len(words))
            replies.block_status_chunk(memoryview(chunk), 0, cookie, words, context == last, context)
            reply += chunk
        outgoing.append(reply)

    def _find(self, offset: int, length: int) -> Work:
        """The extents of each context that the client selected, by its id, in ascending order."""
        found: dict[int, list[tuple[int, bool]]] = {}
        if self._allocation:
            found[BASE_ALLOCATION_CONTEXT] = yield from self._engine.reader.extents(self._volume, offset, length)
        if self._base is not None:
            changes = self._engine.differences.extents(self._volume, self._base, offset, length)
            found[CHANGED_SINCE_CONTEXT] = yield from changes
        return found

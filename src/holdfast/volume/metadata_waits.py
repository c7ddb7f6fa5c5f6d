"""What the pool's own metadata waits for on its way into the log: room in the ring, a segment held back, durability.

On behalf of checkpoints, and of the replay that cleans pages before there is one. Both may take what clients may not
(`Privilege.CHECKPOINT`); neither waits for space that only a checkpoint frees (docs/waits.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.errors import ACTIONS, NoSpaceError, Resource, log_fields
from holdfast.pool.space import Privilege
from holdfast.volume.waitlists import Waitlists
from holdfast.work.task import Scheduler, Waitlist, Work
from holdfast.writeback.flusher import FLUSHER, Flusher
from holdfast.writeback.log import Log, Room

log_output = logging.getLogger("holdfast.engine")


class MetadataWaits:
    """All fields are fixed when made."""

    def __init__(
        self, log: Log, flusher: Flusher, waitlists: Waitlists, scheduler: Scheduler, *, is_opened: Callable[[], bool]
    ) -> None:
        """is_opened: whether the pool is in use, so that somebody may give space back"""
        self._log = log
        self._flusher = flusher
        self._waitlists = waitlists
        self._scheduler = scheduler
        self._is_opened = is_opened

    def make_room(self) -> Work:
        """Until the log takes a block of metadata (a task's work). Raises what `wait_for_room` does."""
        while True:
            room = self._log.make_room(Privilege.CHECKPOINT)
            if room is Room.YES:
                return
            yield from self.wait_for_room(room)

    def wait_for_room(self, room: Room) -> Work:
        """Until it makes sense to ask the log again (a task's work). Raises NoSpaceError while the pool is opened: then
        nobody is there who could give space back."""
        if room is Room.RING_FULL:
            yield self._waitlists.ring_room
        else:
            if room is Room.NO_SPACE and not self._is_opened():
                if self._log.space.host_full:
                    raise NoSpaceError(
                        "the filesystem below the pool is full: free some of it, the pool needs a segment",
                        resource=Resource.HOST_FILESYSTEM,
                    )
                raise NoSpaceError("the pool has no segment left for its own metadata; serve it with more --capacity")
            if room is Room.NO_SPACE:
                log_output.error(
                    "no segment left for metadata: the checkpoint waits for space to be freed; %s",
                    ACTIONS[Resource.POOL_SPACE],
                    extra=log_fields(Resource.POOL_SPACE),
                )
            yield self._waitlists.metadata_room

    def until_durable(self) -> Work:
        """Until everything appended so far is durable, however often that has to be tried (a task's work)."""
        while True:
            arrived = Waitlist(self._scheduler, "durability", ended_by=(FLUSHER,))
            outcome: list[int] = []

            def heard(errno: int, arrived: Waitlist = arrived, outcome: list[int] = outcome) -> None:
                outcome.append(errno)
                arrived.wake()

            self._flusher.when_durable(heard)
            if not outcome:
                yield arrived
            if outcome[0] == 0:
                return

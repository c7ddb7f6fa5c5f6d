"""The lists in which tasks and sessions of an engine wait, made in one place: what can be waited for, and who ends it.

docs/waits.md argues from this table that no cycle comes of it; `work/order.py` checks it. Whoever changes what a list
waits for wakes it, and whoever was woken looks again.
"""

from __future__ import annotations

from holdfast.pool.preparation import PREPARATION
from holdfast.work.task import Scheduler, Waitlist
from holdfast.writeback.flusher import FLUSHER

# One who ends waits and is no task.
CLOCK = "the clock"


class Waitlists:
    """One of each for an engine. All fields are fixed when made."""

    def __init__(self, scheduler: Scheduler) -> None:
        def waitlist(
            name: str, *ended_by: str | Waitlist, held_as: str = "", meant: bool = False, passing: bool = False
        ) -> Waitlist:
            return Waitlist(scheduler, name, ended_by=ended_by, held_as=held_as, meant=meant, passing=passing)

        self.checkpoint_end = waitlist("the end of a checkpoint", held_as="the checkpoint")
        self.ring_room = waitlist("room in the ring", FLUSHER)
        self.group_room = waitlist("the group's share of the ring", FLUSHER)
        self.segment_room = waitlist("a free segment", PREPARATION, self.checkpoint_end)
        self.metadata_room = waitlist("a segment held back for metadata", PREPARATION, "reads of segments to be freed")
        self.page_room = waitlist("a page of map memory", self.checkpoint_end, held_as="pages of map memory")
        self.leaves_turn = waitlist("its turn to bring in leaves of several maps", held_as="leaves of several maps")
        self.clean_room = waitlist("fewer dirty pages of the map", self.checkpoint_end)
        self.buffer_room = waitlist("a read buffer", held_as="bytes of read buffers")
        self.next_turn = waitlist("the next turn", "the engine", passing=True)
        self.next_tick = waitlist("another try, with the next tick", CLOCK)
        self.cleaner_rest = waitlist("the disk's time that is left to others", CLOCK, "who waits for a segment")
        self.full_wait = waitlist("space, as long as --on-full says", CLOCK, "whoever trims", meant=True)

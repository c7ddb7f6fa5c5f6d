"""Bugs in how tasks wait and are woken."""

from __future__ import annotations

from tests.sim.mutants.mutant import Mutant

WAITING = [
    Mutant(
        "page-room-lost-wake-up",
        "a refused charge for a page is not tried again unless a page comes free",
        "P5, W4",
        "holdfast.engine",
        "        # A budget may have refused although nobody holds anything that will be released.\n"
        "        waitlists.page_room.wake()\n",
        "",
    ),
    Mutant(
        "buffer-room-lost-wake-up",
        "a refused charge for a read buffer is not tried again unless one is released",
        "P5",
        "holdfast.engine",
        "        waitlists.clean_room.wake()\n        waitlists.buffer_room.wake()\n",
        "        waitlists.clean_room.wake()\n",
    ),
    Mutant(
        "ring-room-lost-wake-up",
        "who waits for room in the ring is not woken when there is some",
        "P5",
        "holdfast.engine_parts",
        "        self.waitlists.ring_room.wake()\n        self.waitlists.group_room.wake()\n",
        "        self.waitlists.group_room.wake()\n",
    ),
    Mutant(
        "segment-room-lost-wake-up",
        "who waits for a segment is not woken when one has been prepared",
        "P5",
        "holdfast.engine_parts",
        "        self._maintenance_wanted = True\n        self._segment_unpinned()",
        "        self._maintenance_wanted = True\n        self.on_released()",
    ),
    Mutant(
        "wake-up-of-one",
        "a list of waiting tasks wakes only the first, which may not be able to go on",
        "P5",
        "holdfast.work.task",
        "        while self.tasks:\n            task = self.tasks.popleft()",
        "        if self.tasks:\n            task = self.tasks.popleft()",
    ),
    Mutant(
        "buffer-of-a-cancelled-read-freed",
        "a task is ended at once although its I/O is still under way",
        "P6",
        "holdfast.work.task",
        "        self.cancelled = True\n        if isinstance",
        "        self.cancelled = True\n        self.work.close()\n        if isinstance",
    ),
]

# Against the order of waits: nobody need be stuck for these to be found.
ORDER_OF_WAITS = [
    Mutant(
        "buffer-kept-for-a-client",
        "a read keeps its buffer until its client takes replies: clients that do not read use up all there are",
        "P5, A5",
        "holdfast.serving.waiting_read",
        "                kept = not outgoing.blocked\n",
        "                while outgoing.blocked:\n                    yield outgoing.room\n"
        "                kept = True\n",
    ),
    Mutant(
        "checkpoint-waits-for-checkpoint",
        "a checkpoint waits for the segments that only a checkpoint frees, not for those held back for it",
        "P7, A5",
        "holdfast.volume.metadata_waits",
        "            yield self._waitlists.metadata_room\n",
        "            yield self._waitlists.segment_room\n",
    ),
]

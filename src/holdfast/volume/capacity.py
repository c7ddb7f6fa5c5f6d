"""A pool made larger and smaller, while it is served: how many segments it may have.

Larger. The space table gets more rows, a checkpoint tells of the new capacity, in both superblock slots, and only then
are the new segments handed out: recovery looks for the log only in segments that the superblock knows.

Smaller. Segments behind the new end are not handed out any more, but to the cleaner and to checkpoints if there is no
other: what they need in order to advance they have at every moment. Those that hold something are emptied: the log
leaves the one that it is in, tables move with each checkpoint, what is dead comes free with one, and what is live is
moved by whoever can (`evacuate`). Once all are free, in both superblock slots' eyes, a checkpoint tells of the smaller
capacity, in both slots, and then the files are removed. Whatever fails before that leaves the pool as large as it was.
Files that a crash left behind are removed after the next start.

Invariants:

 1. No segment is handed out that either superblock slot does not know.
 2. No row of the space table goes while either slot's checkpoint, or a read, needs its segment.
 3. The number of rows changes only while no checkpoint is running, which takes the table at its beginning and at its
    end.
 4. A smaller capacity holds what is live, and the reserve; otherwise it is refused before anything changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.errors import GoneError, HoldfastError, RequestError, RetryError, errno_name
from holdfast.pool.block import ADDRESS_BITS
from holdfast.pool.format import SEGMENTS_MIN
from holdfast.pool.space import OPEN
from holdfast.runtime.ports import REMOVE, Io
from holdfast.units import BLOCK_SHIFT, format_size
from holdfast.volume.checkpoints import Checkpoints
from holdfast.volume.reserve import Reserve
from holdfast.volume.volumes import Volumes
from holdfast.volume.waitlists import Waitlists
from holdfast.work.task import Scheduler, Work, guarded
from holdfast.writeback.log import Log

log_output = logging.getLogger("holdfast.pool")

ROUNDS_MAX = 100  # a tick each, in which nothing became better, before the operator is told to try again
FILES_AT_A_TIME = 16

# Empties the sealed segments from this one on as far as it can, by moving what is live in them (`Cleaner.evacuate`).
Evacuate = Callable[[int], Work]
CapacityAnswer = Callable[["HoldfastError | None"], None]


def check_capacity(segments: int, segment_blocks: int) -> None:
    """Raise RequestError if no pool with such segments can have so many of them."""
    least, most = SEGMENTS_MIN, (1 << ADDRESS_BITS) // segment_blocks
    if not least <= segments <= most:
        size = segment_blocks << BLOCK_SHIFT
        raise RequestError(
            f"with segments of {format_size(size)} the capacity of a pool is between {format_size(least * size)} and "
            f"{format_size(most * size)}"
        )


class Capacity:
    """Fields: I fixed when made, L loop thread."""

    def __init__(
        self,
        log: Log,
        reserve: Reserve,
        volumes: Volumes,
        checkpoints: Checkpoints,
        waitlists: Waitlists,
        scheduler: Scheduler,
        *,
        changed: Callable[[], None],
        stopping: Callable[[], bool],
        evacuate: Evacuate,
        is_cleaning: Callable[[], bool],
    ) -> None:
        """
        changed     called when segments can be taken that could not before
        stopping    True once there is to be no more background work
        evacuate    moves what is in the way
        is_cleaning True while the cleaner is at work, with segments in mind that it will look at
        """
        self._log = log  # I
        self._space = log.space  # I
        self._reserve = reserve  # I
        self._volumes = volumes  # I
        self._checkpoints = checkpoints  # I
        self._waitlists = waitlists  # I
        self._scheduler = scheduler  # I
        self._changed = changed  # I
        self._stopping = stopping  # I
        self._evacuate = evacuate  # I
        self._is_cleaning = is_cleaning  # I
        self._segment_bytes = log.segment_blocks << BLOCK_SHIFT  # I
        self.running = False  # L

    def resize(self, capacity_bytes: int, answer: CapacityAnswer) -> None:
        """Give the pool another capacity; `answer` is called once that is durable, or with why not."""

        def ended(error: HoldfastError | None) -> None:
            answer(error)

        self._scheduler.spawn(guarded(self._resize(capacity_bytes // self._segment_bytes)), "resize the pool", ended)

    def remove_strays(self) -> None:
        """Remove the files that the pool left behind when it became smaller."""
        files, self._space.strays = self._space.strays, []
        if files:
            self._scheduler.spawn(guarded(self._remove_files(files)), "remove files", lambda _error: None)

    def smallest_segments(self) -> int:
        """The smallest capacity that holds what there is, in segments; the one that it has if there is none."""
        least, most = SEGMENTS_MIN, self._space.capacity_segments
        while least < most:
            middle = (least + most) // 2
            if self._holds(middle):
                most = middle
            else:
                least = middle + 1
        return most

    def _holds(self, segments: int) -> bool:
        """True if a pool of so many segments has room for what is live, and for the reserve."""
        return self._space.used_blocks + self._space.held_blocks <= self._volumes.usable_blocks_for(segments)

    def _resize(self, segments: int) -> Work:
        if self.running:
            raise RetryError("the capacity of the pool is being changed already; try again when that is done")
        self.running = True
        try:
            self._check(segments)
            if segments > self._space.limit_segments:
                yield from self._grow(segments)
            else:
                yield from self._shrink(segments)
        finally:
            self.running = False

    def _check(self, segments: int) -> None:
        check_capacity(segments, self._log.segment_blocks)
        if segments >= self._space.capacity_segments:
            return
        smallest = self.smallest_segments()
        if segments < smallest:
            used_blocks = self._space.used_blocks + self._space.held_blocks
            raise RequestError(
                f"the pool holds {format_size(used_blocks << BLOCK_SHIFT)}; the smallest capacity is "
                f"{format_size(smallest * self._segment_bytes)}; give that, or trim or remove volumes first"
            )

    # ---- larger

    def _grow(self, segments: int) -> Work:
        space = self._space
        while self._checkpoints.running:
            yield self._waitlists.checkpoint_end
        before = space.capacity_segments
        space.resize(segments)
        try:
            self._volumes.hold_reserve(larger=True)
        except HoldfastError:
            space.resize(before)
            self._volumes.hold_reserve()
            raise
        yield from self._checkpoints.checkpoint(both_slots=True)
        space.set_limit(segments)
        self._reserve.limit_dirty(segments)
        self._volumes.hold_reserve()
        self._changed()

    # ---- smaller

    def _shrink(self, segments: int) -> Work:
        space = self._space
        if segments == space.capacity_segments == self._checkpoints.checkpointer.superblock.capacity_segments:
            return
        space.set_limit(segments)
        self._reserve.limit_dirty(segments)
        self._volumes.hold_reserve()
        try:
            yield from self._empty_behind_limit()
        except BaseException:
            space.set_limit(space.capacity_segments)
            self._reserve.limit_dirty(space.capacity_segments)
            self._volumes.hold_reserve()
            self._changed()
            raise
        files = space.resize(segments)
        self._volumes.hold_reserve()
        yield from self._checkpoints.checkpoint(both_slots=True)
        yield from self._remove_files(files)

    def _empty_behind_limit(self) -> Work:
        """Until nothing is behind the limit, nobody is at work there, and no checkpoint is running."""
        space = self._space
        fruitless, least = 0, (1 << 62, 0, 0)
        while True:
            used = space.used_behind_limit()
            if self._checkpoints.running:
                yield self._waitlists.checkpoint_end
            elif space.is_busy_behind_limit():
                yield self._waitlists.next_tick
            elif not used and space.available_segments > space.reserve_segments:
                if not self._is_cleaning():
                    return
                yield self._waitlists.next_tick
            elif self._stopping():
                raise GoneError("the server is stopping; the pool is as large as it was")
            else:
                yield from self._empty(used)
                left = space.used_behind_limit()
                now = len(left), int(space.live[left].sum()), -space.available_segments
                if now < least:
                    fruitless, least = 0, now
                    continue
                fruitless += 1
                if fruitless > ROUNDS_MAX:
                    raise RetryError(
                        f"the pool cannot be made as small now: {len(left)} segments behind the new end hold something "
                        "that cannot be moved, because it is damaged or the disk fails; look at the log"
                    )
                yield self._waitlists.next_tick

    def _empty(self, used: list[int]) -> Work:
        """One round: move what is live, leave the open segment, let a checkpoint free the rest."""
        space = self._space
        tables = sum(
            address >> self._log.shift >= space.limit_segments
            for address in self._checkpoints.checkpointer.meta_addresses
        )
        if int(space.live[used].sum()) > tables:
            yield from self._evacuate(space.limit_segments)
        elif space.available_segments <= space.reserve_segments:
            space.cleaning_may_help()  # tells the cleaner
        yield from self._checkpoints.checkpoint(both_slots=True)
        if self._log.segment >= space.limit_segments and space.state[self._log.segment] == OPEN:
            self._log.leave_segment()  # if it cannot, it is tried again in the next round

    def _remove_files(self, segments: list[int]) -> Work:
        """A file that cannot be removed now is tried again after the next start."""
        for start in range(0, len(segments), FILES_AT_A_TIME):
            ios = yield [Io(REMOVE, segment) for segment in segments[start : start + FILES_AT_A_TIME]]
            for io in ios:
                if io.result < 0:
                    log_output.warning("segment file %08x cannot be removed: %s", io.file, errno_name(-io.result))

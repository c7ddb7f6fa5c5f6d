"""The cleaner: empties segments that hold little, so that a pool in which anything is dead is not full.

Beside the log, not through it: what it copies is durable already, so it needs no room in the ring and no record. It
fills **cold segments** of its own (`pool/cold_segment.py`) with live blocks out of **victims**, makes each durable as a
whole, and only then points the maps at the copies (`volume/moves.py`). So data that is left alone gathers in segments
of its own, and the log's segments hold what is hot. Pages of maps are not copied, but marked dirty
(`volume/live_blocks.py`).

A victim comes free like any segment without a live block: with the checkpoint that shows it, and the one behind that.

Why it always advances, however full the pool and the memory are:
 - its free segments are held back for it (`volume/reserve.py`), and so is the memory for copying
 - it waits for the disk, for pages of map memory, and for checkpoints, which have all they need held back for them; and
   never for clients, nor for what a group has used up
 - each round fills a cold segment, or empties two victims for one, or does not begin: dead blocks become fewer
 - when it does not find anything to gain, or makes no room for clients with FRUITLESS_CHECKPOINTS_MAX checkpoints, or
   loses what is held back for checkpoints, it says so (`SpaceTable.cleaning_helps`), and who waits for it is
   answered

A crash leaves a cold segment that nothing refers to, which the stored space table calls free; or maps that refer to the
victims, which are still there.

It begins when fewer segments are free than `_low_mark` says, and then takes at most `DISK_SHARE` of the time, and only
victims that are worth it; at full speed, and with more regard to what is gained at once, when somebody waits for a
segment or some of those held back are missing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from holdfast.errors import DiskError, HoldfastError
from holdfast.pool.cold_segment import COLD
from holdfast.pool.space import DYING, SEALED, Privilege
from holdfast.pool.victim import Haste, choose
from holdfast.runtime.ports import Clock, Disk
from holdfast.volume.checkpoints import Checkpoints
from holdfast.volume.copier import Copier
from holdfast.volume.holders import Holders
from holdfast.volume.metadata_waits import MetadataWaits
from holdfast.volume.page_table import PageTable
from holdfast.volume.volume import Volume
from holdfast.volume.waitlists import Waitlists
from holdfast.volume.write import Writer
from holdfast.work.task import Scheduler, Work, guarded

RELAXED_FILL = 0.75  # without need only victims with less in them than this
# With need, and a sixty-fourth of the pool's segments in a larger one (`LOW_MARK_SHARE`): each checkpoint writes all
# pages of a map that is written to at random. Fewer if its segments are used up.
ROUNDS_A_CHECKPOINT = 4
# With need: where a thirty-second of each victim is dead, so many times ROUNDS_A_CHECKPOINT gain a segment.
FRUITLESS_CHECKPOINTS_MAX = 16
# Begun early, it copies what would have been overwritten soon: with a sixteenth of the pool instead of this, writing at
# random to a pool that is four fifths full cost half a write more for each.
LOW_MARK_SHARE = 64
PAUSE_NS = 1_000_000_000  # after a cold segment that could not be written


class Cleaner:
    """Fields: I fixed when made, L loop thread."""

    def __init__(
        self,
        writer: Writer,
        table: PageTable,
        holders: Holders,
        checkpoints: Checkpoints,
        metadata: MetadataWaits,
        waitlists: Waitlists,
        scheduler: Scheduler,
        disk: Disk,
        clock: Clock,
        *,
        allocate: Callable[[int], memoryview],
        freed: Callable[[], None],
        stopping: Callable[[], bool],
    ) -> None:
        """
        allocate    gives page-aligned memory: `cleaner_bytes`, as long as it lives
        freed       wakes who waits for a segment, because there is one or because there will be none
        stopping    True once there is to be no more background work
        """
        log = writer.log
        space = log.space
        self.space = space  # I
        self.log = log  # I
        self.copier = Copier(  # I
            writer,
            table,
            holders,
            metadata,
            waitlists,
            disk,
            clock,
            allocate=allocate,
            stopping=stopping,
            hurried=self._is_needed,
        )
        self.counts = self.copier.counts  # L
        space.cleaning_helps = True
        self.running = False  # L
        self.wanted = False  # L: somebody waits for a segment
        self._set_aside = self.copier.set_aside  # I
        self._clock = clock  # I
        self._checkpoints = checkpoints  # I
        self._waitlists = waitlists  # I
        self._scheduler = scheduler  # I
        self._freed = freed  # I
        self._stopping = stopping  # I
        self._pause_until_ns = 0  # L
        self._evacuated_from = -1  # L: all victims are segments from here on, whatever they hold; -1: any
        self._nothing_at: tuple[int, ...] = ()  # L: what the pool was like when nothing could be gained
        self._worn_at = -1  # L: blocks in use when it had cost more than it gained; -1: it has not
        self._missing_at = -1  # L: blocks in use when it could not fill the reserve again; -1: that is worth trying
        # What makes a victim worth the work: with less than that to gain the pool would be copied for nothing.
        self._gain_min = self.copier.worth_blocks // 32 + 1  # I

    # ---- when

    @property
    def _low_mark(self) -> int:
        space = self.space
        return space.reserve_segments + max(4, space.capacity_segments // LOW_MARK_SHARE)

    @property
    def _rounds_a_checkpoint(self) -> int:
        return max(ROUNDS_A_CHECKPOINT, self.space.capacity_segments // LOW_MARK_SHARE)

    def _coming_free(self) -> int:
        """Segments that are free, or only wait for a checkpoint."""
        space = self.space
        dead = (space.state == DYING) | ((space.state == SEALED) & (space.live == 0))
        return space.available_segments + int(np.count_nonzero(dead[: space.limit_segments]))

    def _picture(self) -> tuple[int, ...]:
        """What the pool is like, as far as it could make a difference."""
        space = self.space
        return int(space.live.sum()), space.available_segments, int(np.count_nonzero(space.state == SEALED))

    def is_visiting(self, volume: Volume) -> bool:
        """True while it needs the map of a volume: it must not be forgotten."""
        return self.copier.finder.visiting is volume

    def _is_needed(self) -> bool:
        """True if somebody waits for a segment, or some of those held back are missing."""
        space = self.space
        missing = space.available_segments < space.reserve_segments
        return self.wanted or (missing and space.used_blocks != self._missing_at)

    def want(self) -> None:
        """Somebody found no segment, and waits; or is told at once that nothing can be gained, if that was found just
        so while nobody waited."""
        self._missing_at = -1
        known = not self.running and self._is_known_to_find_nothing(need=True)
        self.wanted = not known
        if known:
            self.space.cleaning_helps = False
        self._waitlists.cleaner_rest.wake()

    def is_due(self) -> bool:
        """True if a task should be started for `run`. To be asked now and then, and whenever `want` was called."""
        if self.running or self._stopping() or self._clock.now_ns() < self._pause_until_ns:
            return False
        if not self.wanted and self._coming_free() >= self._low_mark:
            return False
        if self._nothing_at:
            if self._is_known_to_find_nothing(need=self._is_needed()):
                return False
            self._nothing_at = ()
            self.space.cleaning_helps = True
        return True

    def _is_known_to_find_nothing(self, *, need: bool) -> bool:
        """True if the pool is as it was when nothing could be gained. What is not there in need is not there
        without."""
        picture = self._picture()
        return self._nothing_at in ((*picture, True), (*picture, need)) and not self._set_aside.is_over()

    def look_again(self) -> None:
        """To be called at each tick: whether what nothing could be gained from has changed since."""
        if self.space.cleaning_helps:
            return
        if self._picture() != self._nothing_at[:-1] or self._set_aside.is_over():
            self.space.cleaning_helps = True

    def _is_worn(self) -> bool:
        """True if it has cost what checkpoints need without a gain, and that has not come back, nor was a segment's
        worth of blocks let go of. Then only what gains much is done: the rest would cost what is left."""
        if self._worn_at >= 0:
            space = self.space
            gone_blocks = self._worn_at - space.used_blocks
            come_back = space.available_segments > space.checkpoint_segments
            if come_back or gone_blocks >= self.copier.worth_blocks:
                self._worn_at = -1
        return self._worn_at >= 0

    # ---- the work

    def begin(self) -> None:
        """Start a task that cleans; none may be running."""
        self._scheduler.spawn(guarded(self._run()), "cleaner", self._done)

    def _done(self, outcome: HoldfastError | None) -> None:
        if outcome is not None:
            self.copier.note_failure(outcome)
            self._pause_until_ns = self._clock.now_ns() + PAUSE_NS

    def _run(self) -> Work:
        """Clean until there is enough, or nothing to gain (a task's work)."""
        self.running = True
        held = self._scheduler.hold(self._waitlists.segment_room)
        try:
            yield from self._clean()
        finally:
            held.release()
            self.running = False

    def evacuate(self, first: int) -> Work:
        """Empty all segments from `first` on, as far as that can be done now (a task's work): of what is in them, pages
        stay live until a checkpoint, and what is not durable yet is left for another time."""
        while self.running:
            yield self._waitlists.next_tick
        self.running = True
        self._evacuated_from = first
        held = self._scheduler.hold(self._waitlists.segment_room)
        try:
            more = True
            while more and not self._stopping() and self._clock.now_ns() >= self._pause_until_ns:
                more = yield from self._round(need=True)
                if self.copier.lacks_segment:
                    self.wanted = True  # one is made of what is dead elsewhere
                    return
        finally:
            held.release()
            self._evacuated_from = -1
            self.running = False

    def renew(self) -> None:
        """The pool has another capacity."""
        self._set_aside.renew()

    def _clean(self) -> Work:
        fruitless_checkpoints = 0
        free = self._coming_free()
        while not self._stopping():
            space = self.space
            if self.wanted and space.room_for_clients():
                self.wanted = False
                self._freed()
            need = self._is_needed()
            if not need and self._coming_free() > self._low_mark:
                return
            free, before = self._coming_free(), free
            if free < before and free <= space.checkpoint_segments:
                # Where blocks lie so far apart that moving them changes a page each, the checkpoints cost more than is
                # gained. The last ones are for one that must not fail.
                if self._is_worn() and free <= space.checkpoint_segments // 2:
                    self._found_nothing(need=True)
                    return
                self._worn_at = space.used_blocks
            gained = False
            for number in range(self._rounds_a_checkpoint if need else 1):
                if number >= ROUNDS_A_CHECKPOINT and self._coming_free() > self._low_mark:
                    break  # enough waits for the checkpoint
                more = yield from self._round(need=need)
                gained |= more
                if not more or self._coming_free() <= min(free - 1, space.checkpoint_segments):
                    break
            if self._clock.now_ns() < self._pause_until_ns:
                return  # the disk does not take what it writes
            if not need:
                if not gained and not self._is_needed():
                    self._found_nothing(need=False)
                    return
                continue
            if not gained and not self._checkpoint_frees():
                if space.least_privilege() <= Privilege.CLEANER and self.copier.lacks_segment:
                    yield self._waitlists.next_tick  # one is being prepared, or somebody still reads in it
                    continue
                self._found_nothing(need=True)
                return
            if fruitless_checkpoints == FRUITLESS_CHECKPOINTS_MAX:
                self._found_nothing(need=True)
                return
            self.wanted = False
            fruitless_checkpoints += 1
            yield from self._checkpoints.checkpoint(both_slots=True)
            self._freed()
            yield self._waitlists.next_turn  # who waited goes on now, or wants more
            if space.room_for_clients():
                fruitless_checkpoints = 0

    def _checkpoint_frees(self) -> bool:
        """True if a segment, or what is left in one, waits for a checkpoint only."""
        space = self.space
        dead = (space.state == DYING) | ((space.state == SEALED) & (space.live == 0))
        return bool(dead.any()) or self._set_aside.waits_for_checkpoint()

    def _found_nothing(self, *, need: bool) -> None:
        self._nothing_at = (*self._picture(), need)
        if need:
            # Were it to try again whenever a checkpoint of its own has changed something, an idle pool would go on
            # for ever.
            self._missing_at = self.space.used_blocks
        if self.wanted:
            self.wanted = False
            self.space.cleaning_helps = False
            self._freed()

    def _victims(self, *, need: bool) -> list[int]:
        space, log = self.space, self.log
        fill = self.copier.worth_blocks - self._gain_min if need else int(self.copier.worth_blocks * RELAXED_FILL)
        candidates = (space.state == SEALED) & (space.live > 0)
        if self._evacuated_from < 0:
            candidates &= space.live <= fill
        else:
            candidates[: self._evacuated_from] = False
        # What is not durable is in the ring alone.
        ordinals = space.ordinal.astype(np.int64)
        young = 0 if need else space.capacity_segments // 4  # these may still be emptied by those who write
        candidates &= (ordinals >= COLD) | (ordinals < (log.durable >> log.shift) - young)
        self._set_aside.take_out_of(candidates)
        return choose(
            space.live,
            space.ordinal,
            candidates,
            worth=self.copier.worth_blocks,
            now_ordinal=log.next_ordinal,
            haste=self._haste(need=need),
        )

    def _haste(self, *, need: bool) -> Haste:
        space = self.space
        if not need:
            return Haste.NONE
        comfortable = space.available_segments >= space.reserve_segments
        return Haste.WAITED_FOR if self.wanted and comfortable else Haste.RESERVE

    def _round(self, *, need: bool) -> Work:
        """Clean as much as one cold segment takes. False: nothing was gained."""
        victims = self._victims(need=need)
        if not victims:
            return False
        try:
            evacuates = self._evacuated_from >= 0
            strict = not evacuates and self._is_worn()
            return (yield from self.copier.fill_one(victims, whatever_it_costs=evacuates, strict=strict))
        except DiskError as error:
            self.copier.note_failure(error)
            self._pause_until_ns = self._clock.now_ns() + PAUSE_NS
            return False

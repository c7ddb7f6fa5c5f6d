"""The space table: a row for each segment of the pool; who may be appended to, and when a segment comes back.

States of a segment:

    ABSENT   no file yet; it must be prepared (written through once) before use
    FREE     a prepared file that holds nothing
    OPEN     the log's head is in it
    SEALED   full; its blocks are read, never written
    DYING    no live block at the last checkpoint; free once one more checkpoint is durable
    FILLING  the cleaner writes it (`pool/cold_segment.py`). Nothing refers to it, and what is stored calls it free
    MOVING   the cleaner has written it, and the maps are being pointed at it. What is stored calls it sealed; without a
             live block it is one whose first is about to come

Why DYING: both superblock slots must stay usable. The older slot's map may still refer to the segment, and roll-forward
from it may still need its commits, until a second checkpoint has replaced that slot, or the same one is in both.

`live` counts, for each segment, the stored blocks that something refers to: data by a map, pages by a map, table blocks
by the index. While a commit is open its blocks are not counted yet, so `live` of the open segment can be below zero for
a moment; `Log` adds them when it seals.

Segments are handed out below `limit_segments`, which is the capacity, but for a while when that changes
(`volume/capacity.py`): before a larger one is durable, and before a smaller one can be. In the second case those behind
it that are free are there for the cleaner and for checkpoints, should they find no other.

On disk a row is 16 bytes: live u32, state u8, three zero bytes, ordinal u64. ABSENT and FREE are told apart by the
files that exist when the pool is opened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

ABSENT = 0
FREE = 1
OPEN = 2
SEALED = 3
DYING = 4
FILLING = 5
MOVING = 6


class Privilege(IntEnum):
    """On whose behalf a segment is opened, in the order in which they are refused when segments run out."""

    CLIENT = 0
    FREEING = 1  # trims, zeroes and removals: they need a little space to give back more
    CLEANER = 2  # gives back more than it takes, once a checkpoint tells of it
    CHECKPOINT = 3


STATE_NAMES = ("absent", "free", "open", "sealed", "dying", "filling", "moving")

# What a state is called in the stored table.
STORED_STATES = np.array([ABSENT, ABSENT, OPEN, SEALED, DYING, ABSENT, SEALED], np.uint8)
ROW_DTYPE = np.dtype([("live", "<u4"), ("state", "u1"), ("zero", "V3"), ("ordinal", "<u8")])


class SpaceTable:
    """Rows of all segments of the pool, the free list, and the reserve that only metadata may touch."""

    def __init__(self, capacity_segments: int, segment_shift: int, *, reserve_segments: int = 0) -> None:
        self.capacity_segments = capacity_segments
        self.limit_segments = capacity_segments  # those from here on are not handed out
        self.segment_shift = segment_shift
        # Client data may not take the last `reserve_segments` free segments, nor what gives space back the last
        # `checkpoint_segments`: a checkpoint must find room in a full pool, or it could never be opened again.
        self.reserve_segments = reserve_segments
        self.checkpoint_segments = 0
        self.cleaner_segments = 0  # on top of those for checkpoints
        # Blocks of data and pages that something refers to, and how many there may be: with more of them the cleaner
        # would find nothing to clean. Whoever maps a block that was not mapped looks at it first.
        self.used_blocks = 0
        self.usable_blocks = 1 << 62
        self.held_blocks = 0  # of the usable ones, for provisioned volumes (`volume/provision.py`)
        self.open_blocks = self.usable_blocks  # ... and what is left of them for all others
        self.cleaning_helps = False  # there is a cleaner, and it has not found that nothing is left to gain
        self.freed_segments = 0
        self.on_wanted: Callable[[], None] = lambda: None  # somebody waits for the cleaner
        self.live: npt.NDArray[np.int64] = np.zeros(capacity_segments, np.int64)
        self.live_words = self.live.data  # the hot path's view: single updates cost less than through numpy
        self.state = np.full(capacity_segments, ABSENT, np.uint8)
        self.ordinal = np.zeros(capacity_segments, np.uint64)
        self.free: deque[int] = deque()
        self.absent: deque[int] = deque(range(capacity_segments))
        self.behind: deque[int] = deque()  # free ones behind the limit
        self.preparing: set[int] = set()
        self.strays: list[int] = []  # files behind the capacity, left by a pool that was larger
        self.host_full = False  # the last attempt to make a segment file failed
        self.on_unpinned: Callable[[], None] = lambda: None  # a free segment can be taken that could not before
        self.on_resized: Callable[[], None] = lambda: None  # the columns are new ones
        self._readers: dict[int, int] = {}

    @property
    def available_segments(self) -> int:
        """Segments that could still be opened: free ones, and those that only need preparing."""
        if self.host_full:
            return len(self.free)
        return len(self.free) + len(self.absent) + len(self.preparing)

    def least_privilege(self) -> Privilege:
        """Who at least one must be to open another segment now."""
        available = self.available_segments
        if available > self.reserve_segments:
            return Privilege.CLIENT
        if available > self.checkpoint_segments + self.cleaner_segments:
            return Privilege.FREEING
        available += len(self.behind)
        return Privilege.CLEANER if available > self.checkpoint_segments else Privilege.CHECKPOINT

    def is_prepared_for(self, privilege: Privilege) -> bool:
        """True if so many segments are prepared that one of them may be taken on this behalf.

        What is held back must exist as files: the filesystem below may be full by the time that it is needed.
        """
        checkpoint = self.checkpoint_segments
        held_back = (self.reserve_segments, checkpoint + self.cleaner_segments, checkpoint, 0)[privilege]
        behind = len(self.behind) if privilege >= Privilege.CLEANER else 0
        return len(self.free) + behind > held_back

    def room_for_clients(self) -> bool:
        """True if client data may open another segment."""
        return self.least_privilege() is Privilege.CLIENT

    def take_free(self) -> int | None:
        """Take a free segment to be opened, or None if none is ready now."""
        for free in (self.free, self.behind):
            for _ in range(len(free)):
                segment = free.popleft()
                if segment not in self._readers:
                    return segment
                free.append(segment)  # a late reader is still in its old contents
        return None

    def opened(self, segment: int, ordinal: int) -> None:
        assert self.live_words[segment] == 0, "a segment is reused only when nothing refers to it"
        self.state[segment] = OPEN
        self.ordinal[segment] = ordinal

    def sealed(self, segment: int) -> None:
        self.state[segment] = SEALED

    @property
    def is_full(self) -> bool:
        """True if no block may be mapped that is not mapped already."""
        return self.used_blocks >= self.open_blocks

    def set_usable(self, blocks: int) -> None:
        self.usable_blocks = blocks
        self.open_blocks = blocks - self.held_blocks

    def hold(self, blocks: int) -> None:
        """Hold back so many blocks more."""
        self.held_blocks += blocks
        self.open_blocks -= blocks

    def cleaning_may_help(self) -> bool:
        """Somebody finds no segment. True: the cleaner is told, and there may be one if he waits."""
        if self.cleaning_helps:
            self.on_wanted()
        return self.cleaning_helps

    def take_for_cleaning(self, *, urgent: bool = False) -> int | None:
        """A free segment that the cleaner is to fill, or None if it may have none now. `urgent`: it gives back several
        for this one, so it may take what checkpoints have for a second one, but not what they need for the next."""
        if urgent:
            if len(self.free) + len(self.behind) <= self.checkpoint_segments // 2:
                return None
        elif self.least_privilege() > Privilege.CLEANER or not self.is_prepared_for(Privilege.CLEANER):
            return None
        segment = self.take_free()
        if segment is not None:
            assert self.live_words[segment] == 0, "a segment is reused only when nothing refers to it"
            self.state[segment] = FILLING
        return segment

    def give_back_unfilled(self, segment: int) -> None:
        """The cleaner could not write it, or has nothing to put into it after all."""
        assert self.state[segment] == FILLING
        self._came_free(segment)

    def filled(self, segment: int, ordinal: int) -> None:
        """All of it is durable: the maps may be pointed at it."""
        assert self.state[segment] == FILLING
        self.state[segment] = MOVING
        self.ordinal[segment] = ordinal

    def pin(self, segment: int) -> None:
        """A read of the segment is under way: it must not be reused until `unpin`."""
        self._readers[segment] = self._readers.get(segment, 0) + 1

    def unpin(self, segment: int) -> None:
        left = self._readers[segment] - 1
        if left:
            self._readers[segment] = left
        else:
            del self._readers[segment]
            if self.state[segment] == FREE:
                self.on_unpinned()

    def take_absent(self) -> int | None:
        """The next segment to prepare, or None."""
        if not self.absent:
            return None
        segment = self.absent.popleft()
        self.preparing.add(segment)
        return segment

    def prepared(self, segment: int) -> None:
        self.preparing.discard(segment)
        self.host_full = False
        self._came_free(segment)

    def _came_free(self, segment: int, *, first: bool = False) -> None:
        """`first`: it is used before the others. The stored table may not say yet that it is free (it was dead at the
        newest checkpoint, and both slots lead there now); were those used up of which it does say so, the next opening
        would find no room for its checkpoint."""
        self.state[segment] = FREE
        free = self.free if segment < self.limit_segments else self.behind
        if first:
            free.appendleft(segment)
        else:
            free.append(segment)

    def preparation_failed(self, segment: int) -> None:
        self.preparing.discard(segment)
        if segment < self.limit_segments:
            self.absent.appendleft(segment)
        self.host_full = True

    def drop_blocks(self, addresses: npt.NDArray[np.uint64]) -> None:
        """Nothing refers to these block addresses any more; zeroes (holes) are passed over."""
        addresses = addresses[addresses != 0]
        if len(addresses):
            segments = (addresses >> np.uint64(self.segment_shift)).astype(np.intp)
            first = segments[0]
            self.used_blocks -= len(segments)
            if (segments == first).all():  # what was written together dies together
                self.live_words[int(first)] -= len(segments)
            else:
                np.subtract.at(self.live, segments, 1)

    def count_blocks(self, addresses: npt.NDArray[np.uint64]) -> None:
        """Something refers to these block addresses now; zeroes are passed over."""
        addresses = addresses[addresses != 0]
        if len(addresses):
            self.used_blocks += len(addresses)
            np.add.at(self.live, (addresses >> np.uint64(self.segment_shift)).astype(np.intp), 1)

    def encode(self, live: npt.NDArray[np.int64]) -> bytes:
        """The table as it is stored, with the `live` column of the checkpoint's own moment."""
        rows = np.zeros(self.capacity_segments, ROW_DTYPE)
        assert int(live.min(initial=0)) >= 0, "a segment cannot have fewer than no live blocks at a checkpoint"
        rows["live"] = live
        rows["state"] = STORED_STATES[self.state]
        rows["ordinal"] = self.ordinal
        return rows.tobytes()

    def decode(self, raw: bytes, files: Iterable[int], *, dead: Callable[[int], bool] = lambda _ordinal: False) -> None:
        """Take over a stored table. `files` are the segment files that exist, whole, in the directory; `dead` says, by
        its ordinal, whether a sealed segment without live blocks is free.

        What the table calls dying came free when its checkpoint was durable, which it is; it may be in use again.
        """
        rows = np.frombuffer(raw, ROW_DTYPE, min(self.capacity_segments, len(raw) // ROW_DTYPE.itemsize))
        self.live[: len(rows)] = rows["live"]
        self.state[: len(rows)] = np.where(rows["state"] == DYING, ABSENT, rows["state"])
        self.ordinal[: len(rows)] = rows["ordinal"]
        for segment in np.flatnonzero((self.state == SEALED) & (self.live == 0)).tolist():
            if dead(int(self.ordinal[segment])):
                self.state[segment] = ABSENT
        present = set(files)
        self.strays = sorted(segment for segment in present if segment >= self.capacity_segments)
        self.free.clear()
        self.absent.clear()
        for segment in np.flatnonzero(self.state == ABSENT).tolist():
            if segment in present:
                self.state[segment] = FREE
                self.free.append(segment)
            else:
                self.absent.append(segment)

    # ---- another capacity

    def set_limit(self, limit_segments: int) -> None:
        """From now on segments below this are handed out, and no others without need."""
        assert limit_segments <= self.capacity_segments
        before, self.limit_segments = self.limit_segments, limit_segments
        free = [*self.free, *self.behind]
        self.free = deque(segment for segment in free if segment < limit_segments)
        self.behind = deque(segment for segment in free if segment >= limit_segments)
        self.absent = deque(segment for segment in self.absent if segment < limit_segments)
        for segment in range(before, limit_segments):
            if self.state[segment] == ABSENT and segment not in self.preparing:
                self.absent.append(segment)

    def used_behind_limit(self) -> list[int]:
        """Segments behind the limit that hold something."""
        state = self.state[self.limit_segments :]
        return (np.flatnonzero((state != FREE) & (state != ABSENT)) + self.limit_segments).tolist()

    def is_busy_behind_limit(self) -> bool:
        """True if somebody still reads or writes a file behind the limit."""
        return any(segment >= self.limit_segments for segment in (*self.preparing, *self._readers))

    def resize(self, capacity_segments: int) -> list[int]:
        """Have so many rows; new ones are not handed out before `set_limit`. Rows that go must be of segments that hold
        nothing; returns those of which there are files."""
        kept = min(capacity_segments, self.capacity_segments)
        files: list[int] = (np.flatnonzero(self.state[kept:] == FREE) + kept).tolist()
        self.behind.clear()
        assert self.limit_segments <= capacity_segments
        assert not np.any(self.state[kept:] > FREE), "a segment that goes is in use"

        def resized(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            new = np.zeros(capacity_segments, column.dtype)
            new[:kept] = column[:kept]
            return new

        self.live, self.state, self.ordinal = resized(self.live), resized(self.state), resized(self.ordinal)
        self.live_words = self.live.data
        self.capacity_segments = capacity_segments
        self.on_resized()
        return files

    def claim(self, segment: int, ordinal: int) -> None:
        """Recovery found the segment in use behind the checkpoint: it is not free."""
        if segment in self.free:
            self.free.remove(segment)
        if segment in self.absent:
            self.absent.remove(segment)
        self.state[segment] = SEALED
        self.ordinal[segment] = ordinal

    def retire(self, dead_at_checkpoint: npt.NDArray[np.bool_]) -> int:
        """A checkpoint is durable: free what was dying before it, and mark what was dead at it. Returns how many came
        free.

        `dead_at_checkpoint` is a column: sealed before the checkpoint's position, without a live block at it.
        """
        freed = self.free_dying()
        self.state[(self.state == SEALED) & dead_at_checkpoint] = DYING
        return freed

    def free_dying(self) -> int:
        """Both superblock slots lead to the checkpoint at which these were dead: nothing refers to them any more.
        Returns how many came free."""
        coming_free = np.flatnonzero(self.state == DYING).tolist()
        for segment in coming_free:
            self._came_free(segment, first=True)
        self.freed_segments += len(coming_free)
        return len(coming_free)

    def counts(self) -> dict[str, int]:
        totals = np.bincount(self.state, minlength=len(STATE_NAMES)).tolist()
        return dict(zip(STATE_NAMES, totals, strict=True))

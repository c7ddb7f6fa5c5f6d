"""Moves: blocks that the cleaner has copied, and the map entries that are to follow.

Invariants
 1. A map entry is changed only if it still is the one that the copy was made of, and of the same segment. Whoever
    wrote or trimmed the block meanwhile wins, and the copy is dead.
 2. An entry, and the counts of live blocks of both segments, change in one step.
 3. Nothing is logged. A crash before a checkpoint with the changed maps leaves maps that refer to the old blocks, and
    those are still there: a segment without live blocks comes free with a checkpoint only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from holdfast.errors import CorruptionError, DiskError
from holdfast.pool.block import ADDRESS_BITS, ADDRESS_MASK, LBA_MASK, LEVEL_SHIFT
from holdfast.volume.live_blocks import LiveBlocks, LiveFinder
from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT
from holdfast.volume.volume import Volume
from holdfast.volume.write import Writer
from holdfast.work.task import Waitlist, Work

BLOCKS_PER_TURN = 256

_U64 = np.uint64


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Moves that change one leaf. `chosen`: their numbers."""

    volume: Volume
    leaf: int
    chosen: npt.NDArray[np.intp]


class Moves:
    """Of one cold segment, at most `capacity` of them; parallel columns."""

    def __init__(self, capacity: int) -> None:
        self.count = 0
        self.holders: list[Volume] = []
        self._holder = np.zeros(capacity, np.int32)
        self._lba = np.zeros(capacity, np.uint64)
        self._old = np.zeros(capacity, np.uint64)
        self._address = np.zeros(capacity, np.uint64)
        self._ordinal = np.zeros(capacity, np.uint64)

    def add_run(self, blocks: LiveBlocks, run: slice, address: int, ordinal: int) -> None:
        """These live blocks, all of one holder, are at `address` and behind it as well. `ordinal`: of the segment that
        they were copied from."""
        volume = blocks.holders[int(blocks.holder[run.start])]
        at, end = self.count, self.count + run.stop - run.start
        if not self.holders or self.holders[-1] is not volume:
            self.holders.append(volume)
        self._holder[at:end] = len(self.holders) - 1
        self._lba[at:end] = blocks.owner[run] & _U64(LBA_MASK)
        self._old[at:end] = blocks.entry[run]
        self._address[at:end] = np.arange(address, address + end - at, dtype=np.uint64)
        self._ordinal[at:end] = ordinal
        self.count = end

    def clear(self) -> None:
        self.count = 0
        self.holders.clear()

    def pages(self) -> int:
        """How many pages of maps change with these moves: leaves, and those above them."""
        holder, index = self._holder[: self.count].astype(np.uint64), self._lba[: self.count]
        count = 0
        for _ in range(max((volume.root_level for volume in self.holders), default=-1) + 1):
            index = index >> _U64(PAGE_SHIFT)
            count += len(np.unique(holder << _U64(LEVEL_SHIFT) | index))
        return count

    def apply(
        self,
        *,
        finder: LiveFinder,
        writer: Writer,
        overcome: Callable[[int], Work],
        next_turn: Waitlist,
    ) -> Work:
        """Point the maps at the copies, which are durable (a task's work); returns how many moved."""
        holder, lba = self._holder[: self.count], self._lba[: self.count]
        order = np.lexsort((lba, holder))
        leaves = lba[order] >> _U64(PAGE_SHIFT)
        numbers = holder[order]
        differ = (leaves[1:] != leaves[:-1]) | (numbers[1:] != numbers[:-1])
        edges = [0, *(np.flatnonzero(differ) + 1).tolist(), self.count] if self.count else []
        stretches = [
            _Stretch(self.holders[int(numbers[start])], int(leaves[start]), order[start:stop])
            for start, stop in pairwise(edges)
        ]
        moved = 0
        while stretches:
            taken = 0
            batch: list[_Stretch] = []
            while stretches and taken < BLOCKS_PER_TURN:
                batch.append(stretches.pop())
                taken += len(batch[-1].chosen)
            while batch:
                count, batch, obstacle = self._point(batch, finder, writer)
                moved += count
                if not batch:
                    break
                if obstacle:
                    yield from overcome(obstacle)
                try:
                    slot = yield from finder.leaf_slot(batch[0].volume, batch[0].leaf)
                except (CorruptionError, DiskError):
                    slot = -1  # what is below stays where it is; the copies are dead
                if slot < 0:
                    del batch[0]
            yield next_turn
        return moved

    def _point(self, batch: list[_Stretch], finder: LiveFinder, writer: Writer) -> tuple[int, list[_Stretch], int]:
        """Point at the copies what can be without waiting. Returns how many blocks moved, which stretches are left, and
        why the first of these is: an obstacle, or 0 if its leaf is not in memory."""
        cache, space = writer.cache, writer.log.space
        away: list[_Stretch] = []
        held_up: list[_Stretch] = []  # these first: what was brought in for them must not give way to the others
        here: list[_Stretch] = []
        slots: list[int] = []
        why = 0
        for stretch in batch:
            slot = cache.slot_of.get(stretch.volume.key_base | stretch.leaf)
            if slot is None or not finder.holders.exists(stretch.volume):
                away.append(stretch)
            else:
                here.append(stretch)
                slots.append(slot)
        if not here:
            return 0, away, 0
        sizes = [len(stretch.chosen) for stretch in here]
        chosen = np.concatenate([stretch.chosen for stretch in here])
        inside = (self._lba[chosen] & _U64(PAGE_MASK)).astype(np.intp)
        at = np.repeat(slots, sizes), inside
        words = cache.arena
        old = self._old[chosen]
        segments = ((old & _U64(ADDRESS_MASK)) >> _U64(space.segment_shift)).astype(np.intp)
        # Where the old segment was used again, the same entry may stand for another block.
        same = (words[at] == old) & (space.ordinal[segments] == self._ordinal[chosen])
        new = (old & ~_U64(ADDRESS_MASK)) | self._address[chosen]
        start = 0
        for stretch, slot, size in zip(here, slots, sizes, strict=True):
            part = slice(start, start + size)
            start += size
            if not same[part].any():
                continue
            obstacle = 0 if cache.stamp[slot] == cache.generation else writer.make_writable(slot)
            if obstacle:
                why = why or obstacle
                held_up.append(stretch)
                same[part] = False
                continue
            chosen_here = same[part]
            writer.views.changed(
                stretch.leaf, inside[part][chosen_here], old[part][chosen_here], new[part][chosen_here]
            )
        words[at[0][same], inside[same]] = new[same]
        space.drop_blocks(old[same] & _U64(ADDRESS_MASK))
        space.count_blocks(new[same] & _U64(ADDRESS_MASK))
        return int(np.count_nonzero(same)), held_up + away, why


assert ADDRESS_MASK.bit_length() == ADDRESS_BITS

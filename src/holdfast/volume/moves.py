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
from itertools import pairwise

import numpy as np

from holdfast.errors import CorruptionError, DiskError
from holdfast.pool.block import ADDRESS_BITS, ADDRESS_MASK, LBA_MASK
from holdfast.volume.live_blocks import LiveFinder
from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT
from holdfast.volume.volume import Volume
from holdfast.volume.write import Writer
from holdfast.work.task import Waitlist, Work

BLOCKS_PER_TURN = 256

_U64 = np.uint64


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

    def add(self, volume: Volume, owner: int, old: int, address: int, ordinal: int) -> None:
        """The block of `owner`, which `volume` refers to with the map entry `old`, is at `address` as well. `ordinal`:
        of the segment that it was copied from."""
        at = self.count
        if not self.holders or self.holders[-1] is not volume:
            self.holders.append(volume)
        self._holder[at] = len(self.holders) - 1
        self._lba[at] = owner & LBA_MASK
        self._old[at] = old
        self._address[at] = address
        self._ordinal[at] = ordinal
        self.count += 1

    def clear(self) -> None:
        self.count = 0
        self.holders.clear()

    def apply(
        self,
        *,
        finder: LiveFinder,
        writer: Writer,
        overcome: Callable[[int], Work],
        next_turn: Waitlist,
    ) -> Work:
        """Point the maps at the copies, which are durable (a task's work); returns how many moved."""
        cache, space = writer.cache, writer.log.space
        holder, lba = self._holder[: self.count], self._lba[: self.count]
        order = np.lexsort((lba, holder))
        leaves = lba[order] >> _U64(PAGE_SHIFT)
        numbers = holder[order]
        differ = (leaves[1:] != leaves[:-1]) | (numbers[1:] != numbers[:-1])
        edges = [0, *(np.flatnonzero(differ) + 1).tolist(), self.count] if self.count else []
        moved = 0
        since_turn = 0
        for start, stop in pairwise(edges):
            since_turn += stop - start
            if since_turn >= BLOCKS_PER_TURN:
                since_turn = 0
                yield next_turn
            chosen = order[start:stop]
            volume, leaf = self.holders[int(numbers[start])], int(leaves[start])
            inside = (lba[chosen] & _U64(PAGE_MASK)).astype(np.intp)
            old = self._old[chosen]
            segments = ((old & _U64(ADDRESS_MASK)) >> _U64(space.segment_shift)).astype(np.intp)
            while True:
                try:
                    slot = yield from finder.leaf_slot(volume, leaf)
                except (CorruptionError, DiskError):
                    break  # what is below stays where it is; the copies are dead
                if slot < 0:
                    break
                row = cache.arena[slot]
                # Where the old segment was used again, the same entry may stand for another block.
                same = (row[inside] == old) & (space.ordinal[segments] == self._ordinal[chosen])
                if not same.any():
                    break
                obstacle = 0 if cache.stamp[slot] == cache.generation else writer.make_writable(slot)
                if obstacle:
                    yield from overcome(obstacle)
                    continue
                new = (old & ~_U64(ADDRESS_MASK)) | self._address[chosen]
                row[inside[same]] = new[same]
                writer.views.changed(leaf, inside[same], old[same], new[same])
                count = int(np.count_nonzero(same))
                space.drop_blocks(old[same] & _U64(ADDRESS_MASK))
                space.count_blocks(self._address[chosen][same])
                moved += count
                break
        return moved


assert ADDRESS_MASK.bit_length() == ADDRESS_BITS

"""Which blocks of a segment are live, and who refers to each: the reverse map held against the maps.

An entry of a segment's summary says for which volume and lba a block was written. It is live if a map entry of one of
its holders (`Holders`) still has its address. Looked up leaf by leaf, one look a leaf, whatever number of blocks it has
in the segment.

Pages of maps are live if the entry above, or the volume's root, has their address. They are not copied: a leaf below is
marked dirty instead, so that the next checkpoint writes the page, and those above it, somewhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from holdfast.errors import CorruptionError
from holdfast.pool.block import ADDRESS_MASK, KIND_DATA, KIND_MAP, LBA_MASK, VOLUME_SHIFT, WordArray, page_place
from holdfast.pool.victim import StoredBlocks
from holdfast.volume.holders import Holders
from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT
from holdfast.volume.volume import Volume
from holdfast.volume.write import Writer
from holdfast.work.task import Waitlist, Work

LOOKS_PER_TURN = 64  # leaves that are looked at before others have a turn; each may be in any of thousands of snapshots

_U64 = np.uint64


@dataclass(slots=True)
class LiveBlocks:
    """Live data blocks of one segment, in the order of their addresses; parallel columns. `holder` numbers `holders`,
    `entry` is the map entry that was found."""

    block: npt.NDArray[np.uint32]
    owner: WordArray
    check: npt.NDArray[np.uint32]
    entry: WordArray
    holder: npt.NDArray[np.int32]
    holders: list[Volume] = field(default_factory=list)
    pages: int = 0  # live pages of maps, which the next checkpoint writes somewhere else
    marked: int = 0  # leaves that were made dirty for that

    def __len__(self) -> int:
        return len(self.block)


class LiveFinder:
    """Looks, and marks pages dirty. Fields: I fixed when made, L loop thread."""

    def __init__(
        self, writer: Writer, holders: Holders, *, overcome: Callable[[int], Work], next_turn: Waitlist
    ) -> None:
        """`overcome`: waits until a page may be changed."""
        self.visiting: Volume | None = None  # L: whose map is being looked at; it must not be forgotten meanwhile
        self.holders = holders  # I
        self._cache = writer.cache  # I
        self._table = writer.table  # I
        self._writer = writer  # I
        self._shift = writer.log.shift  # I
        self._overcome = overcome  # I
        self._next_turn = next_turn  # I

    def find(self, segment: int, stored: StoredBlocks, live: int) -> Work:
        """The live blocks of a segment (a task's work); `live`: how many there are, after which it stops asking.

        Raises CorruptionError or DiskError where a map cannot be read.
        """
        is_data = stored.kind == KIND_DATA
        number = np.flatnonzero(is_data)
        owners = stored.owner[number]
        entries = np.zeros(len(number), np.uint64)
        holder = np.full(len(number), -1, np.int32)
        holders: list[Volume] = []
        order = np.argsort(owners >> _U64(PAGE_SHIFT), kind="stable")
        leaves = owners[order] >> _U64(PAGE_SHIFT)
        edges = [0, *(np.flatnonzero(leaves[1:] != leaves[:-1]) + 1).tolist(), len(order)] if len(order) else []
        base = _U64(segment << self._shift)
        found = 0
        looks = 0
        for start, stop in pairwise(edges):
            if found >= live:
                break
            left = order[start:stop]
            leaf = int(leaves[start])
            for volume in self.holders.of(leaf >> VOLUME_SHIFT - PAGE_SHIFT):
                looks += 1
                if looks % LOOKS_PER_TURN == 0:
                    yield self._next_turn
                row = yield from self._leaf(volume, leaf & LBA_MASK >> PAGE_SHIFT)
                if row is None:
                    continue
                words = row[(owners[left] & _U64(PAGE_MASK)).astype(np.intp)]
                here = (words & _U64(ADDRESS_MASK)) == base + stored.block[number[left]].astype(np.uint64)
                if here.any():
                    entries[left[here]] = words[here]
                    holder[left[here]] = _index_of(volume, holders)
                    found += int(np.count_nonzero(here))
                    left = left[~here]
                    if not len(left):
                        break
        chosen = np.flatnonzero(holder >= 0)
        number = number[chosen]
        blocks = LiveBlocks(
            stored.block[number], owners[chosen], stored.check[number], entries[chosen], holder[chosen], holders
        )
        if found < live:
            yield from self._find_pages(segment, stored, blocks)
        return blocks

    def leaf_slot(self, volume: Volume, leaf: int) -> Work:
        """The slot of a leaf, or -1: of a volume that somebody may remove while it is waited for."""
        if not self.holders.exists(volume):
            return -1
        self.visiting = volume
        try:
            return (yield from self._table.page(volume, 0, leaf, create=False, must=True))
        finally:
            self.visiting = None

    def _leaf(self, volume: Volume, leaf: int) -> Work:
        slot = yield from self.leaf_slot(volume, leaf)
        return None if slot < 0 else self._cache.arena[slot]

    # ---- pages of maps

    def _find_pages(self, segment: int, stored: StoredBlocks, blocks: LiveBlocks) -> Work:
        """Mark what rewrites the live pages of a segment, and count them."""
        for number in np.flatnonzero(stored.kind == KIND_MAP).tolist():
            owner, address = int(stored.owner[number]), segment << self._shift | int(stored.block[number])
            volume = self.holders.owner(owner >> VOLUME_SHIFT)
            if volume is None:
                continue
            self.visiting = volume
            try:
                if (yield from self._is_page_live(volume, owner, address)):
                    blocks.pages += 1
                    blocks.marked += yield from self._rewrite(volume, owner)
            finally:
                self.visiting = None

    def _is_page_live(self, volume: Volume, owner: int, address: int) -> Work:
        level, index = page_place(owner)
        if level > volume.root_level:
            return False
        if level == volume.root_level:
            return index == 0 and volume.root & ADDRESS_MASK == address
        above = yield from self._table.page(volume, level + 1, index >> PAGE_SHIFT, create=False, must=True)
        if above < 0:
            return False
        return self._cache.words[above << PAGE_SHIFT | index & PAGE_MASK] & ADDRESS_MASK == address

    def _rewrite(self, volume: Volume, owner: int) -> Work:
        """Mark a leaf at or below a page dirty: pages above the leaves are changed by a checkpoint only. False: it was
        dirty already."""
        level, index = page_place(owner)
        first = index << PAGE_SHIFT * level
        while True:
            leaf = yield from self._table.next_leaf(volume, first, (index + 1) << PAGE_SHIFT * level, must=True)
            if leaf >= (index + 1) << PAGE_SHIFT * level:
                # All below it are holes, and the page itself will be gone with the next checkpoint that looks at it.
                raise CorruptionError(f"map page {owner:#x} of volume {volume.name} refers to nothing")
            slot = self._cache.slot_of.get(volume.key_base | leaf)
            if slot is None:
                continue
            if self._cache.stamp[slot] == self._cache.generation:
                return False
            obstacle = self._writer.make_writable(slot)
            if not obstacle:
                return True
            yield from self._overcome(obstacle)


def _index_of(volume: Volume, holders: list[Volume]) -> int:
    for index, its in enumerate(holders):
        if its is volume:
            return index
    holders.append(volume)
    return len(holders) - 1

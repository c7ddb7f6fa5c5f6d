"""Which blocks of a segment are live, and who refers to each: the reverse map held against the maps.

An entry of a segment's summary says for which volume and lba a block was written. It is live if a map entry of one of
its holders (`Holders`) still has its address. Looked up leaf by leaf, one look a leaf, whatever number of blocks it has
in the segment.

Pages of maps are live if the entry above, or the volume's root, has their address. They are not copied: a leaf below is
marked dirty instead (`LiveFinder.rewrite`), so that the next checkpoint writes the page, and those above it, somewhere
else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from holdfast.errors import CorruptionError
from holdfast.pool.block import (
    ADDRESS_BITS,
    ADDRESS_MASK,
    CHECK_MASK,
    KIND_DATA,
    KIND_MAP,
    LBA_MASK,
    LEVEL_SHIFT,
    SEED_DATA,
    VOLUME_SHIFT,
    WordArray,
    page_place,
)
from holdfast.pool.victim import StoredBlocks
from holdfast.units import BLOCK_SIZE_BYTES
from holdfast.volume.holders import Holders
from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT
from holdfast.volume.page_table import PageTable
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
    # Live pages of maps: their places and owners.
    page: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    page_owner: WordArray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def __len__(self) -> int:
        return len(self.block)

    def alike(self, start: int, stop: int) -> int:
        """How many blocks from `start` on, up to `stop`, have the same holder."""
        differ = np.flatnonzero(self.holder[start:stop] != self.holder[start])
        return int(differ[0]) if len(differ) else stop - start

    def whole(self, start: int, stop: int, view: memoryview, offsets: list[int]) -> int:
        """How many blocks from `start` on, up to `stop`, check out. They lie at these offsets of `view`."""
        seeds = ((self.owner[start:stop] & _U64(LBA_MASK)) ^ _U64(SEED_DATA)).tolist()
        checks = (self.entry[start:stop] >> _U64(ADDRESS_BITS)).tolist()
        digest = xxh3_64_intdigest
        for number, (seed, check, at) in enumerate(zip(seeds, checks, offsets, strict=False)):
            if digest(view[at : at + BLOCK_SIZE_BYTES], seed) & CHECK_MASK != check:
                return number
        return stop - start


class _Search:
    """What is known so far of the data blocks of one segment; parallel columns."""

    def __init__(self, owners: WordArray, addresses: WordArray) -> None:
        self.owners = owners
        self.addresses = addresses
        self.entries = np.zeros(len(owners), np.uint64)
        self.holder = np.full(len(owners), -1, np.int32)
        self.holders: list[Volume] = []
        self.found = 0

    def index_of(self, volume: Volume) -> int:
        for index, its in enumerate(self.holders):
            if its is volume:
                return index
        self.holders.append(volume)
        return len(self.holders) - 1

    def look(
        self,
        blocks: npt.NDArray[np.intp],
        slots: npt.NDArray[np.intp] | int,
        holder: npt.NDArray[np.intp] | int,
        arena: npt.NDArray[np.uint64],
    ) -> npt.NDArray[np.bool_]:
        """Which of these blocks the leaves in `slots` refer to; noted as those of `holder`. One of each for all blocks,
        or one for each."""
        inside = (self.owners[blocks] & _U64(PAGE_MASK)).astype(np.intp)
        words = arena[slots, inside]
        live: npt.NDArray[np.bool_] = (words & _U64(ADDRESS_MASK)) == self.addresses[blocks]
        chosen = blocks[live]
        self.entries[chosen] = words[live]
        self.holder[chosen] = holder[live] if isinstance(holder, np.ndarray) else holder
        self.found += len(chosen)
        return live


class LiveFinder:
    """Looks, and marks pages dirty. Fields: I fixed when made, L loop thread."""

    def __init__(
        self,
        writer: Writer,
        table: PageTable,
        holders: Holders,
        *,
        overcome: Callable[[int], Work],
        next_turn: Waitlist,
    ) -> None:
        """`overcome`: waits until a page may be changed."""
        self.visiting: Volume | None = None  # L: whose map is being looked at; it must not be forgotten meanwhile
        self.holders = holders  # I
        self._cache = writer.cache  # I
        self._table = table  # I
        self._writer = writer  # I
        self._space = writer.log.space  # I
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
        order = np.argsort(owners >> _U64(PAGE_SHIFT), kind="stable")
        leaves = owners[order] >> _U64(PAGE_SHIFT)
        edges = [0, *(np.flatnonzero(leaves[1:] != leaves[:-1]) + 1).tolist(), len(order)] if len(order) else []
        address = _U64(segment << self._shift) + stored.block[number].astype(np.uint64)
        search = _Search(owners, address)
        stretches = list(pairwise(edges))
        looks = 0
        for first in range(0, len(stretches), LOOKS_PER_TURN):
            if search.found >= live:
                break
            if first:
                yield self._next_turn
            batch = [order[start:stop] for start, stop in stretches[first : first + LOOKS_PER_TURN]]
            for blocks_left in self._look_at_once(batch, search):
                left = blocks_left
                leaf = int(owners[left[0]]) >> PAGE_SHIFT
                for volume in self.holders.of(leaf >> VOLUME_SHIFT - PAGE_SHIFT):
                    looks += 1
                    if looks % LOOKS_PER_TURN == 0:
                        yield self._next_turn
                    slot = yield from self.leaf_slot(volume, leaf & LBA_MASK >> PAGE_SHIFT)
                    if slot < 0:
                        continue
                    left = left[~search.look(left, slot, search.index_of(volume), self._cache.arena)]
                    if not len(left):
                        break
        chosen = np.flatnonzero(search.holder >= 0)
        number = number[chosen]
        blocks = LiveBlocks(
            stored.block[number],
            owners[chosen],
            stored.check[number],
            search.entries[chosen],
            search.holder[chosen],
            search.holders,
        )
        if search.found < live:
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

    def _look_at_once(self, batch: list[npt.NDArray[np.intp]], search: _Search) -> list[npt.NDArray[np.intp]]:
        """Look at the leaves that are in memory, of the first holder each; returns the blocks, by leaf, of which that
        does not say everything."""
        slot_of = self._cache.slot_of
        left: list[npt.NDArray[np.intp]] = []
        here: list[npt.NDArray[np.intp]] = []
        slots: list[int] = []
        nodes: dict[int, list[Volume]] = {}
        for stretch in batch:
            leaf = int(search.owners[stretch[0]]) >> PAGE_SHIFT
            volume_id = leaf >> VOLUME_SHIFT - PAGE_SHIFT
            if volume_id not in nodes:
                nodes[volume_id] = list(self.holders.of(volume_id))
            asked = nodes[volume_id]
            slot = slot_of.get(asked[0].key_base | leaf & LBA_MASK >> PAGE_SHIFT) if asked else None
            if slot is None:
                left.append(stretch)
            else:
                here.append(stretch)
                slots.append(slot)
        if here:
            sizes = [len(stretch) for stretch in here]
            blocks = np.concatenate(here)
            volumes = [nodes[int(search.owners[stretch[0]]) >> VOLUME_SHIFT][0] for stretch in here]
            names = np.repeat([search.index_of(volume) for volume in volumes], sizes)
            live = search.look(blocks, np.repeat(slots, sizes), names, self._cache.arena)
            start = 0
            for stretch, size in zip(here, sizes, strict=True):
                dead = ~live[start : start + size]
                start += size
                if len(nodes[int(search.owners[stretch[0]]) >> VOLUME_SHIFT]) > 1 and dead.any():
                    left.append(stretch[dead])
        return left

    # ---- pages of maps

    def _find_pages(self, segment: int, stored: StoredBlocks, blocks: LiveBlocks) -> Work:
        """Find the live pages of a segment."""
        live = []
        for number in np.flatnonzero(stored.kind == KIND_MAP).tolist():
            owner, address = int(stored.owner[number]), segment << self._shift | int(stored.block[number])
            if (yield from self._is_page_live(owner, address)):
                live.append(number)
        blocks.page = stored.block[live].astype(np.uint32)
        blocks.page_owner = stored.owner[live].astype(np.uint64)

    def written_pages(self, blocks: LiveBlocks) -> int:
        """How many pages checkpoints write at most if the live pages are written somewhere else: leaves, so many at a
        time as are dirty when one is due, and all above them."""
        owner = blocks.page_owner
        level = owner >> _U64(LEVEL_SHIFT) & _U64(15)
        leaf = (owner & _U64(LBA_MASK)) << level * _U64(PAGE_SHIFT)
        volume_id = owner >> _U64(VOLUME_SHIFT)
        heights = {int(number): self._height(int(number)) for number in np.unique(volume_id)}
        height = np.array([heights[number] for number in volume_id.tolist()], np.int64)
        batch = max(1, self._cache.dirty_soft_limit)
        count = 0
        for start in range(0, len(owner), batch):
            part = slice(start, start + batch)
            for above in range(int(height[part].max())):
                below_root = height[part] > above
                pages = volume_id[part] << _U64(VOLUME_SHIFT) | leaf[part] >> _U64(above * PAGE_SHIFT)
                count += len(np.unique(pages[below_root]))
        return count

    def changed_leaves(self, blocks: LiveBlocks) -> int:
        """How many leaves become dirty, that are not yet, when the data blocks are moved."""
        cache = self._cache
        leaf = (blocks.owner & _U64(LBA_MASK)) >> _U64(PAGE_SHIFT)
        count = 0
        for number, volume in enumerate(blocks.holders):
            for index in np.unique(leaf[blocks.holder == number]).tolist():
                slot = cache.slot_of.get(volume.key_base | index)
                count += slot is None or cache.stamp[slot] != cache.generation
        return count

    def _height(self, volume_id: int) -> int:
        volume = self.holders.owner(volume_id)
        return 0 if volume is None else volume.root_level + 1

    def rewrite(self, segment: int, ordinal: int, blocks: LiveBlocks) -> Work:
        """Mark dirty what makes a checkpoint write the live pages of a segment somewhere else (a task's work); returns
        how many leaves were not dirty before."""
        marked = 0
        for block, owner in zip(blocks.page.tolist(), blocks.page_owner.tolist(), strict=True):
            if int(self._space.ordinal[segment]) != ordinal:
                break
            address = segment << self._shift | block
            volume = self.holders.owner(owner >> VOLUME_SHIFT)
            if volume is not None and (yield from self._is_page_live(owner, address)):
                self.visiting = volume
                try:
                    marked += yield from self._rewrite(volume, owner)
                finally:
                    self.visiting = None
        return marked

    def _is_page_live(self, owner: int, address: int) -> Work:
        level, index = page_place(owner)
        volume = self.holders.owner(owner >> VOLUME_SHIFT)
        if volume is None or level > volume.root_level:
            return False
        if level == volume.root_level:
            return index == 0 and volume.root & ADDRESS_MASK == address
        self.visiting = volume
        try:
            above = yield from self._table.page(volume, level + 1, index >> PAGE_SHIFT, create=False, must=True)
        finally:
            self.visiting = None
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

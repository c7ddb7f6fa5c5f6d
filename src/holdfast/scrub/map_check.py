"""A map as it is stored, walked from its root: every page checked, every entry collected. For the offline check.

Needs no page cache; one page a level is in memory at a time, and two words for each stored block.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from holdfast.pool.block import (
    ADDRESS_MASK,
    KIND_DATA,
    KIND_MAP,
    LEVEL_SHIFT,
    WordArray,
    block_matches,
)
from holdfast.pool.tables import VolumeRow
from holdfast.runtime.ports import READ, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.page_cache import PAGE_SHIFT
from holdfast.work.task import Work


@dataclass(slots=True)
class MapReferences:
    """What maps refer to: parallel lists of arrays of map entries and of owner words, all of one kind each."""

    entries: dict[int, list[WordArray]] = field(default_factory=lambda: {KIND_DATA: [], KIND_MAP: []})
    owners: dict[int, list[WordArray]] = field(default_factory=lambda: {KIND_DATA: [], KIND_MAP: []})
    damaged_pages: list[tuple[VolumeRow, int, int, str]] = field(default_factory=list)  # volume, level, index, what

    def add(self, kind: int, entries: WordArray, owners: WordArray) -> None:
        self.entries[kind].append(entries)
        self.owners[kind].append(owners)


class MapWalker:
    def __init__(self, segment_shift: int) -> None:
        self.shift = segment_shift
        self.references = MapReferences()

    def walk(self, row: VolumeRow) -> Work:
        """Collect what a volume's map refers to (work that yields I/O); returns the number of mapped blocks."""
        if row.root == 0:
            return 0
        return (yield from self._page(row, row.root, row.root_level, 0))

    def _page(self, row: VolumeRow, entry: int, level: int, index: int) -> Work:
        owner = row.volume_id << 40 | level << LEVEL_SHIFT | index
        self.references.add(KIND_MAP, np.array([entry], np.uint64), np.array([owner], np.uint64))
        address = entry & ADDRESS_MASK
        view = memoryview(bytearray(BLOCK_SIZE_BYTES))
        io = yield Io(READ, address >> self.shift, (address & (1 << self.shift) - 1) << BLOCK_SHIFT, view)
        if io.result < 0 or not block_matches(view, owner, KIND_MAP, entry):
            what = f"it cannot be read (errno {-io.result})" if io.result < 0 else "it does not check out"
            self.references.damaged_pages.append((row, level, index, what))
            return 0
        words = np.frombuffer(view, np.uint64)
        used = np.flatnonzero(words if level else words & np.uint64(ADDRESS_MASK))  # marks have no block
        if level == 0:
            owners = np.uint64(row.volume_id << 40 | index << PAGE_SHIFT) + used.astype(np.uint64)
            self.references.add(KIND_DATA, words[used].copy(), owners)
            return len(used)
        mapped = 0
        for child in used.tolist():
            mapped += yield from self._page(row, int(words[child]), level - 1, index << PAGE_SHIFT | child)
        return mapped

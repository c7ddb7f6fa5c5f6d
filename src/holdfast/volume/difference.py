"""What differs between two nodes of the version tree, found by their map entries alone: no block is read.

Equal entries at one moment are the same stored block, since each block is referred to by one entry and what two nodes
share they see through to the same place. Entries that differ may still hold equal bytes: a block that was overwritten
with what it held counts as changed.

Where one of the two sees through to the other (`versions.chain`), they can only differ in leaves of which a node on the
way has a page of its own, so all others are passed over without looking at what either sees. The way is looked through
from its far end on, as in `view.py`: what leaves one node's map meanwhile is found in one that comes later.

Bounded as `Reader.extents` is, in answer, memory and leaves per request.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.page_cache import PAGE_ENTRIES, PAGE_MASK, PAGE_SHIFT, PageCache
from holdfast.volume.page_table import PageTable
from holdfast.volume.read import EXTENTS_MAX, LEAVES_PER_TURN, STATUS_LEAVES_MAX, add_run, clip
from holdfast.volume.versions import chain, sees_below
from holdfast.volume.view import LINKS_PER_TURN, Views
from holdfast.volume.volume import Volume
from holdfast.work.task import Waitlist, Work


class Differences:
    """All fields are fixed when it is made."""

    def __init__(self, cache: PageCache, views: Views, table: PageTable, *, next_turn: Waitlist) -> None:
        self._cache = cache
        self._views = views
        self._table = table
        self._next_turn = next_turn

    def extents(self, node: Volume, since: Volume, offset: int, length: int) -> Work:
        """Where `node` holds something else than the snapshot `since`, from `offset` on (a task's work): a list of
        (length, changed), at least one, covering at most `length` bytes and possibly fewer. Behind the end of `since`
        whatever is no hole is changed. Raises CorruptionError or DiskError if a map cannot be read."""
        way, shared_leaves = _way_between(node, since)
        end = offset + length
        lba, stop = offset >> BLOCK_SHIFT, -(-end // BLOCK_SIZE_BYTES)
        end_leaf = (stop - 1 >> PAGE_SHIFT) + 1
        runs: list[tuple[int, bool]] = []  # in blocks
        leaves = 0
        while lba < stop and len(runs) < EXTENTS_MAX and leaves < STATUS_LEAVES_MAX:
            here = lba >> PAGE_SHIFT
            if here < shared_leaves:
                limit = min(end_leaf, shared_leaves)
                leaf = yield from self._next_own(way, here, limit)
            else:
                leaf = yield from self._views.next_leaf(node, here, end_leaf)
                leaf = yield from self._views.next_leaf(since, here, leaf)
            leaves += 1
            if leaves % LEAVES_PER_TURN == 0:
                yield self._next_turn
            if leaf > here:
                same_end = min(stop, leaf << PAGE_SHIFT)
                add_run(runs, same_end - lba, False)
                lba = same_end
                continue
            first = lba & PAGE_MASK
            count = min(stop - lba, PAGE_ENTRIES - first)
            changed = yield from self._changed(node, since, leaf)
            changed = changed[first : first + count]
            edges = [0, *(np.flatnonzero(changed[1:] != changed[:-1]) + 1).tolist(), count]
            for start, until in pairwise(edges):
                add_run(runs, until - start, bool(changed[start]))
            lba += count
        return clip(runs[:EXTENTS_MAX], offset % BLOCK_SIZE_BYTES, length)

    def _next_own(self, way: list[Volume], leaf: int, end: int) -> Work:
        """The first leaf in [leaf, end) of which a node on the way has a page, or `end`."""
        found = end
        for looks, link in enumerate(way, 1):
            if looks % LINKS_PER_TURN == 0:
                yield self._next_turn
            if self._table.at_hand(link, leaf) == -1:
                continue
            found = min(found, (yield from self._table.next_leaf(link, leaf, found)))
            if found == leaf:
                break
        return found

    def _changed(self, node: Volume, since: Volume, leaf: int) -> Work:
        """Which blocks of a leaf differ. What both see is of one moment: a cleaner that moves a block changes it, but
        not before one look and after the other. Both pages need not be in memory at once: it may be too short for that.
        """
        arena = self._cache.arena
        nothing = np.zeros(PAGE_ENTRIES, np.uint64)
        while True:
            theirs = yield from self._views.leaf(since, leaf)
            before = nothing if theirs < 0 else arena[theirs].copy()
            moves = self._views.moves
            ours = yield from self._views.leaf(node, leaf)
            if self._views.moves == moves:
                break
        now = nothing if ours < 0 else arena[ours]
        changed: npt.NDArray[np.bool_] = before != now
        visible = since.size_blocks - (leaf << PAGE_SHIFT)
        if visible < PAGE_ENTRIES:
            beyond = max(visible, 0)
            changed[beyond:] = now[beyond:] != 0
        return changed


def _way_between(node: Volume, since: Volume) -> tuple[list[Volume], int]:
    """The nodes in which an entry makes the two differ, far end first, and how many leaves that holds for: behind these
    one of them sees less than the next."""
    for near, far in ((since, node), (node, since)):
        links = chain(near)
        if far in links:
            way = links[: links.index(far)]
            shared_blocks = min([near.size_blocks, far.size_blocks, *map(sees_below, way)])
            return way[::-1], shared_blocks >> PAGE_SHIFT
    return [], 0

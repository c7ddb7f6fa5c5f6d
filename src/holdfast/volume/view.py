"""What a node with a basis sees, as pages: a leaf in which each entry leads to a block, or is a hole.

Reads of snapshots and clones go through these, as those of other volumes go through their maps: so nothing on the way
of a read knows of the version tree. A view page is in the page cache like any clean page, and can be put together
again from the maps of the nodes that the node sees through.

It is put together from the far end of the chain on, while clients go on changing maps. That is sound because entries
move towards the node only (`versions.py`): whatever leaves a map behind the point reached was there when it was passed
or is found further on. What a cleaner moves to another address is put right here (`changed`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from holdfast.pool.block import ADDRESS_MASK, GROUND_MARK, LBA_MASK, WordArray
from holdfast.volume.page_cache import PAGE_ENTRIES, PAGE_SHIFT, PageCache
from holdfast.volume.page_table import PageTable
from holdfast.volume.versions import chain, sees_below
from holdfast.volume.volume import Volume
from holdfast.work.task import Scheduler, Waitlist, Work

_ADDRESS = np.uint64(ADDRESS_MASK)
_GROUND = np.uint64(GROUND_MARK)


LINKS_PER_TURN = 256  # nodes of a chain that are looked at before others have a turn

Inside = slice | npt.NDArray[np.intp]  # entries of a leaf


class _Building:
    """A leaf that is being put together: `seen` from the node reached, `ground` from the last ground passed."""

    __slots__ = ("ground", "last", "passed", "seen")

    def __init__(self) -> None:
        self.passed: set[Volume] = set()
        self.last: Volume | None = None  # of them
        self.seen: WordArray = np.zeros(PAGE_ENTRIES, np.uint64)
        self.ground: WordArray = np.zeros(PAGE_ENTRIES, np.uint64)


class Views:
    """Finds and makes view pages. Slots that it returns are good until the caller next yields."""

    def __init__(
        self, cache: PageCache, table: PageTable, scheduler: Scheduler, page_room: Waitlist, next_turn: Waitlist
    ) -> None:
        self._cache = cache
        self._table = table
        self._scheduler = scheduler
        self._page_room = page_room
        self._next_turn = next_turn
        self._building: dict[int, tuple[_Building, Waitlist]] = {}  # by key of the view page
        self._viewed: dict[int, set[int]] = {}  # by leaf: keys of view pages that may be in the cache
        self._viewed_count = 0  # of these, at most
        self.built = 0
        self.moves = 0  # how often entries were changed that snapshots see as well

    def leaf(self, node: Volume, leaf: int) -> Work:
        """Make what the node sees of a leaf resident (a task's work); returns its slot, -1 if there is only a hole.
        For a volume without a basis that is the leaf of its map."""
        if node.read_base == node.key_base:
            return (yield from self._table.page(node, 0, leaf, create=False))
        cache = self._cache
        key = node.read_base | leaf
        while True:
            slot = cache.slot_of.get(key)
            if slot is not None:
                return slot
            if key not in self._building:
                break
            yield self._building[key][1]
        done = Waitlist(self._scheduler, f"view page {key:#x}", kind="a view page")
        building = _Building()
        self._building[key] = building, done
        held = self._scheduler.hold(done)
        try:
            yield from self._build(node, leaf, building)
            # Only now: tasks that each held a page and waited for others could wait for each other.
            slots = cache.take_slots(1, node.group.memory)
            while not slots:
                yield self._page_room
                slots = cache.take_slots(1, node.group.memory)
            cache.arena[slots[0]] = building.seen
            cache.install(slots[0], key, -1)
            self._note_viewed(key, leaf)
            self.built += 1
            return slots[0]
        finally:
            held.release()
            del self._building[key]
            done.wake()
            self._table.released = True

    def _build(self, node: Volume, leaf: int, building: _Building) -> Work:
        first = leaf << PAGE_SHIFT
        links = chain(node)
        passed: Volume | None = None
        looks = 0
        while links:
            looks += 1
            if looks % LINKS_PER_TURN == 0:
                yield self._next_turn
            link = links[-1]
            slot = self._table.at_hand(link, leaf)
            if slot is None:
                slot = yield from self._table.page(link, 0, leaf, create=False)
            if link.basis is not passed:
                # The tree changed meanwhile. A snapshot that was taken may have got what was found behind it.
                links = _not_passed(node, building)
                passed = links[-1].basis if links else None
                if links and links[-1].ground is passed is building.last:
                    building.ground = building.seen.copy()  # who was to be next has gone
                continue
            visible = sees_below(link) - first
            if visible < PAGE_ENTRIES:
                building.seen[max(visible, 0) :] = 0
            if slot >= 0:
                row = self._cache.arena[slot]
                blocks = np.where((row & _ADDRESS) == 0, np.uint64(0), row)
                np.copyto(building.seen, np.where(row == _GROUND, building.ground, blocks), where=row != 0)
            passed = links.pop()
            building.passed.add(passed)
            building.last = passed
            if links and links[-1].ground is passed:
                # All of it: marks are from when the node saw as much. And now: when the next link is looked at it may
                # have gone, and the one after it be based on the ground, with more than the ground in `seen`.
                building.ground = building.seen.copy()

    def next_leaf(self, node: Volume, leaf: int, end: int) -> Work:
        """The first leaf in [leaf, end) of which the node sees more than a hole, or may, or `end` (a task's work)."""
        if node.read_base == node.key_base:
            return (yield from self._table.next_leaf(node, leaf, end))
        links: list[Volume] = []
        found = end
        looks = 0
        while links != chain(node):  # again, if the tree changed meanwhile
            links = chain(node)
            found = end
            for link in reversed(links):  # as entries move: what has left one of them is found in one that comes later
                looks += 1
                if looks % LINKS_PER_TURN == 0:
                    yield self._next_turn
                if self._table.at_hand(link, leaf) == -1:
                    continue
                found = min(found, (yield from self._table.next_leaf(link, leaf, found)))
                if found == leaf:
                    return found
        return found

    def _note_viewed(self, key: int, leaf: int) -> None:
        self._viewed.setdefault(leaf, set()).add(key)
        self._viewed_count += 1
        if self._viewed_count > 2 * self._cache.pages:  # most of them were evicted since
            slot_of = self._cache.slot_of
            there = {leaf: {key for key in keys if key in slot_of} for leaf, keys in self._viewed.items()}
            self._viewed = {leaf: keys for leaf, keys in there.items() if keys}
            self._viewed_count = sum(map(len, self._viewed.values()))

    # ---- changes from elsewhere

    def wrote(self, volume: Volume, leaf: int, inside: Inside, words: WordArray) -> None:
        """A volume with a basis has these entries in its own map now."""
        slot = self._cache.slot_of.get(volume.read_base | leaf)
        if slot is not None:
            self._cache.arena[slot][inside] = words
        building = self._building.get(volume.read_base | leaf)
        if building is not None:
            building[0].seen[inside] = words

    def changed(self, leaf: int, inside: npt.NDArray[np.intp], old: WordArray, new: WordArray) -> None:
        """Entries of a leaf, in whoever's map they are, are others now for the same blocks: at other addresses, say."""
        self.moves += 1
        cache = self._cache
        rows = []
        keys = self._viewed.get(leaf, set())
        for key in sorted(keys):
            slot = cache.slot_of.get(key)
            if slot is not None:
                rows.append(cache.arena[slot])
            else:
                keys.discard(key)
        for key, (building, _) in self._building.items():
            if key & LBA_MASK == leaf:
                rows += [building.seen, building.ground]
        for row in rows:
            there = row[inside]
            row[inside] = np.where(there == old, new, there)

    def is_building(self, node: Volume) -> bool:
        return any(key >> 40 == node.volume_id for key in self._building)


def _not_passed(node: Volume, building: _Building) -> list[Volume]:
    """The nodes of a chain, the node first, up to those that were passed."""
    links = chain(node)
    for index, link in enumerate(links):
        if link in building.passed:
            return links[:index]
    return links

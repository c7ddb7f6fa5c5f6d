"""The map of a volume: a page table in the log, brought into memory page by page when it is needed.

Level 0 are the leaves: entry `lba & 511` of leaf `lba >> 9` is the block's map entry. A page on level n + 1 holds the
map entries of 512 pages of level n. A page that holds only holes is not stored; its entry above is 0.

An entry of 0 above a page that is resident means that the page is new: it was never written, or was all holes. So a
page exists if its entry is not 0, or if it is resident.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from holdfast.errors import CorruptionError, DiskError
from holdfast.pool.block import (
    ADDRESS_BITS,
    CHECK_MASK,
    KIND_MAP,
    LEVEL_SHIFT,
    VOLUME_SHIFT,
    is_given_up,
    page_place,
)
from holdfast.units import BLOCK_SIZE_BYTES
from holdfast.volume.block_reader import DAMAGED, BlockReader
from holdfast.volume.page_cache import PAGE_ENTRIES, PAGE_MASK, PAGE_SHIFT, PageCache
from holdfast.volume.volume import Volume
from holdfast.work.task import Scheduler, Waitlist, Work


class PageDamagedError(CorruptionError):
    """A map page does not check out. `key`: its owner word; `given_up`: it never will."""

    def __init__(self, message: str, key: int, *, given_up: bool) -> None:
        super().__init__(message)
        self.key = key
        self.given_up = given_up


class PageTable:
    """Finds, reads and makes pages. Slots that it returns are good until the caller next yields."""

    def __init__(self, cache: PageCache, reader: BlockReader, scheduler: Scheduler, page_room: Waitlist) -> None:
        self.cache = cache
        self.reader = reader
        self.page_room = page_room  # woken when a page may have become evictable
        self.pages_read = 0
        # Work that makes dirty pages clean, while the pool is opened: then nobody else does. True: some are clean now.
        self.relieve: Callable[[], Work] | None = None
        self.released = False  # a page may have become evictable since `page_room` was woken
        self._scheduler = scheduler
        self._loading: dict[int, Waitlist] = {}

    def page(self, volume: Volume, level: int, index: int, *, create: bool, must: bool = False) -> Work:
        """Make a page resident (a task's work); returns its slot, or -1 if it does not exist and is not to be made.
        `must`: also where the volume's group is at its limit, for those who do not do it for the group.

        Raises CorruptionError or DiskError if the page, or one above it, cannot be read.

        The slots for all that is missing are taken at once, or none is: tasks that each had some and waited for more
        would evict what the others had brought in, for ever.
        """
        cache = self.cache
        slot_of = cache.slot_of
        if index >> PAGE_SHIFT * max(0, volume.root_level - level):
            assert not create, "the map does not reach as far"
            return -1
        while True:
            slot = slot_of.get(volume.key_base | level << LEVEL_SHIFT | index)
            if slot is not None:
                return slot
            top = level  # the highest page that is missing
            parent = -1
            while top < volume.root_level:
                above = slot_of.get(volume.key_base | top + 1 << LEVEL_SHIFT | index >> PAGE_SHIFT * (top + 1 - level))
                if above is not None:
                    parent = above
                    break
                top += 1
            place = index >> PAGE_SHIFT * (top - level)
            if not create and self._entry(volume, parent, place) == 0:
                return -1
            key = volume.key_base | top << LEVEL_SHIFT | place
            if key in self._loading:
                yield self._loading[key]
                continue
            if parent >= 0:
                cache.children[parent] += 1  # not evicted for its child's sake
            slots = cache.take_slots(top - level + 1, volume.group.memory, must=must)
            if parent >= 0:
                cache.children[parent] -= 1
            if not slots:
                relieved = False
                if self.relieve is not None and not cache.may_give_way(volume.group.memory):
                    relieved = yield from self.relieve()
                if not relieved:
                    yield self.page_room
                continue
            held = self._scheduler.hold(self.page_room, len(slots))
            try:
                while True:
                    place = index >> PAGE_SHIFT * (top - level)
                    entry = self._entry(volume, parent, place)
                    if entry == 0 and not create:
                        return -1
                    key = volume.key_base | top << LEVEL_SHIFT | place
                    yield from self._bring_in(entry, key, slots[-1], parent, volume)
                    parent = slots.pop()
                    if top == level:
                        return parent
                    top -= 1
            finally:
                held.release()
                for slot in slots:
                    cache.give_back(slot)
                # Whoever found every slot taken by pages on their way in: these can be evicted now, or were given
                # back. They are woken with the next turn, so that a turn in which pages are written out always comes.
                self.released = True

    def at_hand(self, volume: Volume, leaf: int) -> int | None:
        """The slot of a leaf, or -1 if there is no such leaf, where that can be said at once; else None. Whoever looks
        at thousands of maps does not start a generator for each."""
        slot = self.cache.slot_of.get(volume.key_base | leaf)
        if slot is None and not volume.root and self._root_key(volume) not in self.cache.slot_of:
            return -1
        return slot

    def _root_key(self, volume: Volume) -> int:
        return volume.key_base | volume.root_level << LEVEL_SHIFT

    def _entry(self, volume: Volume, parent: int, index: int) -> int:
        """The map entry of a page, from the page above, in slot `parent`; -1: from the volume."""
        return volume.root if parent < 0 else self.cache.words[parent << PAGE_SHIFT | index & PAGE_MASK]

    def _bring_in(self, entry: int, key: int, slot: int, parent: int, volume: Volume) -> Work:
        """Fill a slot with a page, a new one if `entry` is 0, and install it."""
        cache = self.cache
        if entry == 0:
            cache.arena[slot] = 0
        else:
            if parent >= 0:
                cache.children[parent] += 1  # stays while its child is read
            try:
                yield from self._load(entry, key, slot, volume)
            finally:
                if parent >= 0:
                    cache.children[parent] -= 1
        cache.install(slot, key, parent)

    def _load(self, entry: int, key: int, slot: int, volume: Volume) -> Work:
        waiting = self._loading[key] = Waitlist(self._scheduler, f"map page {key:#x}", kind="a map page")
        held = self._scheduler.hold(waiting)
        errno = -1
        try:
            errno = yield from self.reader.read(entry, key, KIND_MAP, self.cache.view(slot))
        finally:
            held.release()
            del self._loading[key]
            waiting.wake()
        self.pages_read += 1
        if errno:
            where = f"map page {key:#x} of volume {volume.name}"
            if errno == DAMAGED:
                given_up = is_given_up(entry)
                volume.note_page_damage(key, "its check does not match", known=given_up)
                raise PageDamagedError(
                    f"{where} is damaged; 2 MiB or more cannot be read: run `holdfast check`", key, given_up=given_up
                )
            raise DiskError(f"{where} cannot be read: errno {errno}", errno)

    def poison(self, volume: Volume, key: int) -> None:
        """See to it that a damaged page never reads well again, for instance because only this reading of it failed.

        Replay calls this where it has to leave the page's changes out: a copy without them would be a wrong one. The
        entry above keeps the address and gets a check that the page does not have.
        """
        level, index = page_place(key)
        if level == volume.root_level:
            volume.root |= CHECK_MASK << ADDRESS_BITS
            return
        cache = self.cache
        parent = cache.slot_of[volume.key_base | level + 1 << LEVEL_SHIFT | index >> PAGE_SHIFT]
        cache.words[parent << PAGE_SHIFT | index & PAGE_MASK] |= CHECK_MASK << ADDRESS_BITS
        if cache.stamp[parent] == 0:
            cache.mark_dirty(parent)

    def loading(self, key: int) -> Waitlist | None:
        """Who waits for a page that is being read; None if it is not."""
        return self._loading.get(key)

    def is_loading(self, volume: Volume) -> bool:
        """True while a page of the volume is being read; its parent is pinned until then."""
        return any(key >> VOLUME_SHIFT == volume.volume_id for key in self._loading)

    def next_leaf(self, volume: Volume, leaf: int, end: int, *, must: bool = False) -> Work:
        """The first leaf in [leaf, end) that exists, or `end` (a task's work). Skips absent subtrees whole."""
        while leaf < min(end, 1 << PAGE_SHIFT * volume.root_level):
            level = volume.root_level
            while True:
                slot = yield from self.page(volume, level, leaf >> PAGE_SHIFT * level, create=False, must=must)
                if slot < 0:
                    leaf = ((leaf >> PAGE_SHIFT * level) + 1) << PAGE_SHIFT * level
                    break
                if level == 0:
                    return leaf
                below = level - 1
                child = leaf >> PAGE_SHIFT * below
                found = self._next_child(volume, slot, below, child)
                if found is None:
                    leaf = ((leaf >> PAGE_SHIFT * level) + 1) << PAGE_SHIFT * level
                    break
                if found > child:
                    leaf = found << PAGE_SHIFT * below
                if leaf >= end:
                    return end
                level = below
        return end

    def _next_child(self, volume: Volume, slot: int, below: int, child: int) -> int | None:
        """Index, on level `below`, of the first existing page from `child` on under the page in `slot`."""
        cache = self.cache
        first = child & PAGE_MASK
        stored = np.flatnonzero(cache.arena[slot, first:])
        found = child + int(stored[0]) if len(stored) else None
        if cache.children[slot]:
            base = volume.key_base | below << LEVEL_SHIFT
            stop = found if found is not None else (child | PAGE_MASK) + 1
            for index in range(child, stop):
                if base | index in cache.slot_of:
                    return index
        return found


assert PAGE_ENTRIES * 8 == BLOCK_SIZE_BYTES

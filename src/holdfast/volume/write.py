"""Writes, zeroes and trims: blocks into the log, then the map pointed at them, in one step.

In the write path this comes after the engine has taken a request, before `Log`. Every step here that changes a map does
three things with nothing in between: append to the log, change the page, adjust the counts of live blocks. So replaying
the log in order gives the same map.

Nothing here waits: it is said how far it came and what stands in the way. Who waits and tries again: `long_write.py`.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from holdfast.pool.block import (
    ADDRESS_MASK,
    HOLE_MARK,
    KIND_DATA,
    LBA_MASK,
    WordArray,
)
from holdfast.pool.space import Privilege
from holdfast.units import BLOCK_SHIFT
from holdfast.volume.exchange import Exchange
from holdfast.volume.page_cache import PAGE_ENTRIES, PAGE_MASK, PAGE_SHIFT, PageCache
from holdfast.volume.page_writer import PageWriter
from holdfast.volume.provision import Provisions
from holdfast.volume.view import Views
from holdfast.volume.volume import Volume
from holdfast.writeback.log import Log, Room


class Obstacle(IntEnum):
    """Why a write could not go on at once. The values are `Room`'s, and some more."""

    NONE = Room.YES
    RING_FULL = Room.RING_FULL
    NO_SEGMENT = Room.NO_SEGMENT
    NO_SPACE = Room.NO_SPACE
    NO_PAGE = 4  # the leaf is not resident
    TOO_DIRTY = 5  # too many dirty pages: a checkpoint must come first
    OVER_QUOTA = 6  # the volume may not map as many blocks
    GROUP_FULL = Room.GROUP_FULL
    GROUP_OVER_SPACE = 8  # the volumes of the group may not map as many blocks together


class Writer:
    def __init__(
        self,
        cache: PageCache,
        views: Views,
        exchange: Exchange,
        pages: PageWriter,
        log: Log,
    ) -> None:
        self.cache = cache
        self.views = views
        self.exchange = exchange
        self.pages = pages
        self.log = log
        self._slot_of = cache.slot_of
        self._stamp = cache.stamp
        self._words = cache.words
        self._live = log.space.live_words
        self._shift = log.shift
        self._provisions = Provisions(log.space)

    def renew(self) -> None:
        """The pool has another capacity, and the space table other columns."""
        self._live = self.log.space.live_words

    def write_block(
        self, volume: Volume, lba: int, block: memoryview | bytearray | bytes, *, must: bool = False
    ) -> int:
        """Write one whole block; returns 0, or the `Obstacle` in the way, with nothing changed. `must`: whatever the
        limits of space are, and out of what is held back for letting go of space."""
        words = self._words
        if must or volume.versioned:
            if must or volume.basis is not None:
                return self.write_run(volume, lba, memoryview(block), must=must)[1]
            keeper_slot = self._slot_of.get(volume.keeper_base | lba >> PAGE_SHIFT)
            if keeper_slot is None or not words[keeper_slot << PAGE_SHIFT | lba & PAGE_MASK]:
                return self._write_kept_block(volume, lba, block)
            # What its snapshots see there they have already: it is as if there were none.
        slot = self._slot_of.get(volume.key_base | lba >> PAGE_SHIFT)
        if slot is None:
            return Obstacle.NO_PAGE
        log = self.log
        at = slot << PAGE_SHIFT | lba & PAGE_MASK
        old = words[at]
        if not old:
            obstacle = self._refusal(volume, own=True)
            if obstacle:
                return obstacle
        if not log.room:
            room = log.make_room()
            if room:
                return room
        if self._stamp[slot] != self.cache.generation:
            obstacle = self._writable_with_room(slot)
            if obstacle:
                return obstacle
        if not old:
            log.space.used_blocks += 1
            volume.mapped_blocks += 1
            volume.group.mapped_blocks += 1
            if volume.provisioned:
                self._provisions.hold(volume)
        words[at] = log.append(block, volume.key_base | lba, volume.data_seed, KIND_DATA)
        if old:
            self._live[(old & ADDRESS_MASK) >> self._shift] -= 1
            if volume.damaged:
                volume.damaged.pop(lba, None)
        return 0

    def _write_kept_block(self, volume: Volume, lba: int, block: memoryview | bytearray | bytes) -> int:
        """`write_block` for a volume without a basis that has snapshots: as `Exchange.replace`, for one block."""
        slot = self._slot_of.get(volume.key_base | lba >> PAGE_SHIFT)
        if slot is None:
            return Obstacle.NO_PAGE
        keeper_slots = self.exchange.keeper_slots(volume, lba >> PAGE_SHIFT)
        if keeper_slots is None:
            return Obstacle.NO_PAGE
        words, log = self._words, self.log
        inside = lba & PAGE_MASK
        old = words[slot << PAGE_SHIFT | inside]
        keeps = bool(keeper_slots) and lba < volume.keep_below
        for keeper_slot in keeper_slots:
            if words[keeper_slot << PAGE_SHIFT | inside]:
                keeps = False
        if keeps or not old:
            obstacle = self._refusal(volume, own=not old)
            if obstacle:
                return obstacle
        if not log.room:
            room = log.make_room()
            if room:
                return room
        for changed in (slot, keeper_slots[-1]) if keeps else (slot,):
            if self._stamp[changed] != self.cache.generation:
                obstacle = self._writable_with_room(changed)
                if obstacle:
                    return obstacle
        if keeps or not old:
            log.space.used_blocks += 1
            if not old:
                volume.count_mapped(1)
        words[slot << PAGE_SHIFT | inside] = log.append(block, volume.key_base | lba, volume.data_seed, KIND_DATA)
        if keeps:
            words[keeper_slots[-1] << PAGE_SHIFT | inside] = old or HOLE_MARK
            if old:
                volume.count_given(lba >> PAGE_SHIFT, 1)
                volume.keepers[-1].count_kept(lba >> PAGE_SHIFT, inside, 1)
        elif old:
            self._live[(old & ADDRESS_MASK) >> self._shift] -= 1
        if volume.provisioned:
            self._provisions.hold(volume)
        if old and volume.damaged:
            volume.damaged.pop(lba, None)
        return 0

    def write_run(self, volume: Volume, lba: int, view: memoryview, *, must: bool = False) -> tuple[int, int]:
        """Write consecutive whole blocks; returns how many were written, and 0 or the `Obstacle` before the next.
        `must`: as of `write_block`."""
        total = len(view) >> BLOCK_SHIFT
        done = 0
        log = self.log
        privilege = Privilege.FREEING if must else Privilege.CLIENT
        while done < total:
            here = lba + done
            slot = self._slot_of.get(volume.key_base | here >> PAGE_SHIFT)
            if slot is None:
                return done, Obstacle.NO_PAGE
            first = here & PAGE_MASK
            keeper_slots = self.exchange.keeper_slots(volume, here >> PAGE_SHIFT) if volume.versioned else []
            if keeper_slots is None:
                return done, Obstacle.NO_PAGE
            if not log.room:
                room = log.make_room(privilege)
                if room:
                    return done, room
            count = min(total - done, PAGE_ENTRIES - first, log.room)
            if not must:
                count, obstacle = self._admitted(volume, slot, first, count, keeper_slots)
                if not count:
                    return done, obstacle
            if keeper_slots or self._stamp[slot] != self.cache.generation:
                obstacle = self._change_in(volume, slot, slice(first, first + count), keeper_slots, privilege)
                if obstacle:
                    return done, obstacle
                count = min(count, log.room)
            part = view[done << BLOCK_SHIFT : (done + count) << BLOCK_SHIFT]
            entries = log.append_run(part, volume.key_base | here)
            log.space.used_blocks += count
            self._replace(volume, slot, first, entries, keeper_slots)
            done += count
            if must:
                log.room = 0  # the next client finds its own limit again
        return done, Obstacle.NONE

    def _replace(self, volume: Volume, slot: int, first: int, entries: WordArray, keeper_slots: list[int]) -> None:
        """Put entries into a writable leaf and count what they replace."""
        if volume.damaged:
            lba = (self.cache.key_of[slot] & LBA_MASK) << PAGE_SHIFT | first
            volume.forget_damage(lba, lba + len(entries))
        if volume.versioned:
            self.exchange.replace(volume, slot, slice(first, first + len(entries)), entries, keeper_slots)
            if volume.provisioned:
                self._provisions.hold(volume)
            return
        row = self.cache.arena[slot, first : first + len(entries)]
        replaced = int(np.count_nonzero(row))
        if replaced:
            self.log.space.drop_blocks(row & np.uint64(ADDRESS_MASK))
        volume.count_mapped(int(np.count_nonzero(entries)) - replaced)
        row[:] = entries
        if volume.provisioned:
            self._provisions.hold(volume)

    def _change_in(
        self, volume: Volume, slot: int, inside: slice, keeper_slots: list[int], privilege: Privilege | None
    ) -> int:
        """Let these entries of a leaf be changed, and the leaf of the last keeper if that changes it; and see to it
        that there still is room in the log behind that, unless `privilege` is None. 0, or the `Obstacle`."""
        changed = [slot]
        if (
            keeper_slots
            and self._stamp[keeper_slots[-1]] != self.cache.generation
            and self.exchange.is_kept(volume, slot, inside, keeper_slots)
        ):
            changed.append(keeper_slots[-1])
        obstacle = 0
        for leaf in changed:
            if not obstacle and self._stamp[leaf] != self.cache.generation:
                obstacle = self._writable_with_room(leaf, privilege)
        if obstacle and privilege is Privilege.FREEING:
            self.log.room = 0  # the next client finds its own limit again
        return obstacle

    def _writable_with_room(self, slot: int, privilege: Privilege | None = Privilege.CLIENT) -> int:
        """`make_writable`, and room in the log for what is to be written, which is asked for first: were a leaf dirty
        whenever somebody finds no room, and waits, then checkpoints would use up what is held back for them."""
        obstacle = self.make_writable(slot)
        if obstacle or privilege is None or self.log.room:
            return obstacle
        return self.log.make_room(privilege)  # the leaf as it was took what there was

    def _refusal(self, volume: Volume, *, own: bool) -> int:
        """Whether the quota (if the volume itself has one block more, `own`), the group's limit of space and the pool
        let a block in: 0, or the `Obstacle`."""
        if own and volume.mapped_blocks >= volume.mapped_blocks_max:
            return Obstacle.OVER_QUOTA
        if volume.provisioned:
            return 0
        if volume.group.mapped_blocks >= volume.group.mapped_blocks_max:
            return Obstacle.GROUP_OVER_SPACE
        space = self.log.space
        return Obstacle.NO_SPACE if space.used_blocks >= space.open_blocks else 0

    def _admitted(self, volume: Volume, slot: int, first: int, count: int, keeper_slots: list[int]) -> tuple[int, int]:
        """How many of `count` blocks the quota, the group's limit of space and the pool let in; if none, the
        `Obstacle`."""
        own_left = max(0, volume.mapped_blocks_max - volume.mapped_blocks)
        group_left = max(0, volume.group.mapped_blocks_max - volume.group.mapped_blocks)
        space = self.log.space
        pool_left = max(0, space.open_blocks - space.used_blocks)
        if volume.provisioned:  # it is held
            group_left = pool_left = 2 * count
        while count > own_left or 2 * count > min(group_left, pool_left):
            own, total = self._growth(volume, slot, first, count, keeper_slots)
            if own <= own_left and total <= min(group_left, pool_left):
                break
            if count == 1:
                if own > own_left:
                    return 0, Obstacle.OVER_QUOTA
                return 0, Obstacle.GROUP_OVER_SPACE if total > group_left else Obstacle.NO_SPACE
            count >>= 1
        return count, Obstacle.NONE

    def _growth(self, volume: Volume, slot: int, first: int, count: int, keeper_slots: list[int]) -> tuple[int, int]:
        """How many blocks more `count` new entries mean, of the volume and of its group."""
        if volume.versioned:
            return self.exchange.growth(volume, slot, slice(first, first + count), keeper_slots)
        holes = count - int(np.count_nonzero(self.cache.arena[slot, first : first + count]))
        return holes, holes

    def make_writable(self, slot: int) -> int:
        """Let a leaf be changed: append it first if the running checkpoint still needs it as it is."""
        cache = self.cache
        if self.is_too_dirty():
            return Obstacle.TOO_DIRTY
        if cache.stamp[slot]:
            room = self.pages.thaw(slot)
            if room is not Room.YES:
                return room
        cache.mark_dirty(slot)
        return 0

    def is_too_dirty(self) -> bool:
        return self.cache.dirty_pages >= self.cache.dirty_hard_limit

    def forget_in_leaf(self, volume: Volume, first: int, stop: int) -> int:
        """Make blocks [first, stop), which lie in one leaf, holes without a record in the log: for what a crash brings
        back only together with the reason to do it again. 0, or the `Obstacle`."""
        return self.punch_in_leaf(volume, first, stop, logged=False)

    def punch_in_leaf(self, volume: Volume, first: int, stop: int, *, logged: bool = True) -> int:
        slot = self._slot_of.get(volume.key_base | first >> PAGE_SHIFT)
        if slot is None:
            return Obstacle.NO_PAGE
        keeper_slots = self.exchange.keeper_slots(volume, first >> PAGE_SHIFT) if volume.versioned else []
        if keeper_slots is None:
            return Obstacle.NO_PAGE
        log = self.log
        if logged:
            log.bill(volume.group.memory)
            if not log.room:
                room = log.make_room(Privilege.FREEING)
                if room:
                    return room
        at = first & PAGE_MASK
        if keeper_slots or self._stamp[slot] != self.cache.generation:
            inside = slice(at, at + stop - first)
            obstacle = self._change_in(volume, slot, inside, keeper_slots, Privilege.FREEING if logged else None)
            if obstacle:
                return obstacle
        if logged:
            log.append_hole(volume.key_base | first & LBA_MASK, stop - first)
            log.room = 0
        self._replace(volume, slot, at, np.zeros(stop - first, np.uint64), keeper_slots)
        return Obstacle.NONE

"""The pages of all maps that are in memory: a fixed arena, touched when it is made, never grown.

A page is 512 map entries. It is named by its owner word (`block.page_owner`), and its slot in the arena is found
through a dictionary. A slot is in one of these conditions:

    clean                 `stamp` 0: the log has the same bytes
    dirty                 `stamp` is the current generation: changed since the last checkpoint began; may be changed
                          freely
    frozen                `stamp` is the generation before: dirty when the running checkpoint began, and not yet written
                          by it. Before it is changed it must be written (`PageWriter`), so that the checkpoint shows
                          one moment

Invariants
 1. The parent of a resident page is resident: so a checkpoint never waits for a page to be read.
 2. A page is evicted only if it is clean and has no resident children (`children` also counts reads under way).
 3. Pages above the leaves are changed by a checkpoint only; new ones are put above the root while none is running.
 4. A slot that is taken is charged to the group of its volume. Nothing is evicted to make room within `take_slots`: a
    refusal is noted, and the reclaimer calls `shrink` in a turn of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from holdfast.memory.group import UNLIMITED_BYTES, Group, Kind
from holdfast.memory.reclaim import Pressure
from holdfast.pool.block import VOLUME_SHIFT
from holdfast.units import BLOCK_SIZE_BYTES

PAGE_ENTRIES = BLOCK_SIZE_BYTES // 8
PAGE_SHIFT = 9
PAGE_MASK = PAGE_ENTRIES - 1
PAGES_MIN = 64
MUST_PAGES = 8  # what an engine holds back for those who must get on: two ways from a root to a leaf
GROUP_PAGES_MIN = 16  # that a group has whatever else it uses: for the leaves of an operation or two, and those above
EVICTION_BATCH = 64
RETURN_BATCH = 256  # slots a tick that come back once the host has enough memory again


class PageCache:
    """All fields belong to the loop thread. `arena` is (pages, 512) of u64; `words` is the same memory, flat."""

    def __init__(
        self,
        buffer: memoryview,
        root: Group,
        *,
        hand_back: Callable[[memoryview], None] = lambda _page: None,
        held_back: int = 0,
    ) -> None:
        """`root`: of the tree of groups; its limit of map pages is set here. `hand_back` is told of a page whose memory
        the host may have for now. `held_back`: pages that only those get who must (`take_slots`)."""
        pages = len(buffer) // BLOCK_SIZE_BYTES
        assert pages >= PAGES_MIN
        self.pages = pages
        self.bytes = buffer[: pages * BLOCK_SIZE_BYTES]
        self.words = self.bytes.cast("Q")
        self.arena: npt.NDArray[np.uint64] = np.frombuffer(self.bytes, np.uint64).reshape(pages, PAGE_ENTRIES)
        self.root = root
        self._hand_back = hand_back
        self._groups: list[Group] = [root] * pages  # who pays for each slot that is taken
        self._group_column = np.zeros(pages, np.int32)  # the same, by number
        self.withdrawn: list[int] = []  # free slots whose memory the host has
        self._held_back_bytes = held_back * BLOCK_SIZE_BYTES
        root.limits[Kind.MAP_PAGES] = pages * BLOCK_SIZE_BYTES - self._held_back_bytes
        self.slot_of: dict[int, int] = {}
        self.key_of: list[int] = [0] * pages
        self._stamp_column = np.zeros(pages, np.int64)
        self.stamp = self._stamp_column.data
        self._children_column = np.zeros(pages, np.int32)
        self.children = self._children_column.data
        self._parents = [-1] * pages
        self._used = np.zeros(pages, np.bool_)
        self.free: list[int] = list(range(pages - 1, -1, -1))
        self.generation = 1
        self.dirty: list[int] = []  # slots stamped with the current generation, in the order they became dirty
        self._hand = 0
        # More dirty pages than this, and a checkpoint begins; more than the second, and writers wait for it.
        self.dirty_soft_limit = pages // 4
        self.dirty_hard_limit = pages // 2

    def view(self, slot: int) -> memoryview:
        at = slot * BLOCK_SIZE_BYTES
        return self.bytes[at : at + BLOCK_SIZE_BYTES]

    def take_slots(self, count: int, group: Group, *, must: bool = False) -> list[int]:
        """So many free slots, charged to `group`; none at all if it, or a group above it, refuses. `must`: `group` is
        charged whatever its limit is, and what is held back may be used: who waits for this caller may be all that
        keeps the other pages dirty.

        At its limit of all kinds a group gets a few all the same, if the server has them: what else it has used its
        memory for, copies of what is to be written above all, may wait for just these.
        """
        count_bytes = count * BLOCK_SIZE_BYTES
        if group.try_charge(Kind.MAP_PAGES, count_bytes) is not None:
            few = group.usage[Kind.MAP_PAGES] + count_bytes <= GROUP_PAGES_MIN * BLOCK_SIZE_BYTES
            may = must or (few and group.limit_bytes < UNLIMITED_BYTES)
            room = self.root.room_bytes(Kind.MAP_PAGES) + must * self._held_back_bytes
            if not may or room < count_bytes:
                if may:  # it is all groups together that are short: noted, so that others' clean pages give way
                    self.root.try_charge(Kind.MAP_PAGES, self._held_back_bytes + count_bytes)
                return []
            group.charge(Kind.MAP_PAGES, count_bytes)
        taken = self.free[-count:]
        del self.free[-count:]
        for slot in taken:
            self._groups[slot] = group
            self._group_column[slot] = group.number
        return taken

    def give_back(self, slot: int) -> None:
        """Return a slot that `take_slots` gave and `install` never used."""
        self._groups[slot].release(Kind.MAP_PAGES, BLOCK_SIZE_BYTES)
        self.free.append(slot)

    # ---- giving way

    def _evictable(self) -> npt.NDArray[np.bool_]:
        evictable: npt.NDArray[np.bool_] = self._used & (self._stamp_column == 0) & (self._children_column == 0)
        return evictable

    def shrink(self, group: Group) -> int:
        """Evict a batch of clean pages, of `group`, or of all groups if it is the root; returns their bytes."""
        evictable = self._evictable()
        if group is not self.root:
            evictable &= self._group_column == group.number
        slots = np.flatnonzero(evictable)
        if not len(slots):
            return 0
        # In the order of the slots, from where the last round stopped: first in, first out, near enough.
        slots = np.roll(slots, -int(np.searchsorted(slots, self._hand)))
        evicted = 0
        for slot in slots.tolist():
            owner = self._groups[slot]
            if owner is not group and owner.usage[Kind.MAP_PAGES] <= owner.minimums[Kind.MAP_PAGES]:
                continue  # it is sure of these
            self.forget(slot)
            self._hand = slot + 1
            evicted += 1
            if evicted == EVICTION_BATCH:
                break
        return evicted * BLOCK_SIZE_BYTES

    def may_give_way(self, group: Group) -> bool:
        """True if a page is clean that could be evicted for `group`'s sake."""
        evictable = self._evictable()
        owners = [self._groups[slot] for slot in np.flatnonzero(evictable).tolist()]
        return any(owner is group or owner.usage[Kind.MAP_PAGES] > owner.minimums[Kind.MAP_PAGES] for owner in owners)

    def give_way(self, pressure: Pressure) -> int:
        """Let the host have the memory of some slots while it has too little, and take it again after that; returns
        the bytes given. An eighth of the slots stays, `PAGES_MIN` at least, and what groups are sure of does."""
        root = self.root
        if pressure is Pressure.NONE:
            count = min(len(self.withdrawn), RETURN_BATCH)
            for _ in range(count):
                slot = self.withdrawn.pop()
                self.arena[slot] = 0  # resident again now, rather than in the middle of a request
                self.free.append(slot)
            root.limits[Kind.MAP_PAGES] += count * BLOCK_SIZE_BYTES
            return -count * BLOCK_SIZE_BYTES
        share = 4 if pressure is Pressure.HIGH else 16
        wanted = min(self.pages // share, self.pages - len(self.withdrawn) - max(PAGES_MIN, self.pages // 8))
        while len(self.free) < wanted and self.shrink(root):
            pass
        count = max(0, min(wanted, len(self.free), root.room_bytes(Kind.MAP_PAGES) // BLOCK_SIZE_BYTES))
        for _ in range(count):
            slot = self.free.pop()
            self._hand_back(self.view(slot))
            self.withdrawn.append(slot)
        root.limits[Kind.MAP_PAGES] -= count * BLOCK_SIZE_BYTES
        return count * BLOCK_SIZE_BYTES

    def move_volume(self, key_base: int, group: Group) -> None:
        """From now on `group` pays for the pages of a volume, whatever its limit."""
        self.move_volumes({key_base >> VOLUME_SHIFT}, group)

    def move_volumes(self, volume_ids: set[int], group: Group) -> None:
        for key, slot in self.slot_of.items():
            if key >> VOLUME_SHIFT in volume_ids and self._groups[slot] is not group:
                self._groups[slot].release(Kind.MAP_PAGES, BLOCK_SIZE_BYTES)
                group.charge(Kind.MAP_PAGES, BLOCK_SIZE_BYTES)
                self._groups[slot] = group
                self._group_column[slot] = group.number

    # ---- pages

    def install(self, slot: int, key: int, parent_slot: int) -> None:
        """The slot now holds page `key`; `parent_slot` is -1 for a root."""
        assert key not in self.slot_of
        self.slot_of[key] = slot
        self.key_of[slot] = key
        self.stamp[slot] = 0
        self.children[slot] = 0
        self._used[slot] = True
        if parent_slot >= 0:
            self.children[parent_slot] += 1
        self._parents[slot] = parent_slot

    def put_below(self, slot: int, parent_slot: int) -> None:
        """The page in `slot`, a root so far, has one above it now."""
        assert self._parents[slot] < 0
        self._parents[slot] = parent_slot
        self.children[parent_slot] += 1

    def parent(self, slot: int) -> int:
        """Slot of the page above, -1 for a root."""
        return self._parents[slot]

    def forget(self, slot: int) -> None:
        """Drop a page that nothing needs; the caller knows that its bytes are in the log or worthless."""
        assert self.children[slot] == 0
        del self.slot_of[self.key_of[slot]]
        self._used[slot] = False
        self.stamp[slot] = 0
        parent_slot = self._parents[slot]
        if parent_slot >= 0:
            self.children[parent_slot] -= 1
        self._groups[slot].release(Kind.MAP_PAGES, BLOCK_SIZE_BYTES)
        self.free.append(slot)

    def forget_volume(self, key_base: int) -> None:
        """Drop all pages of a volume whatever their state: it is gone, with everything in it."""
        self.forget_volumes({key_base >> VOLUME_SHIFT})

    def forget_volumes(self, volume_ids: set[int]) -> None:
        slots = [slot for key, slot in self.slot_of.items() if key >> VOLUME_SHIFT in volume_ids]
        for slot in sorted(slots, key=lambda slot: self.key_of[slot]):  # leaves before their parents
            self.forget(slot)
        gone = set(slots)
        self.dirty = [slot for slot in self.dirty if slot not in gone]

    def mark_dirty(self, slot: int) -> None:
        """Stamp a clean page as changed. A frozen page must have been written first."""
        assert self.stamp[slot] == 0
        self.stamp[slot] = self.generation
        self.dirty.append(slot)

    def freeze(self) -> list[int]:
        """Begin a checkpoint: what is dirty now becomes frozen. Returns those slots."""
        frozen, self.dirty = self.dirty, []
        self.generation += 1
        return frozen

    @property
    def dirty_pages(self) -> int:
        return len(self.dirty)

"""Entries of a volume's leaf are replaced, and what its snapshots still see of them is kept.

The one place where what a client changes meets the version tree (`versions.py`); `Writer` calls it for every write and
trim, `Replayer` for all that it replays. So the same entries in the same order give the same maps.

Nothing here waits. The leaves of a volume and of its keepers are resident when it is called, and those that change are
writable.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from holdfast.pool.block import ADDRESS_MASK, GROUND_MARK, HOLE_MARK, LBA_MASK, WordArray
from holdfast.pool.space import SpaceTable
from holdfast.volume.page_cache import PAGE_ENTRIES, PAGE_SHIFT, PageCache
from holdfast.volume.view import Inside, Views
from holdfast.volume.volume import Volume

_ADDRESS = np.uint64(ADDRESS_MASK)
_HOLE = np.uint64(HOLE_MARK)


class Exchange:
    def __init__(self, cache: PageCache, views: Views, space: SpaceTable) -> None:
        self._cache = cache
        self._slot_of = cache.slot_of
        self._views = views
        self._space = space

    def keepers(self, volume: Volume, leaf: int) -> tuple[Volume, ...]:
        """Who keeps what the volume replaces in this leaf; the last of them gets it. Empty: nobody."""
        if leaf << PAGE_SHIFT >= volume.keep_below:
            return ()
        for keeper in volume.keepers:
            if leaf in keeper.lost_leaves:
                return ()  # whoever sees through a leaf that is lost sees nothing behind it
        return volume.keepers

    def keeper_slots(self, volume: Volume, leaf: int) -> list[int] | None:
        """The slots of the keepers' leaves, in their order; None if one is not resident."""
        slots = []
        for keeper in self.keepers(volume, leaf):
            slot = self._slot_of.get(keeper.key_base | leaf)
            if slot is None:
                return None
            slots.append(slot)
        return slots

    def replace(self, volume: Volume, slot: int, inside: Inside, words: WordArray, keeper_slots: list[int]) -> None:
        """Put `words` in place of the entries `inside` a leaf, and count what that changes. 0: a hole.

        What is replaced goes to the last keeper, where none of them has an entry; the rest is dead.
        """
        arena = self._cache.arena
        row = arena[slot]
        old = row[inside]
        stored = (old & _ADDRESS) != 0
        dead = stored
        if keeper_slots:
            leaf = self._cache.key_of[slot] & LBA_MASK
            kept = self._kept(volume, leaf, inside, keeper_slots)
            # A hole that stays one is still to be seen.
            kept &= (words != 0) | (old != (0 if volume.basis is None else HOLE_MARK))
            self._keep(volume, leaf, inside, old, kept, keeper_slots[-1])
            dead = stored & ~kept
        self._space.drop_blocks(old[dead] & _ADDRESS)
        volume.count_mapped(int(np.count_nonzero(words)) - int(np.count_nonzero(stored)))
        if volume.basis is None:
            row[inside] = words
        else:
            row[inside] = np.where(words == 0, _HOLE, words)
            self._views.wrote(volume, self._cache.key_of[slot] & LBA_MASK, inside, words)

    def growth(self, volume: Volume, slot: int, inside: Inside, keeper_slots: list[int]) -> tuple[int, int]:
        """How many data blocks more there are, of the volume and of all, if all these entries get one each."""
        old = self._cache.arena[slot][inside]
        stored = (old & _ADDRESS) != 0
        own = len(old) - int(np.count_nonzero(stored))
        if not keeper_slots:
            return own, own
        kept = self._kept(volume, self._cache.key_of[slot] & LBA_MASK, inside, keeper_slots)
        return own, own + int(np.count_nonzero(stored & kept))

    def is_kept(self, volume: Volume, slot: int, inside: Inside, keeper_slots: list[int]) -> bool:
        """True if some of these entries have no place yet in what the keepers have: replacing them may change that."""
        return bool(self._kept(volume, self._cache.key_of[slot] & LBA_MASK, inside, keeper_slots).any())

    def _kept(self, volume: Volume, leaf: int, inside: Inside, keeper_slots: list[int]) -> npt.NDArray[np.bool_]:
        """Which of the entries no keeper has one for yet, and one is to have."""
        arena = self._cache.arena
        kept: npt.NDArray[np.bool_] = arena[keeper_slots[0]][inside] == 0
        for slot in keeper_slots[1:]:
            kept &= arena[slot][inside] == 0
        if leaf + 1 << PAGE_SHIFT > volume.keep_below:
            numbers = np.arange(leaf << PAGE_SHIFT, leaf + 1 << PAGE_SHIFT)[inside]
            kept &= numbers < volume.keep_below
        return kept

    def _keep(
        self,
        volume: Volume,
        leaf: int,
        inside: Inside,
        old: WordArray,
        kept: npt.NDArray[np.bool_],
        keeper_slot: int,
    ) -> None:
        if not kept.any():
            return
        nothing = np.uint64(HOLE_MARK if volume.basis is None else GROUND_MARK)
        row = self._cache.arena[keeper_slot]
        row[inside] = np.where(kept, np.where(old == 0, nothing, old), row[inside])
        stored = ((old & _ADDRESS) != 0) & kept
        blocks = int(np.count_nonzero(stored))
        volume.count_given(leaf, blocks)
        places = np.zeros(PAGE_ENTRIES, np.bool_)
        places[inside] = stored
        volume.keepers[-1].count_kept(leaf, places, blocks)

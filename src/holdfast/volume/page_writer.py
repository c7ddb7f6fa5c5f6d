"""The page stage of a checkpoint: every page that was dirty at one moment is appended to the log, children first.

Between the moment and the writing clients go on. A frozen page that is about to change is appended first (`thaw`), so
what the checkpoint stores is the map of its moment, without a copy of it.

The persistent counts of live blocks, too, are those of the moment, corrected for the pages that the checkpoint itself
moves: that is the `live` column handed in with `begin`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from holdfast.pool.block import ADDRESS_MASK, KIND_MAP, LBA_MASK, LEVEL_SHIFT, SEED_MAP, VOLUME_SHIFT
from holdfast.pool.space import Privilege
from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT, PageCache
from holdfast.volume.volume import Volume
from holdfast.volume.waitlists import Waitlists
from holdfast.work.task import Work
from holdfast.writeback.log import Log, Room

LEVELS = 4


class PageWriter:
    def __init__(
        self,
        cache: PageCache,
        log: Log,
        volumes: dict[int, Volume],
        waitlists: Waitlists,
        *,
        pages_per_turn: int,
        wait_for_room: Callable[[Room], Work],
    ) -> None:
        self.cache = cache
        self.log = log
        self.volumes = volumes
        self.pages_written = 0
        self._waitlists = waitlists
        self.pages_per_turn = pages_per_turn  # so many are appended before clients have a turn
        self._wait_for_room = wait_for_room
        self._levels: list[list[int]] = [[] for _ in range(LEVELS)]
        self._frozen_generation = 0
        self._live: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def dirty_volumes(self) -> set[int]:
        """Ids of the volumes of whose maps `write_all` will write something, were it to begin now."""
        return {self.cache.key_of[slot] >> VOLUME_SHIFT for slot in self.cache.dirty}

    def begin(self, live: npt.NDArray[np.int64]) -> None:
        """Freeze what is dirty. `live` is the column of live blocks at this moment; the writer keeps it true."""
        self._live = live
        self._levels = [[] for _ in range(LEVELS)]
        for slot in self.cache.freeze():
            self._levels[self._level(slot)].append(slot)
        self._frozen_generation = self.cache.generation - 1
        self._waitlists.clean_room.wake()  # pages may become dirty that could not before

    def write_all(self) -> Work:
        """Append all frozen pages (a task's work). Afterwards the roots of the volumes are those of the moment."""
        log = self.log
        stamp = self.cache.stamp
        frozen = self._frozen_generation
        for slots in self._levels:
            # The list of the level above grows while this one is worked through; nothing is added to this one any more.
            for number, slot in enumerate(slots):
                if (number + 1) % self.pages_per_turn == 0:
                    log.room = 0  # the next client finds its own limit again
                    self._waitlists.page_room.wake()
                    yield self._waitlists.next_turn
                while stamp[slot] == frozen and not log.room:
                    room = log.make_room(Privilege.CHECKPOINT)
                    if room is not Room.YES:
                        yield from self._wait_for_room(room)
                if stamp[slot] == frozen:
                    self._append(slot)
            log.room = 0

    def thaw(self, slot: int) -> Room:
        """Append a frozen page because it is about to change. Not Room.YES: wait for that, then look again."""
        if not self.log.room:
            room = self.log.make_room(Privilege.CHECKPOINT)
            if room is not Room.YES:
                return room
        self._append(slot)
        self.log.room = 0
        return Room.YES

    def _level(self, slot: int) -> int:
        return self.cache.key_of[slot] >> LEVEL_SHIFT & 15

    def _append(self, slot: int) -> None:
        cache = self.cache
        key = cache.key_of[slot]
        parent = cache.parent(slot)
        volume = self.volumes[key >> VOLUME_SHIFT]
        at = parent << PAGE_SHIFT | key & LBA_MASK & PAGE_MASK
        old = cache.words[at] if parent >= 0 else volume.root
        new = 0
        if cache.arena[slot].any():
            new = self.log.append(cache.view(slot), key, SEED_MAP, KIND_MAP)
            self._live[(new & ADDRESS_MASK) >> self.log.shift] += 1
            self.pages_written += 1
        self.log.space.used_blocks += (new != 0) - (old != 0)
        if old:
            segment = (old & ADDRESS_MASK) >> self.log.shift
            self._live[segment] -= 1
            self.log.space.live_words[segment] -= 1
        cache.stamp[slot] = 0
        if parent < 0:
            volume.root = new
            return
        if old == new:
            return
        cache.words[at] = new
        if cache.stamp[parent] != self._frozen_generation:
            assert cache.stamp[parent] == 0, "pages above the leaves are changed by a checkpoint only"
            cache.stamp[parent] = self._frozen_generation
            self._levels[self._level(parent)].append(parent)

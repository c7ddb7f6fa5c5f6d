"""Bugs in checkpoints, the space table and the pages that both are about."""

from __future__ import annotations

from tests.sim.mutants.mutant import Mutant

CHECKPOINT_AND_SPACE = [
    Mutant(
        "superblock-slot-not-alternated",
        "every superblock goes into the same slot: one that is cut short leaves only the pool's first",
        "P1, P3",
        "holdfast.pool.superblock",
        "        return SLOT_OFFSETS[self.sequence % 2]",
        "        return SLOT_OFFSETS[0]",
    ),
    Mutant(
        "superblock-too-early",
        "the superblock is written before what it points at is durable",
        "P1, P3",
        "holdfast.pool.checkpoint",
        "        yield from self._until_durable()\n\n",
        "",
    ),
    Mutant(
        "replay-position-too-late",
        "the checkpoint's replay position is its end: what was written meanwhile is in no map and not replayed",
        "P1",
        "holdfast.pool.checkpoint",
        "        if clean:\n",
        "        if self.superblock.epoch:\n",
    ),
    Mutant(
        "freed-before-the-checkpoint",
        "a segment comes free at the beginning of the checkpoint that no longer needs it",
        "P1, P3",
        "holdfast.pool.checkpoint",
        "            self.pages.begin(live)\n",
        "            dead = np.flatnonzero(sealed & (live == 0)).tolist()\n"
        "            space.state[dead] = 1\n"
        "            space.free.extendleft(dead)\n"
        "            self.pages.begin(live)\n",
    ),
    Mutant(
        "root-of-the-checkpoint-before",
        "the volume table of a checkpoint has the roots from before its pages were written",
        "P1, P6",
        "holdfast.pool.checkpoint",
        "            for volume_id, at in table.roots:\n",
        "            for volume_id, at in table.roots[:0]:\n",
    ),
    Mutant(
        "no-dying",
        "a segment comes free with the first checkpoint that does not need it, while the other slot's still does",
        "P1, P3",
        "holdfast.pool.space",
        "        coming_free = np.flatnonzero(self.state == DYING).tolist()",
        "        self.state[(self.state == SEALED) & dead_at_checkpoint] = DYING\n"
        "        coming_free = np.flatnonzero(self.state == DYING).tolist()",
    ),
    Mutant(
        "both-copies-in-one-place",
        "the second copies of the tables are the first ones, named twice",
        "P6",
        "holdfast.pool.checkpoint",
        "            for _ in range(TABLE_COPIES):\n"
        "                index_words += yield from self._append_table(TABLE_INDEX, index)",
        "            index_words += yield from self._append_table(TABLE_INDEX, index)\n"
        "            index_words *= TABLE_COPIES",
    ),
    Mutant(
        "old-tables-stay-live",
        "the blocks of a checkpoint's tables are counted as live for ever",
        "P7",
        "holdfast.pool.checkpoint",
        "            for address in self.meta_addresses:\n"
        "                space.live_words[address >> log.shift] -= 1\n",
        "",
    ),
    Mutant(
        "live-not-dropped-on-overwrite",
        "the block that a write replaces stays counted as live",
        "P7",
        "holdfast.volume.write",
        "            self._live[(old & ADDRESS_MASK) >> self._shift] -= 1\n            if volume.damaged:\n",
        "            if volume.damaged:\n",
    ),
    Mutant(
        "frozen-page-changed",
        "a write changes a page that the running checkpoint has not written yet",
        "P3, P7",
        "holdfast.volume.write",
        "        if self._stamp[slot] != self.cache.generation:\n"
        "            obstacle = self._writable_with_room(slot)\n"
        "            if obstacle:\n"
        "                return obstacle\n"
        "        if not old:\n",
        "        if not self._stamp[slot]:\n"
        "            obstacle = self._writable_with_room(slot)\n"
        "            if obstacle:\n"
        "                return obstacle\n"
        "        if not old:\n",
    ),
    Mutant(
        "frozen-page-evicted",
        "a page that the running checkpoint has still to write may be evicted",
        "P1, P2",
        "holdfast.volume.page_cache",
        "self._used & (self._stamp_column == 0) & ",
        "self._used & (self._stamp_column != self.generation) & ",
    ),
    Mutant(
        "parent-evicted",
        "a page is evicted while pages below it are in memory",
        "P1, P3",
        "holdfast.volume.page_cache",
        " & (self._stamp_column == 0) & (self._children_column == 0)\n",
        " & (self._stamp_column == 0) & (self._children_column <= 1)\n",
    ),
    Mutant(
        "page-written-without-its-parent",
        "a checkpoint that moves a page does not write the page above it again",
        "P1, P6",
        "holdfast.volume.page_writer",
        "            self._levels[self._level(parent)].append(parent)",
        "            pass",
    ),
    Mutant(
        "reserve-for-metadata-ignored",
        "clients may take the last segments: the checkpoint that would free some finds none",
        "P7, T5",
        "holdfast.pool.space",
        "        if available > self.reserve_segments:\n",
        "        if available > 0:\n",
    ),
    Mutant(
        "removal-not-stored",
        "the volume table does not say that a volume is being removed: after a crash it is back",
        "P3",
        "holdfast.volume.volume",
        "Role.HIDDEN if self.removing else self.role",
        "self.role",
    ),
]

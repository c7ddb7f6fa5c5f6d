"""Bugs in the cleaner: what it copies, when the maps follow, and when a segment comes free."""

from __future__ import annotations

from tests.sim.mutants.mutant import Mutant

CLEANING = [
    Mutant(
        "victim-freed-at-once",
        "a segment that the cleaner has emptied is used again before a checkpoint tells where its blocks are now",
        "P1, P3",
        "holdfast.volume.copier",
        "            yield from self._move(cold.segment_id)\n",
        "            yield from self._move(cold.segment_id)\n"
        "            for victim in victims:\n"
        "                if self.space.state[victim] == SEALED and not self.space.live_words[victim]:\n"
        "                    self.space.state[victim] = 1\n"
        "                    self.space.free.appendleft(victim)\n",
    ),
    Mutant(
        "cleaner-wins-over-an-overwrite",
        "a map entry is pointed at the copy without a look whether the block was written meanwhile",
        "P2, P6",
        "holdfast.volume.moves",
        "        same = (words[at] == old) & (space.ordinal[segments] == self._ordinal[chosen])",
        "        same = (words[at] != 0) & (space.ordinal[segments] == self._ordinal[chosen])",
    ),
    Mutant(
        "moved-blocks-miscounted",
        "of the blocks that moved together one is not counted as live where it is now",
        "P7",
        "holdfast.volume.moves",
        "space.count_blocks(new[same] & _U64(ADDRESS_MASK))",
        "space.count_blocks(new[same][1:] & _U64(ADDRESS_MASK))",
    ),
    Mutant(
        "cold-segment-retired",
        "a checkpoint that begins before the first move takes a cold segment for a dead one",
        "P1, P3",
        "holdfast.pool.space",
        "        self.state[segment] = MOVING\n",
        "        self.state[segment] = SEALED\n",
    ),
    Mutant(
        "moved-before-durable",
        "maps are pointed at copies that are written, and not synced",
        "P1, P3",
        "holdfast.pool.cold_segment",
        "        io = yield Io(SYNC, self.segment_id)\n        self._raise_failure(io)\n",
        "",
    ),
    Mutant(
        "ring-of-the-victim",
        "a segment that the cleaner fills is still looked for in the ring, where its last contents are",
        "P6",
        "holdfast.writeback.log",
        "        self.window.pop(segment, None)\n",
        "        return\n",
    ),
    Mutant(
        "nothing-spared-for-the-cleaner",
        "clients may fill all that is not reserved: nothing is left to clean with",
        "P5, P7",
        "holdfast.volume.reserve",
        "reserve_segments - self._spare_segments(capacity_segments)",
        "reserve_segments",
    ),
    Mutant(
        "damage-copied-along",
        "a block is copied without a look at its check",
        "P6",
        "holdfast.volume.live_blocks",
        "            if digest(view[at : at + BLOCK_SIZE_BYTES], seed) & CHECK_MASK != check:\n",
        "            if digest(view[at : at + BLOCK_SIZE_BYTES], seed) & CHECK_MASK != check and at < 0:\n",
    ),
]

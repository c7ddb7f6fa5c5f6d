"""Bugs in the map's pages, in reads and in writes."""

from __future__ import annotations

from tests.sim.mutants.mutant import Mutant

VOLUMES = [
    Mutant(
        "check-not-compared-on-read",
        "what was read of the disk is handed out without a look at its check",
        "P6",
        "holdfast.pool.block",
        "        if entry and digest(view[at : at + size], (lba + index) ^ SEED_DATA)"
        " & CHECK_MASK != entry >> ADDRESS_BITS:",
        "        if entry and not view[at : at + size]:",
    ),
    Mutant(
        "page-check-not-compared",
        "map pages are taken as they come",
        "P6",
        "holdfast.volume.block_reader",
        "            if block_matches(into, owner, kind, entry):\n",
        "            if at < 0 or block_matches(into, owner, kind, entry):\n",
    ),
    Mutant(
        "pin-not-released",
        "a task that is cancelled while it reads a block leaves the segment pinned",
        "P5, P7",
        "holdfast.volume.block_reader",
        "                try:\n                    yield io\n"
        "                finally:\n                    self.space.unpin(segment)",
        "                yield io\n                self.space.unpin(segment)",
    ),
    Mutant(
        "failed-read-keeps-its-page",
        "a page that cannot be read keeps the slot that it was to go into",
        "P8",
        "holdfast.volume.page_table",
        "                for slot in slots:\n                    cache.give_back(slot)\n",
        "                for slot in slots[1:]:\n                    cache.give_back(slot)\n",
    ),
    Mutant(
        "parent-not-held",
        "a page is evicted while a page below it is being read",
        "P3, P5",
        "holdfast.volume.page_table",
        "                cache.children[parent] += 1  # stays",
        "                cache.children[parent] += 0  # stays",
    ),
    Mutant(
        "new-pages-overlooked",
        "what looks for the next leaf sees only pages that are stored: a trim passes over those written just now",
        "P6",
        "holdfast.volume.page_table",
        "        if cache.children[slot]:\n",
        "        if cache.children[slot] and found is None:\n",
    ),
    Mutant(
        "trim-takes-partial-blocks",
        "a trim makes a hole of the block that its range begins in the middle of",
        "P6",
        "holdfast.volume.long_write",
        "        yield from self.punch(volume, -(-offset // BLOCK_SIZE_BYTES), ",
        "        yield from self.punch(volume, offset // BLOCK_SIZE_BYTES, ",
    ),
    Mutant(
        "zeroes-drop-the-tail",
        "WRITE_ZEROES leaves the last block alone where it covers only a part of it",
        "P6",
        "holdfast.volume.long_write",
        "        if end % BLOCK_SIZE_BYTES:\n",
        "        if end % BLOCK_SIZE_BYTES and allocate:\n",
    ),
    Mutant(
        "changed-while-read",
        "a change of a part of a block does not look whether the block changed while it was read",
        "P6",
        "holdfast.volume.long_write",
        "            if own != read_for:\n",
        "            if read_for == -1:\n",
    ),
    Mutant(
        "trim-gives-up",
        "a trim that meets an obstacle waits, and then goes on behind the leaf that it could not change",
        "P6",
        "holdfast.volume.long_write",
        "                yield from self.overcome(obstacle, volume, first)\n"
        "            else:\n                first = stop",
        "                yield from self.overcome(obstacle, volume, first)\n            first = stop",
    ),
]

"""Bugs in what gives volumes and the pool other sizes."""

from __future__ import annotations

from tests.sim.mutants.mutant import Mutant

SIZES = [
    Mutant(
        "cut-off-stays",
        "what lies behind the smaller end of a volume stays in its map, and is back when the volume grows",
        "P6",
        "holdfast.volume.resize",
        "        volume.cutting = True\n",
        "        volume.cutting = False\n",
    ),
    Mutant(
        "cut-not-stored",
        "that something is to be let go of behind the end of a volume is forgotten with the server",
        "P6",
        "holdfast.pool.tables",
        "    flags = FLAG_LOSS * row.loss_open | row.read_only << READ_ONLY_SHIFT\n"
        "    flags |= FLAG_CUTTING * row.cutting | FLAG_PROVISIONED * row.provisioned\n",
        "    flags = FLAG_LOSS * row.loss_open | row.read_only << READ_ONLY_SHIFT\n"
        "    flags |= FLAG_PROVISIONED * row.provisioned\n",
    ),
    Mutant(
        "last-block-not-cleared",
        "a last block that is cut in two keeps what was in its rest",
        "P6",
        "holdfast.volume.resize",
        "        if not start:\n            return\n",
        "        if start:\n            return\n",
    ),
    Mutant(
        "size-told-before-it-is-durable",
        "clients are told of a larger size that a crash takes back, with what they flushed behind the old end",
        "P1",
        "holdfast.volume.resize",
        "        volume.stored_size_bytes = size_bytes\n        try:\n",
        "        volume.stored_size_bytes = volume.size_bytes = size_bytes\n        try:\n",
    ),
    Mutant(
        "size-in-one-slot",
        "only the newer superblock slot tells of a larger size",
        "P1",
        "holdfast.volume.resize",
        "            yield from self._checkpoints.checkpoint(both_slots=True)\n        except HoldfastError:\n",
        "            yield from self._checkpoints.checkpoint()\n        except HoldfastError:\n",
    ),
    Mutant(
        "level-added-while-a-checkpoint-runs",
        "the row of the running checkpoint has the levels of before, and the root of after",
        "P1, P3",
        "holdfast.volume.resize",
        "            if self._checkpoints.running:\n                yield waitlists.checkpoint_end\n"
        "            elif loading",
        "            if loading",
    ),
    Mutant(
        "new-root-is-clean",
        "the page above the old root is not written: after a crash the new root is nothing",
        "P1",
        "holdfast.volume.resize",
        "                cache.mark_dirty(slot)\n                volume.root = 0\n",
        "                volume.root = 0\n",
    ),
    Mutant(
        "new-segments-before-the-checkpoint",
        "the log enters segments of which no superblock knows",
        "P1, P2",
        "holdfast.volume.capacity",
        "        yield from self._checkpoints.checkpoint(both_slots=True)\n        space.set_limit(segments)\n",
        "        space.set_limit(segments)\n        yield from self._checkpoints.checkpoint(both_slots=True)\n",
    ),
    Mutant(
        "old-columns-written-to",
        "writes count dead blocks in the columns that the space table had before the pool got another capacity",
        "P7",
        "holdfast.engine_parts",
        "        self.writer.renew()\n",
        "",
    ),
]

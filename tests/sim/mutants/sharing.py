"""Bugs in the counts of what is shared, and in what is held back for provisioned volumes."""

from __future__ import annotations

from tests.sim.mutants.mutant import Mutant

SHARING = [
    Mutant(
        "shared-off-by-one",
        "a block that goes to the snapshot still counts as one that the volume shares",
        "P7",
        "holdfast.volume.write",
        "                volume.count_given(lba >> PAGE_SHIFT, 1)\n",
        "",
    ),
    Mutant(
        "sure-of-what-it-was-given",
        "a snapshot that gets a block counts it as shared without a look, and is sure of that",
        "P7",
        "holdfast.volume.volume",
        "            self.sharing_unsure = True\n",
        "",
    ),
    Mutant(
        "sharing-stays-when-a-snapshot-goes",
        "a snapshot goes, and what only that one saw still counts as shared",
        "P7",
        "holdfast.volume.versions",
        "        if seen:\n            node.sharing_changed()\n",
        "        if seen:\n            pass\n",
    ),
    Mutant(
        "nothing-held-for-a-snapshot",
        "a snapshot of a provisioned volume is taken, and nothing held for what will be written twice",
        "P7",
        "holdfast.volume.snapshots",
        "        take_snapshot(head, node)\n        self._volumes.provisions.hold(head)\n",
        "        take_snapshot(head, node)\n",
    ),
    Mutant(
        "held-space-given-to-others",
        "who is not provisioned may use what is held back",
        "P7",
        "holdfast.pool.space",
        "        self.held_blocks += blocks\n        self.open_blocks -= blocks\n",
        "        self.held_blocks += blocks\n",
    ),
]

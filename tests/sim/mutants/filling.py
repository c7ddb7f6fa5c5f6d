"""Bugs that want a pool that is full, or promotions: found by the runs of `holdfast.sim.filling`."""

from __future__ import annotations

from tests.sim.mutants.mutant import Mutant

FILLING = [
    Mutant(
        "promotion-not-stored",
        "what a promotion moves stays the former volume's",
        "P1",
        "holdfast.volume.snapshots",
        "            node.parent = parent\n            if found",
        "            if found",
        filling=True,
    ),
    Mutant(
        "dead-is-not-free-for-recovery",
        "what was dead at the checkpoint that both slots lead to is in use for recovery, and was free for the server",
        "P7",
        "holdfast.serving.bring_up",
        "            alone = is_alone(slots)\n",
        "            alone = False\n",
        filling=True,
    ),
]

"""The situations that can be played, by name."""

from __future__ import annotations

from holdfast.sim.lab import allocation_under_lock, thin_full, writeback_error
from holdfast.sim.lab.catalog import PLAYABLE
from holdfast.sim.lab.scenario import Scenario

PLAYS: dict[str, Scenario] = {
    "writeback-error": writeback_error.play,
    "thin-full": thin_full.play,
    "allocation-under-lock": allocation_under_lock.play,
}
assert tuple(PLAYS) == PLAYABLE

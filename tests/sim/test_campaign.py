"""Promises 1 to 8 under thousands of seeded disasters, and at every single point of a fixed course."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from holdfast.sim.exhaustive import cases
from holdfast.sim.faults import FAULTS, POINTS
from holdfast.sim.filling import CYCLES

SEEDS = 3000
OPERATIONS = 1000
FILLING_SEEDS = 100
FILLING_OPERATIONS = 300


def simulate(*arguments: str) -> tuple[dict[str, Any], str]:
    """What `python -m holdfast.sim --json` says, and what it printed besides."""
    run = subprocess.run(
        [sys.executable, "-m", "holdfast.sim", "--json", *arguments], check=False, capture_output=True, text=True
    )
    assert run.returncode in (0, 1), run.stderr
    return json.loads(run.stdout), run.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_is_lost_and_nothing_hangs_in_many_runs() -> None:
    outcome, told = simulate("--seeds", str(SEEDS), "--operations", str(OPERATIONS))
    assert outcome["failures"] == {}, told
    assert outcome["seeds"] == SEEDS
    assert outcome["operations_least"] >= OPERATIONS
    assert outcome["untried"] == []
    assert len(outcome["faults"]) == len(FAULTS)
    assert outcome["crashes"] > SEEDS
    assert outcome["power_failures"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_in_a_thousand_times_of_filling_a_pool_and_letting_go() -> None:
    outcome, told = simulate("--full", "--seeds", str(FILLING_SEEDS), "--operations", str(FILLING_OPERATIONS))
    assert outcome["failures"] == {}, told
    assert outcome["cycles"] == FILLING_SEEDS * CYCLES >= 1000
    assert outcome["power_failures"] > FILLING_SEEDS
    assert outcome["crashes"] > outcome["power_failures"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_whichever_call_fails_and_whichever_effect_is_the_last() -> None:
    outcome, told = simulate("--exhaustive")
    assert outcome["broken"] == [], told
    assert outcome["cases"] > 1000


def test_the_loops_reach_every_fault_and_every_effect() -> None:
    every = list(cases())
    tried = {(case.point, case.kind) for case in every}
    assert tried == {*FAULTS, ("power", "off"), ("kill", "-9")}
    for point in [*POINTS, "power", "kill"]:
        numbers = {case.number for case in every if case.point == point}
        assert numbers == set(range(len(numbers))), point

"""The simulator is good enough if it finds bugs that were planted: each within its bound of seeds.

Each mutant runs in an interpreter of its own, which loads the one module with the bug in it (`mutant_runner`). The same
seeds without a mutant hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sim.mutant_runner import planted
from tests.sim.mutants import MUTANTS, OPERATIONS, RARE, SEEDS, SEEDS_RARE, SURVIVORS, find
from tests.sim.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
FOUND = [mutant for mutant in MUTANTS if mutant.name not in {*RARE, *SURVIVORS}]


def run(name: str, seeds: int = SEEDS) -> dict[str, Any]:
    """What the seeds say of a planted bug; of none, with an empty name."""
    options = ["--seeds", str(seeds), "--operations", str(OPERATIONS)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim.mutant_runner", name, *options],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("mutant", FOUND, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    found = run(mutant.name)
    assert found["seed"] is not None, f"{mutant.bug}: {SEEDS} seeds did not find it"
    assert found["failure"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    "HOLDFAST_LONG" not in os.environ, reason="takes half an hour: HOLDFAST_LONG=1 ./dev test tests/sim"
)
@pytest.mark.parametrize("name", sorted(RARE))
def test_a_planted_bug_is_found_with_more_seeds(name: str) -> None:
    found = run(name, SEEDS_RARE)
    assert found["seed"] is not None, f"{find(name).bug}: {SEEDS_RARE} seeds did not find it"


def test_without_a_planted_bug_the_same_seeds_hold() -> None:
    assert run("")["seed"] is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_catalogue_is_up_to_date(mutant: Mutant) -> None:
    source = (ROOT / "src" / Path(*mutant.module.split("."))).with_suffix(".py").read_text()
    changed = planted(mutant, source)
    assert changed != source
    compile(changed, mutant.module, "exec")


def test_the_catalogue_has_enough_in_it_and_no_name_twice() -> None:
    assert len(FOUND) >= 20
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.name for mutant in MUTANTS} >= RARE | SURVIVORS.keys()
    assert not RARE & SURVIVORS.keys()
    for reason in SURVIVORS.values():
        _, found, test = reason.partition(": tests/")
        assert not found or (ROOT / "tests" / test).exists(), "the test that finds it instead"


def test_the_page_lists_the_catalogue() -> None:
    page = (ROOT / "docs" / "simulation.md").read_text()
    for mutant in MUTANTS:
        if mutant.name not in SURVIVORS:
            assert f"| {mutant.name} | {mutant.bug} |" in page
    for name, reason in SURVIVORS.items():
        assert f"| {name} | {reason} |" in page
    assert f"{len(FOUND)} of {len(MUTANTS)} are asserted in CI" in page
    assert f"{SEEDS} seeds of {OPERATIONS} requests; {len(RARE)} more within {SEEDS_RARE:,}" in page
    assert f"{len(SURVIVORS)} are not found within {SEEDS_RARE:,}" in page

"""The simulator is good enough if it finds bugs that were planted: each within its bound of seeds.

Each mutant runs in an interpreter of its own, which loads the one module with the bug in it (`mutant_runner`). The same
seeds without a mutant hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sim.mutant_runner import planted
from tests.sim.mutants import MUTANTS, SURVIVORS, Mutant

ROOT = Path(__file__).parents[2]
SEEDS = 40
OPERATIONS = 300
FOUND = [mutant for mutant in MUTANTS if mutant.name not in SURVIVORS]


def run(name: str) -> dict[str, Any]:
    """What the seeds say of a planted bug; of none, with an empty name."""
    options = ["--seeds", str(SEEDS), "--operations", str(OPERATIONS)]
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
    assert {mutant.name for mutant in MUTANTS} >= SURVIVORS

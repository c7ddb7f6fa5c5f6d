"""Each planted bug is found within its bound of seeds; and what finds them finds nothing where none is planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sim.mutant_runner import planted
from tests.sim.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
# Most bugs are found before this seed; the campaign of `./dev sim` tries thousands.
SOUND_SEEDS = 40


def run(name: str, *, seeds: int, operations: int) -> dict[str, Any]:
    """What the runner says, from a fresh interpreter: nothing of the mutant is left in this one."""
    command = [sys.executable, "-m", "tests.sim.mutant_runner", name]
    command += ["--seeds", str(seeds), "--operations", str(operations)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def as_parameter(mutant: Mutant) -> Any:
    marks = [pytest.mark.skip(reason=f"not found yet: {mutant.survives}")] if mutant.survives else []
    return pytest.param(mutant, id=mutant.name, marks=marks)


@pytest.mark.parametrize("mutant", [as_parameter(mutant) for mutant in MUTANTS])
def test_the_planted_bug_is_found_within_its_bound_of_seeds(mutant: Mutant) -> None:
    result = run(mutant.name, seeds=mutant.seeds, operations=mutant.operations)

    assert result["failure"], f"{mutant.name} survived {mutant.seeds} seeds: {mutant.bug}"


def test_without_a_planted_bug_the_same_seeds_pass() -> None:
    result = run("", seeds=SOUND_SEEDS, operations=400)

    assert (result["seed"], result["failure"]) == (None, "")
    assert result["seeds_tried"] == SOUND_SEEDS


def test_the_catalogue_is_large_enough() -> None:
    found = [mutant for mutant in MUTANTS if not mutant.survives]

    assert len(found) >= 20
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.name) for mutant in MUTANTS])
def test_the_planted_text_is_in_its_module_once_and_compiles(mutant: Mutant) -> None:
    path = ROOT / "src" / Path(*mutant.module.split(".")).with_suffix(".py")

    compile(planted(mutant, path.read_text()), str(path), "exec")


def test_a_text_that_is_not_there_is_not_planted_in_silence() -> None:
    mutant = Mutant("stale", "", "", "holdfast.units", "once upon a time", "")

    with pytest.raises(ValueError, match="0 times, not once"):
        planted(mutant, "the source has moved on")

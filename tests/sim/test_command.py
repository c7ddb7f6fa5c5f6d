"""`python -m holdfast.sim` for the one who types it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from holdfast.sim.campaign import time_limit
from holdfast.sim.shrink import edited_swarm, shrink
from holdfast.sim.swarm import draw_swarm


def sim(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast.sim", *arguments], check=False, capture_output=True, text=True
    )


def test_a_few_seeds_end_with_what_was_tried() -> None:
    done = sim("--seeds", "4", "--operations", "100", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 seeds: ")
    assert "0 broken" in done.stdout
    assert "ENOMEM" in done.stdout


def test_json_says_the_same() -> None:
    outcome = json.loads(sim("--seeds", "4", "--operations", "100", "--json").stdout)
    assert outcome["seeds"] == 4
    assert outcome["failures"] == {}
    assert outcome["operations"] >= 400


def test_the_trace_of_one_seed_can_be_read() -> None:
    done = sim("--seed", "5", "--operations", "50", "--trace")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert any("server     starts" in line for line in lines)
    assert any("answer" in line and "write" in line for line in lines)
    assert lines[-1].startswith("seed 5: ")


def test_time_can_be_bounded() -> None:
    done = sim("--minutes", "0.05", "--operations", "50", "--jobs", "1", "--json")  # a start of Python included
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seeds"] > 0


def test_one_case_of_the_loops_can_be_run_again() -> None:
    done = sim("--case", "write,EIO,3")
    assert done.returncode == 0
    assert done.stdout == "case write,EIO,3: held\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--case", "write"], "--case is POINT,KIND,NUMBER"),
        (["--case", "nowhere,EIO,1"], "--case is POINT,KIND,NUMBER"),
        (["--minutes", "nan"], "--minutes is a number of minutes"),
        (["--trace"], "--trace and --edit go with --seed"),
        (["--seed", "1", "--json"], "--json goes with --seeds"),
        (["--seed", "1", "--seeds", "2"], "give one of them"),
        (["--seed", "1", "--edit", "volumes=0"], "'volumes=0' changes nothing"),
        (["--seed", "1", "--edit", "crash=nan"], "'crash=nan' changes nothing"),
        (["--seed", "1", "--edit", "-nowhere/EIO"], "'-nowhere/EIO' changes nothing"),
        (["--seed", "1", "--edit", "nonsense=1"], "changes nothing of this seed"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_what_cannot_be_run_is_told_in_a_line(arguments: list[str], complaint: str) -> None:
    done = sim(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_edits_change_what_they_name() -> None:
    swarm = draw_swarm(1, 500)
    left_out = next(action for action in swarm.actions if action != "write")
    edited = edited_swarm(1, 500, ["operations=20", f"-{left_out}", "crash=0"])
    assert (edited.operations, edited.crash) == (20, 0.0)
    assert left_out not in edited.actions
    assert edited.world == swarm.world


def test_a_run_that_holds_cannot_be_shrunk() -> None:
    with pytest.raises(AssertionError, match="holds"):
        shrink(1, 20)


def test_a_case_that_never_comes_about_is_not_one_that_held() -> None:
    done = sim("--case", "power,off,99999")
    assert done.returncode == 1
    assert "nothing struck" in done.stdout


def test_a_run_that_does_not_end_is_ended() -> None:
    def endless() -> None:
        with time_limit(0.01):
            while True:
                pass

    with pytest.raises(AssertionError, match=r"had not ended after 0 seconds, in .*endless"):
        endless()

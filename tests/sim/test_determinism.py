"""The first test: a seed is a run, to the byte, whatever else is different."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from holdfast.sim.run import run_seed

OPERATIONS = 300


def in_a_process_of_its_own(seed: int, hash_seed: str, *options: str) -> bytes:
    """The whole trace of a seed, as somebody reads it."""
    wanted = ["--seed", str(seed), "--operations", str(OPERATIONS), "--trace", *options]
    run = subprocess.run(
        [sys.executable, "-m", "holdfast.sim", *wanted],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
        capture_output=True,
    )
    return run.stdout


@pytest.mark.parametrize("seed", [5, 8, 21])
def test_the_same_seed_has_the_same_trace_to_the_byte_whatever_the_hashes(seed: int) -> None:
    trace = in_a_process_of_its_own(seed, "1")
    assert trace == in_a_process_of_its_own(seed, "2")
    assert trace.count(b"\n") > OPERATIONS


def test_a_pool_that_is_filled_again_and_again_is_a_run_as_well() -> None:
    trace = in_a_process_of_its_own(5, "1", "--full", "--edit", "phases=2")
    assert trace == in_a_process_of_its_own(5, "2", "--full", "--edit", "phases=2")
    assert trace.count(b"lets go") >= 2


def test_two_runs_in_one_process_do_not_know_of_each_other() -> None:
    first = run_seed(7, OPERATIONS).trace
    run_seed(8, OPERATIONS)
    assert run_seed(7, OPERATIONS).trace == first


def test_another_seed_is_another_run() -> None:
    assert run_seed(7, OPERATIONS).trace != run_seed(8, OPERATIONS).trace


def test_reading_along_changes_nothing() -> None:
    lines: list[str] = []
    assert run_seed(9, OPERATIONS, write=lines.append).trace == run_seed(9, OPERATIONS).trace
    assert lines

"""A short run of the fuzzer with a fixed seed, and proof that it can fail."""

from __future__ import annotations

import logging

import pytest

from holdfast.pool.roll_forward import LogScanner
from holdfast.work.task import Work
from tests.fuzz import fuzz_decoders


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


def test_two_seconds_of_fuzzing_find_nothing() -> None:
    assert fuzz_decoders.FUZZER.fuzz(seconds=2, seed=1) > 10


def test_a_recovery_that_cuts_off_durable_commits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug takes every commit that is damaged for the end of the log."""

    def nothing_behind(_self: LogScanner, *_arguments: object) -> Work:
        yield from ()
        return 0

    monkeypatch.setattr(LogScanner, "_durable_behind", nothing_behind)
    monkeypatch.setattr(LogScanner, "_gather_evidence", nothing_behind)
    with pytest.raises(AssertionError, match="in place of"):
        fuzz_decoders.FUZZER.fuzz(seconds=20, seed=1)

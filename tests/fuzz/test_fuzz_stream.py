"""A short run of the fuzzer with a fixed seed, and proof that it can fail."""

from __future__ import annotations

import pytest

from holdfast.cli import stream_format
from tests.fuzz import fuzz_stream


def test_two_seconds_of_fuzzing_find_nothing() -> None:
    assert fuzz_stream.FUZZER.fuzz(seconds=2, seed=1) > 100


def test_checks_that_are_not_chained_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug checks each record alone, so that one can be left out."""
    chained = stream_format._check

    def alone(unchecked: bytes | memoryview, view: memoryview, _seed: int) -> int:
        return chained(unchecked, view[:16], 0)

    monkeypatch.setattr(stream_format, "_check", alone)
    with pytest.raises(AssertionError):
        fuzz_stream.FUZZER.fuzz(seconds=20, seed=1)

"""A short run of the fuzzer with a fixed seed, and proof that it can fail."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from holdfast.nbd.transmission import RequestReader
from tests.fuzz import fuzz_nbd


def test_two_seconds_of_fuzzing_find_nothing() -> None:
    assert fuzz_nbd.FUZZER.fuzz(seconds=2, seed=1) > 100


def test_a_case_is_the_same_every_time() -> None:
    assert fuzz_nbd.damaged(Random("1:9"), bytes(500)) == fuzz_nbd.damaged(Random("1:9"), bytes(500))


def forgets_to_drain(self: RequestReader, at: int, end: int) -> int:
    self._skip_bytes = 0
    return at


def drains_only_what_is_there(self: RequestReader, at: int, end: int) -> int:
    skipped = min(self._skip_bytes, end - at)
    self._skip_bytes = 0
    return at + skipped


@pytest.mark.parametrize("bug", [forgets_to_drain, drains_only_what_is_there])
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, bug: Callable[[RequestReader, int, int], int]) -> None:
    monkeypatch.setattr(RequestReader, "_skip", bug)
    with pytest.raises(AssertionError) as caught:
        fuzz_nbd.FUZZER.fuzz(seconds=20, seed=1)
    assert "--only" in caught.value.__notes__[0]

"""The modules that `tests/processors.py` names are there: a renamed one would lose its place without a word."""

from __future__ import annotations

import pytest

from tests import processors


@pytest.mark.parametrize("module", [*processors.SPREAD, *processors.ALONE])
def test_every_module_that_has_a_place_exists(module: str) -> None:
    assert (processors.ROOT / module).is_file()


def test_no_module_has_two_places() -> None:
    assert not set(processors.SPREAD) & set(processors.ALONE)


def test_what_runs_alone_comes_last_and_the_longest_first() -> None:
    names = [f"{module}::test_it[{case}]" for module in ("tests/house/a.py", *processors.ALONE) for case in "12"]
    names += [f"{module}::test_it" for module in reversed(processors.SPREAD)]
    order = [processors.module_of(name) for name in sorted(names, key=processors.place)]
    assert order[: len(processors.SPREAD)] == list(processors.SPREAD)
    assert set(order[-2 * len(processors.ALONE) :]) == set(processors.ALONE)

"""A budget is charged all or nothing, and what was given back can be had again."""

from __future__ import annotations

import pytest

from holdfast.memory.budget import Budget


def test_what_fits_is_charged_and_what_does_not_changes_nothing() -> None:
    budget = Budget("pages", 100)
    assert budget.try_charge(60)
    assert not budget.try_charge(41)
    assert budget.used_bytes == 60
    assert budget.try_charge(40), "all of it may be used"


def test_what_was_released_can_be_charged_again() -> None:
    budget = Budget("pages", 100)
    assert budget.try_charge(100)
    budget.release(30)
    assert not budget.try_charge(31)
    assert budget.try_charge(30)


def test_more_than_the_limit_is_refused_however_empty_the_budget_is() -> None:
    assert not Budget("pages", 100).try_charge(101)


def test_what_was_not_charged_cannot_be_released() -> None:
    budget = Budget("pages", 100)
    assert budget.try_charge(10)
    with pytest.raises(AssertionError, match="pages"):
        budget.release(11)

"""The model itself: what it allows, and what it does not."""

from __future__ import annotations

import pytest

from holdfast.sim.model import ZERO, Model, Version

A, B = ("disk", 1), ("disk", 2)
ONE, TWO, THREE = b"1" * 4096, b"2" * 4096, b"3" * 4096


def changed(model: Model, key: tuple[str, int], content: bytes) -> dict[tuple[str, int], Version]:
    begun = model.begin({key: content})
    model.end(begun)
    return begun


def test_a_block_that_nobody_wrote_is_zero() -> None:
    assert Model().may_read(A, 0) == [ZERO]


def test_after_a_change_ended_only_it_may_be_read() -> None:
    model = Model()
    changed(model, A, ONE)
    assert model.may_read(A, model.tick()) == [ONE]


def test_a_read_that_began_before_a_change_ended_may_find_either() -> None:
    model = Model()
    since = model.tick()
    changed(model, A, ONE)
    assert model.may_read(A, since) == [ZERO, ONE]


def test_what_was_flushed_must_be_recovered() -> None:
    model = Model()
    changed(model, A, ONE)
    model.must_survive(model.tick())
    model.check_recovered({A: ONE}, -1)
    with pytest.raises(AssertionError, match="may not hold"):
        model.check_recovered({A: ZERO}, -1)


def test_what_was_not_flushed_need_not_be_recovered() -> None:
    model = Model()
    changed(model, A, ONE)
    model.check_recovered({A: ZERO}, -1)
    model.check_recovered({A: ONE}, -1)


def test_a_later_change_without_an_earlier_one_is_a_mixture() -> None:
    model = Model()
    changed(model, A, ONE)
    changed(model, B, TWO)
    model.check_recovered({A: ONE, B: ZERO}, -1)
    with pytest.raises(AssertionError, match="mixture"):
        model.check_recovered({A: ZERO, B: TWO}, -1)


def test_what_a_block_never_held_is_never_right() -> None:
    model = Model()
    changed(model, A, ONE)
    with pytest.raises(AssertionError):
        model.check_recovered({A: TWO}, -1)
    with pytest.raises(AssertionError, match="wrong byte"):
        model.check_damaged({A: TWO})


def test_two_changes_at_once_leave_a_block_contested_until_it_is_read() -> None:
    model = Model()
    first, second = model.begin({A: ONE}), model.begin({A: TWO})
    model.end(second)
    model.end(first)
    since = model.tick()
    assert model.may_read(A, since) == [ZERO, ONE, TWO]
    model.settle(A, ONE)
    assert model.latest(A) == ONE
    assert model.may_read(A, model.tick()) == [ONE]
    assert TWO in model.may_read(A, since), "a read that began before may have found the other one"


def test_a_contested_block_does_not_hold_what_nobody_wrote() -> None:
    model = Model()
    model.doubt(model.begin({A: ONE}))
    with pytest.raises(AssertionError, match="may not hold"):
        model.settle(A, THREE)


def test_a_doubtful_change_may_have_been_made_or_not() -> None:
    model = Model()
    changed(model, A, ONE)
    model.must_survive(model.tick())
    model.doubt(model.begin({A: TWO}))
    model.check_recovered({A: ONE}, -1)
    model.check_recovered({A: TWO}, -1)
    with pytest.raises(AssertionError, match="after a crash"):
        model.check_recovered({A: ZERO}, -1)


def test_a_forgotten_volume_is_forgotten_whole() -> None:
    model = Model()
    model.doubt(model.begin({A: ONE}))
    model.forget_volume("disk")
    assert model.blocks == {}
    assert model.contested == {}

"""Rows A2, A3 and A6: reservations as life cycles, policies of callers, and the reserve that follows from a list."""

from __future__ import annotations

import pytest

from holdfast.errors import ShortageError
from holdfast.memory.context import BACKGROUND, CLIENT, Context
from holdfast.memory.group import Group, Kind
from holdfast.memory.must_succeed import MustSucceed, Registry
from holdfast.memory.policy import NEVER_NS, obtain
from holdfast.memory.reservation import Reservation

STAGING = Kind.STAGING


@pytest.fixture
def group() -> Group:
    root = Group("all")
    root.limits[STAGING] = 100
    return Group("server", root, number=1)


def test_a_reservation_is_charged_at_once_or_refused_with_nothing_held(group: Group) -> None:
    assert Reservation(group, STAGING, 60, "the checkpoint").size_bytes == 60
    with pytest.raises(ShortageError, match="the repair needs 41 more of staging, and group 'all' refuses"):
        Reservation(group, STAGING, 41, "the repair")
    assert group.usage[STAGING] == 60


def test_it_is_drawn_on_only_when_the_ordinary_charge_fails(group: Group) -> None:
    reservation = Reservation(group, STAGING, 60, "the checkpoint")
    context = Context("checkpoint", reservation=reservation)
    assert group.try_charge(STAGING, 40, context) is None
    assert (reservation.drawn_bytes, group.usage[STAGING]) == (0, 100)
    assert group.try_charge(STAGING, 60, context) is None
    assert (reservation.drawn_bytes, reservation.draws, group.usage[STAGING]) == (60, 1, 100)
    assert group.try_charge(STAGING, 1, context) is group.parent, "all of it is drawn"
    reservation.release(100)
    assert (reservation.drawn_bytes, group.usage[STAGING]) == (0, 60)
    reservation.end()
    assert group.usage[STAGING] == 0


def test_it_covers_its_own_kind_and_group_only(group: Group) -> None:
    reservation = Reservation(group, STAGING, 60, "the checkpoint")
    context = Context("checkpoint", reservation=reservation)
    assert group.parent is not None
    group.parent.limits[Kind.STATE] = 0
    assert group.try_charge(Kind.STATE, 1, context) is group.parent
    other = Group("other", group.parent, number=2)
    assert other.try_charge(STAGING, 41, context) is group.parent
    assert reservation.drawn_bytes == 0


def test_it_ends_exactly_once_and_only_when_everything_is_given_back(group: Group) -> None:
    reservation = Reservation(group, STAGING, 60, "the checkpoint")
    assert group.try_charge(STAGING, 50, Context("checkpoint", reservation=reservation)) is None
    with pytest.raises(AssertionError, match="still drawn"):
        reservation.end()
    reservation.release(50)
    reservation.end()
    with pytest.raises(AssertionError, match="ends twice"):
        reservation.end()


def test_a_refused_resize_changes_nothing_and_what_exists_is_insisted_on(group: Group) -> None:
    reservation = Reservation(group, STAGING, 60, "the checkpoint")
    with pytest.raises(ShortageError):
        reservation.resize(101)
    assert (reservation.size_bytes, group.usage[STAGING]) == (60, 60)
    reservation.insist_on(101)
    assert (reservation.size_bytes, group.usage[STAGING]) == (101, 101)
    reservation.resize(10)
    assert group.usage[STAGING] == 10


def test_a_caller_waits_until_its_own_deadline_and_no_longer(group: Group) -> None:
    assert group.try_charge(STAGING, 100) is None
    now_ns = [0]
    room = object()
    work = obtain(group, STAGING, 10, CLIENT, room=room, until_ns=50, now_ns=lambda: now_ns[0])
    assert next(work) is room
    now_ns[0] = 49
    assert next(work) is room
    now_ns[0] = 50
    with pytest.raises(ShortageError, match="group 'all' is at its limit of 100"):
        next(work)
    assert group.usage[STAGING] == 100


def test_a_caller_that_waits_for_ever_gets_it_when_there_is_room(group: Group) -> None:
    assert group.try_charge(STAGING, 100) is None
    work = obtain(group, STAGING, 10, CLIENT, room=None, until_ns=NEVER_NS, now_ns=lambda: 0)
    next(work)
    group.release(STAGING, 10)
    with pytest.raises(StopIteration):
        next(work)
    assert group.usage[STAGING] == 100


def test_who_may_not_wait_for_memory_does_not(group: Group) -> None:
    """Row W4: write-back and checkpoints hold what the others wait for."""
    assert group.try_charge(STAGING, 100) is None
    work = obtain(group, STAGING, 10, BACKGROUND, room=None, until_ns=NEVER_NS, now_ns=lambda: 0)
    with pytest.raises(AssertionError, match="waits for memory"):
        next(work)


def test_the_reserve_follows_from_the_worst_cases() -> None:
    registry = Registry(segment_blocks=256)
    assert (registry.segments(), registry.ring_blocks, registry.staging_bytes) == (0, 0, 0)
    registry.register(
        MustSucceed("checkpoint", "...", log_blocks=500, times=2, segments=2, ring_blocks=66, staging_bytes=9)
    )
    registry.register(MustSucceed("trims", "...", segments=2, ring_blocks=2, staging_bytes=1))
    registry.register(MustSucceed("end of a segment", "...", ring_blocks=17))
    assert registry.segments("checkpoint") == 4 + 2, "1,000 blocks and 2 % of headers in segments of 256"
    assert registry.segments() == 6 + 2
    assert registry.ring_blocks == 66 + 17
    assert registry.staging_bytes == 10
    registry.register(MustSucceed("checkpoint", "...", log_blocks=100))
    assert registry.segments() == 1 + 2

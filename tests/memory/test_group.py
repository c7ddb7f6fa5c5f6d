"""Row T1: a charge climbs from a group to the root; whoever refuses is named, and a refusal changes nothing."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from holdfast.errors import RequestError
from holdfast.memory.context import BACKGROUND, CLIENT, Context
from holdfast.memory.group import Group, Kind

RING, PAGES = Kind.RING, Kind.MAP_PAGES


def tree(**limits: int) -> tuple[Group, Group, Group]:
    """A root with so much of the ring, and two groups below it."""
    root = Group("all")
    root.limits[RING] = limits.get("ring", 100)
    return root, Group("red", root, number=1), Group("green", root, number=2)


def test_what_is_charged_to_a_group_is_charged_to_the_root() -> None:
    root, red, green = tree()
    assert red.try_charge(RING, 60) is None
    assert green.try_charge(RING, 40) is None
    assert (root.usage[RING], red.usage[RING], green.usage[RING]) == (100, 60, 40)
    red.release(RING, 60)
    assert (root.usage[RING], root.total_bytes) == (40, 40)


def test_whoever_refuses_is_named_and_nothing_is_charged() -> None:
    root, red, green = tree()
    red.limits[RING] = 50
    assert red.try_charge(RING, 51) is red
    assert green.try_charge(RING, 101) is root
    assert (root.usage[RING], red.refusals[RING], root.refusals[RING]) == (0, 1, 1)


def test_kinds_do_not_stand_in_for_each_other_but_count_together() -> None:
    root, red, _green = tree()
    red.limit_bytes = 120
    assert red.try_charge(PAGES, 70) is None
    assert red.try_charge(RING, 51) is red
    assert red.try_charge(RING, 50) is None
    assert root.room_bytes(RING) == 50


def test_nobody_else_can_have_what_a_group_is_sure_of() -> None:
    root, red, green = tree()
    red.set_minimum(RING, 30)
    assert green.try_charge(RING, 71) is root
    assert green.try_charge(RING, 70) is None
    assert red.room_bytes(RING) == 30
    assert red.try_charge(RING, 30) is None, "up to its minimum it asks nobody"
    assert red.try_charge(RING, 1) is root
    red.release(RING, 30)
    assert root.usage[RING] == 100, "what it does not use is still set aside"
    red.set_minimum(RING, 0)
    assert root.usage[RING] == 70


def test_a_minimum_that_is_not_there_is_refused() -> None:
    root, red, green = tree()
    assert green.try_charge(RING, 80) is None
    with pytest.raises(RequestError, match="only 20 are not used"):
        red.set_minimum(RING, 21)
    assert root.usage[RING] == 80
    red.set_minimum(RING, 20)
    assert green.try_charge(RING, 1) is root


def test_what_was_not_charged_cannot_be_released() -> None:
    _root, red, green = tree()
    assert red.try_charge(RING, 10) is None
    with pytest.raises(AssertionError, match="green"):
        green.release(RING, 10)


def test_a_shortage_is_noted_only_for_those_who_may_have_others_give_way() -> None:
    noted: list[tuple[str, Kind, str]] = []
    root = Group("all", shortage=lambda group, kind, context: noted.append((group.name, kind, context.name)))
    root.limits[RING] = 0
    red = Group("red", root, number=1)
    assert red.try_charge(RING, 1, BACKGROUND) is root
    assert noted == []
    assert red.try_charge(RING, 1, CLIENT) is root
    assert noted == [("all", RING, CLIENT.name)]


def test_a_refusal_on_purpose_is_the_roots() -> None:
    root = Group("all", refuses=lambda kind, count: kind is PAGES and count > 5)
    red = Group("red", root, number=1)
    assert red.try_charge(RING, 100) is None
    assert red.try_charge(PAGES, 5) is None
    assert red.try_charge(PAGES, 6) is root
    assert red.usage[PAGES] == 5


class Tree(RuleBasedStateMachine):
    """Any course of charges, releases and minimums: the sums are right, and no limit is passed."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Group("all", number=0)
        self.root.limits[RING] = 100
        self.groups = [Group(name, self.root, number=number) for number, name in enumerate(("red", "green", "blue"), 1)]
        self.held = [0, 0, 0]

    @rule(which=st.integers(0, 2), count=st.integers(0, 60))
    def charge(self, which: int, count: int) -> None:
        group = self.groups[which]
        room = group.room_bytes(RING)
        refuser = group.try_charge(RING, count, Context("test"))
        assert (refuser is None) == (count == 0 or count <= room)
        self.held[which] += count * (refuser is None)

    @rule(which=st.integers(0, 2), count=st.integers(0, 60))
    def release(self, which: int, count: int) -> None:
        count = min(count, self.held[which])
        self.groups[which].release(RING, count)
        self.held[which] -= count

    @rule(which=st.integers(0, 2), minimum=st.integers(0, 40))
    def set_minimum(self, which: int, minimum: int) -> None:
        before = self.groups[which].minimums[RING]
        try:
            self.groups[which].set_minimum(RING, minimum)
        except RequestError:
            assert self.groups[which].minimums[RING] == before

    @rule(which=st.integers(0, 2), limit=st.integers(0, 120))
    def set_limit(self, which: int, limit: int) -> None:
        self.groups[which].limits[RING] = limit

    @invariant()
    def the_sums_are_right(self) -> None:
        assert [group.usage[RING] for group in self.groups] == self.held
        assert self.root.usage[RING] == sum(max(group.usage[RING], group.minimums[RING]) for group in self.groups)
        assert self.root.usage[RING] <= 100
        assert all(group.room_bytes(RING) >= 0 or group.usage[RING] > group.limits[RING] for group in self.groups)


TestTree = Tree.TestCase

"""Rows A4 and A7: shrinkers give way, in a turn of the reclaimer's own; and throttling in proportion."""

from __future__ import annotations

import pytest

from holdfast.memory.context import BACKGROUND, CLIENT, CONTROL
from holdfast.memory.group import Group, Kind
from holdfast.memory.reclaim import Pressure, Reclaimer, Shrinker
from holdfast.memory.throttle import PAUSE_NS_MAX, PRESSURE_PAUSE_NS, limit_dirty, pause_ns

PAGES = Kind.MAP_PAGES


class Cache:
    """So many bytes of clean pages in a group."""

    def __init__(self, group: Group, size_bytes: int) -> None:
        self.group = group
        self.asked: list[str] = []
        self.given = 0
        group.charge(PAGES, size_bytes)

    def shrink(self, group: Group) -> int:
        self.asked.append(group.name)
        count = min(10, self.group.usage[PAGES])
        self.group.release(PAGES, count)
        return count

    def give_back(self, pressure: Pressure) -> int:
        change = 5 * pressure if pressure else -self.given
        self.given += change
        return change


@pytest.fixture
def reclaimer() -> Reclaimer:
    return Reclaimer()


def test_caches_shrink_in_the_reclaimers_turn_and_not_in_the_charge(reclaimer: Reclaimer) -> None:
    root = Group("all", shortage=reclaimer.note_shortage)
    root.limits[PAGES] = 100
    red = Group("red", root, number=1)
    cache = Cache(red, 100)
    reclaimer.shrinkers.append(Shrinker("cache", PAGES, cache.shrink, cache.give_back))
    assert red.try_charge(PAGES, 5) is root
    assert red.try_charge(PAGES, 5) is root
    assert cache.asked == [], "not within the charge"
    assert reclaimer.run() == 10
    assert cache.asked == ["all"], "once for all who were refused"
    assert red.try_charge(PAGES, 5) is None
    assert reclaimer.run() == 0
    assert reclaimer.reclaimed_bytes[PAGES] == 10


def test_the_group_that_is_short_is_the_one_that_gives_way(reclaimer: Reclaimer) -> None:
    root = Group("all", shortage=reclaimer.note_shortage)
    red = Group("red", root, number=1)
    red.limits[PAGES] = 10
    cache = Cache(red, 10)
    reclaimer.shrinkers.append(Shrinker("cache", PAGES, cache.shrink, cache.give_back))
    assert red.try_charge(PAGES, 1) is red
    reclaimer.run()
    assert cache.asked == ["red"]


def test_a_limit_on_all_kinds_has_every_cache_shrink(reclaimer: Reclaimer) -> None:
    root = Group("all", shortage=reclaimer.note_shortage)
    red = Group("red", root, number=1)
    red.limit_bytes = 20
    cache = Cache(red, 20)
    reclaimer.shrinkers.append(Shrinker("cache", PAGES, cache.shrink, cache.give_back))
    assert red.try_charge(Kind.READ_BUFFERS, 5) is red
    assert reclaimer.run() == 10
    assert red.try_charge(Kind.READ_BUFFERS, 5) is None


def test_io_is_started_only_for_those_who_may_start_it(reclaimer: Reclaimer) -> None:
    root = Group("all", shortage=reclaimer.note_shortage)
    root.limits[PAGES] = root.limits[Kind.RING] = 0
    root.try_charge(PAGES, 1, BACKGROUND)
    root.try_charge(PAGES, 1, CONTROL)
    assert reclaimer.io_wanted == set()
    root.try_charge(Kind.RING, 1, CLIENT)
    assert reclaimer.io_wanted == {Kind.RING}


def test_under_pressure_caches_go_first_and_repairs_next(reclaimer: Reclaimer) -> None:
    order: list[str] = []
    cache = Cache(Group("all"), 0)

    def give_back(pressure: Pressure) -> int:
        order.append("cache")
        return cache.give_back(pressure)

    reclaimer.shrinkers.append(Shrinker("cache", PAGES, cache.shrink, give_back))
    reclaimer.victims.append(lambda pressure: order.append(f"repair {pressure.name}"))
    assert reclaimer.under_pressure() == 0
    assert order == ["cache"], "without pressure nobody gives up"
    reclaimer.note_pressure(Pressure.HIGH)
    assert reclaimer.under_pressure() == 10
    assert order == ["cache", "cache", "repair HIGH"]
    assert reclaimer.given_back_bytes == 10
    reclaimer.note_pressure(Pressure.NONE)
    assert reclaimer.under_pressure() == -10
    assert reclaimer.given_back_bytes == 0


def test_who_comes_near_its_limit_is_slowed_in_proportion_and_others_are_not() -> None:
    root = Group("all")
    root.limits[Kind.RING] = 1000
    red, green = Group("red", root, number=1), Group("green", root, number=2)
    limit_dirty(red, 100)
    assert red.watermark_bytes == 50
    pauses = []
    for used in (0, 50, 75, 100):
        red.charge(Kind.RING, used - red.usage[Kind.RING])
        pauses.append(pause_ns(red))
    assert pauses == [0, 0, PAUSE_NS_MAX // 2, PAUSE_NS_MAX]
    green.charge(Kind.RING, 900)
    assert pause_ns(green) == 0, "without a limit of its own nobody is slowed, full as the ring may be"
    assert pause_ns(green, Pressure.HIGH) == PRESSURE_PAUSE_NS
    assert pause_ns(red, Pressure.HIGH) == PAUSE_NS_MAX

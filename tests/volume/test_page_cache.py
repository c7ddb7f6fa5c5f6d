"""The arena of map pages: what may be evicted, and what may not."""

from __future__ import annotations

import pytest

from holdfast.memory.group import Group, Kind
from holdfast.memory.reclaim import Pressure
from holdfast.pool.block import VOLUME_SHIFT, page_owner
from holdfast.volume.page_cache import PageCache

PAGES = 64


@pytest.fixture
def cache() -> PageCache:
    return PageCache(memoryview(bytearray(PAGES * 4096)), Group("all"))


def take(cache: PageCache, count: int, group: Group | None = None) -> list[int]:
    """As in the server: who is refused tries again once the reclaimer has run."""
    group = group or cache.root
    taken = cache.take_slots(count, group)
    if not taken:
        refuser = group.try_charge(Kind.MAP_PAGES, count * 4096)
        assert refuser is not None
        cache.shrink(refuser)
        taken = cache.take_slots(count, group)
    return taken


def used_bytes(cache: PageCache) -> int:
    return cache.root.usage[Kind.MAP_PAGES]


def install(cache: PageCache, key: int, parent: int = -1, group: Group | None = None) -> int:
    (slot,) = take(cache, 1, group)
    cache.install(slot, key, parent)
    return slot


def test_a_clean_page_gives_way_and_its_parent_after_it(cache: PageCache) -> None:
    root = install(cache, page_owner(1, 1, 0))
    for index in range(PAGES - 1):
        install(cache, page_owner(1, 0, index), root)
    assert not cache.free
    (slot,) = take(cache, 1)
    assert page_owner(1, 1, 0) in cache.slot_of, "the root still had children"
    cache.give_back(slot)
    while cache.children[root]:
        cache.give_back(*take(cache, 1))
        cache.forget(next(slot for slot in cache.slot_of.values() if slot != root))
    assert cache.parent(root) == -1


def test_dirty_and_frozen_pages_stay(cache: PageCache) -> None:
    slots = [install(cache, page_owner(1, 0, index)) for index in range(PAGES)]
    for slot in slots[: PAGES // 2]:
        cache.mark_dirty(slot)
    assert cache.freeze() == slots[: PAGES // 2]
    for slot in slots[PAGES // 2 :]:
        cache.mark_dirty(slot)
    assert take(cache, 1) == []
    assert cache.dirty_pages == PAGES // 2


def test_a_page_whose_child_is_on_its_way_stays(cache: PageCache) -> None:
    slots = [install(cache, page_owner(1, 0, index)) for index in range(PAGES)]
    for slot in slots:
        cache.children[slot] += 1
    assert take(cache, 1) == []
    cache.children[slots[5]] -= 1
    assert take(cache, 1) == [slots[5]]


def test_eviction_goes_round_rather_than_hit_the_same_pages(cache: PageCache) -> None:
    for index in range(PAGES):
        install(cache, page_owner(1, 0, index))
    evicted = 0
    for index in range(PAGES, 3 * PAGES):
        install(cache, page_owner(1, 0, index))
        evicted += 1
    assert len(cache.free) + len(cache.slot_of) == PAGES
    assert page_owner(1, 0, 3 * PAGES - 1) in cache.slot_of
    assert evicted == 2 * PAGES


def test_forgetting_a_volume_leaves_the_others_and_all_counts_right(cache: PageCache) -> None:
    for volume in (1, 2):
        root = install(cache, page_owner(volume, 1, 0))
        for index in range(5):
            cache.mark_dirty(install(cache, page_owner(volume, 0, index), root))
    cache.forget_volume(1 << VOLUME_SHIFT)
    assert {key >> VOLUME_SHIFT for key in cache.slot_of} == {2}
    assert cache.dirty_pages == 5
    assert len(cache.free) + len(cache.slot_of) == PAGES
    assert cache.children[cache.slot_of[page_owner(2, 1, 0)]] == 5


def test_a_page_that_the_group_refuses_is_not_taken(cache: PageCache) -> None:
    group = Group("tenant", cache.root, number=1)
    group.limits[Kind.MAP_PAGES] = 3 * 4096
    slots = [install(cache, page_owner(1, 0, index), group=group) for index in range(3)]
    assert cache.take_slots(1, group) == []
    assert len(cache.free) == PAGES - 3
    cache.forget(slots[1])
    assert len(cache.take_slots(1, group)) == 1


def test_what_is_charged_is_what_is_not_free(cache: PageCache) -> None:
    (slot,) = take(cache, 1)
    assert used_bytes(cache) == 4096
    cache.give_back(slot)
    assert used_bytes(cache) == 0
    for index in range(3 * PAGES):  # with evictions
        install(cache, page_owner(1, 0, index))
        assert used_bytes(cache) == (PAGES - len(cache.free)) * 4096
    cache.forget_volume(1 << VOLUME_SHIFT)
    assert used_bytes(cache) == 0


def test_a_group_that_is_short_gives_up_pages_of_its_own(cache: PageCache) -> None:
    ours, theirs = (Group(name, cache.root, number=number) for number, name in enumerate(("ours", "theirs"), 1))
    ours.limits[Kind.MAP_PAGES] = 4 * 4096
    for index in range(20):
        install(cache, page_owner(2, 0, index), group=theirs)
    for index in range(20):
        install(cache, page_owner(1, 0, index), group=ours)
    assert ours.usage[Kind.MAP_PAGES] == 4 * 4096
    assert theirs.usage[Kind.MAP_PAGES] == 20 * 4096


def test_pages_that_a_group_is_sure_of_are_not_evicted_for_others(cache: PageCache) -> None:
    ours, theirs = (Group(name, cache.root, number=number) for number, name in enumerate(("ours", "theirs"), 1))
    ours.set_minimum(Kind.MAP_PAGES, 8 * 4096)
    for index in range(12):
        install(cache, page_owner(1, 0, index), group=ours)
    for index in range(3 * PAGES):
        install(cache, page_owner(2, 0, index), group=theirs)
    assert ours.usage[Kind.MAP_PAGES] == 8 * 4096


def test_under_pressure_memory_goes_to_the_host_and_comes_back(cache: PageCache) -> None:
    handed: list[int] = []
    cache._hand_back = lambda page: handed.append(len(page))
    for index in range(PAGES):
        install(cache, page_owner(1, 0, index))
    large = PageCache(memoryview(bytearray(16 * PAGES * 4096)), Group("all"), hand_back=cache._hand_back)
    for index in range(16 * PAGES):
        install(large, page_owner(1, 0, index))
    assert cache.give_way(Pressure.HIGH) == 0, "the smallest cache has nothing to give"
    given = large.give_way(Pressure.HIGH)
    assert given == sum(handed) == len(large.withdrawn) * 4096 > 0
    assert large.root.room_bytes(Kind.MAP_PAGES) == len(large.free) * 4096
    for _ in range(100):
        large.give_way(Pressure.HIGH)
    assert len(large.slot_of) + len(large.free) >= PAGES, "some stay, however long that lasts"
    while large.give_way(Pressure.NONE) < 0:
        pass
    assert not large.withdrawn
    assert large.root.limits[Kind.MAP_PAGES] == 16 * PAGES * 4096


def test_several_slots_are_taken_at_once_or_none_is(cache: PageCache) -> None:
    slots = [install(cache, page_owner(1, 0, index)) for index in range(PAGES)]
    for slot in slots[3:]:
        cache.mark_dirty(slot)
    before = used_bytes(cache)
    assert take(cache, 4) == []
    assert used_bytes(cache) == before - 3 * 4096, "the three were evicted, and are free"
    assert sorted(take(cache, 3)) == slots[:3]


def test_the_host_does_not_get_what_a_group_is_sure_of() -> None:
    pages = 800
    cache = PageCache(memoryview(bytearray(pages * 4096)), Group("all"))
    ours, theirs = (Group(name, cache.root, number=number) for number, name in enumerate(("ours", "theirs"), 1))
    ours.set_minimum(Kind.MAP_PAGES, 400 * 4096)
    for index in range(100):
        install(cache, page_owner(2, 0, index), group=theirs)
    for _ in range(20):
        cache.give_way(Pressure.HIGH)
    assert len(cache.withdrawn) > 100
    for index in range(400):
        install(cache, page_owner(1, 0, index), group=ours)
    assert ours.usage[Kind.MAP_PAGES] == 400 * 4096

"""The arena of map pages: what may be evicted, and what may not."""

from __future__ import annotations

import pytest

from holdfast.memory.budget import Budget
from holdfast.pool.block import VOLUME_SHIFT, page_owner
from holdfast.volume.page_cache import PageCache

PAGES = 64


@pytest.fixture
def cache() -> PageCache:
    return PageCache(memoryview(bytearray(PAGES * 4096)), Budget("pages", PAGES * 4096))


def install(cache: PageCache, key: int, parent: int = -1) -> int:
    (slot,) = cache.take_slots(1)
    cache.install(slot, key, parent)
    return slot


def test_a_clean_page_gives_way_and_its_parent_after_it(cache: PageCache) -> None:
    root = install(cache, page_owner(1, 1, 0))
    for index in range(PAGES - 1):
        install(cache, page_owner(1, 0, index), root)
    assert not cache.free
    (slot,) = cache.take_slots(1)
    assert page_owner(1, 1, 0) in cache.slot_of, "the root still had children"
    cache.give_back(slot)
    while cache.children[root]:
        cache.give_back(*cache.take_slots(1))
        cache.forget(next(slot for slot in cache.slot_of.values() if slot != root))
    assert cache.parent(root) == -1


def test_dirty_and_frozen_pages_stay(cache: PageCache) -> None:
    slots = [install(cache, page_owner(1, 0, index)) for index in range(PAGES)]
    for slot in slots[: PAGES // 2]:
        cache.mark_dirty(slot)
    assert cache.freeze() == slots[: PAGES // 2]
    for slot in slots[PAGES // 2 :]:
        cache.mark_dirty(slot)
    assert cache.take_slots(1) == []
    assert cache.dirty_pages == PAGES // 2


def test_a_page_whose_child_is_on_its_way_stays(cache: PageCache) -> None:
    slots = [install(cache, page_owner(1, 0, index)) for index in range(PAGES)]
    for slot in slots:
        cache.children[slot] += 1
    assert cache.take_slots(1) == []
    cache.children[slots[5]] -= 1
    assert cache.take_slots(1) == [slots[5]]


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


def test_a_page_that_the_budget_refuses_is_not_taken() -> None:
    budget = Budget("pages", 3 * 4096)
    cache = PageCache(memoryview(bytearray(PAGES * 4096)), budget)
    slots = [install(cache, page_owner(1, 0, index)) for index in range(3)]
    assert cache.take_slots(1) == []
    assert len(cache.free) == PAGES - 3
    cache.forget(slots[1])
    assert len(cache.take_slots(1)) == 1


def test_what_is_taken_of_the_budget_is_what_is_not_free(cache: PageCache) -> None:
    budget = cache._budget
    (slot,) = cache.take_slots(1)
    assert budget.used_bytes == 4096
    cache.give_back(slot)
    assert budget.used_bytes == 0
    for index in range(3 * PAGES):  # with evictions
        install(cache, page_owner(1, 0, index))
        assert budget.used_bytes == (PAGES - len(cache.free)) * 4096
    cache.forget_volume(1 << VOLUME_SHIFT)
    assert budget.used_bytes == 0


def test_several_slots_are_taken_at_once_or_none_is(cache: PageCache) -> None:
    slots = [install(cache, page_owner(1, 0, index)) for index in range(PAGES)]
    for slot in slots[3:]:
        cache.mark_dirty(slot)
    before = cache._budget.used_bytes
    assert cache.take_slots(4) == []
    assert cache._budget.used_bytes == before - 3 * 4096, "the three were evicted, and are free"
    assert sorted(cache.take_slots(3)) == slots[:3]

"""What changed between two versions of a volume is found from their maps, and is what a comparison of bytes finds."""

from __future__ import annotations

import logging
from random import Random

import numpy as np
import pytest

from holdfast.sim.accounts import check_accounts
from holdfast.units import BLOCK_SHIFT, MIB
from holdfast.volume.page_cache import PAGE_ENTRIES
from holdfast.volume.volume import Volume
from holdfast.work.task import Work
from tests.engine.helpers import HoldingWorld, create, new_world
from tests.engine.versions import (
    BLOCK,
    BLOCKS,
    SIZE,
    call,
    clone,
    of,
    read,
    remove,
    roll_back,
    snapshot,
    trim,
    write,
)


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


@pytest.fixture
def world() -> HoldingWorld:
    return new_world("differences")


def changed(world: HoldingWorld, name: str, since: str, first: int = 0, count: int | None = None) -> list[int]:
    """The blocks that changed, asked for as often as it takes."""
    node, base = world.engine.find(name), world.engine.find(since)
    at, end = first << BLOCK_SHIFT, (first + (count or node.size_blocks - first)) << BLOCK_SHIFT
    found: list[int] = []
    while at < end:
        extents = world.run(world.engine.differences.extents(node, base, at, end - at))
        assert extents
        for length, is_changed in extents:
            if is_changed:
                found += range(at >> BLOCK_SHIFT, (at + length) >> BLOCK_SHIFT)
            at += length
    assert at == end
    return found


def different(world: HoldingWorld, name: str, since: str) -> list[int]:
    """The same, of the bytes."""
    ours, theirs = memoryview(read(world, name, 0, BLOCKS)), memoryview(read(world, since, 0, BLOCKS))
    starts = range(0, SIZE, BLOCK)
    return [at // BLOCK for at in starts if bytes(ours[at : at + BLOCK]) != bytes(theirs[at : at + BLOCK])]


def test_writes_and_trims_since_a_snapshot_are_what_changed(world: HoldingWorld) -> None:
    create(world, "disk", SIZE)
    write(world, "disk", 0, of(1) * 10)
    snapshot(world, "disk@a")
    assert changed(world, "disk", "disk@a") == []
    write(world, "disk", 3, of(2))
    write(world, "disk", 700, of(3))
    trim(world, "disk", 8, 1)
    trim(world, "disk", 600, 5)  # was a hole, is a hole
    snapshot(world, "disk@b")
    write(world, "disk", 4, of(4))
    assert changed(world, "disk@b", "disk@a") == [3, 8, 700]
    assert changed(world, "disk@a", "disk@b") == [3, 8, 700]
    assert changed(world, "disk", "disk@b") == [4]
    assert changed(world, "disk", "disk@a") == [3, 4, 8, 700]
    assert changed(world, "disk", "disk@a", 4, 5) == [4, 8]


def test_a_block_written_back_as_it_was_counts_as_changed(world: HoldingWorld) -> None:
    create(world, "disk", SIZE)
    write(world, "disk", 5, of(1))
    snapshot(world, "disk@a")
    write(world, "disk", 5, of(2))
    write(world, "disk", 5, of(1))
    assert changed(world, "disk", "disk@a") == [5]


def test_a_clone_is_compared_with_what_it_was_made_from_and_with_its_cousins(world: HoldingWorld) -> None:
    create(world, "disk", SIZE)
    write(world, "disk", 0, of(1) * 8)
    snapshot(world, "disk@a")
    clone(world, "disk@a", "twin")
    write(world, "twin", 1, of(2))
    write(world, "disk", 2, of(3))
    snapshot(world, "twin@t")
    write(world, "twin", 5, of(5))
    snapshot(world, "disk@b")
    assert changed(world, "twin", "disk@a") == [1, 5]
    assert changed(world, "twin@t", "disk@a") == [1]
    assert changed(world, "twin", "disk@b") == [1, 2, 5]
    assert changed(world, "disk", "twin@t") == [1, 2]


def test_a_rollback_changes_nothing_since_its_snapshot(world: HoldingWorld) -> None:
    create(world, "disk", SIZE)
    write(world, "disk", 0, of(1) * 8)
    snapshot(world, "disk@a")
    write(world, "disk", 2, of(3))
    snapshot(world, "disk@b")
    roll_back(world, "disk@a")
    assert changed(world, "disk", "disk@a") == []
    assert changed(world, "disk", "disk@b") == [2]


def test_what_nobody_touched_is_passed_over_without_a_look_at_it(world: HoldingWorld) -> None:
    create(world, "disk", SIZE)
    for leaf in range(BLOCKS // PAGE_ENTRIES):
        write(world, "disk", leaf * PAGE_ENTRIES, of(leaf + 1))
    snapshot(world, "disk@a")
    write(world, "disk", 2 * PAGE_ENTRIES, of(9))
    snapshot(world, "disk@b")
    built = world.engine.views.built
    assert changed(world, "disk@b", "disk@a") == [2 * PAGE_ENTRIES]
    assert world.engine.views.built == built + 2


def test_an_odd_range_is_answered_to_the_byte(world: HoldingWorld) -> None:
    create(world, "disk", SIZE)
    snapshot(world, "disk@a")
    write(world, "disk", 1, of(1))
    node, base = world.engine.find("disk"), world.engine.find("disk@a")
    extents = world.run(world.engine.differences.extents(node, base, 100, 2 * BLOCK))
    assert extents == [(BLOCK - 100, False), (BLOCK, True), (100, False)]


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_tell_all_that_differs_and_little_else(seed: int) -> None:
    """Whatever differs is told; what is told and is equal was at least written."""
    world = new_world(seed, pages=96)
    rng = Random(seed)
    create(world, "disk", SIZE)
    names: list[str] = []
    volumes = ["disk"]
    touched = {"disk": set[int]()}
    for step in range(60):
        volume = rng.choice(volumes)
        kind = rng.randrange(10)
        if kind < 6:
            lba, count = rng.randrange(BLOCKS - 8), rng.randrange(1, 8)
            if rng.random() < 0.7:
                write(world, volume, lba, of(step + 1) * count)
            else:
                trim(world, volume, lba, count)
            touched[volume] |= set(range(lba, lba + count))
        elif kind < 8:
            names += [node.name for node in snapshot(world, f"{volume}@s{step}")]
        elif kind == 8 and names and len(volumes) < 3:
            volumes.append(clone(world, rng.choice(names), f"clone{step}").name)
            touched[volumes[-1]] = set().union(*touched.values())
        elif names:
            remove(world, names.pop(rng.randrange(len(names))))
    everything = set().union(*touched.values())
    for since in names:
        for name in rng.sample([*names, *volumes], 4) if len(names) > 3 else [*names, *volumes]:
            told = set(changed(world, name, since))
            assert told >= set(different(world, name, since)), (name, since)
            assert told <= everything
            if name == since:
                assert not told
    check_accounts(world)


def test_a_snapshot_has_an_identity_of_its_own_that_stays(world: HoldingWorld) -> None:
    create(world, "disk", MIB)
    first, second = snapshot(world, "disk@a")[0].identity, snapshot(world, "disk@b")[0].identity
    assert first != second != bytes(16) != first
    world.server_dies()
    world.open()
    assert world.engine.find("disk@a").identity == first
    assert world.engine.find("disk").identity == bytes(16)
    clone(world, "disk@a", "twin")
    assert world.engine.find("twin").identity == bytes(16)


def test_what_a_volume_has_behind_the_end_of_its_snapshot_is_changed(world: HoldingWorld) -> None:
    create(world, "disk", SIZE)
    write(world, "disk", 3, of(1))
    snapshot(world, "disk@a")
    call(world, lambda answer: world.engine.resize_volume("disk", 2 * SIZE, answer))
    write(world, "disk", BLOCKS - 1, of(2) * 2)
    write(world, "disk", 2 * BLOCKS - 1, of(3))
    snapshot(world, "disk@b")
    wanted = [BLOCKS - 1, BLOCKS, 2 * BLOCKS - 1]
    assert changed(world, "disk@b", "disk@a") == wanted
    assert changed(world, "disk", "disk@a") == wanted
    assert changed(world, "disk@a", "disk@b") == [BLOCKS - 1], "asked of the smaller one, that is all it has"


def test_little_that_changed_in_a_huge_volume_is_found_at_once(world: HoldingWorld) -> None:
    node = create(world, "disk", 16 << 40)
    snapshot(world, "disk@a")
    lba = node.size_blocks - 7
    write(world, "disk", lba, of(1))
    read_before = world.engine.table.pages_read
    base = world.engine.find("disk@a")
    extents = world.run(world.engine.differences.extents(node, base, 0, node.size_bytes))
    assert extents == [(lba * BLOCK, False), (BLOCK, True), (6 * BLOCK, False)]
    assert world.engine.table.pages_read - read_before < 10
    assert world.engine.views.built < 3


def test_a_moved_block_is_the_same_block(world: HoldingWorld) -> None:
    """As a cleaner moves blocks: the map and all that was put together from it get the new address at once."""
    create(world, "disk", SIZE)
    write(world, "disk", 5, of(1))
    snapshot(world, "disk@a")
    write(world, "disk", 9, of(1))
    assert changed(world, "disk", "disk@a") == [9]
    engine, volume = world.engine, world.engine.find("disk")
    row = engine.cache.arena[engine.cache.slot_of[volume.key_base]]
    inside = np.array([5])
    old = row[inside].copy()
    row[inside] = old + np.uint64(1)
    engine.views.changed(0, inside, old, row[inside])
    assert changed(world, "disk", "disk@a") == [9]


@pytest.mark.timeout(20)
def test_what_both_see_need_not_be_in_memory_at_once(world: HoldingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory so short that the page of one makes way for that of the other, each time anew."""
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) * 8)
    snapshot(world, "v@a")
    write(world, "v", 2, of(2) * 2)
    snapshot(world, "v@b")
    views, cache = world.engine.views, world.engine.cache
    look = views.leaf

    def look_in_short_memory(node: Volume, leaf: int) -> Work:
        slot = yield from look(node, leaf)
        for other in world.engine.volumes.by_id.values():
            there = cache.slot_of.get(other.read_base | leaf)
            if other is not node and other.read_base != other.key_base and there is not None:
                cache.forget(there)
        return slot

    monkeypatch.setattr(views, "leaf", look_in_short_memory)
    assert changed(world, "v@b", "v@a") == [2, 3]


def test_a_volume_that_got_more_levels_or_less_size_is_compared_with_what_it_was(world: HoldingWorld) -> None:
    create(world, "disk", SIZE)
    write(world, "disk", 3, of(1) * 3)
    write(world, "disk", BLOCKS - 1, of(1))
    snapshot(world, "disk@small")
    call(world, lambda answer: world.engine.resize_volume("disk", 4 << 30, answer))
    far = (4 << 30) // BLOCK - 1
    write(world, "disk", far, of(2))
    snapshot(world, "disk@large")
    assert changed(world, "disk@large", "disk@small") == [far]
    call(world, lambda answer: world.engine.resize_volume("disk", 4 * BLOCK, answer, force=True))
    call(world, lambda answer: world.engine.resize_volume("disk", SIZE, answer))
    snapshot(world, "disk@again")
    assert changed(world, "disk@again", "disk@small") == [4, 5, BLOCKS - 1]
    assert changed(world, "disk@again", "disk@large") == [4, 5, BLOCKS - 1]
    assert changed(world, "disk@large", "disk@again") == [4, 5, BLOCKS - 1, far]

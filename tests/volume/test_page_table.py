"""Finding pages: absent subtrees, pages that exist only in memory, damage."""

from __future__ import annotations

import pytest

from holdfast.errors import CorruptionError, DiskError
from holdfast.sim.accounts import check_accounts
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, GIB, MIB
from holdfast.volume.volume import Volume, root_level_for
from tests.engine.helpers import create

END = 1500  # leaves of the volume


def put(world: World, volume: Volume, leaf: int) -> None:
    world.run(world.engine.long_writer.write(volume, leaf * 2 * MIB, memoryview(bytes([7]) * BLOCK_SIZE_BYTES)))


def leaves(world: World, volume: Volume) -> list[int]:
    found: list[int] = []
    leaf = 0
    while True:
        leaf = world.run(world.engine.table.next_leaf(volume, leaf, END))
        if leaf >= END:
            return found
        found.append(leaf)
        leaf += 1


@pytest.mark.parametrize(
    ("size", "level"),
    [(1, 0), (2 * MIB, 0), (2 * MIB + 1, 1), (GIB, 1), (GIB + 1, 2), (512 * GIB, 2), (512 * GIB + 1, 3), (1 << 46, 3)],
)
def test_the_root_is_as_high_as_the_size_needs(size: int, level: int) -> None:
    assert root_level_for(size) == level


def test_next_leaf_finds_what_exists_on_disk_and_in_memory(world: World, volume: Volume) -> None:
    assert leaves(world, volume) == []
    for leaf in (0, 511, 512, 1400):
        put(world, volume, leaf)
    assert leaves(world, volume) == [0, 511, 512, 1400]
    world.run(world.engine.checkpoint())
    put(world, volume, 3)
    assert leaves(world, volume) == [0, 3, 511, 512, 1400]
    world.close()
    world.open()
    assert leaves(world, world.engine.find("disk0")) == [0, 3, 511, 512, 1400]


def test_next_leaf_stops_at_its_end(world: World, volume: Volume) -> None:
    put(world, volume, 700)
    assert world.run(world.engine.table.next_leaf(volume, 0, 700)) == 700
    assert world.run(world.engine.table.next_leaf(volume, 0, 500)) == 500
    assert world.run(world.engine.table.next_leaf(volume, 701, 1024)) == 1024


def test_a_leaf_that_became_all_holes_is_not_stored(world: World, volume: Volume) -> None:
    put(world, volume, 600)
    world.run(world.engine.checkpoint())
    world.run(world.engine.long_writer.trim(volume, 0, volume.size_bytes))
    world.run(world.engine.checkpoint())
    assert volume.root == 0
    world.close()
    world.open()
    assert leaves(world, world.engine.find("disk0")) == []


def test_a_page_that_cannot_be_read_is_an_error_and_can_be_read_later(world: World, volume: Volume) -> None:
    put(world, volume, 1)
    world.close()
    world.open()
    volume = world.engine.find("disk0")
    world.disk.character.cached = 0.0
    world.faults.turn_on("read", "ENOMEM", 1.0)
    with pytest.raises(DiskError, match="errno 12"):
        world.run(world.engine.table.page(volume, 0, 1, create=False))
    world.faults.calm()
    assert world.run(world.engine.table.page(volume, 0, 1, create=False)) >= 0
    check_accounts(world)


def test_a_damaged_page_is_an_error_for_what_it_maps_alone(world: World, volume: Volume) -> None:
    for leaf in (1, 2):
        put(world, volume, leaf)
    world.close()
    world.open()
    volume = world.engine.find("disk0")
    parent = world.run(world.engine.table.page(volume, 1, 0, create=False))
    entry = world.engine.cache.words[parent << 9 | 1]
    address = entry & (1 << 36) - 1
    world.disk.files[address >> 8].now.reshape(-1)[((address & 255) << 12) + 8] ^= 1
    with pytest.raises(CorruptionError, match="check"):
        world.run(world.engine.table.page(volume, 0, 1, create=False))
    assert world.run(world.engine.table.page(volume, 0, 2, create=False)) >= 0


def test_many_who_want_one_page_read_it_once(world: World, volume: Volume) -> None:
    put(world, volume, 1)
    world.close()
    world.open()
    world.disk.character.cached = 0.0
    volume = world.engine.find("disk0")
    outcomes = [world.spawn(world.engine.table.page(volume, 0, 1, create=False)) for _ in range(5)]
    before = world.engine.table.pages_read
    world.settle()
    assert len({outcome[0] for outcome in outcomes}) == 1
    assert world.engine.table.pages_read - before <= 3, "one for each level"


def test_those_who_need_more_pages_than_there_are_wait_and_do_not_read_over_and_over(world: World) -> None:
    """Each needs four pages, and three can be had: bringing those in would only take them from the others."""
    volume = create(world, "far", 3 << 40)
    leaves_of_far = [tib << 19 for tib in range(3)]
    for leaf in leaves_of_far:
        put(world, volume, leaf)
    world.close()
    world.open()
    volume = world.engine.find("far")
    world.disk.character.cached = 0.0
    cache, table = world.engine.cache, world.engine.table
    held = [slot for _ in range(cache.pages) for slot in cache.take_slots(1, volume.group.memory)]
    for slot in held[:3]:
        cache.give_back(slot)
    before = table.pages_read
    outcomes = [world.spawn(table.page(volume, 0, leaf, create=False)) for leaf in leaves_of_far]
    world.go_on(1_000_000_000, lambda: False)
    assert outcomes == [[], [], []]
    assert table.pages_read == before
    for slot in held[3:]:
        cache.give_back(slot)
    world.settle()
    assert all(outcome[0] >= 0 for outcome in outcomes)
    check_accounts(world)

"""What is removed goes in the background, beside clients and damage."""

from __future__ import annotations

import logging

import pytest

from holdfast.errors import HoldfastError
from holdfast.pool.block import ADDRESS_MASK
from holdfast.runtime.ports import READ
from holdfast.sim.accounts import check_accounts
from holdfast.sim.world import World
from holdfast.volume.volume import Volume
from tests.engine.helpers import create, new_world
from tests.engine.test_provision import BLOCKS, provisioned
from tests.engine.versions import (
    BLOCK,
    SIZE,
    clone,
    of,
    promote,
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


def damage_leaf(world: World, node: Volume, leaf: int) -> None:
    """Let what is stored of a leaf of a node's map be wrong from now on."""
    engine = world.engine
    slot = world.run(engine.table.page(node, 1, 0, create=False))
    address = engine.cache.words[slot << 9 | leaf] & ADDRESS_MASK
    assert address
    file = world.disk.files[address >> engine.log.shift]
    sector = (address & engine.log.segment_blocks - 1) * BLOCK // 512
    file.now[sector, 0] ^= 1
    file.stable[sector, 0] ^= 1


def test_a_removed_snapshot_is_forgotten_when_nobody_brings_its_leaves_in_any_more() -> None:
    """A writer waits to bring in the leaves of a volume and its snapshots while one of them is emptied; then it reads
    slowly, and the checkpoint behind which the snapshot is forgotten is done before."""
    world = new_world("pin")
    create(world, "v", SIZE)
    write(world, "v", 0, of(1))
    write(world, "v", 512, of(1) * 4)
    snapshot(world, "v@s1")
    write(world, "v", 0, of(2))
    write(world, "v", 512, of(2))
    snapshot(world, "v@s2")
    write(world, "v", 0, of(3))
    world.close()
    world.open()
    engine = world.engine
    in_memory = [("v", 0, 1), ("v@s1", 1, 0), ("v@s2", 1, 0), ("v@s2", 0, 0)]
    for name, level, index in in_memory:
        world.run(engine.table.page(engine.find(name), level, index, create=False))
    assert engine.find("v@s1").key_base not in engine.cache.slot_of
    world.holding.read_now = lambda *_: False  # type: ignore[method-assign]  # nothing is cached by the kernel
    world.holding.holds = lambda io: io.op == READ
    remove(world, "v@s2")
    while not world.holding.held:
        world.turn()
    writing = world.spawn(engine.long_writer.write(engine.find("v"), 513 * BLOCK, memoryview(of(9))))
    world.turn()
    assert not writing
    world.holding.release_one()  # the heir's leaf is there: the snapshot is emptied, and out of the tree
    for _ in range(3000):
        world.turn()
    world.holding.release()
    world.settle()
    assert read(world, "v@s1", 512, 2) == of(1) * 2
    assert read(world, "v", 512, 2) == of(2) + of(9)
    assert len(engine.volumes.by_id) == 2


def test_a_snapshot_that_still_gets_what_is_replaced_is_not_emptied_meanwhile() -> None:
    """The newest three cannot go, because their maps are damaged: the fourth, removed as well, is the last one that is
    asked, and gets what the volume replaces. An older one sees it there."""
    world = new_world("stuck")
    create(world, "v", SIZE)
    for leaf in range(4):
        write(world, "v", leaf * 512, of(1) * 8)
    snapshot(world, "v@n5")
    for number, lbas in ((4, (0, 512)), (3, (0, 512)), (2, (3 * 512,)), (1, (3 * 512,))):
        for lba in lbas:
            write(world, "v", lba, of(10 + number))
        snapshot(world, f"v@n{number}")
    write(world, "v", 3 * 512, of(10))
    world.close()
    world.open()
    engine = world.engine
    for name in ("v@n1", "v@n2", "v@n3"):
        damage_leaf(world, engine.find(name), 3)
    fourth = engine.find("v@n4")
    for number in (1, 2, 3, 4):
        remove(world, f"v@n{number}")
    assert engine.find("v").keepers[-1] is fourth
    world.settle()
    write(world, "v", 5, of(9))
    world.settle()
    assert read(world, "v", 5) == of(9)
    assert read(world, "v@n5", 5) == of(1)
    assert engine.volumes.by_id[fourth.volume_id] is fourth


def test_a_removed_snapshot_with_a_damaged_map_stands_in_the_way_until_older_ones_are_gone() -> None:
    world = new_world("damaged")
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) * 4)
    snapshot(world, "v@s1")
    write(world, "v", 0, of(2))
    snapshot(world, "v@s2")
    write(world, "v", 0, of(3))
    world.close()
    world.open()
    damage_leaf(world, world.engine.find("v@s2"), 0)
    remove(world, "v@s2")
    world.settle()
    with pytest.raises(HoldfastError, match="damaged"):
        write(world, "v", 1, of(4))  # the older one may see what is there through a page that cannot be read
    remove(world, "v@s1")
    world.settle()
    write(world, "v", 1, of(4))
    assert read(world, "v", 0, 2) == of(3) + of(4)
    assert [volume.name for volume in world.engine.volumes.by_id.values()] == ["v"]


@pytest.mark.parametrize("gone", [("c", "c@s"), ("c@s", "c")])
def test_a_thick_volume_holds_less_when_a_snapshot_goes_that_was_promoted_away(gone: tuple[str, str]) -> None:
    world = new_world("thick", segments=100, segment_blocks=64)
    volume = provisioned(world, "v")
    write(world, "v", 0, of(1) * BLOCKS)
    snapshot(world, "v@s")
    clone(world, "v@s", "c")
    promote(world, "c")
    if gone[0] == "c":
        remove(world, "c", snapshots=True)
    else:
        for name in gone:
            remove(world, name)
            world.settle()
    world.settle()
    assert list(world.engine.volumes.by_id) == [volume.volume_id]
    assert volume.held_blocks == volume.blocks_to_hold()


def used(world: World) -> int:
    return sum(volume.mapped_blocks for volume in world.engine.volumes.by_id.values())


@pytest.mark.parametrize("reopen", [False, True])
def test_what_a_removed_snapshot_keeps_for_one_volume_alone_becomes_that_volumes(*, reopen: bool) -> None:
    world = new_world("rollback")
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) * 64)
    write(world, "v", 700, of(1) * 8)
    snapshot(world, "v@s")
    write(world, "v", 8, of(2) * 8)
    roll_back(world, "v@s")
    world.settle()
    write(world, "v", 4, of(3) * 8)
    trim(world, "v", 20, 4)
    remove(world, "v@s")
    if reopen:
        world.server_dies()
        world.open()
    world.settle()
    volume = world.engine.find("v")
    assert volume.mapped_blocks == used(world) == 68
    content = of(1) * 4 + of(3) * 8 + of(1) * 8 + bytes(4 * BLOCK) + of(1) * 40
    assert read(world, "v", 0, 64) == content
    check_accounts(world)
    trim(world, "v", 0, volume.size_blocks)
    world.settle()
    assert used(world) == 0
    assert read(world, "v", 700, 8) == bytes(8 * BLOCK)
    check_accounts(world)


def test_a_clone_takes_over_what_is_left_of_a_volume_that_was_removed_with_its_snapshots() -> None:
    world = new_world("template")
    create(world, "template", SIZE)
    write(world, "template", 0, of(1) * 64)
    snapshot(world, "template@s")
    write(world, "template", 0, of(2) * 16)
    clone(world, "template@s", "c")
    clone(world, "template@s", "d")
    write(world, "c", 0, of(3) * 32)
    remove(world, "template", snapshots=True)
    world.settle()
    assert used(world) == 64 + 32  # two of them see it
    remove(world, "d")
    world.settle()
    assert world.engine.find("c").mapped_blocks == used(world) == 64
    assert read(world, "c", 0, 64) == of(3) * 32 + of(1) * 32
    check_accounts(world)


def test_what_snapshots_of_the_clone_see_through_marks_stays_until_they_are_gone() -> None:
    world = new_world("marks")
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) * 64)
    snapshot(world, "v@s")
    clone(world, "v@s", "c")
    snapshot(world, "c@before")
    write(world, "c", 0, of(2) * 16)  # the snapshot has marks for these now
    remove(world, "v", snapshots=True)
    world.settle()
    snapshot(world, "c@later")
    clone(world, "c@before", "d")
    write(world, "c", 8, of(3) * 16)
    assert world.engine.find("c").mapped_blocks + world.engine.find("c@later").mapped_blocks == 64 + 16
    assert used(world) == 64 + 16 + 16
    for name in ("c@before", "d"):
        assert read(world, name, 0, 64) == of(1) * 64
    assert read(world, "c@later", 0, 64) == of(2) * 16 + of(1) * 48
    world.server_dies()
    world.open()
    world.settle()
    assert read(world, "d", 0, 64) == of(1) * 64
    for name in ("d", "c@before", "c@later"):
        remove(world, name)
        world.settle()
        assert read(world, "c", 0, 64) == of(2) * 8 + of(3) * 16 + of(1) * 40
        check_accounts(world)
    assert world.engine.find("c").mapped_blocks == used(world) == 64

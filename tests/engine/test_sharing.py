"""What a node shares with the snapshots before it, and what comes free when it is removed: told beforehand, exactly."""

from __future__ import annotations

from random import Random

import pytest

from holdfast.sim.accounts import check_accounts
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT, MIB
from holdfast.volume.sharing import freed_blocks
from holdfast.volume.volume import Volume
from holdfast.work.task import Work
from tests.engine.helpers import HoldingWorld, create, new_world
from tests.engine.versions import clone, of, remove, roll_back, snapshot, trim, write

SIZE = 8 * MIB


@pytest.fixture
def world() -> HoldingWorld:
    return new_world("sharing")


def shared(world: World, name: str) -> int | None:
    """Counted, if it is not known anyway."""
    answers: list[None] = []
    node = world.engine.find(name)
    world.engine.sharing.settle([node], lambda: answers.append(None))
    world.settle(lambda: bool(answers))
    return None if node.sharing_unsure else node.shared_blocks


def told(node: Volume) -> tuple[int, bool]:
    return node.shared_blocks, node.sharing_unsure


def data_blocks(world: World) -> int:
    return sum(node.mapped_blocks for node in world.engine.volumes.by_id.values())


def test_a_volume_shares_what_it_has_not_replaced_since_its_newest_snapshot(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) + of(2) + of(3) + of(4))
    volume = world.engine.find("v")
    assert told(volume) == (0, False)
    snapshot(world, "v@s")
    assert told(volume) == (4, False)
    write(world, "v", 0, of(9))
    write(world, "v", 0, of(8))
    trim(world, "v", 1, 1)
    write(world, "v", 100, of(7))
    assert told(volume) == (2, False)
    remove(world, "v@s")
    world.settle()
    assert told(volume) == (0, False)


def test_what_an_older_snapshot_sees_of_what_a_newer_one_got_is_counted_when_somebody_asks(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) + of(2))
    snapshot(world, "v@old")
    write(world, "v", 1, of(3))
    snapshot(world, "v@new")
    write(world, "v", 0, of(4) + of(5))
    new = world.engine.find("v@new")
    assert new.mapped_blocks == 2
    assert told(new) == (2, True)
    assert shared(world, "v@new") == 1, "block 0, which has been the same since before both"
    assert not new.sharing_unsure
    assert shared(world, "v@old") == 0


def test_a_snapshot_in_the_middle_that_goes_leaves_a_count_of_at_most(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) + of(2))
    snapshot(world, "v@a")
    write(world, "v", 0, of(3))
    snapshot(world, "v@b")
    volume = world.engine.find("v")
    assert volume.shared_blocks == 2
    remove(world, "v@b")
    world.settle()
    assert shared(world, "v") == 1, "only the second block is what @a sees"


def test_it_is_exact_while_clients_write() -> None:
    world = new_world("counting", pages=64)  # so few that counting has to wait for each of them
    create(world, "v", 128 * MIB)
    for leaf in range(0, 32768, 512):
        write(world, "v", leaf, of(1) * 4)
    snapshot(world, "v@a")
    for leaf in range(0, 32768, 1024):
        write(world, "v", leaf, of(2))
    snapshot(world, "v@b")
    for leaf in range(0, 32768, 512):
        write(world, "v", leaf, of(3))
    node = world.engine.find("v@b")
    answers: list[bool] = []
    world.engine.sharing.settle([node], lambda: answers.append(node.sharing_unsure))
    passed: set[int] = set()  # how far the counting had come when blocks were written
    content, ended = memoryview(of(4) * 4), []  # type: memoryview, list[object]
    writer, volume = world.engine.long_writer, world.engine.find("v")

    def write_one(leaf: int) -> Work:
        yield from writer.write(volume, leaf << BLOCK_SHIFT, content)
        if node.recount is not None:
            passed.add(node.recount.passed)

    for leaf in range(0, 32768, 512):
        world.engine.scheduler.spawn(write_one(leaf), "write", ended.append)
    world.settle(lambda: bool(answers) and len(ended) == 64)
    assert passed, "nobody wrote in the middle of it"
    assert answers == [False]
    check_accounts(world)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_said_to_come_free_does(seed: int) -> None:
    rng = Random(seed)
    world = new_world(f"freed {seed}")
    create(world, "v", SIZE)
    names = ["v"]
    for number in range(60):
        name = rng.choice(names)
        match rng.randrange(8):
            case 0:
                snapshot(world, f"v@s{number}")
                names.append(f"v@s{number}")
            case 1 if name != "v":
                if name.startswith("v@"):
                    clone(world, name, f"c{number}")
                    names.append(f"c{number}")
            case 2 | 3 if name != "v":
                node = world.engine.find(name)
                answers: list[None] = []
                nodes: list[Volume] = [node]
                ground = node.ground
                while ground is not None:
                    nodes.append(ground)
                    ground = ground.ground
                world.engine.sharing.settle(nodes, lambda answers=answers: answers.append(None))  # type: ignore[misc]
                world.settle(lambda answers=answers: bool(answers))  # type: ignore[misc]
                freed, before = freed_blocks(node, []), data_blocks(world)
                remove(world, name)
                world.settle(lambda: not world.engine.volumes.removal._running)
                assert freed is not None
                assert before - data_blocks(world) == freed
                names.remove(name)
            case _:
                target = name if "@" not in name else "v"
                lba = rng.randrange(0, 2000)
                if rng.random() < 0.3:
                    trim(world, target, lba, 8)
                else:
                    write(world, target, lba, of(number % 250 + 1) * rng.randrange(1, 8))
    check_accounts(world)


def test_after_a_rollback_all_of_it_comes_free_with_the_snapshots_unless_there_is_a_clone() -> None:
    world = new_world("rollback")
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) * 64)
    snapshot(world, "v@s")
    roll_back(world, "v@s")
    world.settle()
    write(world, "v", 0, of(2))
    volume, taken = world.engine.find("v"), world.engine.find("v@s")
    assert freed_blocks(volume, [taken]) == 65
    clone(world, "v@s", "c")
    assert freed_blocks(volume, [taken]) is None
    remove(world, "c")
    world.settle()
    assert freed_blocks(volume, [taken]) == 65

"""A provisioned volume can be written all over at any time, whatever others, its snapshots and crashes do."""

from __future__ import annotations

import logging
from random import Random

import pytest

from holdfast.errors import HoldfastError, NoSpaceError, RequestError
from holdfast.nbd.protocol import CMD_FLAG_NO_HOLE, CMD_WRITE, CMD_WRITE_ZEROES
from holdfast.pool.tables import GroupLimits
from holdfast.sim.accounts import check_accounts
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB
from holdfast.volume.settings import VolumeSettings
from holdfast.volume.volume import Volume, map_pages
from tests.engine.helpers import HoldingWorld, ask, connect, create, fill, new_world
from tests.engine.versions import call, clone, of, read, remove, roll_back, snapshot, trim, write

SIZE = 2 * MIB
BLOCKS = SIZE >> BLOCK_SHIFT
SMALL = {"segments": 40, "segment_blocks": 64}  # some 5 MiB usable


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


def provisioned(world: World, name: str, size_bytes: int = SIZE) -> Volume:
    settings = VolumeSettings(provisioned=True)
    made: Volume = call(world, lambda answer: world.engine.create_volume(name, size_bytes, answer, settings))
    return made


def change(world: World, name: str, **settings: object) -> None:
    call(world, lambda answer: world.engine.change_volume(name, answer, VolumeSettings(**settings)))  # type: ignore[arg-type]


def fill_up(world: World) -> None:
    """Another volume takes all that it gets."""
    create(world, "greedy", 100 * MIB)
    assert fill(world, connect(world, "greedy"))
    assert world.engine.space.is_full


@pytest.fixture
def world() -> HoldingWorld:
    return new_world("provisioned", **SMALL)


def test_all_of_it_can_be_written_in_a_full_pool(world: HoldingWorld) -> None:
    volume = provisioned(world, "thick")
    fill_up(world)
    for lba in range(BLOCKS - 1, -1, -1):
        write(world, "thick", lba, of(1 + lba % 250))
    assert volume.held_blocks == map_pages(SIZE)
    for lba in range(0, BLOCKS, 7):
        assert read(world, "thick", lba) == of(1 + lba % 250)
    with pytest.raises(NoSpaceError):
        write(world, "greedy", (100 * MIB >> BLOCK_SHIFT) - 1, of(1))
    trim(world, "thick", 0, BLOCKS)
    with pytest.raises(NoSpaceError):
        write(world, "greedy", (100 * MIB >> BLOCK_SHIFT) - 1, of(1))
    write(world, "thick", 0, of(3) * BLOCKS)
    check_accounts(world)


def test_after_a_snapshot_it_can_be_written_all_over_again(world: HoldingWorld) -> None:
    volume = provisioned(world, "thick")
    write(world, "thick", 0, of(1) * BLOCKS)
    snapshot(world, "thick@s")
    assert volume.held_blocks == BLOCKS + 2 * map_pages(SIZE)
    fill_up(world)
    for lba in range(BLOCKS):
        write(world, "thick", lba, of(2))
    assert read(world, "thick@s", 0, 4) == of(1) * 4
    check_accounts(world)


def test_what_cannot_be_held_is_refused(world: HoldingWorld) -> None:
    with pytest.raises(NoSpaceError, match=r"'huge' is provisioned: this needs 50\.1M of the pool held back"):
        provisioned(world, "huge", 50 * MIB)
    assert "huge" not in world.engine.by_name
    provisioned(world, "thick")
    write(world, "thick", 0, of(1) * BLOCKS)
    fill_up(world)
    with pytest.raises(NoSpaceError, match="'thick' is provisioned"):
        snapshot(world, "thick@s")
    with pytest.raises(NoSpaceError, match="'thick' is provisioned"):
        clone(world, "thick", "c")
    with pytest.raises(NoSpaceError):
        change(world, "greedy", provisioned=True)
    assert not world.engine.find("greedy").provisioned
    with pytest.raises(RequestError, match="quota"):
        change(world, "thick", quota_bytes=MIB)
    assert world.engine.find("thick").quota_bytes == 0
    with pytest.raises(NoSpaceError):
        call(world, lambda answer: world.engine.resize_volume("thick", 3 * MIB, answer))
    assert world.engine.find("thick").size_bytes == SIZE
    change(world, "thick", provisioned=False)
    assert world.engine.space.held_blocks == 0
    check_accounts(world)


def test_a_group_s_space_is_held_as_well(world: HoldingWorld) -> None:
    group = call(
        world,
        lambda answer: world.engine.groups.create("g", GroupLimits(space_bytes=SIZE + 4 * BLOCK_SIZE_BYTES), answer),
    )
    settings = VolumeSettings(provisioned=True, group=group)
    call(world, lambda answer: world.engine.create_volume("thick", SIZE, answer, settings))
    call(world, lambda answer: world.engine.create_volume("thin", SIZE, answer, VolumeSettings(group=group)))
    assert group.mapped_blocks_max == 4 - map_pages(SIZE)
    write(world, "thin", 0, of(1) * (4 - map_pages(SIZE)))
    with pytest.raises(NoSpaceError):
        write(world, "thin", 100, of(1))
    with pytest.raises(NoSpaceError, match="of the space of group 'g'"):
        change(world, "thin", provisioned=True)
    write(world, "thick", 0, of(1) * BLOCKS)
    change(world, "thick", group=world.engine.groups.directory.default)
    assert group.held_blocks == 0
    check_accounts(world)


def test_it_is_held_again_after_a_crash_and_let_go_of_with_the_volume(world: HoldingWorld) -> None:
    provisioned(world, "thick")
    write(world, "thick", 0, of(1) * 100)
    snapshot(world, "thick@s")
    write(world, "thick", 50, of(2) * 100)
    before = world.engine.find("thick").held_blocks
    assert before == BLOCKS - 100 + 2 * map_pages(SIZE)
    world.server_dies()
    world.open()
    assert world.engine.find("thick").held_blocks == before
    check_accounts(world)
    roll_back(world, "thick@s")
    world.settle()
    assert world.engine.find("thick").held_blocks == BLOCKS + map_pages(SIZE)
    check_accounts(world)
    remove(world, "thick", snapshots=True)
    assert world.engine.space.held_blocks == 0


def test_a_clone_can_be_provisioned(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) * BLOCKS)
    snapshot(world, "v@s")
    settings = VolumeSettings(provisioned=True)
    made: Volume = call(world, lambda answer: world.engine.snapshots.clone("v@s", "c", answer, settings))
    assert made.held_blocks == BLOCKS + map_pages(SIZE)
    fill_up(world)
    for lba in range(BLOCKS):
        write(world, "c", lba, of(2))
    check_accounts(world)


def test_zeroes_without_a_hole_cost_a_provisioned_volume_nothing(world: HoldingWorld) -> None:
    volume = provisioned(world, "thick")
    write(world, "thick", 0, of(1) * BLOCKS)
    client = connect(world, "thick")
    assert ask(world, client, CMD_WRITE_ZEROES, 0, SIZE, flags=CMD_FLAG_NO_HOLE).errno == 0
    assert volume.mapped_blocks == 0
    fill_up(world)
    assert ask(world, client, CMD_WRITE, 0, payload=of(1) * 64).errno == 0


@pytest.mark.parametrize("seed", range(12))
def test_no_write_to_it_ever_finds_no_space(seed: int) -> None:
    """Whatever is done around it, in a pool that is full all the time."""
    rng = Random(seed)
    world = new_world(f"provisioned {seed}", **SMALL)
    provisioned(world, "thick", MIB)
    create(world, "thin", 100 * MIB)
    blocks = MIB >> BLOCK_SHIFT
    holds = dict.fromkeys(range(blocks), 0)
    kept: dict[str, dict[int, int]] = {}
    for number in range(1, 250):
        match rng.randrange(12):
            case 0:
                try:
                    snapshot(world, f"thick@s{number}")
                    kept[f"thick@s{number}"] = dict(holds)
                except NoSpaceError:
                    pass  # it is not there, and nobody is promised anything
            case 1 if kept:
                name = rng.choice(list(kept))
                del kept[name]
                remove(world, name)
            case 2:
                if rng.random() < 0.5:
                    world.server_dies()
                else:
                    world.run(world.engine.checkpoint())
                    world.power_fails()
                world.open()
            case 3:
                lba = rng.randrange(blocks)
                trim(world, "thick", lba, 16)
                holds.update(dict.fromkeys(range(lba, min(blocks, lba + 16)), 0))
            case 4 | 5 | 6:
                try:
                    for _ in range(40):
                        write(world, "thin", rng.randrange(3000), of(7) * 3)
                except HoldfastError as error:
                    assert isinstance(error, NoSpaceError)  # noqa: PT017  the others are what is wrong
            case 7:
                trim(world, "thin", rng.randrange(3000), 300)
            case _:
                lba, count = rng.randrange(blocks - 16), rng.randrange(1, 17)
                value = number % 250 + 1
                write(world, "thick", lba, of(value) * count)
                holds.update(dict.fromkeys(range(lba, lba + count), value))
    for lba, value in holds.items():
        assert read(world, "thick", lba) == of(value)
        write(world, "thick", lba, of(251))
    for name, were in kept.items():
        for lba in range(0, blocks, 5):
            assert read(world, name, lba) == of(were[lba])
    check_accounts(world)

"""Rows T3 and T4: a volume that has used up its quota says ENOSPC, goes on otherwise, and is revived by a trim."""

from __future__ import annotations

from errno import ENOSPC

import pytest

from holdfast.nbd.protocol import CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES
from holdfast.sim.accounts import check_accounts
from holdfast.sim.client import SimClient
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from holdfast.volume.settings import VolumeSettings
from holdfast.volume.volume import Volume
from tests.engine.helpers import ask, block, connect, new_world

QUOTA_BYTES = 2 * MIB
BLOCKS = QUOTA_BYTES // BLOCK_SIZE_BYTES


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    return new_world("quota")


@pytest.fixture
def volume(world: World) -> Volume:
    outcome = world.wait_for(
        lambda answer: world.engine.create_volume("disk0", 100 * MIB, answer, VolumeSettings(quota_bytes=QUOTA_BYTES))
    )
    world.settle(lambda: bool(outcome))
    assert isinstance(outcome[0], Volume)
    return outcome[0]


def write(world: World, client: SimClient, lba: int, value: int, count: int = 1) -> int:
    return ask(world, client, CMD_WRITE, lba * BLOCK_SIZE_BYTES, payload=block(value) * count).errno


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_quota_ends_where_it_says_and_a_trim_makes_room(world: World, volume: Volume, count: int) -> None:
    client = connect(world, "disk0")
    lba = 0
    while write(world, client, lba, 7, count) == 0:
        lba += count
    assert volume.mapped_blocks == BLOCKS, "a request that goes beyond is carried out as far as it goes"
    assert lba == BLOCKS // count * count
    assert write(world, client, 5000, 7) == ENOSPC
    assert write(world, client, 3, 8) == 0, "what is mapped may be written again"
    assert write(world, client, lba - count, 9, count) == 0
    zeroes = ask(world, client, CMD_WRITE_ZEROES, 6000 * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES, flags=CMD_FLAG_NO_HOLE)
    assert zeroes.errno == ENOSPC
    assert bytes(ask(world, client, CMD_READ, 3 * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES).data) == block(8)
    assert ask(world, client, CMD_FLUSH).errno == 0
    assert ask(world, client, CMD_TRIM, 0, 10 * BLOCK_SIZE_BYTES).errno == 0
    assert write(world, client, 5000, 7, 10) == 0
    assert write(world, client, 7000, 7) == ENOSPC
    check_accounts(world)


def test_other_volumes_have_their_own(world: World, volume: Volume) -> None:
    world.create("disk1", 100 * MIB)
    full, other = connect(world, "disk0"), connect(world, "disk1")
    assert write(world, full, 0, 1, BLOCKS + 1) == ENOSPC
    assert write(world, other, 0, 1, 2 * BLOCKS) == 0


@pytest.mark.parametrize("death", ["kill -9", "power"])
def test_the_quota_and_what_is_used_of_it_survive(world: World, volume: Volume, death: str) -> None:
    client = connect(world, "disk0")
    assert write(world, client, 0, 1, BLOCKS - 5) == 0
    assert ask(world, client, CMD_FLUSH).errno == 0
    if death == "power":
        world.power_fails()
    else:
        world.server_dies()
    world.open()
    client = connect(world, "disk0")
    assert write(world, client, 9000, 1, 5) == 0
    assert write(world, client, 9100, 1) == ENOSPC


def test_a_quota_is_changed_while_the_volume_is_used(world: World, volume: Volume) -> None:
    client = connect(world, "disk0")
    assert write(world, client, 0, 1, BLOCKS) == 0

    def change(quota_bytes: int) -> None:
        outcome = world.wait_for(
            lambda answer: world.engine.change_volume("disk0", answer, VolumeSettings(quota_bytes=quota_bytes))
        )
        world.settle(lambda: bool(outcome))
        assert outcome == [volume]

    change(QUOTA_BYTES // 2)
    assert write(world, client, 0, 2, BLOCKS) == 0, "nothing is taken away"
    assert write(world, client, 8000, 1) == ENOSPC
    assert ask(world, client, CMD_TRIM, 0, QUOTA_BYTES // 2).errno == 0
    assert write(world, client, 8000, 1) == ENOSPC, "half of it is just what is used"
    change(0)
    assert write(world, client, 8000, 1, 2 * BLOCKS) == 0


def test_a_volume_whose_owner_wants_it_waits_for_space_and_then_says_that_there_is_none(
    world: World, volume: Volume
) -> None:
    client, other = connect(world, "disk0"), connect(world, "disk0")
    assert write(world, client, 0, 1, BLOCKS) == 0
    outcome = world.wait_for(
        lambda answer: world.engine.change_volume("disk0", answer, VolumeSettings(on_full_wait_s=5))
    )
    world.settle(lambda: bool(outcome))
    assert volume.quota_bytes == QUOTA_BYTES, "what is not named stays"
    patient = client.send(CMD_WRITE, 9000 * BLOCK_SIZE_BYTES, payload=block(3))
    assert not world.go_on(3_000_000_000, lambda: patient.ready)
    assert write(world, other, 1, 2) == 0, "nobody else waits"
    assert ask(world, other, CMD_TRIM, 0, BLOCK_SIZE_BYTES).errno == 0
    assert world.go_on(1_000_000_000, lambda: patient.ready)
    assert patient.errno == 0
    began_ns = world.clock.at_ns
    assert write(world, client, 9100, 1) == ENOSPC
    assert 5_000_000_000 <= world.clock.at_ns - began_ns < 6_000_000_000
    assert write(world, client, 9200 - 1, 1, 3) == ENOSPC, "each request has its own time"

"""Promise 4: what is lost for good is said, by number, until somebody acknowledges it; and what a volume does when it
is full, or its write-back fails, is its owner's choice (row A2)."""

from __future__ import annotations

from errno import EIO, ENOSPC, EPERM

import pytest

from holdfast.errors import HoldfastError, RequestError
from holdfast.nbd.protocol import (
    CMD_FLAG_FUA,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
)
from holdfast.pool.block import ADDRESS_MASK
from holdfast.sim.accounts import check_accounts
from holdfast.sim.client import SimClient
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from holdfast.volume.settings import VolumeSettings
from holdfast.volume.volume import OnError, OnFull, ReadOnly, Volume
from holdfast.work.task import Work
from tests.engine.helpers import ask, block, connect, create, new_world

BLOCK = BLOCK_SIZE_BYTES


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    return new_world("losses")


def write(world: World, client: SimClient, lba: int, value: int, count: int = 1, flags: int = 0) -> int:
    return ask(world, client, CMD_WRITE, lba * BLOCK, payload=block(value) * count, flags=flags).errno


def flush(world: World, client: SimClient) -> int:
    return ask(world, client, CMD_FLUSH).errno


def damage(world: World, volume: Volume, lba: int) -> None:
    """Change the block on the medium. It must not be in the ring."""
    slot = world.run(world.engine.table.page(volume, 0, lba >> 9, create=False))
    address = world.engine.cache.words[slot << 9 | lba & 511] & ADDRESS_MASK
    file = world.disk.files[address >> world.engine.log.shift]
    sector = (address & world.engine.log.segment_blocks - 1) * BLOCK // 512
    file.now[sector, 0] ^= 1
    file.stable[sector, 0] ^= 1


def acknowledge(world: World, epoch: int) -> object:
    outcome = world.wait_for(lambda answer: world.engine.volumes.acknowledge_loss("disk0", epoch, answer))
    world.settle(lambda: bool(outcome))
    return outcome[0]


@pytest.fixture
def lost(world: World) -> SimClient:
    """A client of a volume of four blocks, of which the second is lost and nobody knows it yet."""
    create(world, "disk0", 100 * MIB)
    client = connect(world, "disk0")
    assert write(world, client, 0, 1, 4) == 0
    world.close()
    world.open()
    damage(world, world.engine.by_name["disk0"], 1)
    return connect(world, "disk0")


def test_a_loss_is_told_to_every_connection_until_it_is_acknowledged_by_its_number(
    world: World, lost: SimClient, caplog: pytest.LogCaptureFixture
) -> None:
    other = connect(world, "disk0")
    volume = world.engine.by_name["disk0"]
    assert flush(world, lost) == 0, "nobody knows yet"
    assert ask(world, lost, CMD_READ, BLOCK, BLOCK).errno == EIO
    assert (volume.loss_epoch, volume.loss_open) == (1, True)
    assert flush(world, lost) == flush(world, other) == flush(world, lost) == EIO
    assert write(world, other, 9, 9, flags=CMD_FLAG_FUA) == EIO
    assert flush(world, connect(world, "disk0")) == EIO, "and to whoever opens it next"
    assert "acknowledge-loss POOL/disk0 1" in caplog.text
    assert write(world, lost, 10, 9) == 0, "all else goes on"
    assert isinstance(acknowledge(world, 2), RequestError)
    assert acknowledge(world, 1) is volume
    assert flush(world, lost) == flush(world, other) == 0
    assert ask(world, lost, CMD_READ, BLOCK, BLOCK).errno == EIO, "what is lost stays lost"
    assert flush(world, lost) == 0, "and is no news"
    assert isinstance(acknowledge(world, 1), RequestError)
    assert write(world, lost, 1, 5) == 0
    assert volume.damaged == {}, "what was overwritten is not damaged any more"
    assert bytes(ask(world, lost, CMD_READ, 0, 4 * BLOCK).data) == block(1) + block(5) + block(1) * 2
    world.close()
    world.open()
    damage(world, world.engine.by_name["disk0"], 1)
    lost = connect(world, "disk0")
    assert ask(world, lost, CMD_READ, BLOCK, BLOCK).errno == EIO
    assert flush(world, lost) == EIO, "and should it be damaged again, that is news"
    check_accounts(world)


@pytest.mark.parametrize("death", ["kill -9", "power", "close"])
def test_a_loss_and_that_it_is_known_survive(world: World, lost: SimClient, death: str) -> None:
    def again() -> tuple[Volume, SimClient]:
        if death == "close":
            world.close()
        elif death == "power":
            world.power_fails()
        else:
            world.server_dies()
        world.open()
        return world.engine.by_name["disk0"], connect(world, "disk0")

    assert ask(world, lost, CMD_READ, BLOCK, BLOCK).errno == EIO
    world.settle()  # it is stored at once
    volume, client = again()
    assert (volume.loss_epoch, volume.loss_open) == (1, True)
    assert flush(world, client) == EIO
    assert ask(world, client, CMD_READ, BLOCK, BLOCK).errno == EIO
    assert acknowledge(world, 1) is volume
    volume, client = again()
    assert (volume.loss_epoch, volume.loss_open) == (1, False)
    assert ask(world, client, CMD_READ, BLOCK, BLOCK).errno == EIO
    assert flush(world, client) == 0, "the same block is no new loss"
    damage(world, volume, 2)
    assert ask(world, client, CMD_READ, 2 * BLOCK, BLOCK).errno == EIO
    assert flush(world, client) == EIO
    assert (volume.loss_epoch, volume.loss_open) == (2, True)


def test_what_was_overwritten_meanwhile_is_not_given_up(world: World, lost: SimClient) -> None:
    assert ask(world, lost, CMD_READ, BLOCK, BLOCK).errno == EIO
    assert write(world, lost, 1, 8) == 0
    volume = acknowledge(world, 1)
    assert isinstance(volume, Volume)
    assert volume.damaged == {}
    assert bytes(ask(world, lost, CMD_READ, BLOCK, BLOCK).data) == block(8)
    world.close()
    world.open()
    assert bytes(ask(world, connect(world, "disk0"), CMD_READ, BLOCK, BLOCK).data) == block(8)


def test_what_reads_well_again_is_not_given_up(world: World, lost: SimClient) -> None:
    """The medium had been misread."""
    volume = world.engine.by_name["disk0"]
    assert ask(world, lost, CMD_READ, BLOCK, BLOCK).errno == EIO
    damage(world, volume, 1)  # once more: as it was
    assert acknowledge(world, 1) is volume
    assert volume.damaged == {}
    assert bytes(ask(world, lost, CMD_READ, BLOCK, BLOCK).data) == block(1)


def test_a_loss_is_acknowledged_only_once_that_is_durable(world: World, lost: SimClient) -> None:
    assert ask(world, lost, CMD_READ, BLOCK, BLOCK).errno == EIO
    world.faults.turn_on("write superblock", "EIO", 1.0)
    outcome = world.wait_for(lambda answer: world.engine.volumes.acknowledge_loss("disk0", 1, answer))
    told = lost.send(CMD_FLUSH)
    assert world.go_on(2_000_000_000, lambda: told.ready)
    assert (outcome, told.errno) == ([], EIO)
    world.faults.calm()
    world.settle(lambda: bool(outcome))
    assert flush(world, lost) == 0


def test_what_is_found_while_a_loss_is_being_acknowledged_is_a_loss_of_its_own(world: World, lost: SimClient) -> None:
    volume = world.engine.by_name["disk0"]
    assert ask(world, lost, CMD_READ, BLOCK, BLOCK).errno == EIO
    world.settle()
    damage(world, volume, 2)
    world.faults.turn_on("write superblock", "EIO", 1.0)
    outcome = world.wait_for(lambda answer: world.engine.volumes.acknowledge_loss("disk0", 1, answer))
    assert world.go_on(2_000_000_000, lambda: volume.loss_acknowledged == 1)
    seen = lost.send(CMD_READ, 2 * BLOCK, BLOCK)
    assert world.go_on(2_000_000_000, lambda: seen.ready)
    assert (seen.errno, outcome) == (EIO, [])
    world.faults.calm()
    world.settle(lambda: bool(outcome))
    assert (volume.loss_epoch, volume.loss_open) == (2, True)
    assert flush(world, lost) == EIO
    assert acknowledge(world, 2) is volume
    assert flush(world, lost) == 0


def test_what_is_found_while_known_damage_is_given_up_is_a_loss_of_its_own(world: World, lost: SimClient) -> None:
    """Before the acknowledgement is on its way to the disk: the blocks that are given up are read once more first."""
    volume = world.engine.by_name["disk0"]
    assert ask(world, lost, CMD_READ, BLOCK, BLOCK).errno == EIO
    world.settle()
    damage(world, volume, 2)
    give_up = world.engine.long_writer.give_up

    def beside_it(volume: Volume, lba: int) -> Work:
        volume.note_damage(2, "found by somebody else")
        yield from give_up(volume, lba)

    world.engine.long_writer.give_up = beside_it  # type: ignore[method-assign]
    assert acknowledge(world, 1) is volume
    assert (volume.loss_epoch, volume.loss_open) == (2, True)
    assert flush(world, lost) == EIO
    assert 2 in volume.damaged, "nobody has given it up"
    assert acknowledge(world, 2) is volume
    assert flush(world, lost) == 0


def test_a_damaged_page_of_the_map_is_one_loss_however_often_it_is_asked_for(world: World) -> None:
    volume = create(world, "disk0", 100 * MIB)
    client = connect(world, "disk0")
    assert write(world, client, 0, 1) == 0
    assert write(world, client, 5 * 512, 1) == 0
    slot = world.run(world.engine.table.page(volume, 1, 0, create=False))
    world.close()
    world.open()
    volume = world.engine.by_name["disk0"]
    slot = world.run(world.engine.table.page(volume, 1, 0, create=False))
    address = world.engine.cache.words[slot << 9] & ADDRESS_MASK
    file = world.disk.files[address >> world.engine.log.shift]
    sector = (address & world.engine.log.segment_blocks - 1) * BLOCK // 512
    file.now[sector, 0] ^= 1
    file.stable[sector, 0] ^= 1
    client = connect(world, "disk0")
    assert ask(world, client, CMD_READ, 0, BLOCK).errno == EIO
    assert flush(world, client) == EIO
    assert acknowledge(world, 1) is volume
    assert ask(world, client, CMD_READ, 0, BLOCK).errno == EIO
    assert flush(world, client) == 0
    assert list(volume.damaged_pages.values()) == ["its check does not match"]
    assert bytes(ask(world, client, CMD_READ, 5 * 512 * BLOCK, BLOCK).data) == block(1)


@pytest.mark.parametrize("death", ["kill -9", "power"])
def test_that_a_volume_takes_no_writes_is_known_after_a_crash(world: World, death: str) -> None:
    create(world, "disk0", 100 * MIB)
    set_policy(world, VolumeSettings(quota_bytes=2 * BLOCK, on_full=OnFull.READ_ONLY))
    client = connect(world, "disk0")
    assert write(world, client, 0, 1, 3) == ENOSPC
    world.settle()
    if death == "power":
        world.power_fails()
    else:
        world.server_dies()
    world.open()
    assert world.engine.by_name["disk0"].read_only is ReadOnly.FULL
    assert write(world, connect(world, "disk0"), 0, 1) == EPERM


def set_policy(world: World, settings: VolumeSettings) -> None:
    outcome = world.wait_for(lambda answer: world.engine.change_volume("disk0", answer, settings))
    world.settle(lambda: bool(outcome))
    assert not isinstance(outcome[0], HoldfastError), outcome[0]


@pytest.mark.parametrize("reopen", [False, True])
def test_a_volume_that_is_full_becomes_read_only_where_its_owner_wants_that(world: World, reopen: bool) -> None:
    volume = create(world, "disk0", 100 * MIB)
    create(world, "disk1", 100 * MIB)
    set_policy(world, VolumeSettings(quota_bytes=10 * BLOCK, on_full=OnFull.READ_ONLY))
    client = connect(world, "disk0")
    assert write(world, client, 0, 1, 10) == 0
    assert not volume.read_only
    assert write(world, client, 20, 1) == ENOSPC
    assert write(world, client, 0, 2) == EPERM, "also what would need no space"
    assert ask(world, client, CMD_WRITE, 5, payload=b"part").errno == EPERM
    assert ask(world, client, CMD_WRITE_ZEROES, 0, BLOCK).errno == EPERM
    assert write(world, client, 0, 2, flags=CMD_FLAG_FUA) == EPERM
    assert write(world, connect(world, "disk1"), 0, 2) == 0, "of that volume alone"
    assert bytes(ask(world, client, CMD_READ, 0, 10 * BLOCK).data) == block(1) * 10
    assert flush(world, client) == 0
    if reopen:
        world.close()
        world.open()
        client = connect(world, "disk0")
        assert write(world, client, 0, 2) == EPERM, "until somebody says so"
    assert ask(world, client, CMD_TRIM, 0, 5 * BLOCK).errno == 0, "the way out is open"
    set_policy(world, VolumeSettings(read_only=ReadOnly.NO))
    assert write(world, client, 20, 3, 5) == 0
    check_accounts(world)


def test_a_volume_whose_write_back_fails_becomes_read_only_where_its_owner_wants_that(world: World) -> None:
    volume = create(world, "disk0", 100 * MIB)
    set_policy(world, VolumeSettings(on_error=OnError.READ_ONLY))
    client = connect(world, "disk0")
    world.faults.turn_on("write", "ENOMEM", 1.0)
    assert write(world, client, 0, 1) == 0
    failed = client.send(CMD_FLUSH)
    assert world.go_on(5_000_000_000, lambda: failed.ready)
    assert failed.errno != 0
    assert volume.read_only
    refused = client.send(CMD_WRITE, BLOCK, payload=block(2))
    assert world.go_on(1_000_000_000, lambda: refused.ready)
    assert refused.errno == EPERM
    world.faults.calm()
    world.settle()
    assert flush(world, client) == 0, "what was accepted is written all the same"
    assert write(world, client, 1, 2) == EPERM
    set_policy(world, VolumeSettings(read_only=ReadOnly.NO))
    assert write(world, client, 1, 2) == 0
    assert bytes(ask(world, client, CMD_READ, 0, 2 * BLOCK).data) == block(1) + block(2)

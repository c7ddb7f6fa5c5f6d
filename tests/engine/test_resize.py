"""Volumes become larger and smaller, wherever a death falls: what was cut off never comes back, all else is there."""

from __future__ import annotations

import logging
from errno import EINVAL, EIO

import pytest

from holdfast.errors import HoldfastError, NotFoundError, RequestError
from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.pool.block import ADDRESS_MASK, page_owner
from holdfast.runtime.ports import READ, SUPERBLOCK
from holdfast.sim.accounts import check_accounts, mapped_lbas
from holdfast.sim.client import SimClient
from holdfast.sim.fate import Crashed
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, GIB, MIB
from holdfast.volume.resize import Resized
from holdfast.volume.volume import Volume
from tests.engine.helpers import HoldingWorld, ask, block, connect, create, leave, new_world

BLOCK = BLOCK_SIZE_BYTES
SMALL = 1 * MIB
LARGE = 700 * GIB  # three levels more
FAR = LARGE - 8 * BLOCK


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


def resize(world: World, size_bytes: int, *, force: bool = False, name: str = "disk0") -> Resized | HoldfastError:
    outcome = world.wait_for(lambda answer: world.engine.resize_volume(name, size_bytes, answer, force=force))
    world.settle(lambda: bool(outcome))
    assert isinstance(outcome[0], Resized | HoldfastError)
    return outcome[0]


def resized(world: World, size_bytes: int, *, force: bool = False) -> Volume:
    outcome = resize(world, size_bytes, force=force)
    assert isinstance(outcome, Resized), outcome
    assert outcome.volume.size_bytes == size_bytes
    return outcome.volume


def write(world: World, client: SimClient, offset: int, value: int, count: int = 1) -> None:
    assert ask(world, client, CMD_WRITE, offset, payload=block(value) * count).errno == 0


def read(world: World, client: SimClient, offset: int, length: int = BLOCK) -> bytes:
    answer = ask(world, client, CMD_READ, offset, length)
    assert answer.errno == 0
    return bytes(answer.data)


def flush(world: World, client: SimClient) -> None:
    assert ask(world, client, CMD_FLUSH).errno == 0


def with_volume(seed: str, size_bytes: int) -> HoldingWorld:
    world = new_world(seed)
    create(world, "disk0", size_bytes)
    return world


def behind_the_end(world: World) -> list[int]:
    volume = world.engine.find("disk0")
    return [lba for lba in mapped_lbas(world, volume) if lba >= volume.size_blocks]


def die(world: World, *, power: bool) -> None:
    if power:
        world.power_fails()
    else:
        world.server_dies()
    world.open()


def test_a_volume_grows_by_all_levels_at_once_while_it_is_used() -> None:
    world = with_volume("grow", SMALL)
    old = connect(world, "disk0")
    write(world, old, 0, 1)
    volume = resized(world, LARGE)
    assert volume.root_level == 3
    write(world, old, BLOCK, 2)
    assert ask(world, old, CMD_READ, SMALL, BLOCK).errno == EINVAL, "who is connected keeps the size that he was told"
    new = connect(world, "disk0")
    assert new.size_bytes == LARGE
    assert read(world, new, 0, 3 * BLOCK) == block(1) + block(2) + bytes(BLOCK)
    assert read(world, new, FAR) == bytes(BLOCK)
    write(world, new, FAR, 3)
    world.close()
    world.open()
    client = connect(world, "disk0")
    assert client.size_bytes == LARGE
    assert read(world, client, 0, 2 * BLOCK) == block(1) + block(2)
    assert read(world, client, FAR) == block(3)
    world.settle()
    check_accounts(world)


def test_what_is_written_behind_the_old_end_is_as_durable_as_all_else() -> None:
    for power in (False, True):
        world = with_volume("grown", SMALL)
        write(world, connect(world, "disk0"), 0, 1)
        resized(world, LARGE)
        client = connect(world, "disk0")
        write(world, client, FAR, 2)
        flush(world, client)
        world.disk.lose_slot()
        die(world, power=power)
        client = connect(world, "disk0")
        assert client.size_bytes == LARGE
        assert read(world, client, 0) == block(1)
        assert read(world, client, FAR) == block(2)
        world.settle()
        check_accounts(world)


def test_clients_are_told_of_the_new_size_once_it_is_durable() -> None:
    world = with_volume("durable first", SMALL)
    world.holding.holds = lambda io: io.file == SUPERBLOCK
    outcome = world.wait_for(lambda answer: world.engine.resize_volume("disk0", LARGE, answer))
    for _slot in range(2):
        world.let_happen()
        assert world.holding.held
        assert not outcome
        assert connect(world, "disk0").size_bytes == SMALL
        world.holding.release_one()
    world.holding.release()
    world.settle(lambda: bool(outcome))
    assert connect(world, "disk0").size_bytes == LARGE


def test_levels_are_not_added_while_a_checkpoint_is_running() -> None:
    world = with_volume("checkpoint", 700 * MIB)
    client = connect(world, "disk0")
    for index in range(20):
        write(world, client, index * 30 * MIB, index)
    checkpoint = world.spawn(world.engine.checkpoint())
    world.let_happen()
    world.holding.holds = lambda io: io.file == SUPERBLOCK
    checkpoint = world.spawn(world.engine.checkpoint())
    world.let_happen()
    outcome = world.wait_for(lambda answer: world.engine.resize_volume("disk0", LARGE, answer))
    write(world, client, BLOCK, 77)
    assert world.engine.find("disk0").root_level == 1
    world.holding.release()
    world.settle(lambda: bool(outcome) and bool(checkpoint))
    assert world.engine.find("disk0").root_level == 3
    for power in (False, True):
        flush(world, client)
        die(world, power=power)
        client = connect(world, "disk0")
        assert client.size_bytes == LARGE
        assert [read(world, client, index * 30 * MIB) for index in range(20)] == [block(index) for index in range(20)]
        assert read(world, client, BLOCK) == block(77)


def test_a_root_that_is_just_being_read_is_not_taken_for_the_new_one() -> None:
    world = with_volume("loading", 700 * MIB)
    write(world, connect(world, "disk0"), 5 * MIB, 5)
    world.close()
    world.open()
    world.disk.character.cached = 0.0
    client = connect(world, "disk0")
    world.holding.holds = lambda io: io.op == READ
    answer = client.send(CMD_READ, 5 * MIB, BLOCK)
    world.let_happen()
    outcome = world.wait_for(lambda answer: world.engine.resize_volume("disk0", LARGE, answer))
    world.let_happen()
    assert world.holding.held
    world.holding.release()
    world.settle()
    assert bytes(answer.data) == block(5)
    assert isinstance(outcome[0], Resized)
    assert read(world, client, 5 * MIB) == block(5)
    world.settle()
    check_accounts(world)


@pytest.mark.parametrize("power", [False, True])
def test_a_death_anywhere_in_growing_leaves_the_old_size_or_the_new_one(power: bool) -> None:
    sizes = set()
    for effects in range(0, 40, 2 - power):
        world = with_volume(f"death {effects}", SMALL)
        client = connect(world, "disk0")
        write(world, client, 3 * BLOCK, 3)
        flush(world, client)
        world.fate.left = effects
        try:
            resized(world, LARGE)
            world.fate.spare()
        except Crashed:
            pass
        die(world, power=power)
        client = connect(world, "disk0")
        sizes.add(client.size_bytes)
        assert client.size_bytes in (SMALL, LARGE)
        assert read(world, client, 3 * BLOCK) == block(3)
        resized(world, LARGE)
        client = connect(world, "disk0")
        write(world, client, FAR, 4)
        assert read(world, client, FAR) == block(4)
        assert read(world, client, 3 * BLOCK) == block(3)
        world.settle()
        check_accounts(world)
    assert sizes == {SMALL, LARGE}


# ---- smaller


def filled(seed: str, size_bytes: int = 8 * GIB) -> HoldingWorld:
    """A volume with data at its beginning, in the middle and at its end, a part of it in the ring only."""
    world = with_volume(seed, size_bytes)
    client = connect(world, "disk0")
    for at in (0, 3 * MIB, size_bytes // 2, size_bytes - 40 * BLOCK):
        write(world, client, at, 9, 20)
    world.run(world.engine.checkpoint())
    write(world, client, size_bytes - 20 * BLOCK, 8, 20)
    write(world, client, BLOCK, 7)
    leave(world, client)
    return world


def test_smaller_is_refused_without_force_and_says_what_it_would_cut() -> None:
    world = filled("refused", 4 * GIB)
    error = resize(world, 1 * GIB)
    assert isinstance(error, RequestError)
    assert "cuts 3G off, of which 240K hold data" in str(error)
    assert world.engine.find("disk0").size_bytes == 4 * GIB
    less = resize(world, 4 * GIB - 30 * BLOCK, force=True)
    assert isinstance(less, Resized)
    assert (less.cut_bytes, less.cut_data_bytes) == (30 * BLOCK, 30 * BLOCK)
    world.settle()
    check_accounts(world)


def test_smaller_is_refused_while_somebody_is_connected() -> None:
    world = filled("in use")
    client = connect(world, "disk0")
    error = resize(world, 1 * GIB, force=True)
    assert isinstance(error, RequestError)
    assert "in use" in str(error)
    assert isinstance(resize(world, 9 * GIB), Resized), "larger is not"
    leave(world, client)
    resized(world, 1 * GIB, force=True)


@pytest.mark.parametrize("size_bytes", [1 * GIB, 3 * MIB + 5 * BLOCK, 3 * MIB + 5 * BLOCK + 1234, BLOCK, 1])
def test_what_was_cut_off_reads_as_zeroes_when_the_volume_grows_again(size_bytes: int) -> None:
    world = filled(f"cut to {size_bytes}")
    resized(world, size_bytes, force=True)
    client = connect(world, "disk0")
    assert client.size_bytes == size_bytes
    kept = read(world, client, 0, min(size_bytes, 21 * BLOCK))
    assert kept == (block(9) + block(7) + block(9) * 18 + bytes(BLOCK))[:size_bytes]
    volume = resized(world, 8 * GIB)
    client = connect(world, "disk0")
    assert read(world, client, 0, min(size_bytes, 21 * BLOCK)) == kept
    for at in (3 * MIB, 4 * GIB, 8 * GIB - 40 * BLOCK):
        found = read(world, client, at, 40 * BLOCK)
        whole = (block(9) * 20 if at == 3 * MIB else b"").ljust(40 * BLOCK, b"\0")
        assert found == whole[: max(0, size_bytes - at)].ljust(40 * BLOCK, b"\0")
    assert volume.mapped_blocks == len(mapped_lbas(world, volume))
    world.settle()
    check_accounts(world)


def test_the_space_of_what_was_cut_off_comes_free() -> None:
    world = filled("space")
    volume = world.engine.find("disk0")
    assert volume.mapped_blocks == 100
    resized(world, 4 * GIB, force=True)
    world.settle()
    assert volume.mapped_blocks == 40
    assert volume.group.mapped_blocks == 40
    assert not volume.cutting
    assert not behind_the_end(world)
    check_accounts(world)


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("lost_slot", [False, True])
def test_a_death_anywhere_in_shrinking_cuts_all_or_nothing(power: bool, lost_slot: bool) -> None:
    sizes = set()
    target = 4 * MIB + 1234
    for effects in range(0, 60, 3):
        world = filled(f"death {effects}")
        world.run(world.engine.checkpoint())
        world.fate.left = effects
        try:
            resized(world, target, force=True)
            world.settle()
            world.fate.spare()
        except Crashed:
            pass
        if lost_slot:
            world.disk.lose_slot()
        die(world, power=power)
        client = connect(world, "disk0")
        size = client.size_bytes
        sizes.add(size)
        assert size in (8 * GIB, target)
        assert read(world, client, 0, 2 * BLOCK) == block(9) + block(7)
        if size == 8 * GIB:
            assert read(world, client, 8 * GIB - 40 * BLOCK, 40 * BLOCK) == block(9) * 20 + block(8) * 20
            leave(world, client)
            resized(world, target, force=True)
        world.settle()
        assert not behind_the_end(world)
        check_accounts(world)
        resized(world, 8 * GIB)
        client = connect(world, "disk0")
        for at in (target, 4 * GIB, 8 * GIB - 40 * BLOCK):
            assert read(world, client, at, 40 * BLOCK) == bytes(40 * BLOCK)
        world.settle()
        check_accounts(world)
    assert sizes == {8 * GIB, target}


def test_growth_waits_for_what_was_cut_off_to_be_let_go_of() -> None:
    world = filled("waits")
    world.close()
    world.open()
    world.disk.character.cached = 0.0
    world.holding.holds = lambda io: io.op == READ
    outcome = world.wait_for(lambda answer: world.engine.resize_volume("disk0", BLOCK, answer, force=True))
    world.let_happen()
    while not outcome:
        world.holding.release_one()
        world.let_happen()
    volume = world.engine.find("disk0")
    assert volume.cutting
    assert world.holding.held, "leaves behind the end, which nobody has looked at yet"
    grown = world.wait_for(lambda answer: world.engine.resize_volume("disk0", 8 * GIB, answer))
    world.let_happen()
    assert not grown
    assert volume.size_bytes == BLOCK
    world.holding.release()
    world.settle()
    assert isinstance(grown[0], Resized)
    assert read(world, connect(world, "disk0"), 4 * GIB) == bytes(BLOCK)


@pytest.mark.parametrize("death", [False, True])
def test_a_volume_that_is_being_cut_can_be_removed(death: bool) -> None:
    world = filled("removed")
    world.close()
    world.open()
    before = int(world.engine.space.live.sum())
    outcome = world.wait_for(lambda answer: world.engine.resize_volume("disk0", BLOCK, answer, force=True))
    world.settle(lambda: bool(outcome))
    if death:
        world.server_dies()
        world.begin_open()
        world.settle(lambda: world.engine.opened)
    removed = world.wait_for(lambda answer: world.engine.remove_volume("disk0", answer))
    world.settle()
    assert removed == [None]
    assert "disk0" not in world.engine.by_name
    assert int(world.engine.space.live.sum()) < before - 90
    check_accounts(world)


def test_a_cut_in_a_full_pool_makes_room() -> None:
    world = new_world("full", segments=24)
    create(world, "disk0", 1 * GIB)
    create(world, "disk1", 1 * GIB)
    client = connect(world, "disk0")
    at = 0
    while ask(world, client, CMD_WRITE, at, payload=block(1) * 64).errno == 0:
        at += 64 * BLOCK
    other = connect(world, "disk1")
    assert ask(world, other, CMD_WRITE, 0, payload=block(2)).errno != 0
    leave(world, client)
    resized(world, BLOCK, force=True)
    world.settle()
    for _ in range(2):
        world.run(world.engine.checkpoint())
    write(world, other, 0, 2, 64)
    check_accounts(world)


def test_a_damaged_page_behind_the_end_costs_its_own_range_only() -> None:
    world = filled("damage")
    world.close()
    world.open()
    volume = world.engine.find("disk0")
    leaf = 4 * GIB // (2 * MIB)
    parent = world.run(world.engine.table.page(volume, 1, leaf >> 9, create=False))
    entry = int(world.engine.cache.arena[parent, leaf & 511]) & ADDRESS_MASK
    assert page_owner(volume.volume_id, 0, leaf) not in world.engine.cache.slot_of
    shift = world.engine.log.shift
    stored = world.disk.files[entry >> shift]
    at = (entry & (1 << shift) - 1) * BLOCK // 512
    stored.now[at] ^= 255
    stored.stable[at] ^= 255
    resized(world, 1 * GIB, force=True)
    resized(world, 8 * GIB)
    client = connect(world, "disk0")
    assert ask(world, client, CMD_READ, 4 * GIB, BLOCK).errno == EIO
    assert read(world, client, 8 * GIB - 40 * BLOCK, 40 * BLOCK) == bytes(40 * BLOCK)
    assert read(world, client, 0) == block(9)


def test_sizes_that_cannot_be_and_volumes_that_are_not_there() -> None:
    world = with_volume("wrong", SMALL)
    assert isinstance(resize(world, 0), RequestError)
    assert isinstance(resize(world, 1 << 50), RequestError)
    assert isinstance(resize(world, SMALL, name="disk9"), NotFoundError)
    assert isinstance(resize(world, SMALL), Resized), "the size that it has"


def test_trims_and_reads_go_on_while_the_volume_grows() -> None:
    world = with_volume("under load", 10 * MIB)
    client = connect(world, "disk0")
    answers = []
    for index in range(200):
        answers.append(client.send(CMD_WRITE, index * 8 * BLOCK, payload=block(index)))
        if index % 3 == 0:
            answers.append(client.send(CMD_TRIM, index * 8 * BLOCK, BLOCK))
        if index == 100:
            outcome = world.wait_for(lambda answer: world.engine.resize_volume("disk0", LARGE, answer))
    world.settle()
    assert isinstance(outcome[0], Resized)
    assert not any(answer.errno for answer in answers)
    die(world, power=False)
    client = connect(world, "disk0")
    for index in range(200):
        assert read(world, client, index * 8 * BLOCK) == (bytes(BLOCK) if index % 3 == 0 else block(index))
    world.settle()
    check_accounts(world)


def test_what_the_log_has_behind_the_end_is_left_out_of_the_map() -> None:
    """It would need the new size to be told before it is durable; should it ever be, the pool opens all the same."""
    world = with_volume("behind", 2 * MIB)
    write(world, connect(world, "disk0"), 0, 1)
    resized(world, LARGE)
    world.run(world.engine.checkpoint(both_slots=True))
    volume = world.engine.find("disk0")
    volume.stored_size_bytes = 2 * MIB  # what the checkpoint says is not what clients were told
    world.run(world.engine.checkpoint(both_slots=True))
    client = connect(world, "disk0")
    write(world, client, 2 * MIB - BLOCK, 2, 3)
    write(world, client, FAR, 3)
    die(world, power=False)
    client = connect(world, "disk0")
    assert client.size_bytes == 2 * MIB
    assert read(world, client, 2 * MIB - BLOCK) == block(2)
    world.settle()
    assert not behind_the_end(world)
    check_accounts(world)
    resized(world, LARGE)
    client = connect(world, "disk0")
    assert read(world, client, FAR) == bytes(BLOCK)
    assert read(world, client, 2 * MIB, 2 * BLOCK) == bytes(2 * BLOCK)

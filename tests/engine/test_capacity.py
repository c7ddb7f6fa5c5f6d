"""A pool becomes larger and smaller while it is served, wherever a death falls."""

from __future__ import annotations

import logging
from errno import ENOSPC

import pytest

from holdfast.errors import HoldfastError, RequestError, RetryError
from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.runtime.ports import REMOVE, SUPERBLOCK
from holdfast.sim.accounts import check_accounts
from holdfast.sim.client import SimClient
from holdfast.sim.fate import Crashed
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from tests.engine.helpers import HoldingWorld, ask, block, connect, create, fill, new_world

BLOCK = BLOCK_SIZE_BYTES
SEGMENT = MIB


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


def resize(world: World, segments: int) -> HoldfastError | None:
    outcome = world.wait_for(lambda answer: world.engine.resize_pool(segments * SEGMENT, answer))
    world.settle(lambda: bool(outcome))
    assert outcome[0] is None or isinstance(outcome[0], HoldfastError)
    return outcome[0]


def opened(seed: str, segments: int = 32) -> tuple[HoldingWorld, SimClient]:
    world = new_world(seed, segments=segments)
    create(world, "disk0", 400 * MIB)
    return world, connect(world, "disk0")


def capacity(world: World) -> int:
    """As it is stored, and in memory."""
    space = world.engine.space
    stored = world.engine.checkpointer.superblock.capacity_segments
    assert stored == space.capacity_segments == space.limit_segments == len(space.live) == len(space.state)
    return stored


def holds(world: World, client: SimClient, at: int) -> bool:
    return bytes(ask(world, client, CMD_READ, at, BLOCK).data) == at.to_bytes(8, "big") * (BLOCK // 8)


def die(world: World, *, power: bool) -> None:
    if power:
        world.power_fails()
    else:
        world.server_dies()
    world.open()


def use_all_segments(world: World, client: SimClient) -> None:
    """Let the log go once through the pool; a few blocks stay."""
    for number in range(2 * world.engine.space.capacity_segments):
        assert ask(world, client, CMD_WRITE, 4 * MIB, payload=block(number) * 128).errno == 0
    assert ask(world, client, CMD_TRIM, 4 * MIB, MIB).errno == 0
    assert ask(world, client, CMD_FLUSH).errno == 0


def test_a_full_pool_takes_writes_again_once_it_is_larger() -> None:
    world, client = opened("full")
    end = fill(world, client)
    assert resize(world, 48) is None
    assert capacity(world) == 48
    for at in range(end, end + 8 * MIB, MIB // 4):
        assert ask(world, client, CMD_WRITE, at, payload=at.to_bytes(8, "big") * (MIB // 32)).errno == 0
    assert ask(world, client, CMD_FLUSH).errno == 0
    for power in (False, True):
        die(world, power=power)
        assert capacity(world) == 48
        client = connect(world, "disk0")
        assert all(holds(world, client, at) for at in range(0, end + 8 * MIB, MIB // 4))
    check_accounts(world)


def test_who_waits_for_space_goes_on_when_the_pool_grows() -> None:
    world, client = opened("waits")
    fill(world, client)
    other = connect(world, "disk0")
    world.engine.find("disk0").on_full_wait_s = 60
    patient = client.send(CMD_WRITE, 300 * MIB, payload=block(1))
    assert not world.go_on(1_000_000_000, lambda: patient.ready)
    assert resize(world, 48) is None
    assert world.go_on(2_000_000_000, lambda: patient.ready)
    assert patient.errno == 0
    assert ask(world, other, CMD_FLUSH).errno == 0


def test_new_segments_are_handed_out_once_both_slots_know_of_them() -> None:
    world, client = opened("durable first")
    fill(world, client)
    world.holding.holds = lambda io: io.file == SUPERBLOCK
    outcome = world.wait_for(lambda answer: world.engine.resize_pool(48 * SEGMENT, answer))
    for _slot in range(2):
        world.let_happen()
        assert not outcome
        assert max(world.disk.segments()) < 32
        assert world.engine.space.limit_segments == 32
        world.holding.release_one()
    world.holding.release()
    world.settle(lambda: bool(outcome))
    assert outcome == [None]
    world.settle()
    assert max(world.disk.segments()) >= 32


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("lost_slot", [False, True])
def test_a_death_anywhere_in_growing_loses_nothing(power: bool, lost_slot: bool) -> None:
    found = set()
    for effects in range(0, 60, 4):
        world, client = opened(f"death {effects}")
        end = fill(world, client)
        assert ask(world, client, CMD_FLUSH).errno == 0
        world.fate.left = effects
        flushed = end
        try:
            assert resize(world, 48) is None
            for at in range(end, end + 4 * MIB, MIB // 4):
                assert ask(world, client, CMD_WRITE, at, payload=at.to_bytes(8, "big") * (MIB // 32)).errno == 0
            assert ask(world, client, CMD_FLUSH).errno == 0
            flushed = end + 4 * MIB
            world.fate.spare()
        except Crashed:
            pass
        if lost_slot:
            world.disk.lose_slot()
        die(world, power=power)
        found.add(capacity(world))
        client = connect(world, "disk0")
        assert all(holds(world, client, at) for at in range(0, flushed, MIB // 4))
        check_accounts(world)
    assert found == {32, 48}


def test_a_pool_becomes_smaller_and_its_files_go() -> None:
    world, client = opened("smaller", segments=48)
    assert ask(world, client, CMD_WRITE, 0, payload=block(7)).errno == 0
    use_all_segments(world, client)
    assert max(world.disk.segments()) > 30
    for _ in range(2):
        world.run(world.engine.checkpoint(both_slots=True))
    assert resize(world, 24) is None
    assert capacity(world) == 24
    assert max(world.disk.segments()) < 24
    check_accounts(world)
    die(world, power=False)
    assert capacity(world) == 24
    client = connect(world, "disk0")
    assert bytes(ask(world, client, CMD_READ, 0, BLOCK).data) == block(7)
    check_accounts(world)
    end = fill(world, client)
    assert end < 24 * MIB
    assert max(world.disk.segments()) < 24
    assert resize(world, 48) is None
    assert ask(world, client, CMD_WRITE, end, payload=block(1)).errno == 0


def test_a_capacity_that_does_not_hold_the_data_is_refused_with_what_would() -> None:
    world, client = opened("too small", segments=64)
    for at in range(0, 20 * MIB, MIB // 4):
        assert ask(world, client, CMD_WRITE, at, payload=block(1) * 64).errno == 0
    error = resize(world, 20)
    assert isinstance(error, RequestError)
    assert "the pool holds 20" in str(error)
    assert f"the smallest capacity is {world.engine.capacity.smallest_segments()}M" in str(error)
    assert 24 < world.engine.capacity.smallest_segments() < 40
    assert isinstance(resize(world, 3), RequestError)
    assert isinstance(resize(world, 1 << 40), RequestError)
    assert capacity(world) == 64
    assert resize(world, 64) is None, "the capacity that it has"
    check_accounts(world)


def test_two_changes_at_a_time_are_refused() -> None:
    world, _client = opened("two")
    first = world.wait_for(lambda answer: world.engine.resize_pool(48 * SEGMENT, answer))
    second = world.wait_for(lambda answer: world.engine.resize_pool(40 * SEGMENT, answer))
    world.settle()
    assert first == [None]
    assert isinstance(second[0], RetryError)
    assert capacity(world) == 48


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("lost_slot", [False, True])
def test_a_death_anywhere_in_shrinking_leaves_one_capacity_or_the_other(power: bool, lost_slot: bool) -> None:
    found = set()
    for effects in range(0, 120, 8):
        world, client = opened(f"death {effects}", segments=48)
        use_all_segments(world, client)
        assert ask(world, client, CMD_WRITE, 0, payload=block(7)).errno == 0
        assert ask(world, client, CMD_FLUSH).errno == 0
        world.fate.left = effects
        try:
            assert resize(world, 24) is None
            world.settle()
            world.fate.spare()
        except Crashed:
            pass
        if lost_slot:
            world.disk.lose_slot()
        die(world, power=power)
        world.settle()
        found.add(capacity(world))
        assert max(world.disk.segments()) < capacity(world), "what a larger pool left behind is gone"
        client = connect(world, "disk0")
        assert bytes(ask(world, client, CMD_READ, 0, BLOCK).data) == block(7)
        check_accounts(world)
        assert resize(world, 24) is None
        assert capacity(world) == 24
        check_accounts(world)
    assert found == {24, 48}


def test_files_that_cannot_be_removed_are_removed_after_the_next_start() -> None:
    world, client = opened("stay", segments=48)
    use_all_segments(world, client)
    for _ in range(3):
        world.run(world.engine.checkpoint(both_slots=True))
    world.faults.turn_on("remove", "EIO", 1.0)
    assert resize(world, 24) is None
    world.faults.calm()
    assert max(world.disk.segments()) >= 24
    world.close()
    world.open()
    world.settle()
    assert max(world.disk.segments()) < 24


def test_a_segment_that_somebody_still_reads_is_waited_for() -> None:
    world, client = opened("reader", segments=48)
    use_all_segments(world, client)
    for _ in range(2):
        world.run(world.engine.checkpoint(both_slots=True))
    space = world.engine.space
    late = max(space.free)
    space.pin(late)
    outcome = world.wait_for(lambda answer: world.engine.resize_pool(24 * SEGMENT, answer))
    assert not world.go_on(2_000_000_000, lambda: bool(outcome))
    assert late in world.disk.segments()
    space.unpin(late)
    world.settle(lambda: bool(outcome))
    assert outcome == [None]
    assert late not in world.disk.segments()


def test_a_pool_that_is_made_smaller_under_load_answers_enospc_and_nothing_worse() -> None:
    world, client = opened("load", segments=64)
    use_all_segments(world, client)
    outcome = world.wait_for(lambda answer: world.engine.resize_pool(24 * SEGMENT, answer))
    answers = [client.send(CMD_WRITE, at * BLOCK, payload=block(at)) for at in range(400)]
    held = [client.send(CMD_FLUSH)]
    world.settle()
    assert not any(answer.errno for answer in held)
    assert {answer.errno for answer in answers} <= {0, ENOSPC}
    assert len(outcome) == 1
    check_accounts(world)


def test_removals_of_files_come_after_both_slots() -> None:
    world, client = opened("order", segments=48)
    use_all_segments(world, client)
    for _ in range(3):
        world.run(world.engine.checkpoint(both_slots=True))
    world.holding.holds = lambda io: io.op == REMOVE
    outcome = world.wait_for(lambda answer: world.engine.resize_pool(24 * SEGMENT, answer))
    world.let_happen()
    assert world.holding.held
    assert not outcome
    world.disk.lose_slot()
    world.server_dies()
    world.open()
    world.settle()
    assert capacity(world) == 24
    check_accounts(world)


def scattered(seed: str) -> tuple[HoldingWorld, SimClient]:
    """12 MiB of data, some of it in every segment of a pool of 64."""
    world, client = opened(seed, segments=64)
    for at in range(0, 12 * MIB, MIB // 4):
        assert ask(world, client, CMD_WRITE, at, payload=at.to_bytes(8, "big") * (MIB // 32)).errno == 0
        for junk in range(5):
            assert ask(world, client, CMD_WRITE, 100 * MIB, payload=block(junk) * 64).errno == 0
    return world, client


def test_what_is_live_behind_the_new_end_moves_while_clients_overwrite_it() -> None:
    world, client = scattered("scattered")
    smallest = world.engine.capacity.smallest_segments() + 2
    outcome = world.wait_for(lambda answer: world.engine.resize_pool(smallest * SEGMENT, answer))
    written: list[int] = []
    while not outcome:
        at = len(written) % 48 * (MIB // 4)
        written.append(ask(world, client, CMD_WRITE, at, payload=at.to_bytes(8, "big") * (MIB // 32)).errno)
        world.go_on(100_000_000, lambda: bool(outcome))
    assert outcome == [None]
    assert not any(written)
    assert capacity(world) == smallest < 30
    assert all(holds(world, client, at) for at in range(0, 12 * MIB, MIB // 4))
    check_accounts(world)
    die(world, power=False)
    client = connect(world, "disk0")
    assert all(holds(world, client, at) for at in range(0, 12 * MIB, MIB // 4))
    for at in range(0, 12 * MIB, MIB // 4):
        assert ask(world, client, CMD_WRITE, at, payload=at.to_bytes(8, "big") * (MIB // 32)).errno == 0
    world.settle()
    check_accounts(world)


@pytest.mark.parametrize("power", [False, True])
def test_a_death_while_data_moves_loses_nothing(power: bool) -> None:
    for effects in range(3, 200, 28):
        world, client = scattered(f"moving {effects}")
        assert ask(world, client, CMD_FLUSH).errno == 0
        world.fate.left = effects
        try:
            assert resize(world, 40) is None
            world.fate.spare()
        except Crashed:
            pass
        die(world, power=power)
        client = connect(world, "disk0")
        assert all(holds(world, client, at) for at in range(0, 12 * MIB, MIB // 4))
        check_accounts(world)
        assert resize(world, 40) is None
        assert all(holds(world, client, at) for at in range(0, 12 * MIB, MIB // 4))
        check_accounts(world)

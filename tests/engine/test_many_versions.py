"""Thousands of snapshots, long chains of clones, and commands that follow one another as fast as they are answered."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from random import Random

import pytest

from holdfast.errors import DiskError, HoldfastError
from holdfast.pool.checkpoint import VolumeTable
from holdfast.sim.accounts import check_accounts
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from holdfast.volume.holders import Holders
from holdfast.volume.versions import chain
from holdfast.volume.view import LINKS_PER_TURN
from tests.engine.helpers import create, new_world
from tests.engine.versions import SIZE, clone, of, read, remove, snapshot, write


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


@pytest.mark.parametrize(
    ("count", "config"),
    [
        (100, {"segments": 16, "segment_blocks": 1024, "pages": 128}),
        pytest.param(200, {"segments": 64, "segment_blocks": 256, "pages": 256}, marks=pytest.mark.slow),
    ],
)
def test_a_chain_of_clones_is_removed_in_any_order_in_a_small_pool(count: int, config: dict[str, int]) -> None:
    """The checkpoints of commands leave little more than a page in a segment: they wait for the cleaner before they
    have used up what checkpoints need. Each volume is removed as soon as the command before is answered, in whatever
    state what went before is then."""
    world = new_world("chain", ring_blocks=2048, **config)
    create(world, "c0", 64 * MIB)
    write(world, "c0", 0, of(1) + of(2))
    for number in range(1, count):
        clone(world, f"c{number - 1}", f"c{number}")
        write(world, f"c{number}", number, of(number + 2))
    assert read(world, f"c{count - 1}", 0, count) == of(1) + b"".join(of(number + 2) for number in range(1, count))
    order = list(range(count))
    Random(1).shuffle(order)
    for number in order:
        remove(world, f"c{number}")
    world.settle()
    assert not world.engine.volumes.by_id
    check_accounts(world)


# ---- while many are looked at


def test_clients_have_a_turn_while_a_view_of_a_long_chain_is_put_together() -> None:
    world = new_world("long", state_bytes=4 * MIB)
    engine = world.engine
    create(world, "v", SIZE)
    write(world, "v", 0, of(1))
    take_many(world, 2000)
    into = memoryview(bytearray(BLOCK_SIZE_BYTES))
    turns = 0
    looking = world.spawn(engine.reader.read(engine.find("v@0"), 0, into))
    while not looking:
        engine.turn()
        turns += 1
    assert turns >= 2000 // LINKS_PER_TURN
    assert bytes(into) == of(1)


def test_the_cleaner_asks_only_nodes_that_hold_data_and_their_own_pages() -> None:
    world = new_world("holders", state_bytes=4 * MIB)
    engine = world.engine
    volume = create(world, "v", SIZE)
    write(world, "v", 0, of(1))
    take_many(world, 100)
    write(world, "v", 0, of(2))
    holders = Holders(engine.volumes.by_id)
    newest = engine.find("v@99")
    assert holders.of(volume.volume_id) == [volume, newest]
    assert holders.owner(newest.volume_id) is newest


def test_commands_given_at_once_share_a_checkpoint() -> None:
    world = new_world("shared", state_bytes=4 * MIB)
    create(world, "v", SIZE)
    world.settle()
    before = world.engine.checkpointer.written
    take_many(world, 500)
    assert world.engine.checkpointer.written - before <= 2
    world.power_fails()
    world.open()
    assert len(world.engine.by_name) == 501


def test_a_checkpoint_that_fails_fails_for_all_that_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = new_world("shared failure", state_bytes=4 * MIB)
    create(world, "v", SIZE)

    def fails() -> VolumeTable:
        raise DiskError("cannot be written")

    monkeypatch.setattr(world.engine.checkpointer, "_volume_table", fails)
    outcomes = [world.wait_for(partial(world.engine.snapshots.take, [("v", str(number))])) for number in range(10)]
    world.settle()
    assert all(isinstance(outcome[0], DiskError) for outcome in outcomes)
    assert list(world.engine.by_name) == ["v"]


def test_views_that_were_evicted_are_forgotten() -> None:
    """What the cleaner moves is looked for in views that are in memory, not in all that ever were."""
    world = new_world("evicted", pages=64, state_bytes=4 * MIB)
    engine = world.engine
    create(world, "v", SIZE)
    write(world, "v", 0, of(1))
    take_many(world, 300)
    for number in range(300):
        assert read(world, f"v@{number}", 0) == of(1)
    assert sum(map(len, engine.views._viewed.values())) <= 2 * 64


@pytest.mark.slow
def test_ten_thousand_snapshots() -> None:
    """Taken one at a time at last, found again, read at both ends, and removed; with hardly any map in memory."""
    world = new_world(
        "ten thousand", segments=64, segment_blocks=1024, ring_blocks=2048, pages=64, state_bytes=32 * MIB
    )
    engine = world.engine
    create(world, "v", SIZE)
    for number in range(10):
        write(world, "v", number, of(number + 1))
        take_many(world, 1000, first=1000 * number)
    world.power_fails()
    world.open()
    engine = world.engine
    write(world, "v", 0, of(99))
    snapshot(world, "v@last")
    assert len(engine.by_name) == 10_002
    assert read(world, "v@0", 0, 10) == of(1) + 9 * of(0)
    assert read(world, "v@9999", 0, 10) == b"".join(of(number + 1) for number in range(10))
    assert read(world, "v@last", 0, 2) == of(99) + of(2)
    numbers = list(range(10_000))
    Random(1).shuffle(numbers)
    for number in numbers[:50]:
        remove(world, f"v@{number}")
    kept = min(numbers[50:])
    assert read(world, f"v@{kept}", 0, 10) == of(1) + 9 * of(0)
    remove(world, "v", snapshots=True)
    world.settle()
    assert not engine.volumes.by_id
    check_accounts(world)


@pytest.mark.slow
def test_a_chain_of_a_thousand_clones() -> None:
    """Each written to, all in the same leaf: the last one reads what all of them wrote, with 64 pages in memory."""
    world = new_world("chain", segments=128, segment_blocks=1024, ring_blocks=2048, pages=1024, state_bytes=32 * MIB)
    count = 1000
    create(world, "c0", SIZE)
    expected = [of(0)] * 512
    for number in range(count):
        if number:
            clone(world, f"c{number - 1}", f"c{number}")
        expected[number % 512] = of(number % 255 + 1)
        write(world, f"c{number}", number % 512, expected[number % 512])
    world.close()
    pages_bytes, world.plan = world.plan.page_bytes, replace(world.plan, page_bytes=64 * BLOCK_SIZE_BYTES)
    world.open()
    assert len(chain(world.engine.find(f"c{count - 1}"))) == 2 * count - 1
    assert read(world, f"c{count - 1}", 0, 512) == b"".join(expected)
    world.close()
    world.plan = replace(world.plan, page_bytes=pages_bytes)
    world.open()
    order = list(range(count))
    Random(1).shuffle(order)
    removed = [world.wait_for(partial(world.engine.remove_volume, f"c{number}")) for number in order]
    world.settle()
    assert not any(isinstance(outcome[0], HoldfastError) for outcome in removed)
    assert not world.engine.volumes.by_id
    check_accounts(world)


def take_many(world: World, count: int, *, first: int = 0) -> None:
    """So many snapshots of `v`, each of its own command, all given at once."""
    take = world.engine.snapshots.take
    taken = [world.wait_for(partial(take, [("v", str(number))])) for number in range(first, first + count)]
    world.settle(lambda: all(taken))
    assert all(isinstance(outcome[0], list) for outcome in taken), taken[0]

"""Snapshots and clones: each is what its volume was at one moment, whatever is written, removed and cut short after."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import pytest

from holdfast.errors import RequestError
from holdfast.pool.tables import GroupLimits
from holdfast.sim.accounts import check_accounts
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT, MIB
from holdfast.volume.settings import VolumeSettings
from holdfast.volume.volume import OnFull, Role, Volume
from holdfast.work.task import Work, run_to_end
from tests.engine.helpers import HoldingWorld, create, new_world
from tests.engine.versions import (
    BLOCK,
    BLOCKS,
    SIZE,
    call,
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


@pytest.fixture
def world() -> HoldingWorld:
    return new_world("snapshots")


# ---- one thing at a time


def test_a_snapshot_keeps_what_is_overwritten_and_what_is_trimmed(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) + of(2) + of(3))
    snapshot(world, "v@s")
    write(world, "v", 0, of(9))
    trim(world, "v", 1, 1)
    write(world, "v", 5, of(7))
    assert read(world, "v", 0, 6) == of(9) + of(0) + of(3) + 2 * of(0) + of(7)
    assert read(world, "v@s", 0, 6) == of(1) + of(2) + of(3) + 3 * of(0)
    check_accounts(world)


def test_a_block_is_in_one_map_at_a_time(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) + of(2))
    (taken,) = snapshot(world, "v@s")
    volume = world.engine.find("v")
    assert (volume.mapped_blocks, taken.mapped_blocks) == (2, 0)
    write(world, "v", 0, of(9))
    assert (volume.mapped_blocks, taken.mapped_blocks) == (2, 1)
    write(world, "v", 0, of(8))
    assert (volume.mapped_blocks, taken.mapped_blocks) == (2, 1)


def test_a_clone_changes_neither_its_snapshot_nor_the_volume(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) + of(2) + of(3))
    snapshot(world, "v@s")
    clone(world, "v@s", "c")
    write(world, "c", 1, of(5))
    trim(world, "c", 2, 1)
    write(world, "v", 0, of(9))
    assert read(world, "c", 0, 3) == of(1) + of(5) + of(0)
    assert read(world, "v@s", 0, 3) == of(1) + of(2) + of(3)
    snapshot(world, "c@t")
    write(world, "c", 0, of(6) + of(7) + of(8))
    assert read(world, "c@t", 0, 3) == of(1) + of(5) + of(0)
    assert read(world, "c", 0, 3) == of(6) + of(7) + of(8)
    check_accounts(world)


def test_snapshots_of_several_volumes_are_of_one_moment_or_there_is_none(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    create(world, "w", SIZE)
    write(world, "v", 0, of(1))
    assert [node.name for node in snapshot(world, "v@s", "w@s")] == ["v@s", "w@s"]
    with pytest.raises(RequestError, match="'w@s' already"):
        snapshot(world, "v@t", "w@s")
    with pytest.raises(RequestError):
        world.engine.find("v@t")


@pytest.mark.parametrize("order", ["vst", "vts", "stv", "tsv", "svt", "tvs"])
def test_a_volume_and_its_snapshots_go_in_any_order_and_leave_nothing(world: HoldingWorld, order: str) -> None:
    create(world, "v", SIZE)
    used = world.engine.space.live.sum()
    for number, name in enumerate("st"):
        for lba in range(0, BLOCKS, 300):
            write(world, "v", lba + number, of(number + 1) * 3)
        snapshot(world, f"v@{name}")
    write(world, "v", 0, of(9) * 4)
    clone(world, "v@s", "c")
    before = read(world, "c", 0, BLOCKS)
    for name in order:
        if name == "v":
            for left in [node.label for node in world.engine.by_name.values() if node.role is Role.SNAPSHOT]:
                remove(world, f"v@{left}")
            remove(world, "v")
        elif f"v@{name}" in world.engine.by_name:
            remove(world, f"v@{name}")
        assert read(world, "c", 0, BLOCKS) == before
        world.settle()
        check_accounts(world)
    remove(world, "c")
    world.settle()
    check_accounts(world)
    assert len(world.engine.volumes.by_id) == 0
    create(world, "v", SIZE)
    assert world.engine.space.live.sum() == used


def test_a_volume_rolled_back_is_as_it_was_and_its_snapshots_stay(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    for number in range(3):
        write(world, "v", number, of(number + 1))
        snapshot(world, f"v@s{number}")
    write(world, "v", 0, of(9) * 5)
    roll_back(world, "v@s1")
    assert read(world, "v", 0, 5) == of(1) + of(2) + 3 * of(0)
    write(world, "v", 0, of(7))
    snapshot(world, "v@after")
    write(world, "v", 1, of(8))
    world.settle()
    assert read(world, "v", 0, 3) == of(7) + of(8) + of(0)
    assert read(world, "v@after", 0, 3) == of(7) + of(2) + of(0)
    assert read(world, "v@s2", 0, 4) == of(1) + of(2) + of(3) + of(0)
    assert read(world, "v@s0", 0, 4) == of(1) + 3 * of(0)
    check_accounts(world)
    roll_back(world, "v@s2")
    world.settle()
    assert read(world, "v", 0, 4) == of(1) + of(2) + of(3) + of(0)
    assert read(world, "v@after", 0, 3) == of(7) + of(2) + of(0)
    check_accounts(world)


def test_a_promoted_clone_takes_its_snapshot_with_it(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1))
    snapshot(world, "v@old")
    snapshot(world, "v@s")
    write(world, "v", 0, of(2))
    snapshot(world, "v@new")
    clone(world, "v@s", "c")
    promote(world, "c")
    assert sorted(world.engine.by_name) == ["c", "c@old", "c@s", "v", "v@new"]
    remove(world, "v", snapshots=True)
    world.settle()
    assert read(world, "c") == read(world, "c@s") == read(world, "c@old") == of(1)
    check_accounts(world)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (lambda world: snapshot(world, "v@s"), "already"),
        (lambda world: snapshot(world, "v@" + "x" * 65), "1 to 64"),
        (lambda world: snapshot(world, "v@a", "v@b"), "twice"),
        (lambda world: remove(world, "v"), "has a snapshot; remove it first"),
        (lambda world: promote(world, "v"), "not a clone"),
        (lambda world: roll_back(world, "v"), "not a snapshot"),
        (lambda world: clone(world, "v@s", "v"), "already"),
        (lambda world: clone(world, "v@none", "w"), "no snapshot"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    world: HoldingWorld, what: Callable[[World], object], why: str
) -> None:
    create(world, "v", SIZE)
    snapshot(world, "v@s")
    with pytest.raises((RequestError, ValueError), match=why):
        what(world)
    assert sorted(world.engine.by_name) == ["v", "v@s"]
    assert len(world.engine.volumes.by_id) == 2


def test_a_protected_snapshot_is_not_removed(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    (taken,) = snapshot(world, "v@s")
    taken.protected = True
    with pytest.raises(RequestError, match="protected"):
        remove(world, "v@s")
    with pytest.raises(RequestError, match="protected"):
        remove(world, "v", snapshots=True)


def test_a_snapshot_is_exported_for_reading_only(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    snapshot(world, "v@s")
    export = world.server.find("v@s")
    assert export is not None
    assert export.read_only
    assert not world.server.find("v").read_only  # type: ignore[union-attr]


# ---- while a view is put together


def warm_world() -> HoldingWorld:
    """`v` with two snapshots, each of which has something in the first leaf, and a clone; no view is in memory."""
    world = new_world("warm")
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) + of(2) + of(3) + of(4))
    snapshot(world, "v@a")
    write(world, "v", 0, of(5))
    snapshot(world, "v@b")
    write(world, "v", 1, of(6))
    clone(world, "v@a", "c")
    write(world, "c", 3, of(7))
    return world


def write_now(world: World, name: str, lba: int, content: bytes) -> None:
    """Write what needs no waiting, so that nothing else happens before it has been written."""
    done, obstacle = world.engine.writer.write_run(world.engine.find(name), lba, memoryview(content))
    assert (done << BLOCK_SHIFT, obstacle) == (len(content), 0)


@pytest.mark.parametrize("pause_at", ["v", "v@b", "v@a"])
def test_a_snapshot_taken_while_an_older_one_is_looked_at_hides_nothing_from_it(pause_at: str) -> None:
    world = warm_world()
    engine = world.engine
    page = engine.table.page

    def slow_page(volume: Volume, level: int, index: int, *, create: bool, must: bool = False) -> Work:
        if volume is engine.by_name[pause_at] and not create:
            yield engine.waitlists.next_turn
        return (yield from page(volume, level, index, create=create, must=must))

    engine.table.page = slow_page  # type: ignore[method-assign]
    engine.table.at_hand = lambda _volume, _leaf: None  # type: ignore[method-assign,assignment]
    into = memoryview(bytearray(4 * BLOCK))
    looking = world.spawn(engine.reader.read(engine.find("v@a"), 0, into))
    assert not looking
    taken = world.wait_for(lambda answer: engine.snapshots.take([("v", "c")], answer))
    assert not taken  # it is not durable yet, but there
    run_to_end(engine.leaves.bring_in(lambda: engine.find("v").keepers, 0), lambda _io: 0)
    write_now(world, "v", 0, 4 * of(9))
    world.settle()
    assert bytes(into) == of(1) + of(2) + of(3) + of(4)
    assert read(world, "v@c", 0, 4) == of(5) + of(6) + of(3) + of(4)


def test_a_clone_that_is_written_before_its_view_finds_a_page_shows_what_was_written() -> None:
    world = warm_world()
    world.faults.turn_on("map pages", "refuse", 1.0)
    looking = world.spawn(world.engine.reader.read(world.engine.find("c"), 0, memoryview(bytearray(BLOCK))))
    write_now(world, "c", 1, of(9))
    assert not looking
    world.faults.calm()
    world.settle()
    assert read(world, "c", 0, 4) == of(1) + of(9) + of(3) + of(7)


def test_a_mark_leads_to_the_ground_although_the_clone_before_it_goes_while_it_is_looked_at(
    world: HoldingWorld,
) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1))
    snapshot(world, "v@g")
    clone(world, "v@g", "c")
    snapshot(world, "c@a")
    trim(world, "c", 0, 1)  # what the snapshot saw there was its ground's
    engine = world.engine
    former, oldest = engine.find("c"), engine.find("c@a")
    page, paused = engine.table.page, [True]

    def slow_page(volume: Volume, level: int, index: int, *, create: bool, must: bool = False) -> Work:
        while volume is oldest and not create and paused and engine.views.is_building(oldest):
            yield engine.waitlists.next_tick
        return (yield from page(volume, level, index, create=create, must=must))

    engine.table.page = slow_page  # type: ignore[method-assign]
    engine.table.at_hand = lambda _volume, _leaf: None  # type: ignore[method-assign,assignment]
    into = memoryview(bytearray(BLOCK))
    looking = world.spawn(engine.reader.read(oldest, 0, into))
    call(world, lambda answer: engine.snapshots.roll_back("c@a", answer))
    world.settle(lambda: former.basis is None)  # it is out of the tree
    assert not looking
    paused.clear()
    world.settle(lambda: bool(looking))
    assert bytes(into) == of(1)


# ---- names, settings, numbers


def test_a_name_is_taken_from_the_moment_it_is_asked_for(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    engine = world.engine
    first = world.wait_for(lambda answer: engine.snapshots.take([("v", "s")], answer))
    second = world.wait_for(lambda answer: engine.snapshots.take([("v", "s")], answer))
    other = world.wait_for(lambda answer: engine.snapshots.clone("v", "c", answer))
    third = world.wait_for(lambda answer: engine.create_volume("c", SIZE, answer))
    assert isinstance(second[0], RequestError)
    assert isinstance(third[0], RequestError)
    world.settle(lambda: bool(first and other))
    assert sorted(engine.by_name) == ["c", "v", "v@s"]
    remove(world, "v@s")
    snapshot(world, "v@s")  # the name is free again


def test_a_clone_has_no_settings_but_its_own(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    settings = VolumeSettings(quota_bytes=MIB, on_full_wait_s=9, on_full=OnFull.READ_ONLY, protected=True)
    call(world, lambda answer: world.engine.change_volume("v", answer, settings))
    snapshot(world, "v@s")
    made = clone(world, "v@s", "c")
    for node in (made, world.engine.find("v@s")):
        assert (node.quota_bytes, node.on_full_wait_s, node.on_full) == (0, 0, OnFull.ERROR)
        assert not node.protected
    with pytest.raises(RequestError, match="protected and unprotected only"):
        call(world, lambda answer: world.engine.change_volume("v@s", answer, VolumeSettings(quota_bytes=MIB)))
    with pytest.raises(RequestError, match="'v' is protected"):
        remove(world, "v", snapshots=True)


def test_snapshots_follow_their_volume_from_group_to_group(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) * 4)
    snapshot(world, "v@s")
    write(world, "v", 0, of(2) * 3)
    red = call(world, lambda answer: world.engine.groups.create("red", GroupLimits(), answer))
    call(world, lambda answer: world.engine.change_volume("v", answer, VolumeSettings(group=red)))
    assert (world.engine.find("v@s").group, red.mapped_blocks) == (red, 7)
    check_accounts(world)
    made = clone(world, "v@s", "c")
    call(
        world,
        lambda answer: world.engine.change_volume(
            "c", answer, VolumeSettings(group=world.engine.groups.find("default"))
        ),
    )
    promote(world, "c")
    assert world.engine.find("c@s").group is made.group is not red
    assert red.mapped_blocks == 4
    check_accounts(world)


def test_many_snapshots_and_their_volume_go_together(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    used = world.engine.space.live.sum()
    taken = [world.wait_for(partial(world.engine.snapshots.take, [("v", f"s{number}")])) for number in range(300)]
    world.settle(lambda: all(taken))
    write(world, "v", 0, of(1))
    remove(world, "v", snapshots=True)
    world.settle(lambda: not world.engine.volumes.by_id)
    assert world.engine.by_name == {}
    check_accounts(world)
    call(world, lambda answer: world.engine.create_volume("v", SIZE, answer))
    world.settle()
    assert world.engine.space.live.sum() <= used

"""Rows T1, T2, T3 and T5: groups of volumes, their limits, and that whoever is at one stands still alone."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOSPC
from functools import partial
from typing import Any

import pytest

from holdfast.errors import DiskError, HoldfastError, NoSpaceError, NotFoundError, RequestError, RetryError
from holdfast.memory.group import Kind
from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.pool.checkpoint import VolumeTable
from holdfast.pool.tables import GroupLimits
from holdfast.runtime.ports import WRITE
from holdfast.sim.accounts import check_accounts
from holdfast.sim.client import Answer, SimClient
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, GIB, KIB, MIB
from holdfast.volume.groups import TenantGroup
from holdfast.volume.settings import VolumeSettings
from holdfast.work.task import Work
from tests.engine.helpers import HoldingWorld, ask, block, connect, create, leave, new_world

DIRTY_BYTES = 256 * KIB
SEGMENT_END_BYTES = 18 * BLOCK_SIZE_BYTES  # the end of a segment may come on top of a limit


def outcome_of(world: World, begin: Callable[[Callable[[object], None]], object]) -> object:
    outcome = world.wait_for(begin)
    world.settle(lambda: bool(outcome))
    return outcome[0]


def make_group(world: World, name: str, **limits: Any) -> TenantGroup:
    group = outcome_of(world, lambda answer: world.engine.groups.create(name, GroupLimits(**limits), answer))
    assert isinstance(group, TenantGroup), group
    return group


def set_limits(world: World, name: str, **limits: Any) -> object:
    return outcome_of(world, lambda answer: world.engine.groups.change(name, GroupLimits(**limits), answer))


def create_in(world: World, name: str, group: TenantGroup) -> None:
    settings = VolumeSettings(group=group)
    made = outcome_of(world, lambda answer: world.engine.create_volume(name, 700 * MIB, answer, settings))
    assert not isinstance(made, HoldfastError), made


def dirty_bytes(world: World, group: TenantGroup) -> int:
    world.engine.log.settle()
    return group.memory.usage[Kind.RING]


def hold_writes(world: HoldingWorld) -> None:
    world.holding.holds = lambda io: io.op == WRITE


def send_writes(client: SimClient, count: int, *, first: int = 0) -> list[Answer]:
    return [
        client.send(CMD_WRITE, (first + number) * BLOCK_SIZE_BYTES, payload=block(number + 1))
        for number in range(count)
    ]


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> HoldingWorld:
    return new_world("groups")


def test_a_group_at_its_limit_of_dirty_data_stands_still_and_others_go_on(world: HoldingWorld) -> None:
    red = make_group(world, "red", dirty_bytes=DIRTY_BYTES)
    create_in(world, "redisk", red)
    create(world, "other", 100 * MIB)
    client, other = connect(world, "redisk"), connect(world, "other")
    world.engine.groups.directory.default.memory.throttled_ns = 0
    hold_writes(world)
    answers = send_writes(client, 400)
    world.let_happen()
    taken = sum(answer.ready for answer in answers)
    assert DIRTY_BYTES // BLOCK_SIZE_BYTES // 2 < taken <= DIRTY_BYTES // BLOCK_SIZE_BYTES
    assert DIRTY_BYTES - 2 * BLOCK_SIZE_BYTES <= dirty_bytes(world, red) <= DIRTY_BYTES + SEGMENT_END_BYTES
    assert red.memory.refusals[Kind.RING] > 0
    beside = send_writes(other, 100)
    world.let_happen()
    assert all(answer.ready and not answer.errno for answer in beside), "nobody else waits"
    world.holding.release()
    world.settle()
    assert all(answer.ready and not answer.errno for answer in answers), "what waited goes on when there is room"
    assert ask(world, client, CMD_FLUSH).errno == 0
    assert dirty_bytes(world, red) == 0
    check_accounts(world)


def test_whoever_stands_still_says_for_what(world: HoldingWorld) -> None:
    """Row A5."""
    red = make_group(world, "red", dirty_bytes=DIRTY_BYTES)
    create_in(world, "redisk", red)
    client = connect(world, "redisk")
    hold_writes(world)
    send_writes(client, 400)
    world.let_happen()
    waits = {wait.operation: wait for wait in world.engine.waits.picture().waiting}
    assert waits["backlog"].waits_for == "the group's share of the ring"
    world.holding.release()
    world.settle()


def test_each_pays_for_what_it_has_written_itself(world: HoldingWorld) -> None:
    """Also where their writes alternate, within one commit of the log."""
    groups = [make_group(world, name) for name in ("red", "green")]
    for number, group in enumerate(groups):
        create_in(world, f"disk{number}", group)
    clients = [connect(world, f"disk{number}") for number in range(2)]
    for client in clients:
        assert ask(world, client, CMD_WRITE, 0, payload=block(1)).errno == 0
        assert ask(world, client, CMD_FLUSH).errno == 0
    hold_writes(world)
    for number in range(20):
        for client, count in zip(clients, (1, 3), strict=True):
            answer = client.send(CMD_WRITE, number * 4 * BLOCK_SIZE_BYTES, payload=block(2) * count)
            world.loop.turn_again()
            assert world.go_on(10_000_000, partial(getattr, answer, "ready"))
    headers = 2
    assert 20 <= dirty_bytes(world, groups[0]) // BLOCK_SIZE_BYTES <= 20 + headers
    assert 60 <= dirty_bytes(world, groups[1]) // BLOCK_SIZE_BYTES <= 60 + headers
    world.holding.release()
    world.settle()


def test_near_its_limit_a_group_is_slowed_and_others_are_not(world: HoldingWorld) -> None:
    red = make_group(world, "red", dirty_bytes=DIRTY_BYTES)
    create_in(world, "redisk", red)
    create(world, "other", 100 * MIB)
    for client in (connect(world, "redisk"), connect(world, "other")):
        answers = send_writes(client, 2000)
        world.settle()
        assert all(answer.ready and not answer.errno for answer in answers)
    assert red.memory.throttled_ns > 0
    assert world.engine.groups.directory.default.memory.throttled_ns == 0


def test_a_group_is_always_given_what_it_is_sure_of(world: HoldingWorld) -> None:
    """The other fills the ring, which the disk does not take: what is set aside is not in it."""
    red = make_group(world, "red", dirty_min_bytes=DIRTY_BYTES)
    create_in(world, "redisk", red)
    create(world, "other", 100 * MIB)
    client, other = connect(world, "redisk"), connect(world, "other")
    hold_writes(world)
    flood = send_writes(other, 2000)
    world.let_happen()
    assert not all(answer.ready for answer in flood), "the ring is full"
    answers = send_writes(client, 50)
    world.let_happen()
    assert all(answer.ready and not answer.errno for answer in answers)
    world.holding.release()
    world.settle()


def test_the_volumes_of_a_group_share_its_space_and_are_told_enospc_at_its_end(world: HoldingWorld) -> None:
    blocks = 256
    red = make_group(world, "red", space_bytes=blocks * BLOCK_SIZE_BYTES)
    create_in(world, "first", red)
    create_in(world, "second", red)
    create(world, "other", 100 * MIB)
    first, second, other = (connect(world, name) for name in ("first", "second", "other"))

    def write(client: SimClient, lba: int, count: int = 1) -> int:
        return ask(world, client, CMD_WRITE, lba * BLOCK_SIZE_BYTES, payload=block(7) * count).errno

    assert write(first, 0, 100) == 0
    assert write(second, 0, 200) == ENOSPC, "as far as it goes"
    assert red.mapped_blocks == blocks
    assert write(first, 5000) == write(second, 5000) == ENOSPC
    assert write(first, 3) == 0, "what is mapped may be written again"
    assert write(other, 0, 300) == 0
    assert bytes(ask(world, second, CMD_READ, 0, BLOCK_SIZE_BYTES).data) == block(7)
    assert ask(world, first, CMD_FLUSH).errno == 0
    assert ask(world, first, CMD_TRIM, 0, 10 * BLOCK_SIZE_BYTES).errno == 0
    assert write(second, 5000, 10) == 0, "a trim in one volume makes room for the other"
    assert write(second, 6000) == ENOSPC
    check_accounts(world)


def test_with_little_memory_a_group_gets_on_and_keeps_to_it(world: HoldingWorld) -> None:
    """Row T5: the pages that a write needs are found within the group, and metadata of the server is not its affair."""
    red = make_group(world, "red", memory_bytes=MIB)
    create_in(world, "redisk", red)
    client = connect(world, "redisk")
    for number in range(400):  # each in a leaf of its own: more leaves than it may have pages
        offset = number * 337 % 350 * 2 * MIB
        assert ask(world, client, CMD_WRITE, offset, payload=block(number + 1)).errno == 0
        assert red.memory.usage[Kind.MAP_PAGES] <= MIB
    assert ask(world, client, CMD_FLUSH).errno == 0
    assert bytes(ask(world, client, CMD_READ, 399 * 337 % 350 * 2 * MIB, BLOCK_SIZE_BYTES).data) == block(400)
    world.run(world.engine.checkpoint())
    check_accounts(world)


def test_the_issuer_pays_and_not_the_volume(world: HoldingWorld) -> None:
    """By the uid of the peer, on Unix sockets (row T1)."""
    world.config.uids = (1000,)
    batch = make_group(world, "batch", uid=1000)
    disk = create(world, "disk", 100 * MIB)
    client = connect(world, "disk")
    hold_writes(world)
    send_writes(client, 40)
    world.let_happen()
    assert dirty_bytes(world, batch) >= 40 * BLOCK_SIZE_BYTES
    assert dirty_bytes(world, disk.group) == 0
    assert batch.memory.usage[Kind.STATE] > 0
    assert disk.group.memory.usage[Kind.STATE] == 0
    assert (batch.mapped_blocks, disk.group.mapped_blocks) == (0, 40), "space stays with the volume"
    world.holding.release()
    world.settle()
    assert dirty_bytes(world, batch) == 0


def test_the_innermost_control_group_of_a_peer_counts_before_its_uid(world: HoldingWorld) -> None:
    directory = world.engine.groups.directory
    by_uid, outer, inner = (
        make_group(world, name, **limits)
        for name, limits in (("uid", {"uid": 1000}), ("outer", {"cgroup": "/a"}), ("inner", {"cgroup": "/a/b"}))
    )
    assert directory.of_peer(1000, "/a/b/c") is inner
    assert directory.of_peer(1000, "/a/bc") is outer
    assert directory.of_peer(1000, "/x") is by_uid
    assert directory.of_peer(1001, "/x") is None
    assert directory.of_peer(None, "") is None
    taken = outcome_of(world, lambda answer: world.engine.groups.create("again", GroupLimits(uid=1000), answer))
    assert isinstance(taken, RequestError)
    assert "charged to group 'uid' already" in str(taken)


@pytest.mark.parametrize("death", ["kill -9", "power", "close"])
def test_groups_and_who_is_in_them_survive(world: HoldingWorld, death: str) -> None:
    limits: dict[str, Any] = {
        "memory_bytes": 2 * MIB,
        "dirty_bytes": MIB,
        "space_bytes": 3 * MIB,
        "dirty_min_bytes": 64 * KIB,
    }
    red = make_group(world, "red", **limits)
    create_in(world, "redisk", red)
    make_group(world, "gone")
    assert set_limits(world, "default", dirty_bytes=MIB) is world.engine.groups.directory.default
    assert outcome_of(world, lambda answer: world.engine.groups.remove("gone", answer)) is None
    client = connect(world, "redisk")
    assert ask(world, client, CMD_WRITE, 0, payload=block(1) * 100).errno == 0
    if death == "power":
        assert ask(world, client, CMD_FLUSH).errno == 0
        world.power_fails()
    elif death == "kill -9":
        world.server_dies()
    else:
        world.close()
    world.open()
    there = world.engine.groups.directory.by_name
    assert set(there) == {"default", "red"}
    assert there["red"].limits == GroupLimits(**limits)
    assert there["default"].limits == GroupLimits(dirty_bytes=MIB)
    assert there["red"].mapped_blocks == 100
    assert world.engine.by_name["redisk"].group is there["red"]
    check_accounts(world)


def test_a_volume_moves_with_all_that_it_has(world: HoldingWorld) -> None:
    red = make_group(world, "red")
    disk = create(world, "disk", 100 * MIB)
    client = connect(world, "disk")
    assert ask(world, client, CMD_WRITE, 0, payload=block(1) * 100).errno == 0
    default = disk.group
    moved = outcome_of(world, lambda answer: world.engine.change_volume("disk", answer, VolumeSettings(group=red)))
    assert moved is disk
    assert (red.mapped_blocks, red.volumes, default.mapped_blocks, default.volumes) == (100, 1, 0, 0)
    assert red.memory.usage[Kind.MAP_PAGES] > 0
    assert default.memory.usage[Kind.MAP_PAGES] == 0
    world.settle()
    check_accounts(world)


def test_what_makes_no_sense_is_refused_and_changes_nothing(world: HoldingWorld) -> None:
    red = make_group(world, "red")
    create_in(world, "redisk", red)
    for limits, why in (
        ({"memory_bytes": 1000}, "too little for a group"),
        ({"dirty_bytes": 1000}, "too little for a group"),
        ({"dirty_bytes": MIB, "dirty_min_bytes": 2 * MIB}, "its limit is 1M"),
        ({"dirty_min_bytes": 1 << 40}, "cannot be sure of"),
        ({"map_min_bytes": 1 << 40, "dirty_min_bytes": KIB}, "cannot be sure of"),
        ({"memory_bytes": 2 * MIB, "map_min_bytes": MIB + 1, "dirty_min_bytes": MIB}, "its memory limit is 2M"),
        ({"space_bytes": 4095}, "less than a block"),
    ):
        refused = set_limits(world, "red", **limits)
        assert isinstance(refused, RequestError), limits
        assert why in str(refused)
        assert red.limits == GroupLimits()
        assert red.memory.minimums == [0] * len(Kind)
    for name in ("red", "", "-x", "a/b", "x" * 65, "server", "all"):
        refused = outcome_of(world, partial(world.engine.groups.create, name, GroupLimits()))
        assert isinstance(refused, RequestError), name
    for name in ("default", "red"):
        refused = outcome_of(world, partial(world.engine.groups.remove, name))
        assert isinstance(refused, RequestError), name
    assert isinstance(set_limits(world, "blue"), NotFoundError)
    check_accounts(world)


def test_a_group_that_pays_for_connected_clients_is_not_removed(world: HoldingWorld) -> None:
    world.config.uids = (1000,)
    make_group(world, "batch", uid=1000)
    create(world, "disk", 100 * MIB)
    client = connect(world, "disk")
    refused = outcome_of(world, partial(world.engine.groups.remove, "batch"))
    assert isinstance(refused, RequestError)
    assert "pays for clients that are connected" in str(refused)
    leave(world, client)
    assert outcome_of(world, partial(world.engine.groups.remove, "batch")) is None


@pytest.mark.parametrize("what", ["create", "remove", "change"])
def test_what_cannot_be_stored_is_undone(world: HoldingWorld, what: str) -> None:
    """Here: because the checkpoint fails for good."""
    red = make_group(world, "red", dirty_min_bytes=64 * KIB)
    groups, root = world.engine.groups, world.engine.accounts.root
    used = root.usage[Kind.RING]
    world.engine.checkpointer._volume_table = _fails
    begin: Callable[[Callable[[object], None]], object] = {
        "create": partial(groups.create, "blue", GroupLimits(dirty_min_bytes=64 * KIB)),
        "remove": partial(groups.remove, "red"),
        "change": partial(groups.change, "red", GroupLimits(dirty_min_bytes=128 * KIB)),
    }[what]
    assert isinstance(outcome_of(world, begin), NoSpaceError)
    assert set(groups.directory.by_name) == {"default", "red"}
    assert groups.find("red") is red
    assert red.limits == GroupLimits(dirty_min_bytes=64 * KIB)
    assert root.usage[Kind.RING] == used


def _fails() -> VolumeTable:
    raise NoSpaceError("the pool has no segment left for its own metadata")


def fail_to_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no change of a group becomes durable."""

    def checkpoint() -> Work:
        yield world.engine.waitlists.next_tick
        raise DiskError("the superblock cannot be written")

    monkeypatch.setattr(world.engine.groups, "_checkpoint", checkpoint)


def test_a_group_on_its_way_out_is_found_no_more_and_its_place_is_not_given_away(
    world: HoldingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    red = make_group(world, "red")
    fail_to_store(world, monkeypatch)
    removed = world.wait_for(partial(world.engine.groups.remove, "red"))
    assert not removed
    again = outcome_of(world, partial(world.engine.groups.create, "red", GroupLimits()))
    assert isinstance(again, RetryError)
    assert isinstance(outcome_of(world, partial(world.engine.groups.remove, "red")), NotFoundError)
    assert world.engine.groups.directory.free_id() != red.group_id
    world.settle(lambda: bool(removed))
    assert isinstance(removed[0], DiskError)
    assert world.engine.groups.find("red") is red


def test_minimums_that_memory_does_not_have_are_remembered(world: HoldingWorld) -> None:
    """Limits that nobody looked at come from the pool, written by a server with more memory."""
    red = make_group(world, "red")
    wanted = GroupLimits(dirty_min_bytes=1 << 40, map_min_bytes=4 * KIB)
    with pytest.raises(RequestError, match="cannot be sure of"):
        red.keep_limits(wanted)
    assert (red.limits, red.minimums_held, red.memory.minimums) == (wanted, False, [0] * len(Kind))
    space = set_limits(world, "red", dirty_min_bytes=1 << 40, map_min_bytes=4 * KIB, space_bytes=MIB)
    assert space is red, "its minimums are not what was asked about"
    assert (red.limits.space_bytes, red.limits.dirty_min_bytes, red.minimums_held) == (MIB, 1 << 40, False)
    assert isinstance(set_limits(world, "red", dirty_min_bytes=1 << 41), RequestError)
    assert red.limits.dirty_min_bytes == 1 << 40
    assert set_limits(world, "red", dirty_min_bytes=64 * KIB) is red
    assert (red.minimums_held, red.memory.minimums[Kind.RING]) == (True, 64 * KIB)
    check_accounts(world)


def test_writes_that_use_up_the_memory_of_their_group_get_the_pages_that_they_wait_for(world: HoldingWorld) -> None:
    red = make_group(world, "red", memory_bytes=MIB)
    create_in(world, "redisk", red)
    clients = [connect(world, "redisk") for _ in range(4)]
    payload = bytes(64 * KIB - 1024)  # not whole blocks: each is copied while it waits for its leaf
    answers = [
        client.send(CMD_WRITE, (number * 20 + index) * 2 * MIB + 512, payload=payload)
        for number, client in enumerate(clients)
        for index in range(16)
    ]
    world.settle(lambda: all(answer.ready for answer in answers))
    assert {answer.errno for answer in answers} == {0}
    check_accounts(world)


def test_recovery_makes_pages_clean_where_they_are_all_that_other_groups_are_not_sure_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Few pages of the map are dirty then, but with those above them they are all that there are."""
    world = new_world("sure of pages", pages=64)
    create(world, "disk0", 3 << 40)
    client = connect(world, "disk0")
    limits = GroupLimits(map_min_bytes=64 * KIB)
    world.wait_for(lambda answer: world.engine.groups.create("red", limits, answer))
    world.wait_for(lambda answer: world.engine.groups.create("green", limits, answer))
    world.settle()
    world.faults.turn_on("write superblock", "EIO", 1.0)
    for number in range(14):
        assert ask(world, client, CMD_WRITE, number * 8 * GIB, payload=block(number)).errno == 0
    world.server_dies()
    world.faults.calm()
    world.open()
    client = connect(world, "disk0")
    for number in range(14):
        assert bytes(ask(world, client, CMD_READ, number * 8 * GIB, BLOCK_SIZE_BYTES).data) == block(number)
    check_accounts(world)

"""Promises 1, 2, 4, 5 and 7 where a disk fails or a pool is full, each in a run of its own.

What is promised under any schedule, with deaths and faults at any time, is what the simulator is for (`tests/sim/`).
"""

from __future__ import annotations

import logging
from errno import EIO, ENOMEM, ENOSPC, errorcode
from random import Random

import pytest

from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.sim.accounts import check_accounts
from holdfast.sim.client import SimClient
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from tests.engine.helpers import HoldingWorld, ask, block, connect, create, leave, new_world

BLOCK = BLOCK_SIZE_BYTES
VOLUME_BLOCKS = 60 * MIB // BLOCK


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    """The engine has every reason to complain: that is not what is tested."""
    caplog.set_level(logging.CRITICAL, logger="holdfast")


@pytest.mark.parametrize("errno", [EIO, ENOSPC, ENOMEM])
def test_a_flush_over_a_failing_disk_is_told_why(errno: int) -> None:
    world = new_world("told why")
    create(world, "disk1", 8 * MIB)
    client = connect(world, "disk1")
    world.faults.turn_on("write", errorcode[errno], 1.0)
    assert ask(world, client, CMD_WRITE, 0, payload=b"x" * BLOCK).errno == 0
    assert ask(world, client, CMD_FLUSH).errno == errno
    assert ask(world, client, CMD_FLUSH).errno == errno
    world.faults.calm()
    assert ask(world, client, CMD_FLUSH).errno == 0


def fill_at_random(world: HoldingWorld, client: SimClient, rng: Random) -> dict[int, set[bytes]]:
    """Write all over the volume until the pool has no room left; returns what each block may hold. The write that was
    refused may have been made in part."""
    may_hold: dict[int, set[bytes]] = {}
    stamp = refused = 0
    while refused < 20:
        stamp += 1
        count = rng.choice([1, 1, 4, 64, rng.randrange(1, 300)])
        lba = rng.randrange(VOLUME_BLOCKS - count)
        errno = ask(world, client, CMD_WRITE, lba * BLOCK, payload=block(stamp) * count).errno
        assert errno in (0, ENOSPC)
        refused += errno == ENOSPC
        for written in range(lba, lba + count):
            if errno:
                may_hold.setdefault(written, {bytes(BLOCK)}).add(block(stamp))
            else:
                may_hold[written] = {block(stamp)}
        if rng.random() < 0.1:
            assert ask(world, client, CMD_FLUSH).errno == 0
    return may_hold


def check_contents(world: HoldingWorld, client: SimClient, may_hold: dict[int, set[bytes]]) -> None:
    answers = {}
    for lba in may_hold:
        answers[lba] = client.send(CMD_READ, lba * BLOCK, BLOCK)
        if len(client.waiting) > 64:
            world.settle(lambda: not client.waiting)
    world.settle()
    for lba, answer in answers.items():
        assert answer.errno == 0
        assert bytes(answer.data) in may_hold[lba], lba


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("death", ["none", "server", "power"])
def test_a_full_pool_says_so_stays_readable_and_comes_back(seed: int, death: str) -> None:
    rng = Random(f"full {seed}")
    world = new_world(f"full {seed}", segments=24, ring_blocks=rng.choice([256, 1024]), pages=rng.choice([64, 256]))
    create(world, "disk0", VOLUME_BLOCKS * BLOCK)
    client = connect(world, "disk0")
    may_hold = fill_at_random(world, client, rng)
    check_contents(world, client, may_hold)
    world.settle()
    check_accounts(world)
    if death == "server":
        world.server_dies()
        world.open()
        client = connect(world, "disk0")
    elif death == "power":
        assert ask(world, client, CMD_FLUSH).errno == 0, "a full pool can be flushed"
        world.power_fails()
        world.open()
        client = connect(world, "disk0")
    check_contents(world, client, may_hold)
    assert ask(world, client, CMD_TRIM, 0, VOLUME_BLOCKS * BLOCK).errno == 0
    world.run(world.engine.checkpoint())
    world.run(world.engine.checkpoint())
    assert world.engine.space.room_for_clients()
    assert ask(world, client, CMD_WRITE, 0, payload=block(7) * 256).errno == 0
    check_contents(world, client, {lba: {block(7) if lba < 256 else bytes(BLOCK)} for lba in [*may_hold, *range(256)]})
    leave(world, client)
    world.settle()
    check_accounts(world)

"""A client that is gone just when the server has something to tell it, at any of its sends: nobody else notices."""

from __future__ import annotations

import pytest

from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.sim.accounts import check_accounts, check_nothing_held
from holdfast.sim.faults import VANISH
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB
from tests.engine.helpers import ask, block, connect, create, new_world

SENDS = 60


def play(number: int, *, structured: bool, room_bytes: int) -> World:
    """A crowd of requests of all sorts, whose client vanishes at the send of that number."""
    world = new_world("vanish", room_bytes=room_bytes, connection_bytes=256 * KIB)
    create(world, "a", 8 * MIB)
    bystander = connect(world, "a")
    assert ask(world, bystander, CMD_WRITE, 4 * MIB, payload=block(1) * 256).errno == 0
    client = world.connect("a", structured=structured)
    world.settle(lambda: client.ready)
    world.faults.countdown = "send", VANISH, number
    for step in range(40):
        if step % 8 == 1:
            for lba in range(60):  # answered at once, in more than one portion
                client.send(CMD_READ, 4 * MIB + lba * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES)
        client.send(CMD_WRITE, step * BLOCK_SIZE_BYTES, payload=block(step))
        client.send(CMD_READ, 4 * MIB + step * BLOCK_SIZE_BYTES, 700 * KIB if step % 3 == 0 else 100 * KIB)
        client.send(CMD_READ, step * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES)
        client.send(CMD_TRIM, 6 * MIB, MIB)
        if step % 8 == 0:
            client.send(CMD_FLUSH)
    world.settle()
    answer = ask(world, bystander, CMD_READ, 4 * MIB, MIB)
    assert bytes(answer.data) == block(1) * 256
    return world


@pytest.mark.parametrize("structured", [False, True], ids=["simple", "structured"])
@pytest.mark.parametrize("room_bytes", [4 * KIB, 208 * KIB])
def test_a_client_that_vanishes_at_any_send_disturbs_nobody(structured: bool, room_bytes: int) -> None:
    for number in range(SENDS):
        world = play(number, structured=structured, room_bytes=room_bytes)
        assert world.faults.countdown is None, f"the server sent fewer than {number} times"
        check_nothing_held(world)
    check_accounts(world)

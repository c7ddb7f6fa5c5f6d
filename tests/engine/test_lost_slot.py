"""The newer superblock slot is lost: the older one, and the log behind it, must bring everything back."""

from __future__ import annotations

import pytest

from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_WRITE
from holdfast.pool.space import OPEN, SEALED
from holdfast.sim.fate import Crashed
from holdfast.sim.world import WorldConfig
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from tests.engine.helpers import HoldingWorld, ask, block, connect, create, new_world

BLOCKS = 8


@pytest.mark.parametrize("death", ["kill -9", "power"])
def test_a_segment_that_the_lost_checkpoint_freed_and_the_log_has_entered_again(
    death: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the older checkpoint the segment was sealed and dead: it is no more free by that one's table than in use."""
    world = new_world("reuse", segments=128, segment_blocks=64)
    create(world, "disk", MIB)
    engine, space = world.engine, world.engine.space
    client = connect(world, "disk")
    newest: list[int] = [0] * BLOCKS
    freed: set[int] = set()
    free = set(space.free)
    written = engine.checkpointer.written
    value = 1
    while not any(space.state[segment] in (OPEN, SEALED) for segment in freed):
        if engine.checkpointer.written != written:
            written, freed = engine.checkpointer.written, set(space.free) - free
        free = set(space.free)
        value += 1
        newest[value % BLOCKS] = value
        assert ask(world, client, CMD_WRITE, value % BLOCKS * BLOCK_SIZE_BYTES, payload=block(value)).errno == 0
        assert value < 10_000
    assert ask(world, client, CMD_FLUSH).errno == 0
    assert engine.checkpointer.written == written
    world.disk.lose_slot()
    if death == "power":
        world.power_fails()
    else:
        world.server_dies()
    world.open()
    assert "superblock slot" in caplog.text
    read = ask(world, connect(world, "disk"), CMD_READ, 0, BLOCKS * BLOCK_SIZE_BYTES)
    assert bytes(read.data) == b"".join(block(value) for value in newest)


def test_a_pool_whose_making_is_cut_short_twice_can_be_made_or_opened(caplog: pytest.LogCaptureFixture) -> None:
    """The server dies while it writes the first superblock; the next one finds it, though it is not durable, and the
    power fails at any moment after that."""
    for first in range(3):
        for second in range(30):
            world = HoldingWorld(f"made twice {first} {second}", WorldConfig(segments=24, segment_blocks=64))
            for effects, power in ((first, False), (second, True)):
                world.fate.left = effects
                try:
                    world.open()
                except Crashed:
                    if power:
                        world.power_fails()
                    else:
                        world.server_dies()
                else:
                    world.fate.spare()
                    break
            else:
                world.open()
            create(world, "disk", MIB)
            assert ask(world, connect(world, "disk"), CMD_WRITE, payload=block(1)).errno == 0
            world.close()

"""The newer superblock slot is lost: the older one, and the log behind it, must bring everything back."""

from __future__ import annotations

import pytest

from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_WRITE
from holdfast.pool.space import OPEN, SEALED
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from tests.engine.helpers import ask, block, connect, create, new_world

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

"""A client that does not read its replies costs a bounded amount of memory, whatever it asks for."""

from __future__ import annotations

from holdfast.nbd.protocol import CMD_BLOCK_STATUS, CMD_WRITE
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB
from tests.engine.world import World


def test_block_status_is_not_answered_to_a_client_that_takes_no_replies() -> None:
    world = World("unread block status")
    world.open()
    world.create("a", 4 * MIB)
    client = world.connect("a")
    for lba in range(0, 1024, 2):  # every second block: 1024 extents, 8 KiB an answer
        client.send(CMD_WRITE, lba * BLOCK_SIZE_BYTES, payload=bytes([lba & 0xFF]) * BLOCK_SIZE_BYTES)
    world.settle()
    client.stop_reading()
    requests = [(CMD_BLOCK_STATUS, 0, cookie, 0, 4 * MIB, memoryview(b"")) for cookie in range(1000, 1100)]
    client.session.submit(requests)
    world.turn()
    assert len(client.session.later) + len(client._unread) < 16 * KIB
    client.session.close()

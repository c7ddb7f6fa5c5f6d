"""A client that does not read its replies costs a bounded amount of memory, whatever it asks for."""

from __future__ import annotations

import pytest

from holdfast.nbd.protocol import CMD_BLOCK_STATUS, CMD_WRITE
from holdfast.sim.client import SimClient
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB
from tests.engine.helpers import HoldingWorld, connect, create, new_world

SIZE_BYTES = 4 * MIB
ROOM_BYTES = 4 * KIB  # of the simulated socket: less than one answer
ANSWER_BYTES = 8 * KIB  # every second block of the volume is data: 1024 extents


@pytest.fixture
def world() -> HoldingWorld:
    world = new_world("unread block status", room_bytes=ROOM_BYTES)
    create(world, "a", SIZE_BYTES)
    return world


@pytest.fixture
def client(world: HoldingWorld) -> SimClient:
    client = connect(world, "a")
    for lba in range(0, 1024, 2):
        client.send(CMD_WRITE, lba * BLOCK_SIZE_BYTES, payload=bytes([lba & 0xFF]) * BLOCK_SIZE_BYTES)
    world.settle()
    client.stop_reading()
    return client


def test_block_status_is_not_answered_to_a_client_that_takes_no_replies(world: HoldingWorld, client: SimClient) -> None:
    session = client.connection.session
    assert session is not None
    client.send(CMD_BLOCK_STATUS, 0, SIZE_BYTES)
    world.let_happen()
    assert session.outgoing.blocked
    kept_bytes = client.connection.kept_bytes
    requests = [(CMD_BLOCK_STATUS, 0, cookie, 0, SIZE_BYTES, memoryview(b"")) for cookie in range(1000, 1100)]
    session.submit(requests)
    world.let_happen()
    assert session.in_flight.count == len(requests)
    assert len(session.outgoing.later) == 0
    assert client.connection.kept_bytes == kept_bytes < 2 * ANSWER_BYTES
    client.hang_up(reset=True)


def test_a_client_that_reads_again_costs_one_batch_of_replies_and_gets_all_it_asked_for(
    world: HoldingWorld, client: SimClient
) -> None:
    answers = [client.send(CMD_BLOCK_STATUS, 0, SIZE_BYTES) for _ in range(300)]
    world.let_happen()
    assert ANSWER_BYTES < client.connection.kept_bytes < 64 * KIB + 2 * ANSWER_BYTES, "one batch of replies"
    client.read_again()
    world.settle()
    assert {len(answer.extents) for answer in answers} == {1024}

"""Who waits for what, as the engine and its clients show it; and the watchdog that tells of it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_WRITE
from holdfast.runtime.ports import READ, WRITE
from holdfast.serving.status import wait_list
from holdfast.sim.client import SimClient
from holdfast.sim.disk import DiskCharacter
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB
from holdfast.work.order import WaitOrderError
from holdfast.work.task import Waitlist, Work
from tests.engine.helpers import HoldingWorld, ask, connect, create, new_world

SECOND_NS = 1_000_000_000


@pytest.fixture
def world() -> HoldingWorld:
    world = new_world("who waits", ring_blocks=512, disk=DiskCharacter(cached=0))
    create(world, "disk0", 64 * MIB)
    return world


def fill_the_ring(world: HoldingWorld) -> SimClient:
    """A client whose writes do not fit the ring, because the disk holds what is to be written."""
    world.holding.holds = lambda io: io.op == WRITE
    client = connect(world, "disk0")
    for at in range(0, 4 * MIB, MIB // 4):
        client.send(CMD_WRITE, at, payload=bytes([at >> 18 | 1]) * (MIB // 4))
    world.let_happen()
    return client


def test_a_full_ring_is_shown_with_who_waits_and_who_is_to_end_it(world: HoldingWorld) -> None:
    fill_the_ring(world)
    shown = {wait.operation: wait for wait in wait_list(world.engine).waits}
    flusher = shown.pop("the flusher")
    assert flusher.waits_for.startswith("the disk: ")
    assert flusher.ended_by == ["the disk"]
    (backlog,) = shown.values()
    assert backlog.operation == "backlog"
    assert backlog.held[0].endswith(" requests not begun")
    assert (backlog.volume, backlog.waits_for, backlog.ended_by) == ("disk0", "room in the ring", ["the flusher"])
    assert backlog.peer
    assert wait_list(world.engine).cycles == []
    world.holding.release()
    world.settle()
    assert wait_list(world.engine).waits == []


def test_a_flush_a_write_of_a_part_and_a_small_read_are_shown_each_with_its_client(world: HoldingWorld) -> None:
    client = connect(world, "disk0")
    assert ask(world, client, CMD_WRITE, 0, payload=bytes([1]) * (MIB // 2)).errno == 0
    assert ask(world, client, CMD_FLUSH).errno == 0
    for at in range(MIB, 5 * MIB, MIB // 4):  # what was written first has left the ring
        assert ask(world, client, CMD_WRITE, at, payload=bytes([2]) * (MIB // 4)).errno == 0
    assert ask(world, client, CMD_FLUSH).errno == 0
    world.holding.holds = lambda io: io.op in (READ, WRITE)
    client.send(CMD_READ, 0, 4096)
    client.send(CMD_READ, 4096, 4096)
    client.send(CMD_READ, 8192, 128 * KIB)
    client.send(CMD_WRITE, 100, payload=b"part")
    client.send(CMD_WRITE, 8 * MIB, payload=bytes(BLOCK_SIZE_BYTES))
    client.send(CMD_FLUSH)
    world.let_happen()
    waits = [wait for wait in wait_list(world.engine).waits if wait.volume == "disk0"]
    shown = {wait.operation: wait for wait in waits}
    assert sorted(wait.operation for wait in waits) == ["FLUSH", "READ", "READ", "WRITE"]
    small = next(wait for wait in waits if wait.waits_for == "the disk: 2 small reads of the log")
    assert small.held == ["8192 bytes of read buffers"]
    large = next(wait for wait in waits if wait.operation == "READ" and wait is not small)
    assert large.held == [f"{128 * KIB} bytes of read buffers"]
    assert shown["FLUSH"].waits_for == "durability"
    assert shown["WRITE"].held == ["4 bytes of payload"]
    assert shown["WRITE"].waits_for.startswith("the disk: read of segment ")
    assert {wait.peer for wait in shown.values()} == {str(client.connection.peer)}
    world.holding.release()
    world.settle()


def test_a_client_that_does_not_read_is_shown_as_meant_and_is_no_alarm(
    world: HoldingWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="holdfast")
    client = connect(world, "disk0")
    client.stop_reading()
    for _ in range(200):
        client.send(CMD_READ, 0, MIB)
    world.go_on(40 * SECOND_NS, lambda: False)
    waits = wait_list(world.engine).waits
    assert {"replies", "READ", "backlog"} == {wait.operation for wait in waits}
    assert all(wait.meant for wait in waits)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []
    assert any(record.getMessage().endswith(": that is meant") for record in caplog.records)
    client.read_again()
    world.settle()


def test_the_watchdog_tells_who_has_waited_for_long_and_who_is_to_end_it(
    world: HoldingWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="holdfast")
    fill_the_ring(world)
    world.go_on(36 * SECOND_NS, lambda: False)
    lines = [record.getMessage() for record in caplog.records]
    assert any(
        line.startswith("backlog of disk0 for ")
        and " s for room in the ring, holding " in line
        and " requests not begun; it ends with: the flusher (waits for the disk: " in line
        for line in lines
    ), lines
    assert any(line.startswith("the flusher has waited 3") for line in lines)
    told = len(lines)
    world.go_on(20 * SECOND_NS, lambda: False)
    assert len(caplog.records) == told, "not again before it has waited twice as long"
    world.holding.release()
    world.settle()


def test_a_slip_in_the_order_of_waits_stops_a_test(world: HoldingWorld) -> None:
    """The engine of every simulated world checks it: here a checkpoint that would wait for what checkpoints give."""
    engine = world.engine

    def work() -> Work:
        hold = engine.scheduler.hold(engine.waitlists.checkpoint_end)
        try:
            yield engine.waitlists.clean_room
        finally:
            hold.release()

    with pytest.raises(WaitOrderError, match="fewer dirty pages of the map comes with the checkpoint"):
        engine.scheduler.spawn(work(), "checkpoint")


def test_the_page_about_waits_knows_all_that_can_be_waited_for(world: HoldingWorld) -> None:
    lists = [value for value in vars(world.engine.waitlists).values() if isinstance(value, Waitlist)]
    assert len(lists) > 8
    page = (Path(__file__).parents[2] / "docs" / "waits.md").read_text()
    assert [waitlist.name for waitlist in lists if f"| {waitlist.name} |" not in page] == []

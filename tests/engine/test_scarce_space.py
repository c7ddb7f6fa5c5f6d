"""Pools that stay usable, and can always be opened again, when segments or the filesystem below run out."""

from __future__ import annotations

import logging
from errno import ENOSPC
from functools import partial

import pytest

from holdfast.errors import HoldfastError, NoSpaceError
from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.pool.opening import read_superblock_slots
from holdfast.pool.superblock import newest_superblock
from holdfast.pool.tables import VolumeRow
from holdfast.runtime.ports import PREPARE
from holdfast.scrub.pool_check import OverlayDisk, PoolChecker
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from holdfast.volume.volume import Volume
from holdfast.work.task import run_to_end
from tests.engine.accounting import check_accounts
from tests.engine.disk import Fault
from tests.engine.world import Client, World


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, logger="holdfast")


def fill(client: Client) -> int:
    """Write until the pool says that it is full; returns how many bytes it took."""
    at = 0
    while client.ask(CMD_WRITE, at, payload=at.to_bytes(8, "big") * (MIB // 32)).errno == 0:
        at += MIB // 4
    return at


def test_a_full_filesystem_below_leaves_the_reserve_where_it_is() -> None:
    """Segments held back exist as files before clients get any, so trims and checkpoints go on when no file can be
    made."""
    world = World("host full", segments=200)
    world.open()
    world.create("disk0", 400 * MIB)
    client = world.connect("disk0")
    assert client.ask(CMD_WRITE, 0, payload=bytes(MIB // 4)).errno == 0
    world.disk.faults.append(Fault(PREPARE, ENOSPC))
    written = fill(client)
    assert 0 < written < 100 * MIB
    assert client.ask(CMD_WRITE, 0, payload=bytes(MIB // 4)).errno == ENOSPC
    for at in range(0, written, MIB // 4):
        assert client.ask(CMD_READ, at, 8).data == at.to_bytes(8, "big")
    world.create("disk1", MIB)
    client.close()
    world.server_dies()
    world.open()
    client = world.connect("disk0")
    assert client.ask(CMD_TRIM, 0, 400 * MIB).errno == 0
    assert client.ask(CMD_FLUSH).errno == 0
    world.run(world.engine.checkpoint())
    world.run(world.engine.checkpoint())
    assert client.ask(CMD_WRITE, 0, payload=bytes(MIB // 4)).errno == 0, "trim revives it, with no new file"
    client.close()
    world.close()
    world.open()
    check_accounts(world)


def test_volumes_made_in_a_full_pool_never_take_what_its_checkpoints_need() -> None:
    world = World("volumes", segments=24)
    world.open()
    world.create("disk0", 400 * MIB)
    client = world.connect("disk0")
    fill(client)
    made = 0
    refused: HoldfastError | None = None
    while refused is None and made < 4000:
        answers: list[Volume | HoldfastError | None] = []
        for _ in range(100):
            world.wait_for(partial(world.engine.create_volume, f"v{made}", MIB), answers)
            made += 1
        world.settle()
        refused = next((answer for answer in answers if isinstance(answer, HoldfastError)), None)
    assert isinstance(refused, NoSpaceError), "tables of thousands of volumes do not fit the reserve of a tiny pool"
    client.close()
    world.server_dies()
    world.open()
    assert world.connect("disk0").ask(CMD_TRIM, 0, 100 * MIB).errno == 0


def test_tables_that_fill_whole_segments_are_found_and_check_clean() -> None:
    world = World("tables", segments=200)
    world.open()
    for number in range(2, 6000):
        row = VolumeRow(number, f"v{number}", MIB, 0, 0, 0, 0, removing=False)
        world.engine.volumes[number] = Volume(row)
    world.engine.next_volume_id = 6000
    world.close()
    for _ in range(2):
        superblock, _ = newest_superblock(run_to_end(read_superblock_slots(), world.disk.run))
        report = PoolChecker(superblock, OverlayDisk(world.disk), 0, lambda _done, _total: None).run()
        assert report.damage == []
        assert report.volumes_checked == 5998
        world.open()
        assert len(world.engine.by_name) == 5998
        world.close()
    assert world.engine.log.segment_blocks * BLOCK_SIZE_BYTES == MIB

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
from holdfast.scrub.pool_check import OverlayDisk, PoolChecker
from holdfast.sim.accounts import check_accounts
from holdfast.sim.world import WorldConfig
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from holdfast.volume.volume import Volume
from holdfast.volume.write import Obstacle
from holdfast.work.task import run_to_end
from tests.engine.helpers import HoldingWorld, ask, connect, create, fill, leave, new_world


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, logger="holdfast")


def test_a_full_filesystem_below_leaves_the_reserve_where_it_is() -> None:
    """Segments held back exist as files before clients get any, so trims and checkpoints go on when no file can be
    made."""
    world = new_world("host full", segments=200)
    create(world, "disk0", 400 * MIB)
    client = connect(world, "disk0")
    assert ask(world, client, CMD_WRITE, 0, payload=bytes(MIB // 4)).errno == 0
    world.faults.turn_on("prepare", "ENOSPC", 1.0)
    written = fill(world, client)
    assert 0 < written < 100 * MIB
    assert ask(world, client, CMD_WRITE, 0, payload=bytes(MIB // 4)).errno == ENOSPC
    for at in range(0, written, MIB // 4):
        assert ask(world, client, CMD_READ, at, 8).data == at.to_bytes(8, "big")
    create(world, "disk1", MIB)
    leave(world, client)
    world.server_dies()
    world.open()
    client = connect(world, "disk0")
    assert ask(world, client, CMD_TRIM, 0, 400 * MIB).errno == 0
    assert ask(world, client, CMD_FLUSH).errno == 0
    world.run(world.engine.checkpoint())
    world.run(world.engine.checkpoint())
    assert ask(world, client, CMD_WRITE, 0, payload=bytes(MIB // 4)).errno == 0, "trim revives it, with no new file"
    leave(world, client)
    world.close()
    world.open()
    check_accounts(world)


def test_who_waits_for_the_cleaner_hears_what_it_found_while_nobody_waited() -> None:
    """The filesystem below is full before the reserve is there: the cleaner looks by itself, and gives up. A writer who
    came after that waited for ever, for it did not look again."""
    world = HoldingWorld("host full from the start", WorldConfig(segments=200))
    world.begin_open()
    world.settle(lambda: len(world.engine.space.free) >= 5)
    world.faults.turn_on("prepare", "ENOSPC", 1.0)
    world.finish_open()
    create(world, "disk0", 400 * MIB)
    client = connect(world, "disk0")
    for number in range(2):
        world.settle()
        assert ask(world, client, CMD_WRITE, number * MIB, payload=bytes(MIB // 4)).errno == 0
    world.run(world.engine.checkpoint())
    space, cleaner = world.engine.space, world.engine.cleaner
    cleaner._missing_at = -1  # as after any change of what is mapped
    world.engine.tick()
    world.settle()
    assert space.available_segments < space.reserve_segments
    assert not cleaner.running
    assert not space.cleaning_may_help() or cleaner.is_due()
    assert fill(world, client) < 2 * MIB


def test_volumes_made_in_a_full_pool_never_take_what_its_checkpoints_need() -> None:
    world = new_world("volumes", segments=24, state_bytes=8 * MIB)
    create(world, "disk0", 400 * MIB)
    client = connect(world, "disk0")
    fill(world, client)
    made = 0
    refused: HoldfastError | None = None
    while refused is None and made < 4000:
        refusals: list[HoldfastError] = []
        for _ in range(100):
            world.wait_for(partial(world.engine.create_volume, f"v{made}", MIB), refusals)
            made += 1
        world.settle()
        refused = next(iter(refusals), None)
    assert isinstance(refused, NoSpaceError), "tables of thousands of volumes do not fit the reserve of a tiny pool"
    leave(world, client)
    world.server_dies()
    world.open()
    assert ask(world, connect(world, "disk0"), CMD_TRIM, 0, 100 * MIB).errno == 0


def test_tables_that_fill_whole_segments_are_found_and_check_clean() -> None:
    world = new_world("tables", segments=200)
    for number in range(2, 6000):
        row = VolumeRow(number, f"v{number}", MIB, 0, 0, 0, 0)
        world.engine.volumes.by_id[number] = Volume(row)
    world.engine.volumes.next_id = 6000
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


@pytest.mark.parametrize("snapshot", [False, True])
def test_who_finds_no_room_makes_no_page_dirty(snapshot: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a segment tries again with each checkpoint. Were the leaf dirty again then, the checkpoints of
    those who wait would use up what is held back for checkpoints (seeds 1408, 2036 and 2124 of the simulator did)."""
    world = new_world("nothing dirty")
    volume = create(world, "disk0", MIB)
    client = connect(world, "disk0")
    assert ask(world, client, CMD_WRITE, 0, payload=bytes(4 * BLOCK_SIZE_BYTES)).errno == 0
    engine = world.engine
    if snapshot:
        world.wait_for(lambda answer: engine.snapshots.take([("disk0", "a")], answer))
        assert ask(world, client, CMD_WRITE, 0, payload=bytes(BLOCK_SIZE_BYTES)).errno == 0  # the keeper has a leaf
    world.run(engine.checkpoint())
    world.settle()
    assert not engine.cache.dirty_pages
    writer = engine.writer
    data = memoryview(bytes(2 * BLOCK_SIZE_BYTES))
    writer.log.room = 0
    with monkeypatch.context() as without_segments:
        without_segments.setattr(writer.log, "make_room", lambda _privilege=None: Obstacle.NO_SEGMENT)
        assert writer.write_block(volume, 1, data[:BLOCK_SIZE_BYTES]) == Obstacle.NO_SEGMENT
        assert writer.write_run(volume, 1, data) == (0, Obstacle.NO_SEGMENT)
        assert writer.write_run(volume, 1, data, must=True) == (0, Obstacle.NO_SEGMENT)
        work = engine.long_writer.punch(volume, 1, 2)
        assert next(work) is engine.waitlists.segment_room
        work.close()
    assert not engine.cache.dirty_pages
    monkeypatch.setattr(engine.space, "open_blocks", 0)
    assert writer.write_block(volume, 9, data[:BLOCK_SIZE_BYTES]) == Obstacle.NO_SPACE
    assert writer.write_run(volume, 9, data) == (0, Obstacle.NO_SPACE)
    assert not engine.cache.dirty_pages
    assert writer.write_block(volume, 1, data[:BLOCK_SIZE_BYTES]) == (Obstacle.NO_SPACE if snapshot else 0)

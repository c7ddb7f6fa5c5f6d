"""What seeded runs found, each on its own; and what they cannot reach by chance."""

from __future__ import annotations

import logging
from errno import EIO, ENOSPC
from random import Random

import pytest

from holdfast.errors import NotFoundError
from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.nbd.transmission import WRITE_PIECE
from holdfast.pool.block import ADDRESS_MASK, page_owner
from holdfast.runtime.ports import READ, SUPERBLOCK, WRITE, Io
from holdfast.sim.accounts import check_accounts
from holdfast.sim.client import Answer, SimClient
from holdfast.sim.fate import Crashed
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from tests.engine.helpers import HoldingWorld, ask, block, connect, create, fill, leave, new_world

BLOCK = BLOCK_SIZE_BYTES
LEAF = 2 * MIB  # what one leaf of a map covers


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


def opened(**config: int) -> tuple[HoldingWorld, SimClient]:
    """A pool with one volume of 400 MiB, and a client of it."""
    world = new_world("engine", **config)
    create(world, "disk0", 400 * MIB)
    return world, connect(world, "disk0")


def reopen_cold(world: HoldingWorld) -> None:
    """A clean end and a new start, after which every reading has to be waited for."""
    world.close()
    world.open()
    world.disk.character.cached = 0.0


def is_read(io: Io) -> bool:
    return io.op == READ


def is_for_superblock(io: Io) -> bool:
    return io.file == SUPERBLOCK


def power_fails_with_holes_in_the_log(world: HoldingWorld, seed: int) -> bool:
    """Some of the writes to segments have not ended when the power fails. Whether the log was cut off in a segment
    before the one that it had reached."""
    rng = Random(seed)
    world.holding.holds = lambda io: io.op == WRITE and io.file != SUPERBLOCK and rng.random() < 0.4
    world.let_happen()
    reached = world.engine.log.ordinal
    world.power_fails()
    world.open()
    return world.engine.log.ordinal < reached


def test_a_reply_that_comes_out_of_the_backlog_is_published_before_it_is_sent() -> None:
    world, client = opened(ring_blocks=256)
    log = world.engine.log
    sent = client.socket.on_sent
    behind: list[int] = []

    def note_what_is_not_published() -> None:
        publication = log.ring.publication(log.epoch)
        assert publication is not None
        behind.append(log.position - publication.head_position)
        sent()

    client.socket.on_sent = note_what_is_not_published
    world.holding.holds = lambda io: io.op == WRITE
    answers = [client.send(CMD_WRITE, index * BLOCK, payload=block(index)) for index in range(250)]
    world.let_happen()
    assert client.connection.session is not None
    assert client.connection.session.backlog, "the ring is full, and some requests wait"
    sent_before = len(behind)
    world.holding.release()
    world.settle()
    assert all(answer.ready for answer in answers)
    assert len(behind) > sent_before
    assert not any(behind)


def test_a_volume_is_found_once_its_creation_is_durable() -> None:
    world = new_world("creation")
    world.holding.holds = is_for_superblock
    outcome = world.wait_for(lambda answer: world.engine.create_volume("disk0", MIB, answer))
    world.let_happen()
    assert world.holding.held
    assert not outcome
    with pytest.raises(NotFoundError):
        world.engine.find("disk0")
    assert "disk0" not in world.engine.by_name
    world.holding.release()
    world.settle()
    assert world.engine.find("disk0") is outcome[0]


def test_a_name_is_taken_from_the_moment_somebody_asked_for_it() -> None:
    world = new_world("creation")
    first = world.wait_for(lambda answer: world.engine.create_volume("disk0", MIB, answer))
    second = world.wait_for(lambda answer: world.engine.create_volume("disk0", MIB, answer))
    world.settle()
    assert world.engine.by_name["disk0"] is first[0]
    assert isinstance(second[0], Exception)


def test_more_cold_reads_than_pages_wait_for_each_other_and_end() -> None:
    world, client = opened(pages=64)
    for leaf in range(120):
        assert ask(world, client, CMD_WRITE, leaf * LEAF, payload=block(leaf)).errno == 0
    reopen_cold(world)
    client = connect(world, "disk0")
    world.stop_ticks()
    answers = [client.send(CMD_READ, leaf * LEAF, BLOCK) for leaf in range(120)]
    world.settle()
    assert [bytes(answer.data) for answer in answers] == [block(leaf) for leaf in range(120)]


def test_a_segment_that_a_late_reader_held_is_taken_when_the_reader_is_done() -> None:
    world, client = opened(segments=24)
    world.disk.character.cached = 0.0
    at = 0
    while ask(world, client, CMD_WRITE, at, payload=bytes(MIB // 2 + 1)).errno == 0:
        at += MIB
    space = world.engine.space
    world.holding.holds = lambda io: io.op == READ and io.length == BLOCK and bool(space._readers)
    late = client.send(CMD_READ, 0, BLOCK)  # its segment is about to be freed
    world.let_happen()
    assert space._readers
    world.holding.holds = is_read
    trimmer = connect(world, "disk0")
    trimmed = trimmer.send(CMD_TRIM, 0, 400 * MIB)
    world.let_happen()
    assert trimmed.ready
    for _ in range(2):
        world.spawn(world.engine.checkpoint())
        world.let_happen()
    held = set(space._readers)
    assert held <= set(space.free)
    # All others are taken, so that whoever comes now waits for just this one.
    others = [segment for segment in space.free if segment not in held]
    for segment in others:
        space.pin(segment)
    writer = trimmer.send(CMD_WRITE, 0, payload=bytes(MIB))
    world.let_happen()
    assert [writer.ready, late.ready] == [False, False]
    world.holding.release_one()
    world.let_happen()
    assert late.ready
    assert writer.ready
    for segment in others:
        space.unpin(segment)
    world.holding.release()
    world.settle()
    check_accounts(world)


def test_the_second_superblock_of_an_opening_does_not_meet_another_checkpoint() -> None:
    world, client = opened()
    for index in range(40):
        ask(world, client, CMD_WRITE, index * LEAF, payload=block(index))
    world.server_dies()
    world.holding.holds = lambda io: is_for_superblock(io) and io.op == WRITE
    world.begin_open()
    world.let_happen()
    assert len(world.holding.held) == 1
    first_offset = world.holding.held[0].offset
    world.holding.release_one()
    world.let_happen()  # and now the second of the two is on its way
    assert [io.offset for io in world.holding.held] != [first_offset]
    second = world.wait_for(lambda done: world.engine.scheduler.spawn(world.engine.checkpoint(), "second", done))
    world.let_happen()
    assert len(world.holding.held) == 1
    world.holding.release()
    world.finish_open()
    assert second == [None]
    check_accounts(world)


def test_a_log_that_was_cut_off_goes_on_without_a_gap() -> None:
    """The next segment has the next ordinal, also where segments behind the cut had been opened before."""
    cut_off = 0
    for seed in range(8):
        world = new_world(f"cut {seed}", ring_blocks=1024)
        create(world, "disk0", 400 * MIB)
        client = connect(world, "disk0")
        for index in range(40):
            client.send(CMD_WRITE, index * MIB, payload=bytes([index + 1]) * (MIB // 4))
        cut_off += power_fails_with_holes_in_the_log(world, seed)
        client = connect(world, "disk0")
        for index in range(12):
            assert ask(world, client, CMD_WRITE, index * MIB, payload=bytes([index + 100]) * (MIB // 2)).errno == 0
        assert ask(world, client, CMD_FLUSH).errno == 0
        world.power_fails()
        world.open()
        client = connect(world, "disk0")
        for index in range(12):
            assert ask(world, client, CMD_READ, index * MIB, BLOCK).data == bytes([index + 100]) * BLOCK
    assert cut_off, "no segment had been opened behind a cut: this shows nothing"


def test_a_segment_that_was_sealed_before_it_was_cut_off_is_not_taken_by_its_old_summary() -> None:
    cut_off = 0
    for seed in range(20):
        world = new_world(f"old summary {seed}", ring_blocks=1024)
        create(world, "disk0", 400 * MIB)
        client = connect(world, "disk0")
        for index in range(5):
            client.send(CMD_WRITE, index * MIB, payload=bytes([index + 1]) * (MIB // 4))
        cut_off += power_fails_with_holes_in_the_log(world, seed)
        client = connect(world, "disk0")
        assert ask(world, client, CMD_WRITE, 0, payload=block(77)).errno == 0
        assert ask(world, client, CMD_FLUSH).errno == 0
        world.power_fails()
        world.open()
        assert ask(world, connect(world, "disk0"), CMD_READ, 0, BLOCK).data == block(77)
    assert cut_off, "no segment was sealed behind a cut: this shows nothing"


def test_a_flood_of_tiny_trims_survives_the_server_with_its_segment_open() -> None:
    """Such a segment goes without a summary; recovery must not make one that has no room in it."""
    world, client = opened()
    log = world.engine.log

    def has_summary() -> bool:
        return log._summary is not None

    for at in range(0, 24 * MIB, MIB):
        ask(world, client, CMD_WRITE, at, payload=bytes([1]) * MIB)
    trims = iter(range(0, 24 * MIB, BLOCK))
    while not has_summary() or log.offset_now() > 100:
        # Until the head is near the start of a segment.
        ask(world, client, CMD_WRITE, 30 * MIB, payload=bytes([2]) * BLOCK)
    while has_summary():
        for _ in range(100):
            client.send(CMD_TRIM, next(trims), BLOCK)
        world.settle()
    while log.offset_now() < 250:
        client.send(CMD_TRIM, next(trims), BLOCK)
        ask(world, client, CMD_FLUSH)
    world.server_dies()
    world.open()
    client = connect(world, "disk0")
    for round_ in range(12):
        assert ask(world, client, CMD_WRITE, 0, payload=bytes([round_ + 1]) * (100 * BLOCK)).errno == 0
    check_accounts(world)


def test_a_disconnected_clients_requests_hold_nothing_back() -> None:
    world, client = opened(pages=64)
    for leaf in range(100):
        ask(world, client, CMD_WRITE, leaf * LEAF, payload=block(leaf))
    reopen_cold(world)
    client = connect(world, "disk0")
    world.holding.holds = is_read
    for leaf in range(60):
        client.send(CMD_READ, leaf * LEAF, 2 * BLOCK)
        client.send(CMD_WRITE, leaf * LEAF + 5, payload=b"part")
    world.let_happen()
    assert client.connection.session is not None
    assert client.connection.session.in_flight.count == 120
    world.holding.release()
    leave(world, client)
    world.settle()
    check_accounts(world)
    assert world.remove("disk0") is None
    check_accounts(world)


def test_a_recovery_that_is_cut_short_at_any_effect_can_be_done_again() -> None:
    cut_short = 0
    for effect in range(0, 60, 3):
        world, client = opened(ring_blocks=256)
        for index in range(30):
            ask(world, client, CMD_WRITE, index * LEAF, payload=block(index))
        world.server_dies()
        world.fate.left = effect
        try:
            world.open()
        except Crashed:
            cut_short += 1
            world.server_dies()
            world.open()
        world.fate.spare()
        client = connect(world, "disk0")
        for index in range(30):
            assert ask(world, client, CMD_READ, index * LEAF, BLOCK).data == block(index), (effect, index)
    assert cut_short > 5


def test_trims_and_a_removal_need_no_room_that_a_full_pool_has_not_got() -> None:
    world, client = opened(segments=24)
    fill(world, client)
    for index in range(200):
        assert ask(world, client, CMD_TRIM, index * 2 * BLOCK, BLOCK).errno == 0
        assert ask(world, client, CMD_FLUSH).errno == 0
    leave(world, client)
    assert world.remove("disk0") is None
    world.settle()
    world.run(world.engine.checkpoint())
    world.run(world.engine.checkpoint())
    world.settle()
    assert world.engine.space.room_for_clients()
    check_accounts(world)


def test_any_number_of_flushed_trims_succeeds_in_a_full_pool() -> None:
    world, client = opened(segments=24)
    written = fill(world, client)
    for index in range(written // BLOCK // 2):
        assert ask(world, client, CMD_TRIM, index * 2 * BLOCK, BLOCK).errno == 0
        assert ask(world, client, CMD_FLUSH).errno == 0


def test_a_full_pool_in_which_trims_have_used_up_what_they_may_still_opens() -> None:
    """What trims may take ends above what a checkpoint needs: without one the pool could never be opened again."""
    world, client = opened(segments=24)
    written = fill(world, client)
    index = 0
    while ask(world, client, CMD_TRIM, index * 2 * BLOCK, BLOCK).errno == 0 and index < written // BLOCK // 2:
        assert ask(world, client, CMD_FLUSH).errno == 0
        index += 1
    for _ in range(5):
        leave(world, client)
        world.server_dies()
        world.open()
        client = connect(world, "disk0")
        assert ask(world, client, CMD_READ, 0, BLOCK).data == bytes(BLOCK)
    check_accounts(world)


def test_a_piece_of_a_write_that_ends_lets_the_next_piece_begin() -> None:
    """Nothing else happens in a full pool that would look at the session again."""
    world, client = opened(segments=24)
    assert ask(world, client, CMD_WRITE, 0, payload=block(1)).errno == 0
    fill(world, client, 2 * MIB)
    assert ask(world, client, CMD_FLUSH).errno == 0
    world.settle()
    world.disk.character.cached = 0.0  # the first block, which is changed in part, has to be waited for
    payload = memoryview(bytes(MIB))
    half = MIB // 2 + 5 * BLOCK
    answer = Answer()
    client.waiting[77] = answer, 0
    first = (WRITE_PIECE, 0, 77, 1, half - 1, payload[: half - 1])
    last = (CMD_WRITE, 0, 77, half, BLOCK, payload[:BLOCK])
    session = client.connection.session
    assert session is not None
    session.submit([first, last])
    assert session.backlog
    world.let_happen()
    assert answer.errno == ENOSPC


def test_a_map_page_that_replay_could_not_read_never_reads_well_again() -> None:
    """What replay left out of it is missing in it: served later, it would show old data as if nothing had happened."""
    world, client = opened()
    assert ask(world, client, CMD_WRITE, 0, payload=block(1)).errno == 0
    world.run(world.engine.checkpoint())
    assert ask(world, client, CMD_WRITE, 0, payload=block(2)).errno == 0
    assert ask(world, client, CMD_WRITE, 4 * LEAF, payload=block(3)).errno == 0
    assert ask(world, client, CMD_FLUSH).errno == 0
    engine = world.engine
    volume = engine.by_name["disk0"]
    parent = engine.cache.slot_of[page_owner(volume.volume_id, 1, 0)]
    address = engine.cache.words[parent << 9] & ADDRESS_MASK
    leave(world, client)
    world.server_dies()
    file = world.disk.files[address >> engine.log.shift]
    sector, byte = divmod((address & engine.log.segment_blocks - 1) * BLOCK, 512)
    file.now[sector, byte] ^= 1
    file.stable[sector, byte] ^= 1
    world.open()  # reads the page in the state in which only this once it is read wrong
    assert any("is damaged" in finding for finding in world.engine.findings)
    client = connect(world, "disk0")
    assert ask(world, client, CMD_READ, 0, BLOCK).errno == EIO
    assert ask(world, client, CMD_READ, 4 * LEAF, BLOCK).data == block(3)
    leave(world, client)
    world.close()
    file.now[sector, byte] ^= 1
    file.stable[sector, byte] ^= 1
    world.open()
    client = connect(world, "disk0")
    assert ask(world, client, CMD_READ, 0, BLOCK).errno == EIO, "the page lacks what was written after the checkpoint"
    assert ask(world, client, CMD_READ, 4 * LEAF, BLOCK).data == block(3)

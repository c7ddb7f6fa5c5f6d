"""What the seeded runs found, each on its own; and what they cannot reach by chance."""

from __future__ import annotations

import logging
from collections.abc import Callable
from errno import EIO, ENOSPC

import pytest

from holdfast.errors import NotFoundError
from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.nbd.transmission import WRITE_PIECE
from holdfast.pool.block import ADDRESS_MASK, page_owner
from holdfast.runtime.ports import READ, SUPERBLOCK, WRITE, Io
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from tests.engine.accounting import check_accounts
from tests.engine.disk import Crashed
from tests.engine.world import Answer, Client, World

BLOCK = BLOCK_SIZE_BYTES
LEAF = 2 * MIB  # what one leaf of a map covers


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


def opened(**sizes: int) -> tuple[World, Client]:
    """A pool with one volume of 400 MiB, and a client of it."""
    world = World("engine", **sizes)
    world.open()
    world.create("disk0", 400 * MIB)
    return world, world.connect("disk0")


def block(value: int) -> bytes:
    return value.to_bytes(8, "big") * (BLOCK // 8)


def complete_all_but(world: World, held: Callable[[Io], bool]) -> None:
    """Let everything happen that can while the disk keeps some operations back."""
    while True:
        if world.turn():
            continue
        ready = [index for index, (io, _) in enumerate(world.disk.in_flight) if not held(io)]
        if not ready:
            return
        world.disk.complete(ready[0])


def is_read(io: Io) -> bool:
    return io.op == READ


def test_a_reply_that_comes_out_of_the_backlog_is_published_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    world, client = opened(ring_blocks=256)
    log = world.engine.log
    take = client._take
    behind: list[int] = []

    def taken(sent: bytes) -> None:
        publication = log.ring.publication(log.epoch)
        assert publication is not None
        if sent:
            behind.append(log.position - publication.head_position)
        take(sent)

    monkeypatch.setattr(client, "_take", taken)
    answers = [client.send(CMD_WRITE, index * BLOCK, payload=block(index)) for index in range(200)]
    world.turn()
    assert client.session.backlog, "the ring is full, and some requests wait"
    world.settle()
    assert all(answer.ready for answer in answers)
    assert not any(behind)


def test_a_volume_is_found_once_its_creation_is_durable() -> None:
    world = World("creation")
    world.open()
    outcome = world.wait_for(lambda answer: world.engine.create_volume("disk0", MIB, answer))
    complete_all_but(world, lambda io: io.file == SUPERBLOCK)
    assert not outcome
    with pytest.raises(NotFoundError):
        world.engine.find("disk0")
    assert "disk0" not in world.engine.by_name
    world.settle()
    assert world.engine.find("disk0") is outcome[0]


def test_a_name_is_taken_from_the_moment_somebody_asked_for_it() -> None:
    world = World("creation")
    world.open()
    first = world.wait_for(lambda answer: world.engine.create_volume("disk0", MIB, answer))
    second = world.wait_for(lambda answer: world.engine.create_volume("disk0", MIB, answer))
    world.settle()
    assert world.engine.by_name["disk0"] is first[0]
    assert isinstance(second[0], Exception)


def test_more_cold_reads_than_pages_wait_for_each_other_and_end() -> None:
    world, client = opened(pages=64)
    for leaf in range(120):
        assert client.ask(CMD_WRITE, leaf * LEAF, payload=block(leaf)).errno == 0
    world.close()
    world.open()
    world.disk.cached = 0.0
    client = world.connect("disk0")
    answers = [client.send(CMD_READ, leaf * LEAF, BLOCK) for leaf in range(120)]
    world.settle()
    assert [bytes(answer.data) for answer in answers] == [block(leaf) for leaf in range(120)]


def test_a_segment_that_a_late_reader_held_is_taken_when_the_reader_is_done() -> None:
    world, client = opened(segments=24)
    world.disk.cached = 0.0
    at = 0
    while client.ask(CMD_WRITE, at, payload=bytes(MIB // 2 + 1)).errno == 0:
        at += MIB
    space = world.engine.space
    late = client.send(CMD_READ, 0, BLOCK)  # its segment is about to be freed
    complete_all_but(world, lambda io: io.op == READ and io.length == BLOCK and bool(space._readers))
    assert space._readers
    trimmer = world.connect("disk0")
    trimmed = trimmer.send(CMD_TRIM, 0, 400 * MIB)
    complete_all_but(world, is_read)
    assert trimmed.ready
    for _ in range(2):
        world.spawn(world.engine.checkpoint())
        complete_all_but(world, is_read)
    held = set(space._readers)
    assert held <= set(space.free)
    # All others are taken, so that whoever comes now waits for just this one.
    others = [segment for segment in space.free if segment not in held]
    for segment in others:
        space.pin(segment)
    writer = trimmer.send(CMD_WRITE, 0, payload=bytes(MIB))
    complete_all_but(world, is_read)
    assert [writer.ready, late.ready] == [False, False]
    world.disk.complete(0)
    complete_all_but(world, is_read)
    assert late.ready
    assert writer.ready
    for segment in others:
        space.unpin(segment)
    world.settle()
    check_accounts(world)


def test_the_second_superblock_of_an_opening_does_not_meet_another_checkpoint() -> None:
    world, client = opened()
    for index in range(40):
        client.ask(CMD_WRITE, index * LEAF, payload=block(index))
    world.server_dies()
    world.begin_open()
    written: list[int] = []

    def held(io: Io) -> bool:
        if io.file == SUPERBLOCK and io.op == WRITE:
            written.append(io.offset)
        return io.file == SUPERBLOCK

    complete_all_but(world, held)  # the first of the two is on its way
    index = next(index for index, (io, _) in enumerate(world.disk.in_flight) if io.file == SUPERBLOCK)
    world.disk.complete(index)
    complete_all_but(world, held)  # and now the second
    second = world.wait_for(lambda done: world.engine.scheduler.spawn(world.engine.checkpoint(), "second", done))
    complete_all_but(world, held)
    assert sum(io.file == SUPERBLOCK for io, _ in world.disk.in_flight) == 1
    world.settle()
    assert second == [None]
    check_accounts(world)


def test_a_log_that_was_cut_off_goes_on_without_a_gap() -> None:
    """The next segment has the next ordinal, also where segments behind the cut had been opened before."""
    for seed in range(8):
        world = World(f"cut {seed}", ring_blocks=1024)
        world.open()
        world.create("disk0", 400 * MIB)
        client = world.connect("disk0")
        for index in range(40):
            client.send(CMD_WRITE, index * MIB, payload=bytes([index + 1]) * (MIB // 4))
            world.step()
        for _ in range(10):
            world.step()
        world.power_fails()
        world.open()
        client = world.connect("disk0")
        for index in range(12):
            assert client.ask(CMD_WRITE, index * MIB, payload=bytes([index + 100]) * (MIB // 2)).errno == 0
        assert client.ask(CMD_FLUSH).errno == 0
        world.power_fails()
        world.open()
        client = world.connect("disk0")
        for index in range(12):
            assert client.ask(CMD_READ, index * MIB, BLOCK).data == bytes([index + 100]) * BLOCK


def test_a_segment_that_was_sealed_before_it_was_cut_off_is_not_taken_by_its_old_summary() -> None:
    for seed in range(20):
        world = World(f"old summary {seed}", ring_blocks=1024)
        world.open()
        world.create("disk0", 400 * MIB)
        client = world.connect("disk0")
        for index in range(5):
            client.send(CMD_WRITE, index * MIB, payload=bytes([index + 1]) * (MIB // 4))
        for _ in range(8):
            world.step()
        world.power_fails()
        world.open()
        client = world.connect("disk0")
        assert client.ask(CMD_WRITE, 0, payload=block(77)).errno == 0
        assert client.ask(CMD_FLUSH).errno == 0
        world.power_fails()
        world.open()
        assert world.connect("disk0").ask(CMD_READ, 0, BLOCK).data == block(77)


def test_a_flood_of_tiny_trims_survives_the_server_with_its_segment_open() -> None:
    """Such a segment goes without a summary; recovery must not make one that has no room in it."""
    world, client = opened()
    log = world.engine.log

    def has_summary() -> bool:
        return log._summary is not None

    for at in range(0, 24 * MIB, MIB):
        client.ask(CMD_WRITE, at, payload=bytes([1]) * MIB)
    trims = iter(range(0, 24 * MIB, BLOCK))
    while not has_summary() or log.offset_now() > 100:
        client.ask(CMD_WRITE, 30 * MIB, payload=bytes([2]) * BLOCK)  # until the head is near the start of a segment
    while has_summary():
        for _ in range(100):
            client.send(CMD_TRIM, next(trims), BLOCK)
        world.settle()
    while log.offset_now() < 250:
        client.send(CMD_TRIM, next(trims), BLOCK)
        client.ask(CMD_FLUSH)
    world.server_dies()
    world.open()
    client = world.connect("disk0")
    for round_ in range(12):
        assert client.ask(CMD_WRITE, 0, payload=bytes([round_ + 1]) * (100 * BLOCK)).errno == 0
    check_accounts(world)


def test_a_disconnected_clients_requests_hold_nothing_back() -> None:
    world, client = opened(pages=64)
    for leaf in range(100):
        client.ask(CMD_WRITE, leaf * LEAF, payload=block(leaf))
    world.close()
    world.open()
    world.disk.cached = 0.0
    client = world.connect("disk0")
    for leaf in range(60):
        client.send(CMD_READ, leaf * LEAF, 2 * BLOCK)
        client.send(CMD_WRITE, leaf * LEAF + 5, payload=b"part")
    client.close()
    world.settle()
    check_accounts(world)
    world.remove("disk0")
    check_accounts(world)


def test_a_recovery_that_is_cut_short_at_any_effect_can_be_done_again() -> None:
    for effect in range(0, 60, 3):
        world, client = opened(ring_blocks=256)
        for index in range(30):
            client.ask(CMD_WRITE, index * LEAF, payload=block(index))
        world.server_dies()
        world.disk.effects_left = effect
        try:
            world.open()
        except Crashed:
            world.server_dies()
            world.open()
        world.disk.effects_left = -1
        client = world.connect("disk0")
        for index in range(30):
            assert client.ask(CMD_READ, index * LEAF, BLOCK).data == block(index), (effect, index)


def test_trims_and_a_removal_need_no_room_that_a_full_pool_has_not_got() -> None:
    world, client = opened(segments=24)
    at = 0
    while client.ask(CMD_WRITE, at, payload=bytes(MIB // 4)).errno == 0:
        at += MIB // 4
    for index in range(200):
        assert client.ask(CMD_TRIM, index * 2 * BLOCK, BLOCK).errno == 0
        assert client.ask(CMD_FLUSH).errno == 0
    client.close()
    world.remove("disk0")
    world.run(world.engine.checkpoint())
    world.run(world.engine.checkpoint())
    world.settle()
    assert world.engine.space.room_for_clients()
    check_accounts(world)


@pytest.mark.xfail(reason="each flushed trim takes a block of the reserve: only a cleaner gives it back", strict=True)
def test_any_number_of_flushed_trims_succeeds_in_a_full_pool() -> None:
    _world, client = opened(segments=24)
    at = 0
    while client.ask(CMD_WRITE, at, payload=bytes(MIB // 4)).errno == 0:
        at += MIB // 4
    for index in range(at // BLOCK // 2):
        assert client.ask(CMD_TRIM, index * 2 * BLOCK, BLOCK).errno == 0
        assert client.ask(CMD_FLUSH).errno == 0


def test_a_full_pool_in_which_trims_have_used_up_what_they_may_still_opens() -> None:
    """What trims may take ends above what a checkpoint needs: without one the pool could never be opened again."""
    world, client = opened(segments=24)
    at = 0
    while client.ask(CMD_WRITE, at, payload=bytes(MIB // 4)).errno == 0:
        at += MIB // 4
    index = 0
    while client.ask(CMD_TRIM, index * 2 * BLOCK, BLOCK).errno == 0 and index < at // BLOCK // 2:
        assert client.ask(CMD_FLUSH).errno == 0
        index += 1
    for _ in range(5):
        client.close()
        world.server_dies()
        world.open()
        client = world.connect("disk0")
        assert client.ask(CMD_READ, BLOCK, BLOCK).data == bytes(BLOCK)
    check_accounts(world)


def test_a_piece_of_a_write_that_ends_lets_the_next_piece_begin() -> None:
    """Nothing else happens in a full pool that would look at the session again."""
    world, client = opened(segments=24)
    at = 0
    while client.ask(CMD_WRITE, at, payload=bytes(MIB // 4)).errno == 0:
        at += MIB // 4
    assert client.ask(CMD_FLUSH).errno == 0
    world.disk.cached = 0.0  # the first block, which is changed in part, has to be waited for
    payload = memoryview(bytes(MIB))
    half = MIB // 2 + 5 * BLOCK
    answer = Answer()
    client.waiting[77] = answer, 0
    first = (WRITE_PIECE, 0, 77, 1, half - 1, payload[: half - 1])
    last = (CMD_WRITE, 0, 77, half, BLOCK, payload[:BLOCK])
    client.session.submit([first, last])
    client._transmit()
    assert client.session.backlog
    complete_all_but(world, lambda _io: False)  # and no tick
    assert answer.errno == ENOSPC


def test_a_map_page_that_replay_could_not_read_never_reads_well_again(caplog: pytest.LogCaptureFixture) -> None:
    """What replay left out of it is missing in it: served later, it would show old data as if nothing had happened."""
    world, client = opened()
    assert client.ask(CMD_WRITE, 0, payload=block(1)).errno == 0
    world.run(world.engine.checkpoint())
    assert client.ask(CMD_WRITE, 0, payload=block(2)).errno == 0
    assert client.ask(CMD_WRITE, 4 * LEAF, payload=block(3)).errno == 0
    assert client.ask(CMD_FLUSH).errno == 0
    engine = world.engine
    volume = engine.by_name["disk0"]
    parent = engine.cache.slot_of[page_owner(volume.volume_id, 1, 0)]
    address = engine.cache.words[parent << 9] & ADDRESS_MASK
    client.close()
    world.server_dies()
    file = world.disk.files[address >> engine.log.shift]
    sector, byte = divmod((address & engine.log.segment_blocks - 1) * BLOCK, 512)
    file.now[sector, byte] ^= 1
    file.stable[sector, byte] ^= 1
    world.open()  # reads the page in the state in which only this once it is read wrong
    assert any("is damaged" in finding for finding in world.engine.findings)
    client = world.connect("disk0")
    assert client.ask(CMD_READ, 0, BLOCK).errno == EIO
    assert client.ask(CMD_READ, 4 * LEAF, BLOCK).data == block(3)
    client.close()
    world.close()
    file.now[sector, byte] ^= 1
    file.stable[sector, byte] ^= 1
    world.open()
    client = world.connect("disk0")
    assert client.ask(CMD_READ, 0, BLOCK).errno == EIO, "the page lacks what was written after the checkpoint"
    assert client.ask(CMD_READ, 4 * LEAF, BLOCK).data == block(3)

"""The flusher: group commit, the one durable write, errors and retries."""

from __future__ import annotations

from errno import EIO, ENOMEM, ENOSPC

from holdfast.pool.commit import decode_commit_header
from holdfast.runtime.ports import SYNC, WRITE
from holdfast.writeback.flusher import EAGER_BLOCKS_MIN, RETRY_DELAY_NS_MAX, RETRY_DELAY_NS_MIN
from holdfast.writeback.log import Room
from tests.writeback.conftest import EPOCH, Rig


def test_a_flush_with_nothing_to_flush_is_answered_at_once(rig: Rig) -> None:
    rig.flush()
    assert rig.answers == [0]
    assert not rig.disk.in_flight


def test_a_small_flush_is_one_durable_write_and_no_sync(rig: Rig) -> None:
    rig.append(3)
    rig.flush()
    assert [(io.op, io.durable) for io in rig.disk.in_flight] == [(WRITE, True)]
    rig.settle()
    assert rig.answers == [0]
    assert (rig.flusher.writes, rig.flusher.syncs) == (1, 0)
    assert decode_commit_header(rig.stored(257)) is not None


def test_nobody_is_answered_before_the_disk_is_done(rig: Rig) -> None:
    rig.append(3)
    rig.flush()
    assert rig.answers == []
    assert rig.log.durable < rig.log.sealed


def test_flushes_that_come_meanwhile_share_the_next_round(rig: Rig) -> None:
    rig.append()
    rig.flush()
    for _ in range(10):
        rig.append()
        rig.flush()
    assert len(rig.disk.in_flight) == 1
    rig.settle()
    assert rig.answers == [0] * 11
    assert rig.flusher.rounds == 2


def test_nothing_is_written_that_the_ring_does_not_tell_of(rig: Rig) -> None:
    """Were it, the server's death would leave more in the segment file than the ring brings back: two versions of a
    commit's header, and a summary that fits only one of them."""
    rig.append(3)
    rig.log.publish()
    rig.append(2)
    rig.flush()
    assert rig.disk.in_flight
    publication = rig.ring.publication(EPOCH)
    assert publication is not None
    assert publication.head_position == rig.log.sealed
    rig.settle()
    rig.append(2)
    rig.log.publish()
    rig.flush()
    publication = rig.ring.publication(EPOCH)
    assert publication is not None
    assert publication.durable_position == rig.log.durable


def test_a_flush_covers_only_what_came_before_it(rig: Rig) -> None:
    rig.append()
    rig.flush()
    covered = rig.log.position
    rig.append(5)
    rig.settle()
    assert rig.answers == [0]
    assert rig.log.durable == covered


def test_a_large_flush_is_writes_and_one_sync_of_each_file() -> None:
    rig = Rig(blocks=1024)
    rig.append(400)
    rig.flush()
    rig.settle()
    assert rig.answers == [0]
    assert rig.flusher.writes >= 2
    assert rig.flusher.syncs == 2
    assert rig.log.durable == rig.log.sealed


def test_a_sync_covers_only_the_writes_that_had_ended_when_it_began() -> None:
    rig = Rig(blocks=1024)
    rig.append(400)
    rig.flush()
    while not any(io.op == SYNC for io in rig.disk.in_flight):
        rig.disk.complete(0)
    covered = rig.flusher.written
    rig.append(300)
    rig.flush()
    writes = [io for io in rig.disk.in_flight if io.op == WRITE]
    assert writes
    for io in writes:
        rig.disk.complete(rig.disk.in_flight.index(io))
    assert rig.flusher.written > covered
    while rig.log.durable < covered:
        rig.disk.complete(0)
    assert rig.log.durable == covered
    assert rig.answers == [0]
    rig.settle()
    assert rig.answers == [0, 0]


def test_a_writer_that_never_flushes_is_written_back_anyway() -> None:
    rig = Rig(blocks=512)
    rig.append(rig.ring.blocks // 4 + 1)
    rig.flusher.pump()
    rig.settle()
    assert rig.log.durable > rig.log.start
    assert rig.releases


def test_a_little_dirt_is_left_to_gather_and_written_when_it_is_old(rig: Rig) -> None:
    rig.append(EAGER_BLOCKS_MIN // 4)
    rig.flusher.pump()
    assert not rig.disk.in_flight
    rig.flusher.tick()
    rig.flusher.tick()
    rig.settle()
    assert rig.flusher.dirty_blocks == 0


def test_a_failed_write_is_told_and_everything_stays_dirty(rig: Rig) -> None:
    rig.append(3)
    rig.disk.faults.turn_on("write", "ENOSPC", 1.0)
    rig.flush()
    rig.settle()
    assert rig.answers == [ENOSPC]
    assert rig.flusher.last_errno
    assert rig.flusher.dirty_blocks > 0
    assert rig.flusher.idle


def test_what_failed_is_written_again_after_a_pause_that_doubles(rig: Rig) -> None:
    rig.append(3)
    rig.disk.faults.turn_on("write", "EIO", 1.0)
    pauses = []
    rig.flush()
    for _ in range(20):
        rig.settle()
        pauses.append(rig.flusher.pause_ns)
        rig.flush()
        assert not rig.disk.in_flight, "nothing is tried before the pause is over"
        rig.flusher.resume()
        assert rig.disk.in_flight
    assert RETRY_DELAY_NS_MIN // 2 <= pauses[0] <= RETRY_DELAY_NS_MIN
    assert pauses[3] > 3 * pauses[0]
    assert RETRY_DELAY_NS_MAX // 2 <= min(pauses[10:]) < max(pauses) <= RETRY_DELAY_NS_MAX
    rig.disk.faults.calm()
    rig.settle()
    assert rig.answers[-1] == 0
    assert not rig.flusher.last_errno
    assert not rig.flusher.pause_ns


def test_after_a_failed_write_those_before_it_are_not_written_again() -> None:
    rig = Rig(blocks=1024)
    rig.append(700)
    rig.flush()
    second = rig.disk.in_flight[1]
    rig.disk.complete(0)
    rig.disk.faults.turn_on("write", "ENOMEM", 1.0)
    rig.disk.complete(0)
    rig.disk.faults.calm()
    rig.settle()
    assert rig.answers == [ENOMEM]
    rig.flusher.resume()
    again = rig.disk.in_flight[0]
    assert (again.file, again.offset) == (second.file, second.offset)
    rig.flush()
    rig.settle()
    assert rig.answers == [ENOMEM, 0]
    assert rig.log.durable == rig.log.sealed


def test_one_failing_write_in_four_hardly_delays_the_others() -> None:
    """Progress in between makes the next pause a short one again, so the pauses do not add up."""
    rig = Rig(blocks=1024, segments=100)
    rig.disk.faults.turn_on("write", "ENOMEM", 1 / 4)
    paused_ns = 0
    for _ in range(60):
        rig.append(300)
        rig.flush()
        while rig.log.durable < rig.log.sealed:
            rig.settle()
            paused_ns += rig.flusher.pause_ns
            rig.flusher.resume()
    assert rig.flusher.failures > 10
    assert paused_ns < 3 * rig.flusher.failures * RETRY_DELAY_NS_MIN


def test_after_a_failed_sync_the_data_are_written_again_and_not_just_synced() -> None:
    """The disk of these tests forgets what a failed SYNC was to cover, as kernels do."""
    rig = Rig(blocks=1024)
    rig.append(400, value=7)
    rig.disk.faults.turn_on("sync", "EIO", 1.0)
    rig.flush()
    rig.settle()
    assert rig.answers == [EIO]
    rig.disk.faults.calm()
    rig.flusher.resume()
    rig.flush()
    rig.settle()
    assert rig.answers == [EIO, 0]
    for position in range(258, rig.log.position):
        assert any(rig.stored(position)) or position in (509, 510)


def test_while_every_sync_fails_the_pauses_grow_though_writes_succeed() -> None:
    rig = Rig(blocks=4096, segments=100)
    rig.disk.faults.turn_on("sync", "EIO", 1.0)
    pauses = []
    for _ in range(8):
        rig.append(300)
        rig.flush()
        rig.settle()
        pauses.append(rig.flusher.pause_ns)
        rig.flusher.resume()
    assert max(pauses) > 8 * RETRY_DELAY_NS_MIN


def test_an_error_meets_all_who_wait_and_those_after_it_wait_for_the_retry(rig: Rig) -> None:
    rig.append(3)
    rig.disk.faults.turn_on("write", "EIO", 1.0)
    rig.flush()
    rig.flush()
    rig.settle()
    assert rig.answers == [EIO, EIO]
    rig.disk.faults.calm()
    rig.flush()
    assert rig.answers == [EIO, EIO]
    rig.flusher.resume()
    rig.settle()
    assert rig.answers == [EIO, EIO, 0]


def test_a_ring_that_is_full_drains_without_anybody_asking() -> None:
    rig = Rig(blocks=256)
    assert rig.append(300) is Room.RING_FULL
    rig.flusher.pump()
    rig.settle()
    assert rig.append(50) is Room.YES

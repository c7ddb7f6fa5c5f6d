"""Where the log ends: a torn tail is cut off, a damaged commit that was durable is not, other epochs do not count."""

from __future__ import annotations

import pytest

from holdfast.errors import CorruptionError
from holdfast.pool.roll_forward import LogScanner, LogTail
from holdfast.units import BLOCK_SIZE_BYTES
from holdfast.work.task import run_to_end
from tests.writeback.conftest import EPOCH, TAG, Rig

BLOCK = BLOCK_SIZE_BYTES
FIRST = (1 << 8) + 1  # position of the first commit


def commits(rig: Rig, *sizes: int) -> list[int]:
    """Durable commits of so many blocks each; their positions."""
    positions = []
    for number, size in enumerate(sizes):
        positions.append(rig.log.position if rig.log.segment >= 0 else FIRST)
        rig.append(size, value=number + 1, lba=100 * number)
        rig.flush()
        rig.settle()
    return positions


def tail_of(rig: Rig, *, replay: int = FIRST, epoch: int = EPOCH, known_end: int = 0) -> LogTail:
    scanner = LogScanner(tag=TAG, epoch=epoch, segment_shift=8, drop_cached=lambda _file, _offset, _length: None)
    candidates = {
        ordinal: segment
        for segment in range(16)
        for ordinal in (int(rig.space.ordinal[segment]),)
        if ordinal >= replay >> 8
    }
    work = scanner.find_tail(replay_position=replay, candidates=candidates, known_end=known_end)
    tail: LogTail = run_to_end(work, rig.disk.run)
    return tail


def flip(rig: Rig, position: int, *offsets: int) -> None:
    """Change bytes of the block at a log position."""
    segment = next(segment for segment in range(16) if int(rig.space.ordinal[segment]) == position >> 8)
    for offset in offsets:
        rig.disk.files[segment].now.reshape(-1)[(position & 255) * BLOCK + offset] ^= 0x21


def test_all_commits_are_found_and_the_log_goes_on_behind_them(rig: Rig) -> None:
    positions = commits(rig, 3, 5, 1)
    tail = tail_of(rig)
    assert [commit.position for commit in tail.commits] == positions
    assert (tail.end, tail.segment) == (rig.log.position, rig.log.segment)
    assert tail.findings == []


def test_only_what_lies_behind_the_replay_position_counts(rig: Rig) -> None:
    positions = commits(rig, 3, 5, 1)
    assert [commit.position for commit in tail_of(rig, replay=positions[1]).commits] == positions[1:]


def test_sealed_segments_are_taken_from_their_summaries() -> None:
    rig = Rig(blocks=1024)
    positions = commits(rig, *[60] * 10)
    tail = tail_of(rig)
    assert sum(commit.block_count for commit in tail.commits) == 600
    assert tail.end == rig.log.position
    assert {commit.position for commit in tail.commits} >= set(positions[1:3])


@pytest.mark.parametrize("what", ["header", "data"])
def test_a_torn_commit_at_the_end_is_cut_off(rig: Rig, what: str) -> None:
    positions = commits(rig, 3, 5)
    flip(rig, positions[1] + (what == "data") * 2, *range(512, 1024))
    tail = tail_of(rig)
    assert [commit.position for commit in tail.commits] == positions[:1]
    assert tail.end == positions[1]


def test_a_tail_that_is_known_to_be_whole_is_not_cut_off(rig: Rig) -> None:
    """The ring survived and has just been written out: damaged data behind it read as errors, they do not vanish."""
    positions = commits(rig, 3, 5)
    flip(rig, positions[1] + 2, 7)
    tail = tail_of(rig, known_end=rig.log.position)
    assert [commit.position for commit in tail.commits] == positions


def test_a_damaged_header_that_was_durable_is_mended_and_reported(rig: Rig) -> None:
    positions = commits(rig, 3, 5, 1)
    flip(rig, positions[1], 77)
    tail = tail_of(rig)
    assert [commit.position for commit in tail.commits] == positions
    assert "damaged byte" in tail.findings[0]


def test_a_header_that_was_durable_and_is_beyond_mending_is_an_error_and_no_end(rig: Rig) -> None:
    positions = commits(rig, 3, 5, 1)
    flip(rig, positions[1], 77, 200, 300)
    with pytest.raises(CorruptionError, match="backup"):
        tail_of(rig)


@pytest.mark.parametrize("torn", [("footer",), ("footer", "summary")])
@pytest.mark.parametrize("early", [False, True])
def test_a_segment_whose_footer_was_torn_off_with_the_log_gone_on_behind_it(torn: tuple[str, ...], early: bool) -> None:
    """Power failed between the end of what is durable, which the next segment tells of, and the footer. Where there is
    room for a commit, only the summary says that there is none (seed 242 of the simulator)."""
    rig = Rig(blocks=1024)
    if early:
        commits(rig, 60)
        assert rig.log.leave_segment()
    positions = commits(rig, *[60] * 6)
    assert rig.log.ordinal > 1
    flip(rig, (1 << 8) + 255, *range(BLOCK))
    if "summary" in torn:
        flip(rig, (1 << 8) + 254, *range(BLOCK))
        flip(rig, (1 << 8) + 253, *range(BLOCK))
    if early and "summary" in torn:
        with pytest.raises(CorruptionError, match="backup"):
            tail_of(rig)
        return
    tail = tail_of(rig)
    assert tail.end == rig.log.position
    assert sum(commit.block_count for commit in tail.commits) == (7 if early else 6) * 60
    assert {commit.position for commit in tail.commits} >= set(positions[1:3])


def test_damaged_data_that_were_durable_stay_where_they_are(rig: Rig) -> None:
    positions = commits(rig, 3, 5, 1)
    flip(rig, positions[1] + 2, *range(100))
    assert [commit.position for commit in tail_of(rig).commits] == positions


def test_commits_of_another_epoch_do_not_count(rig: Rig) -> None:
    commits(rig, 3, 5)
    assert tail_of(rig, epoch=EPOCH + 1).commits == []
    assert tail_of(rig, epoch=EPOCH + 1).end == FIRST


def test_what_was_written_on_in_a_new_epoch_ends_the_old_one(rig: Rig) -> None:
    positions = commits(rig, 3, 5)
    rig.log.epoch = EPOCH + 1
    commits(rig, 4)
    tail = tail_of(rig)
    assert [commit.position for commit in tail.commits] == positions


def test_a_footer_of_another_epoch_seals_nothing() -> None:
    rig = Rig(blocks=1024)
    commits(rig, 100, 100)
    rig.log.epoch = EPOCH + 1
    commits(rig, 100)  # seals the segment, in the new epoch
    tail = tail_of(rig)
    assert [commit.block_count for commit in tail.commits] == [100, 100]
    assert tail.end & 255


def test_the_open_segments_entries_come_back_for_its_summary(rig: Rig) -> None:
    commits(rig, 3, 5)
    assert tail_of(rig).summary == bytes(rig.log._summary or b"")


def test_an_empty_log_ends_where_it_begins() -> None:
    scanner = LogScanner(tag=TAG, epoch=EPOCH, segment_shift=8, drop_cached=lambda _file, _offset, _length: None)
    tail = run_to_end(scanner.find_tail(replay_position=512, candidates={}, known_end=0), Rig().disk.run)
    assert (tail.end, tail.segment, tail.commits) == (512, -1, [])

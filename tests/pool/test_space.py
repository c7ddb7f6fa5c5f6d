"""The space table: when a segment may be opened, and when it comes back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from holdfast.pool.space import ABSENT, DYING, FREE, OPEN, SEALED, SpaceTable

SHIFT = 8


def table(*, capacity: int = 8, reserve: int = 2, prepared: int = 8) -> SpaceTable:
    space = SpaceTable(capacity, SHIFT, reserve_segments=reserve)
    for _ in range(prepared):
        segment = space.take_absent()
        assert segment is not None
        space.prepared(segment)
    return space


def use(space: SpaceTable, ordinal: int, *, live: int = 0) -> int:
    """Open a segment, put `live` blocks into it, seal it."""
    segment = space.take_free()
    assert segment is not None
    space.opened(segment, ordinal)
    space.live_words[segment] += live
    space.sealed(segment)
    return segment


def dead(space: SpaceTable) -> npt.NDArray[np.bool_]:
    column: npt.NDArray[np.bool_] = np.logical_and(space.state == SEALED, space.live == 0)
    return column


def test_a_dead_segment_comes_back_after_two_checkpoints_and_not_before() -> None:
    space = table()
    segment = use(space, 1)
    assert space.retire(dead(space)) == 0
    assert space.state[segment] == DYING
    assert segment not in space.free
    assert space.retire(dead(space)) == 1
    assert space.state[segment] == FREE
    assert segment in space.free


def test_a_segment_with_a_live_block_stays() -> None:
    space = table()
    segment = use(space, 1, live=1)
    for _ in range(3):
        space.retire(dead(space))
    assert space.state[segment] == SEALED
    space.drop_blocks(np.array([segment << SHIFT | 5, 0], np.uint64))
    assert space.live[segment] == 0


def test_what_died_after_the_checkpoints_moment_waits_for_the_next_one() -> None:
    space = table()
    segment = use(space, 1, live=1)
    at_the_moment = dead(space)
    space.live_words[segment] -= 1
    space.retire(at_the_moment)
    assert space.state[segment] == SEALED


def test_the_reserve_is_not_for_clients() -> None:
    space = table(capacity=4, reserve=2, prepared=4)
    use(space, 1, live=1)
    assert space.room_for_clients()
    use(space, 2, live=1)
    assert not space.room_for_clients()
    assert space.take_free() is not None


def test_a_segment_that_is_being_read_is_passed_over() -> None:
    space = table(capacity=2, reserve=0, prepared=2)
    called = []
    space.on_unpinned = lambda: called.append(True)
    space.pin(0)
    space.pin(0)
    assert space.take_free() == 1
    assert space.take_free() is None
    space.unpin(0)
    assert not called
    assert space.take_free() is None
    space.unpin(0)
    assert called
    assert space.take_free() == 0


def test_a_file_that_cannot_be_made_counts_no_longer_as_room() -> None:
    space = table(capacity=4, reserve=1, prepared=0)
    assert space.room_for_clients()
    segment = space.take_absent()
    assert segment is not None
    space.preparation_failed(segment)
    assert not space.room_for_clients()
    assert space.take_absent() == segment
    space.prepared(segment)
    assert space.room_for_clients()


def test_a_stored_table_comes_back_and_the_files_tell_absent_from_free() -> None:
    space = table(prepared=5)
    kept = use(space, 1, live=3)
    gone = use(space, 2)
    space.retire(dead(space))
    raw = space.encode(space.live)
    again = SpaceTable(8, SHIFT, reserve_segments=2)
    again.decode(raw, files=range(5))
    assert again.state[kept] == SEALED
    assert again.live[kept] == 3
    assert again.ordinal[kept] == 1
    assert again.state[gone] == FREE, "what was dying came free when the checkpoint that stored this was durable"
    assert sorted(again.free) == sorted(set(range(5)) - {kept})
    assert sorted(again.absent) == [5, 6, 7]


def test_a_pool_that_grew_reads_the_shorter_table() -> None:
    raw = table(capacity=4, prepared=4).encode(np.zeros(4, np.int64))
    grown = SpaceTable(8, SHIFT, reserve_segments=2)
    grown.decode(raw, files=range(4))
    assert list(grown.free) == [0, 1, 2, 3]
    assert sorted(grown.absent) == [4, 5, 6, 7]


def test_recovery_claims_what_the_log_went_into() -> None:
    space = table(prepared=4)
    space.claim(2, 9)
    space.claim(6, 10)
    assert 2 not in space.free
    assert 6 not in space.absent
    assert space.state[2] == space.state[6] == SEALED


def test_counts_name_every_state() -> None:
    space = table(prepared=3)
    use(space, 1)
    opened = space.take_free()
    assert opened is not None
    space.opened(opened, 2)
    assert space.counts() == {
        "absent": 5, "free": 1, "open": 1, "sealed": 1, "dying": 0, "filling": 0, "moving": 0,
    }  # fmt: skip
    assert (ABSENT, OPEN) == (0, 2)


def test_holes_count_for_nothing() -> None:
    space = table()
    space.count_blocks(np.array([0, 0], np.uint64))
    space.drop_blocks(np.array([], np.uint64))
    assert not space.live.any()


def test_a_negative_count_at_a_checkpoint_is_a_mistake_of_ours() -> None:
    space = table()
    with pytest.raises(AssertionError):
        space.encode(np.full(8, -1, np.int64))

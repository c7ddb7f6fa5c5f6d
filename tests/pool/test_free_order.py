"""Which free segment is used first."""

from __future__ import annotations

from holdfast.pool.space import DYING, FREE, SpaceTable


def test_what_the_stored_table_does_not_call_free_yet_is_used_first() -> None:
    """It was dead at the newest checkpoint, and came free because both slots lead to that. A pool that is opened again
    finds it sealed: those that it finds free must be left for the first checkpoint."""
    space = SpaceTable(4, 4)
    space.absent.clear()
    for segment in (0, 1):
        space.prepared(segment)
    space.state[2] = DYING
    space.free_dying()
    assert space.state[2] == FREE
    assert [space.take_free() for _ in range(3)] == [2, 0, 1]

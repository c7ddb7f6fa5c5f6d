"""Which segment is emptied first."""

from __future__ import annotations

import numpy as np

from holdfast.pool.cold_segment import COLD
from holdfast.pool.victim import Haste, choose

LIVE = np.array([10, 50, 30, 30, 60], np.int64)
ORDINAL = np.array([99, 1, 50, COLD | 20, 2], np.uint64)


def chosen(*, haste: Haste, candidates: tuple[int, ...] = (0, 1, 2, 3, 4)) -> list[int]:
    column = np.zeros(5, np.bool_)
    column[list(candidates)] = True
    return choose(LIVE, ORDINAL, column, worth=60, now_ordinal=100, haste=haste)


def test_of_the_same_age_the_emptiest_comes_first() -> None:
    live = np.array([10, 50, 30], np.int64)
    same = np.full(3, 50, np.uint64)
    everything = np.ones(3, np.bool_)
    for haste in Haste:
        assert choose(live, same, everything, worth=60, now_ordinal=100, haste=haste) == [0, 2, 1]


def test_for_the_reserve_the_emptiest_comes_first() -> None:
    assert chosen(haste=Haste.RESERVE) == [0, 2, 3, 1, 4]


def test_where_somebody_waits_what_gives_little_comes_last_however_old() -> None:
    assert chosen(haste=Haste.WAITED_FOR) == [3, 2, 0, 1, 4]


def test_without_need_what_was_left_alone_for_long_comes_first() -> None:
    """A young segment may be emptied by those who write; what an old one has dead is all that will be gained of it."""
    assert chosen(haste=Haste.NONE) == [3, 2, 1, 0, 4]


def test_a_segment_full_of_live_blocks_is_worth_nothing() -> None:
    assert chosen(haste=Haste.NONE)[-1] == 4


def test_only_candidates_are_chosen() -> None:
    assert chosen(haste=Haste.RESERVE, candidates=(1, 3)) == [3, 1]

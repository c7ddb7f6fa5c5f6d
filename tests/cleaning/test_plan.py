"""What a round of cleaning does is decided before anything is copied or marked, by what it costs and gains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from holdfast.pool.block import WordArray
from holdfast.pool.space import SEALED, SpaceTable
from holdfast.volume.cleaning_plan import Plan, Planner
from holdfast.volume.live_blocks import LiveBlocks, LiveFinder
from holdfast.volume.set_aside import SetAside
from holdfast.work.task import Work, run_to_end
from tests.engine.helpers import block, create, new_world
from tests.engine.versions import write

WORTH = 60
SOFT_LIMIT = 16


def live_blocks(data: int, page_owner: WordArray) -> LiveBlocks:
    return LiveBlocks(
        np.zeros(data, np.uint32),
        np.zeros(data, np.uint64),
        np.zeros(data, np.uint32),
        np.zeros(data, np.uint64),
        np.zeros(data, np.int32),
        page=np.zeros(len(page_owner), np.uint32),
        page_owner=page_owner,
    )


class Victims:
    """Victims given as (data blocks, live pages, pages that checkpoints would write for these)."""

    def __init__(self, *victims: tuple[int, int, int], free: int = 20) -> None:
        self.space = SpaceTable(len(victims) + free, 6)
        for segment, (data, pages, _cost) in enumerate(victims):
            self.space.state[segment] = SEALED
            self.space.live[segment] = data + pages
            self.space.absent.remove(segment)
        self.victims = victims
        self.looked_at: list[int] = []
        self.set_aside = SetAside(self.space, cast("Any", SimpleNamespace(now_ns=lambda: 0)))
        self.planner = Planner(
            self.space,
            cast("Any", SimpleNamespace(dirty_soft_limit=SOFT_LIMIT)),
            cast(
                "Any",
                SimpleNamespace(
                    written_pages=lambda blocks: blocks.holders,
                    changed_leaves=lambda blocks: len(blocks) // 2,  # two blocks share a page
                ),
            ),
            self.set_aside,
            worth_blocks=WORTH,
            look=self._look,
            stopping=lambda: False,
        )

    def _look(self, victim: int, _ordinal: int) -> Work:
        self.looked_at.append(victim)
        data, pages, cost = self.victims[victim]
        blocks = live_blocks(data, np.zeros(pages, np.uint64))
        blocks.holders = cast("Any", cost)
        yield from ()
        return blocks

    def plan(self, **how: bool) -> tuple[list[int], list[int]]:
        plan: Plan = run_to_end(self.planner.plan(list(range(len(self.victims))), **how), cast("Any", None))
        return [planned.victim for planned in plan.copied], [planned.victim for planned in plan.rewritten]


def test_data_of_one_victim_alone_is_not_copied() -> None:
    assert Victims((5, 0, 0)).plan() == ([], [])
    assert Victims((5, 0, 0)).plan(whatever_it_costs=True) == ([0], [])


def test_two_victims_are_emptied_into_one_segment() -> None:
    assert Victims((5, 0, 0), (50, 0, 0)).plan() == ([0, 1], [])


def test_a_segment_that_becomes_full_is_gain_enough() -> None:
    pool = Victims((59, 0, 0), (59, 0, 0), (59, 0, 0))
    assert pool.plan() == ([0, 1], [])
    assert pool.looked_at == [0, 1], "no more than are needed"


def test_a_second_one_is_looked_for_behind_those_with_pages() -> None:
    """Else the first would be copied each time, and thrown away when the pages are as many as may be dirty."""
    assert Victims((5, 0, 0), (0, 10, 20), (0, 10, 20), (55, 0, 0)).plan() == ([0, 3], [1])


def test_pages_that_would_cost_a_segment_to_write_are_left_alone() -> None:
    pool = Victims((0, 15, WORTH), (0, 15, WORTH - 1))
    assert pool.plan() == ([], [1])
    candidates = np.ones(len(pool.space.live), np.bool_)
    pool.set_aside.take_out_of(candidates)
    assert not candidates[0]
    pool.space.live[0] -= 1
    candidates[:] = True
    pool.set_aside.take_out_of(candidates)
    assert candidates[0], "there is less in it now"


def test_where_little_is_left_only_what_gains_much_is_done() -> None:
    """A block that is moved changes its page of the map, which is to be written as well."""
    pool = Victims((40, 0, 0), (20, 0, 0), (10, 10, 40), (10, 10, 20), (0, 10, 40))
    assert pool.plan(strict=True) == ([1, 3], [4])
    assert pool.plan() == ([0, 1], [])


def test_pages_are_marked_as_far_as_checkpoints_have_segments_for_them() -> None:
    pool = Victims((0, 5, 40), (0, 5, 40), (0, 5, 40), free=3)
    assert pool.plan() == ([], [0, 1])


def test_pages_written_are_those_marked_and_all_above_them() -> None:
    world = new_world("written pages")
    volume = create(world, "disk0", 3 << 40)
    for leaf in (0, 1, 1 << 18):
        write(world, "disk0", leaf << 9, block(leaf))
    world.run(world.engine.checkpoint())
    finder: LiveFinder = world.engine.cleaner.copier.finder
    owners = [volume.key_base | leaf for leaf in (0, 1, 1 << 18)]

    def written(*owners: int) -> int:
        return finder.written_pages(live_blocks(0, np.array(owners, np.uint64)))

    assert volume.root_level == 3
    assert written() == 0
    assert written(owners[0]) == 4
    assert written(*owners[:2]) == 5, "of which four are above both"
    assert written(*owners) == 8, "of which the root is above all"
    assert written(volume.key_base | 1 << 36) == 4, "a page above the leaves is written because a leaf below it is"

"""What one round of cleaning does, decided before anything is changed: a round that costs as much as it gains would be
done again and again.

What it costs and gains, in segments:

    data    is copied: a whole segment is taken, which must become full, or empty two victims at least
    pages   are written by checkpoints, and each with those above it up to the root. Where they lie far apart that may
            be more than the victim that comes free for it; such a one is left alone until there is less in it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.pool.space import SpaceTable
from holdfast.volume.live_blocks import LiveBlocks, LiveFinder
from holdfast.volume.page_cache import PageCache
from holdfast.volume.set_aside import FOR_GOOD, SetAside
from holdfast.work.task import Work

CHECKPOINT_BLOCKS = 16  # besides pages: tables, and what others made dirty
LOOKS_MAX = 64  # victims that are looked at for a second one to be emptied into the segment that a first one needs


@dataclass(slots=True)
class Planned:
    """A victim, and what is live in it."""

    victim: int
    ordinal: int
    blocks: LiveBlocks


@dataclass(slots=True)
class Plan:
    """`copied`: victims with data, in their order, whose data goes into one segment, or none of them; `rewritten`:
    those with pages only."""

    copied: list[Planned] = field(default_factory=list)
    rewritten: list[Planned] = field(default_factory=list)


class Planner:
    """Fields: I fixed when made."""

    def __init__(
        self,
        space: SpaceTable,
        cache: PageCache,
        finder: LiveFinder,
        set_aside: SetAside,
        *,
        worth_blocks: int,
        look: Callable[[int, int], Work],
        stopping: Callable[[], bool],
    ) -> None:
        """
        worth_blocks    what a segment holds at most
        look            finds what is live in a victim, with its ordinal, or None if it cannot be read
        """
        self._space = space  # I
        self._cache = cache  # I
        self._finder = finder  # I
        self._set_aside = set_aside  # I
        self._worth_blocks = worth_blocks  # I
        self._look = look  # I
        self._stopping = stopping  # I

    def plan(self, victims: list[int], *, whatever_it_costs: bool = False, strict: bool = False) -> Work:
        """A `Plan` for these, in this order, as far as one segment takes them (a task's work). `strict`: only victims
        that gain a quarter of a segment at least, the pages counted as well that change when data is moved."""
        plan = Plan()
        data = written = leaves = looks = 0
        for victim in victims:
            if self._stopping() or not self.can_afford(written):
                break
            ordinal = int(self._space.ordinal[victim])
            blocks: LiveBlocks | None = yield from self._look(victim, ordinal)
            if blocks is None:
                continue
            looks += 1
            cost = self._finder.written_pages(blocks)
            if strict and len(blocks) + self._finder.changed_leaves(blocks) + cost > self._worth_blocks * 3 // 4:
                continue
            if not (len(blocks) or cost) or (cost >= self._worth_blocks and not whatever_it_costs):
                self._set_aside.put(victim, FOR_GOOD)
            elif len(blocks):
                if not self.can_afford(written + cost + 2 * len(blocks)):
                    break
                plan.copied.append(Planned(victim, ordinal, blocks))
                data += len(blocks)
                written += cost
            elif not leaves or leaves + len(blocks.page) <= self._cache.dirty_soft_limit:
                plan.rewritten.append(Planned(victim, ordinal, blocks))
                leaves += len(blocks.page)
                written += cost
            if data >= self._worth_blocks:
                break
            searching = len(plan.copied) == 1 and looks < LOOKS_MAX
            if leaves >= self._cache.dirty_soft_limit and not searching:
                break  # more than one checkpoint is to write
        if len(plan.copied) < 2 and data < self._worth_blocks and not whatever_it_costs:
            plan.copied.clear()
        return plan

    def can_afford(self, pages: int) -> bool:
        """True if checkpoints can write so many pages of maps out of what is free, and have a segment left. The dirty
        pages of clients, and the tables of each checkpoint, come on top."""
        checkpoints = 1 + pages // max(1, self._cache.dirty_soft_limit)
        blocks = pages + checkpoints * CHECKPOINT_BLOCKS
        return blocks <= (self._space.available_segments - 1) * self._worth_blocks

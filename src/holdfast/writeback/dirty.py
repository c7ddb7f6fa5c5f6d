"""Whose the dirty data in the ring is: stretches of the log between what is durable and its head, each with the group
that pays for it.

The log counts in positions, not in blocks of requests: a commit header belongs to whoever's block opened the commit.
So the stretches, taken together, are exactly what the ring holds, and nothing is counted for each block: a stretch
grows until another group appends.

Invariant: the stretches are adjacent and cover [durable, settled); a group's `Kind.RING` is the sum of its stretches.
"""

from __future__ import annotations

from collections import deque

from holdfast.memory.group import Group, Kind
from holdfast.units import BLOCK_SHIFT


class DirtyStretches:
    def __init__(self, system: Group) -> None:
        self.system = system  # pays for metadata that no request asked for
        self.settled = 0  # log position up to which somebody pays
        self._stretches: deque[_Stretch] = deque()

    def start_at(self, position: int) -> None:
        """The log begins here: nothing in the ring is dirty."""
        assert not self._stretches
        self.settled = position

    def settle(self, position: int, group: Group) -> None:
        """Charge everything that was appended since the last call to `group`."""
        start = self.settled
        if position == start:
            return
        self.settled = position
        stretches = self._stretches
        if stretches and stretches[-1].group is group:
            stretches[-1].end = position
        else:
            stretches.append(_Stretch(group, start, position))
        group.charge(Kind.RING, position - start << BLOCK_SHIFT)

    def release(self, durable: int) -> None:
        """Everything below `durable` is not dirty any more."""
        stretches = self._stretches
        while stretches and stretches[0].start < durable:
            first = stretches[0]
            end = min(first.end, durable)
            first.group.release(Kind.RING, end - first.start << BLOCK_SHIFT)
            first.start = end
            if end == first.end:
                stretches.popleft()

    @property
    def payers(self) -> list[Group]:
        return [stretch.group for stretch in self._stretches]


class _Stretch:
    """Log positions [start, end)."""

    __slots__ = ("end", "group", "start")

    def __init__(self, group: Group, start: int, end: int) -> None:
        self.group = group
        self.start = start
        self.end = end

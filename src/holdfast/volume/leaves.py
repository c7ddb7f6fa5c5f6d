"""Leaves of several nodes, resident together: of a volume and of those that keep what it replaces, say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from holdfast.volume.page_cache import PageCache
from holdfast.volume.page_table import PageDamagedError, PageTable
from holdfast.volume.volume import Volume
from holdfast.work.task import Scheduler, Waitlist, Work


class Leaves:
    """All fields: loop thread."""

    def __init__(self, cache: PageCache, table: PageTable, scheduler: Scheduler, turn: Waitlist) -> None:
        """turn: where those wait who want leaves brought in while others are"""
        self._cache = cache
        self._table = table
        self._scheduler = scheduler
        self._turn = turn
        self._busy = False
        self._nodes: Sequence[Volume] = ()

    def is_bringing_in(self, node: Volume) -> bool:
        """True while it needs pages of a node: they must not be forgotten."""
        return node in self._nodes

    def bring_in(self, nodes_now: Callable[[], Sequence[Volume]], leaf: int) -> Work:
        """Make the leaf resident in the maps of all nodes, new where there was none (a task's work); returns the slots,
        good until the caller next yields.

        One such request at a time: tasks that each had brought in some of their leaves would evict each other's, for
        ever. So `nodes_now` is asked when it is this one's turn: some may be gone by then. Raises CorruptionError or
        DiskError if a page cannot be read. If one of a node behind the first is lost for good that is noted, and the
        slots are those of the nodes before.
        """
        while self._busy:
            yield self._turn
        self._busy = True
        nodes = self._nodes = nodes_now()
        held = self._scheduler.hold(self._turn)
        slots: list[int] = []
        try:
            for node in nodes:
                try:
                    slot = yield from self._table.page(node, 0, leaf, create=True)
                except PageDamagedError as error:
                    if node is nodes[0] or not error.given_up:
                        raise
                    node.note_lost_leaf(leaf)
                    break
                self._cache.children[slot] += 1  # stays while the next one is read
                slots.append(slot)
        finally:
            for slot in slots:
                self._cache.children[slot] -= 1
            held.release()
            self._busy = False
            self._nodes = ()
            self._turn.wake()
        return slots

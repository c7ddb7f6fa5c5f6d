"""What removed volumes and snapshots leave behind goes: to the snapshots that see it, or out of the pool.

A removed node is hidden, and that is durable before anybody is told (`Volumes.remove`). Then, in the background and one
node after another, leaf by leaf:

    it has an heir     what the heir has no entry for becomes the heir's, the rest is dead
    it has none        all of it is dead
    one clone is left  that was made from it, and nobody else sees it: what the clone has no entry for becomes the
                       clone's. The rest is dead, if the clone has no snapshots: these may have marks that lead there.
                       The node stays, as the clone's ground, with nothing in it

An emptied node is taken out of the version tree at once: whoever looked through it sees the same without it. A
checkpoint makes its pages disappear from the log, and after that its row. None of this is in the log of changes: a
crash takes it back to the last checkpoint, where the node is still hidden, with whatever it had then, and it begins
again.

So removing needs no space but the pages of a checkpoint, and works in a pool that is full.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from holdfast.errors import DiskError, HoldfastError, NoSpaceError, log_fields
from holdfast.pool.block import ADDRESS_MASK, GROUND_MARK, page_place
from holdfast.volume.leaves import Leaves
from holdfast.volume.long_write import LongWriter
from holdfast.volume.page_cache import PAGE_SHIFT, PageCache
from holdfast.volume.page_table import PageDamagedError, PageTable
from holdfast.volume.provision import Provisions
from holdfast.volume.versions import is_for_one_clone, is_going, near_head, remove_place, sees_below
from holdfast.volume.view import Views
from holdfast.volume.volume import Volume
from holdfast.volume.waitlists import Waitlists
from holdfast.volume.write import Writer
from holdfast.work.task import Scheduler, Work, guarded

log_output = logging.getLogger("holdfast.volumes")

LEAVES_PER_TURN = 16
NODES_PER_TURN = 64  # of nodes with hardly any map

_ADDRESS = np.uint64(ADDRESS_MASK)
_GROUND = np.uint64(GROUND_MARK)


class Removal:
    """All fields: loop thread."""

    def __init__(
        self,
        by_id: dict[int, Volume],
        cache: PageCache,
        table: PageTable,
        views: Views,
        leaves: Leaves,
        writer: Writer,
        long_writer: LongWriter,
        waitlists: Waitlists,
        scheduler: Scheduler,
        *,
        checkpoint: Callable[[], Work],
        is_checkpoint_running: Callable[[], bool],
        should_wait: Callable[[], bool],
        is_visited: Callable[[Volume], bool],
        gone: Callable[[Iterable[Volume]], None],
    ) -> None:
        """should_wait: whether it should leave the segments that there are to others for now
        is_visited: whether the cleaner looks at the map of a node
        gone: told of nodes that nothing is left of"""
        self._by_id = by_id
        self._cache = cache
        self._table = table
        self._views = views
        self._leaves = leaves
        self._writer = writer
        self._long_writer = long_writer
        self._waitlists = waitlists
        self._scheduler = scheduler
        self._checkpoint = checkpoint
        self._is_checkpoint_running = is_checkpoint_running
        self._should_wait = should_wait
        self._is_visited = is_visited
        self._gone = gone
        self._provisions = Provisions(writer.log.space)
        self._running = False
        self._waiting: list[Callable[[], None]] = []  # for its end
        self._emptied: dict[Volume, None] = {}  # in this order
        self._stuck: set[Volume] = set()  # a page of the map is damaged, and an heir needs what is below it
        self._given: dict[Volume, bool] = {}  # to their clones; and whether that is all that can be done

    def begin(self) -> None:
        """Something was hidden, or is left from an earlier life: see to it that it goes."""
        if not self._running and self._next() is not None:
            self._running = True
            self._scheduler.spawn(guarded(self._run()), "remove volumes and snapshots", self._ended)

    def when_done(self, told: Callable[[], None]) -> None:
        """Call `told` when nothing is left that can go, at once if that is so; or when it gave up."""
        if self._running:
            self._waiting.append(told)
        else:
            told()

    def _ended(self, error: HoldfastError | None) -> None:
        self._running = False
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            told()
        if error is not None:
            log_output.error(
                "a volume or snapshot cannot be removed: %s", error, extra=log_fields(error.resource, errno=error.errno)
            )

    def _run(self) -> Work:
        heir: Volume | None = None
        while True:
            # The heir of the last one first: so a chain of them takes one look at each, not one at all for each.
            node = heir if heir is not None and self._may_be_emptied(heir) else self._next()
            if node is not None and not is_going(node):
                yield from self._give_to_clone(node)
                continue
            if node is not None:
                heir = node.predecessor
                yield from self._empty(node)
                if len(self._emptied) % NODES_PER_TURN == 0:
                    yield self._waitlists.next_turn
                continue
            yield from self._checkpoint()
            # A cancelled request may still wait for a page that it had asked for; a checkpoint that is running refers
            # to pages.
            while self._is_checkpoint_running() or any(map(self._is_in_use, self._emptied)):
                yield self._waitlists.next_tick
            self._cache.forget_volumes({node.volume_id for node in self._emptied})
            self._gone(self._emptied)
            self._emptied.clear()
            if self._next() is None:
                yield from self._checkpoint()
                if self._next() is None:  # nothing was removed meanwhile: until here it was this task's
                    return

    def _is_in_use(self, node: Volume) -> bool:
        is_read = self._table.is_loading(node) or self._views.is_building(node) or self._leaves.is_bringing_in(node)
        return is_read or self._is_visited(node) or node.resizing

    def _next(self) -> Volume | None:
        """A node to be emptied: from the volume's end on, so that none that is being emptied gets anything new."""
        nodes = self._by_id.values()
        return next(filter(self._may_be_emptied, nodes), None) or next(filter(self._may_be_given, nodes), None)

    def _may_be_emptied(self, node: Volume) -> bool:
        if not is_going(node) or node in self._emptied or self._is_stuck(node):
            return False
        head = near_head(node)
        if head is not None and head.keepers and head.keepers[-1] is node:
            return False  # those nearer to the volume are stuck: it gets what the volume replaces
        basis = node.basis
        return basis is None or basis is node.ground or not is_going(basis) or self._is_stuck(basis)

    def _may_be_given(self, node: Volume) -> bool:
        if not is_for_one_clone(node) or not node.mapped_blocks or self._given.get(node):
            return False
        return node not in self._given or self._clone_of(node).predecessor is None

    def _clone_of(self, node: Volume) -> Volume:
        return next(other for other in self._by_id.values() if other.basis is node)

    def _give_to_clone(self, node: Volume) -> Work:
        """Let the only clone of a node have what it sees there. A page that cannot be read stays with all below it."""
        clone = self._clone_of(node)
        alone, damaged = clone.predecessor is None, False

        def pass_over(error: PageDamagedError) -> bool:
            nonlocal damaged
            damaged = True
            log_output.error("%s; what is below stays where it is", error, extra=log_fields(error.resource))
            return True

        yield from self._leaf_by_leaf(
            node,
            partial(self._give_leaf, node, clone),
            pass_over,
            goes_on=lambda: is_for_one_clone(node) and not is_going(clone),
        )
        self._given[node] = damaged or (alone and clone.predecessor is None)

    def _give_leaf(self, node: Volume, clone: Volume, leaf: int) -> Work:
        slots = yield from self._writable_leaves((node, clone), leaf)
        if len(slots) < 2 or leaf in clone.lost_leaves or not is_for_one_clone(node):
            return
        row, theirs = self._cache.arena[slots[0]], self._cache.arena[slots[1]]
        stored = (row & _ADDRESS) != 0
        seen = theirs == 0
        seen[max(0, sees_below(clone) - (leaf << PAGE_SHIFT)) :] = False
        seen = stored & (seen | (theirs == _GROUND))
        np.copyto(theirs, row, where=seen)
        clone.count_kept(leaf, seen, int(np.count_nonzero(seen)))
        gone = stored if clone.predecessor is None else seen
        self._writer.log.space.drop_blocks((row & _ADDRESS)[gone & ~seen])
        node.count_mapped(-int(np.count_nonzero(gone)))
        row[gone] = 0
        self._provisions.hold(clone)

    def _is_stuck(self, node: Volume) -> bool:
        return node in self._stuck and node.predecessor is not None  # else nobody needs any more what is in it

    def _empty(self, node: Volume) -> Work:
        """Take all that a node has, then the node out of the tree."""
        heir = node.predecessor

        def pass_over(error: PageDamagedError) -> bool:
            fields = log_fields(error.resource, volume=node.name)
            if heir is None:
                # What lies below the page cannot be found: it stays counted as live until a repair counts again.
                log_output.error("%s; the space below it is not freed", error, extra=fields)
                return True
            log_output.error(
                "%s; %s keeps its space, for what it has below is still seen through it", error, node.name, extra=fields
            )
            return False

        whole = yield from self._leaf_by_leaf(node, partial(self._empty_leaf, node, heir), pass_over)
        if not whole:
            self._stuck.add(node)
            return
        remove_place(node)
        self._given.pop(node, None)
        self._emptied[node] = None

    def _leaf_by_leaf(
        self,
        node: Volume,
        take: Callable[[int], Work],
        pass_over: Callable[[PageDamagedError], bool],
        *,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> Work:
        """Take each leaf that a node has, while `goes_on` (a task's work). `pass_over` is told of a page that cannot be
        read: whether to go on behind all that is below it. Returns False where it said no."""
        leaf, count = 0, 0
        end = 1 << PAGE_SHIFT * node.root_level  # not its size: a clone that was made smaller has marks behind its end
        while leaf < end and goes_on():
            while self._should_wait():
                yield self._waitlists.next_tick
            try:
                leaf = yield from self._table.next_leaf(node, leaf, end)
                if leaf < end:
                    yield from take(leaf)
                leaf += 1
            except PageDamagedError as error:
                if not pass_over(error):
                    return False
                level, index = page_place(error.key)
                leaf = index + 1 << PAGE_SHIFT * level
            except (NoSpaceError, DiskError):
                yield self._waitlists.next_tick  # a checkpoint frees space, or the disk recovers; then on from here
            count += 1
            if count % LEAVES_PER_TURN == 0:
                yield self._waitlists.next_turn
        return True

    def _empty_leaf(self, node: Volume, heir: Volume | None, leaf: int) -> Work:
        if heir is not None and leaf << PAGE_SHIFT >= sees_below(heir):
            heir = None  # it was taken when the volume was smaller
        while True:
            if heir is not None and leaf in heir.lost_leaves:
                heir = None
            nodes = (node,) if heir is None else (node, heir)
            slots = yield from self._writable_leaves(nodes, leaf)
            if not slots:
                return
            if len(slots) == len(nodes):
                break  # else the heir's leaf is lost
        row = self._cache.arena[slots[0]]
        stored = (row & _ADDRESS) != 0
        dead = stored
        if heir is not None:
            heirs = self._cache.arena[slots[1]]
            seen = heirs == 0
            seen[max(0, sees_below(heir) - (leaf << PAGE_SHIFT)) :] = False
            np.copyto(heirs, row, where=seen)
            heir.count_kept(leaf, stored & seen, int(np.count_nonzero(stored & seen)))
            dead = stored & ~seen
        self._writer.log.space.drop_blocks((row & _ADDRESS)[dead])
        node.count_mapped(-int(np.count_nonzero(stored)))
        row[:] = 0

    def _writable_leaves(self, nodes: Sequence[Volume], leaf: int) -> Work:
        """The slots of these leaves, which may be changed until the next yield; none if there is nothing in the first,
        fewer if one is lost."""
        cache = self._cache
        while True:
            slots: list[int] = yield from self._leaves.bring_in(partial(tuple, nodes), leaf)
            if len(slots) < len(nodes):
                return slots
            if not cache.arena[slots[0]].any():
                return []
            obstacle = 0
            for slot in slots:
                if not obstacle and cache.stamp[slot] != cache.generation:
                    obstacle = self._writer.make_writable(slot)
            if not obstacle:
                return slots
            yield from self._long_writer.overcome(obstacle, nodes[0], leaf << PAGE_SHIFT)

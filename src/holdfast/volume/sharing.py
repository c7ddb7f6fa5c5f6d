"""How many of the blocks in a node's map others see as well, and so how many come free if it is removed.

Each stored block is in the map of one node (`versions.py`), which pays for it. Of a volume `shared_blocks` is kept up
with every write: a snapshot begins by seeing all of it, and whatever the volume then replaces goes to the snapshot, or
was the volume's alone. Of a snapshot it is not: whether an older one sees what it has just got would have to be looked
up for each write. And when a snapshot between two others is removed, what only that one saw was not counted. Then
`sharing_unsure` says that the count is one of at most so many, and it is counted here, when somebody asks: leaf by
leaf, in the maps of the node and of those that look through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from holdfast.errors import CorruptionError, DiskError
from holdfast.pool.block import ADDRESS_MASK
from holdfast.volume.page_cache import PAGE_ENTRIES, PAGE_SHIFT, PageCache
from holdfast.volume.page_table import PageTable
from holdfast.volume.versions import has_one_clone, lookers, nobody_looks
from holdfast.volume.volume import Role, Volume
from holdfast.work.task import Scheduler, Waitlist, Work

LEAVES_PER_TURN = 32
_ADDRESS = np.uint64(ADDRESS_MASK)
_ATTEMPTS = 8  # the tree may change, or memory be so short that pages of two nodes evict each other
_PENDING_MAX = 256


class Recount:
    """One count of a node that is under way: of the leaves up to `passed`, as of now."""

    __slots__ = ("ahead", "passed", "pending", "shared_blocks")

    def __init__(self) -> None:
        self.passed = -1
        self.shared_blocks = 0
        self.pending: dict[int, npt.NDArray[np.bool_]] = {}  # leaf -> which entries the node got since it was passed
        self.ahead: set[int] = set()  # leaves in which it got some while the next one is looked for

    def gave(self, leaf: int, blocks: int) -> None:
        """The node has replaced so many shared blocks: they are its snapshot's now."""
        if leaf <= self.passed:
            self.shared_blocks -= blocks

    def got(self, leaf: int, inside: npt.NDArray[np.bool_] | int) -> None:
        """The node has got blocks of others in these entries of a leaf, which it had none in before."""
        if leaf > self.passed:
            self.ahead.add(leaf)
            return
        mask = self.pending.setdefault(leaf, np.zeros(PAGE_ENTRIES, np.bool_))
        mask[inside] = True

    def pass_over(self, leaf: int) -> None:
        """Of the leaves before this one, those that were not passed have nothing in them, or only what the node got
        while this one was looked for."""
        for new in self.ahead:
            if new < leaf:
                self.pending[new] = np.ones(PAGE_ENTRIES, np.bool_)
        self.ahead.clear()
        self.passed = leaf - 1


def freed_blocks(node: Volume, snapshots: Sequence[Volume]) -> int | None:
    """How many data blocks come free if a volume is removed together with all its `snapshots`, or a snapshot by itself;
    None if that is not known, or depends on clones. Without what the removal of others still frees."""
    together = (node, *snapshots)
    if any(snapshot.grounded > sum(each.ground is snapshot for each in together) for snapshot in snapshots):
        return None
    if node.role is Role.SNAPSHOT:
        if node.grounded:
            return None if has_one_clone(node) else 0  # it stays, hidden, for its clones
        return None if node.sharing_unsure else node.mapped_blocks - node.shared_blocks
    freed = node.mapped_blocks + sum(snapshot.mapped_blocks for snapshot in snapshots)
    ground, theirs = node.ground, 1 + len(snapshots)
    # What it was cloned from, if that stays for this clone only.
    while ground is not None and ground.role is Role.HIDDEN and ground.grounded == theirs:
        if ground.sharing_unsure:
            return None
        freed += ground.mapped_blocks - ground.shared_blocks
        ground, theirs = ground.ground, 1
    return freed


class Sharing:
    """All fields are fixed when it is made."""

    def __init__(
        self,
        cache: PageCache,
        table: PageTable,
        scheduler: Scheduler,
        *,
        next_turn: Waitlist,
        counted: Callable[[Volume], None],
    ) -> None:
        """`counted`: told of a node whose count may be another one than before"""
        self._counted = counted
        self._cache = cache
        self._table = table
        self._scheduler = scheduler
        self._next_turn = next_turn

    def settle(self, nodes: Sequence[Volume], answer: Callable[[], None]) -> None:
        """Call `answer` once it is known how much the nodes share, or that it cannot be found out now."""
        unsure = [node for node in nodes if node.sharing_unsure]
        if not unsure:
            answer()
            return
        self._scheduler.spawn(self._settle(unsure), f"count what {nodes[0].name} shares", lambda _error: answer())

    def _settle(self, nodes: Sequence[Volume]) -> Work:
        for node in nodes:
            try:
                yield from self.count(node)
            except (CorruptionError, DiskError):
                return  # whoever reads there is told; here it stays unsure

    def count(self, node: Volume) -> Work:
        """How many of the node's data blocks a snapshot before it sees as well (a task's work), exactly as of the
        moment when it returns; None if that could not be found out. Raises CorruptionError or DiskError if a map
        cannot be read."""
        for _ in range(_ATTEMPTS):
            while node.recount is not None:
                yield self._next_turn
            if not node.sharing_unsure:
                return node.shared_blocks
            if not lookers(node)[0]:
                nobody_looks(node)
                self._counted(node)
                return 0
            recount = node.recount = Recount()
            try:
                whole = yield from self._count(node, recount)
            finally:
                ours = node.recount is recount
                if ours:
                    node.recount = None
            if whole and ours:
                node.shared_blocks, node.sharing_unsure = recount.shared_blocks, False
                self._counted(node)
        return None

    def _count(self, node: Volume, recount: Recount) -> Work:
        """True if all leaves were looked at; False if something has changed meanwhile."""
        leaf, end, seen = 0, 1 << PAGE_SHIFT * node.root_level, 0
        while recount.pending or leaf < end:
            if max(len(recount.pending), len(recount.ahead)) > _PENDING_MAX or node.recount is not recount:
                return False
            if recount.pending:
                again = next(iter(recount.pending))
                if not (yield from self._look(node, recount, again)):
                    return False
            else:
                leaf = yield from self._table.next_leaf(node, leaf, end)
                recount.pass_over(leaf)
                if leaf < end and not (yield from self._look(node, recount, leaf)):
                    return False
                leaf += 1
            seen += 1
            if seen % LEAVES_PER_TURN == 0:
                yield self._next_turn
        return True

    def _look(self, node: Volume, recount: Recount, leaf: int) -> Work:
        """Count the shared blocks of a leaf, or, if it was passed, of what the node has got in it since."""
        cache = self._cache
        for _ in range(_ATTEMPTS):
            found, below = lookers(node)
            nodes = (node, *found)
            slots = [-1] * len(nodes)
            for index, each in enumerate(nodes):
                slots[index] = yield from self._table.page(each, 0, leaf, create=False)
            if node.recount is not recount or lookers(node)[0] != found:
                return False
            if [cache.slot_of.get(each.key_base | leaf, -1) for each in nodes] == slots:
                break
        else:
            return False
        got = recount.pending.pop(leaf, None)
        if slots[0] >= 0:
            shared = (cache.arena[slots[0]] & _ADDRESS) != 0
            for looker, slot in zip(found, slots[1:], strict=True):
                if slot >= 0:
                    shared &= cache.arena[slot] == 0
                if leaf in looker.lost_leaves:
                    shared[:] = False
            shared[max(0, below - (leaf << PAGE_SHIFT)) :] = False
            if got is not None:
                shared &= got
            recount.shared_blocks += int(np.count_nonzero(shared))
        recount.passed = max(recount.passed, leaf)
        return True

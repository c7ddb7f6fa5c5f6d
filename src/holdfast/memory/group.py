"""A group: a node of the tree to which memory is charged, with what it uses, may use at most, and is sure of.

The root is the budget of the server (`plan.py`); below it are the groups of the tenants, and one for the server's own
work. A charge climbs from a group to the root; each node on the way may refuse, and whoever asked learns which did.

Every kind of memory has a limit of its own in each group, beside the limit of all kinds together, because kinds cannot
stand in for each other: what is free in the ring holds no page of a map. A **minimum** is set aside: for the groups
above, a group uses at least its minimum, so that nobody else can have it, and up to it a group asks nobody.

What is charged was, most of it, set aside at start: a refusal means that a share is used up, never that the kernel has
no memory left. So every caller can go on after one: by doing with less, by waiting, or by an error to whoever asked.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from holdfast.errors import RequestError
from holdfast.memory.context import CLIENT, Context
from holdfast.units import format_size

UNLIMITED_BYTES = 1 << 60


class Kind(IntEnum):
    RING = 0  # data that was accepted and is not durable yet
    MAP_PAGES = 1
    READ_BUFFERS = 2  # of reads that wait for the disk
    CONNECTIONS = 3  # received and not carried out, answered and not sent
    STATE = 4  # connections, volumes and tables themselves
    STAGING = 5  # what work in the background puts together before it writes it


KIND_NAMES = ("ring", "map pages", "read buffers", "connections", "state", "staging")
Refuses = Callable[[Kind, int], object]
Shortage = Callable[["Group", Kind, Context], None]


class Group:
    """Bytes by kind, as lists in the order of `Kind`. All fields belong to the loop thread.

    usage       for a group with groups below it: what these use, each at least its minimum
    watermark_bytes    dirty data above which writers are slowed (throttle.py)
    refusals    how often this very node refused
    throttled_ns    for how long connections were left alone for its sake, taken together
    """

    __slots__ = (
        "_shortage",
        "limit_bytes",
        "limits",
        "minimums",
        "name",
        "number",
        "parent",
        "refusals",
        "refuses",
        "throttled_ns",
        "total_bytes",
        "usage",
        "watermark_bytes",
    )

    def __init__(
        self,
        name: str,
        parent: Group | None = None,
        *,
        number: int = 0,
        refuses: Refuses | None = None,
        shortage: Shortage | None = None,
    ) -> None:
        """`number` tells the groups of one tree apart. `refuses` is asked with each charge, for faults on purpose;
        `shortage` is told of refusals. Both count for the whole tree and are taken from the parent."""
        self.name = name
        self.parent = parent
        self.number = number
        self.limit_bytes = UNLIMITED_BYTES
        self.limits = [UNLIMITED_BYTES] * len(Kind)
        self.minimums = [0] * len(Kind)
        self.usage = [0] * len(Kind)
        self.watermark_bytes = UNLIMITED_BYTES
        self.total_bytes = 0
        self.refusals = [0] * len(Kind)
        self.throttled_ns = 0
        self.refuses: Refuses | None = refuses if parent is None else parent.refuses
        self._shortage: Shortage | None = shortage if parent is None else parent._shortage

    # ---- charging

    def try_charge(self, kind: Kind, count_bytes: int, context: Context = CLIENT) -> Group | None:
        """Take `count_bytes`, all or nothing; returns None, or the group that refuses. What was taken is to be released
        exactly once. Where the ordinary charge fails, the context's reservation is drawn on."""
        node = self._refuser(kind, count_bytes)
        if node is None and self.refuses is not None and self.refuses(kind, count_bytes):
            node = self.root
        if node is None:
            self.charge(kind, count_bytes)
            return None
        reservation = context.reservation
        if reservation is not None and reservation.draw(self, kind, count_bytes):
            return None
        node.refusals[kind] += 1
        if context.may_reclaim and self._shortage is not None:
            self._shortage(node, kind, context)
        return node

    def _refuser(self, kind: Kind, count_bytes: int) -> Group | None:
        node: Group | None = self
        while node is not None and count_bytes:
            used = node.usage[kind]
            if used + count_bytes > node.limits[kind] or node.total_bytes + count_bytes > node.limit_bytes:
                return node
            count_bytes = node._beyond_minimum(kind, used, count_bytes)
            node = node.parent
        return None

    def charge(self, kind: Kind, count_bytes: int) -> None:
        """Count `count_bytes` as used (negative: no more), whatever the limits: for what has been taken already."""
        node: Group | None = self
        while node is not None and count_bytes:
            used = node.usage[kind]
            node.usage[kind] = used + count_bytes
            node.total_bytes += count_bytes
            count_bytes = node._beyond_minimum(kind, used, count_bytes)
            node = node.parent

    def release(self, kind: Kind, count_bytes: int) -> None:
        assert self.usage[kind] >= count_bytes, (self.name, KIND_NAMES[kind], self.usage[kind], count_bytes)
        self.charge(kind, -count_bytes)

    def _beyond_minimum(self, kind: Kind, used: int, change: int) -> int:
        """How much of a change, after which `used + change` is used, the group above notices."""
        minimum = self.minimums[kind]
        if not minimum:
            return change
        return max(used + change, minimum) - max(used, minimum)

    def room_bytes(self, kind: Kind) -> int:
        """How much more of a kind could be charged here now; less than 0 if a limit was lowered below what is used."""
        room = min(self.limits[kind] - self.usage[kind], self.limit_bytes - self.total_bytes)
        if self.parent is None:
            return room
        sure = max(0, self.minimums[kind] - self.usage[kind])
        return min(room, sure + max(0, self.parent.room_bytes(kind)))

    # ---- limits

    def set_minimum(self, kind: Kind, minimum_bytes: int) -> None:
        """Set a minimum aside. Raises RequestError if the groups above do not have that much."""
        used = self.usage[kind]
        change = max(used, minimum_bytes) - max(used, self.minimums[kind])
        if self.parent is not None and change > 0:
            room = self.parent.room_bytes(kind)
            if change > room:
                raise RequestError(
                    f"group {self.name!r} cannot be sure of {format_size(minimum_bytes)} of {KIND_NAMES[kind]}: only "
                    f"{format_size(max(0, room))} are not used or set aside"
                )
        self.minimums[kind] = minimum_bytes
        if self.parent is not None:
            self.parent.charge(kind, change)

    @property
    def root(self) -> Group:
        node = self
        while node.parent is not None:
            node = node.parent
        return node

"""Groups of volumes: tenants who share a server, each with limits of its own (rows T1, T2, T3).

A group has a node in the tree of memory (`memory/group.py`) and counts the space that its volumes map together. Memory
is charged to the group of whoever issues the I/O: to the group that its peer's uid or control group names, else to the
volume's. What stays when the issuer is gone is charged to the volume's group: space, and pages of its map.
"""

from __future__ import annotations

from holdfast.errors import NotFoundError, RequestError
from holdfast.memory.group import UNLIMITED_BYTES, Group, Kind
from holdfast.memory.throttle import limit_dirty
from holdfast.pool.tables import NO_UID, GroupLimits, GroupRow
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, KIB, MIB, format_size

DEFAULT_GROUP = "default"
GROUPS_MAX = 1000
GROUP_MEMORY_BYTES_MIN = 1 * MIB  # some paths of four pages, and a request
DIRTY_BYTES_MIN = 256 * KIB
UNLIMITED_BLOCKS = 1 << 60  # more than any volume has


class TenantGroup:
    """Fields: I fixed when made, L loop thread."""

    __slots__ = (
        "group_id",
        "held_blocks",
        "limits",
        "mapped_blocks",
        "mapped_blocks_max",
        "memory",
        "minimums_held",
        "name",
        "removing",
        "volumes",
    )

    def __init__(self, group_id: int, name: str, memory: Group) -> None:
        self.group_id = group_id  # I
        self.name = name  # I
        self.memory = memory  # I
        self.limits = GroupLimits()  # L: as they are stored, also where the minimums are not held
        self.minimums_held = True  # L
        self.mapped_blocks = 0  # L: of all its volumes
        self.held_blocks = 0  # L: for those of them that are provisioned
        self.mapped_blocks_max = UNLIMITED_BLOCKS  # L: by all others; what is held back is taken off
        self.removing = False  # L: nobody finds it any more; its id is not free until that is durable
        self.volumes = 0  # L: how many there are in it

    def set_limits(self, limits: GroupLimits) -> None:
        """Raises RequestError, with nothing changed, for minimums that cannot be had. What is used stays, however much
        that is."""
        try:
            self._set_minimums(limits.dirty_min_bytes, limits.map_min_bytes)
        except RequestError as error:
            raise RequestError(f"{error}; ask for less, or serve the pool with more --memory first") from error
        self.minimums_held = True
        self._take(limits)

    def keep_limits(self, limits: GroupLimits) -> None:
        """The same for limits with minimums that were promised before, perhaps by a server with more memory. Where
        they cannot be had nothing is set aside, and they are remembered: the next server may have them. Raises
        RequestError, with the rest done, in that case."""
        self.minimums_held = False
        try:
            self._set_minimums(limits.dirty_min_bytes, limits.map_min_bytes)
            self.minimums_held = True
        except RequestError:
            self._set_minimums(0, 0)
            raise
        finally:
            self._take(limits)

    def _set_minimums(self, dirty_min_bytes: int, map_min_bytes: int) -> None:
        before_bytes = self.memory.minimums[Kind.RING]
        self.memory.set_minimum(Kind.RING, dirty_min_bytes)
        try:
            self.memory.set_minimum(Kind.MAP_PAGES, map_min_bytes)
        except RequestError:
            self.memory.set_minimum(Kind.RING, before_bytes)
            raise

    def _take(self, limits: GroupLimits) -> None:
        self.limits = limits
        self.memory.limit_bytes = limits.memory_bytes or UNLIMITED_BYTES
        limit_dirty(self.memory, limits.dirty_bytes or UNLIMITED_BYTES)
        limit_blocks = limits.space_bytes >> BLOCK_SHIFT if limits.space_bytes else UNLIMITED_BLOCKS
        self.mapped_blocks_max = limit_blocks - self.held_blocks

    def hold(self, blocks: int) -> None:
        """Hold back so many blocks more."""
        self.held_blocks += blocks
        self.mapped_blocks_max -= blocks

    def take_in(self, mapped_blocks: int) -> None:
        """A volume with so many blocks is in the group from now on."""
        self.volumes += 1
        self.mapped_blocks += mapped_blocks

    def let_go(self, mapped_blocks: int) -> None:
        """It is not any more."""
        self.volumes -= 1
        self.mapped_blocks -= mapped_blocks

    def row(self) -> GroupRow:
        """The group as the volume table stores it."""
        return GroupRow(self.group_id, self.name, self.limits)


def check_limits(limits: GroupLimits) -> None:
    """Raises RequestError for limits with which nothing would work."""
    if limits.memory_bytes and limits.memory_bytes < GROUP_MEMORY_BYTES_MIN:
        raise RequestError(
            f"a memory limit of {format_size(limits.memory_bytes)} is too little for a group; "
            f"{format_size(GROUP_MEMORY_BYTES_MIN)} is the least"
        )
    if limits.dirty_bytes and limits.dirty_bytes < DIRTY_BYTES_MIN:
        raise RequestError(
            f"a dirty limit of {format_size(limits.dirty_bytes)} is too little for a group; "
            f"{format_size(DIRTY_BYTES_MIN)} is the least"
        )
    dirty_most = min(limits.memory_bytes or UNLIMITED_BYTES, limits.dirty_bytes or UNLIMITED_BYTES)
    if limits.dirty_min_bytes > dirty_most:
        raise RequestError(
            f"a group cannot be sure of {format_size(limits.dirty_min_bytes)} of dirty data: its limit is "
            f"{format_size(dirty_most)}"
        )
    both_bytes = limits.dirty_min_bytes + limits.map_min_bytes
    if limits.memory_bytes and both_bytes > limits.memory_bytes:
        raise RequestError(
            f"a group cannot be sure of {format_size(both_bytes)} of dirty data and map pages: its memory limit is "
            f"{format_size(limits.memory_bytes)}"
        )
    if 0 < limits.space_bytes < BLOCK_SIZE_BYTES:
        raise RequestError(
            f"a space limit of {limits.space_bytes} bytes is less than a block; give at least 4K, or none"
        )


class GroupDirectory:
    """The groups of a pool, and whom they pay for. All fields belong to the loop thread."""

    def __init__(self, default: TenantGroup) -> None:
        self.default = default
        self.by_id: dict[int, TenantGroup] = {default.group_id: default}
        self._by_uid: dict[int, TenantGroup] = {}
        self._by_cgroup: dict[str, TenantGroup] = {}

    @property
    def by_name(self) -> dict[str, TenantGroup]:
        return {group.name: group for group in self.by_id.values() if not group.removing}

    def find(self, name: str) -> TenantGroup:
        """Raises NotFoundError."""
        group = self.by_name.get(name)
        if group is None:
            raise NotFoundError(f"there is no group {name!r}; `holdfast group list` shows those that exist")
        return group

    def has(self, group: TenantGroup) -> bool:
        return self.by_id.get(group.group_id) is group

    def add(self, group: TenantGroup) -> None:
        self.by_id[group.group_id] = group
        self.index()

    def remove(self, group: TenantGroup) -> None:
        del self.by_id[group.group_id]
        self.index()

    def free_id(self) -> int:
        """Raises RequestError if there are as many groups as there may be."""
        for group_id in range(1, GROUPS_MAX + 1):
            if group_id not in self.by_id:
                return group_id
        raise RequestError(f"a pool has at most {GROUPS_MAX} groups; remove one")

    def check_peers(self, limits: GroupLimits, ours: TenantGroup | None) -> None:
        """Raises RequestError if a uid or control group is another group's already."""
        for kind, other in (
            (f"uid {limits.uid}", self._by_uid.get(limits.uid)),
            (f"control group {limits.cgroup}", self._by_cgroup.get(limits.cgroup)),
        ):
            if other is not None and other is not ours:
                raise RequestError(f"{kind} is charged to group {other.name!r} already")

    def index(self) -> None:
        """To be called whenever limits changed."""
        groups = [group for group in self.by_id.values() if not group.removing]
        self._by_uid = {group.limits.uid: group for group in groups if group.limits.uid != NO_UID}
        self._by_cgroup = {group.limits.cgroup: group for group in groups if group.limits.cgroup}

    def of_peer(self, uid: int | None, cgroup: str) -> TenantGroup | None:
        """Who pays for a peer, if any group names it: by its control group, the innermost first, else by its uid."""
        if self._by_cgroup:
            path = cgroup
            while path:
                group = self._by_cgroup.get(path)
                if group is not None:
                    return group
                path = path.rpartition("/")[0]
        return self._by_uid.get(uid) if uid is not None else None

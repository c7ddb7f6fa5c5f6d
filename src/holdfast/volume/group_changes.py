"""How groups are made, changed and removed: at once in memory, and durable with a checkpoint, like volumes.

The default group is there always; its limits can be set like those of others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import suppress

from holdfast.errors import HoldfastError, RequestError, RetryError
from holdfast.memory.accounts import Accounts
from holdfast.memory.group import Kind
from holdfast.pool.tables import (
    CGROUP_BYTES_MAX,
    GROUP_NAME_BYTES_MAX,
    ROW_SIZE_BYTES,
    GroupLimits,
    GroupRow,
)
from holdfast.volume.groups import DEFAULT_GROUP, GroupDirectory, TenantGroup, check_limits
from holdfast.volume.volumes import Volumes
from holdfast.work.task import Scheduler, Work, guarded

log_output = logging.getLogger("holdfast.groups")

GroupAnswer = Callable[["TenantGroup | HoldfastError | None"], None]
RESERVED_NAMES = ("all", "server")
_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def check_group_name(name: str) -> None:
    """Raises RequestError for what cannot be the name of a group."""
    if name in RESERVED_NAMES:
        raise RequestError(f"{name!r} is what the server's own accounts are called; give the group another name")
    if not _NAME_PATTERN.fullmatch(name) or len(name) > GROUP_NAME_BYTES_MAX:
        raise RequestError(
            f"{name!r} is not a group name; use at most {GROUP_NAME_BYTES_MAX} letters, digits, dots, underscores and "
            "dashes, with no leading dot or dash"
        )


class Groups:
    """Fields: I fixed when made."""

    def __init__(
        self,
        volumes: Volumes,
        accounts: Accounts,
        scheduler: Scheduler,
        *,
        checkpoint: Callable[..., Work],
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called whenever limits have changed."""
        self.directory: GroupDirectory = volumes.groups  # I
        self._volumes = volumes  # I
        self._accounts = accounts  # I
        self._scheduler = scheduler  # I
        self._checkpoint = checkpoint  # I
        self._changed = changed  # I

    def bring_back(self, rows: list[GroupRow]) -> None:
        """The groups that the pool has already. A minimum that this server's memory does not have is not held, but
        stays what is wanted: the next server may have more."""
        directory = self.directory
        for row in rows:
            group = directory.by_id.get(row.group_id)
            if group is None:
                group = TenantGroup(row.group_id, row.name, self._accounts.make_group(row.name))
                directory.add(group)
            try:
                group.keep_limits(row.limits)
            except RequestError as error:
                log_output.warning("%s; it is sure of nothing until a server with more --memory has the pool", error)
        self._limits_changed()

    def _limits_changed(self) -> None:
        self.directory.index()
        self._changed()

    def find(self, name: str) -> TenantGroup:
        """Raises NotFoundError."""
        return self.directory.find(name)

    def create(self, name: str, limits: GroupLimits, answer: GroupAnswer) -> None:
        """Make a group; `answer` gets it once that is durable, or the error."""
        directory = self.directory
        try:
            check_group_name(name)
            if name in directory.by_name:
                raise RequestError(f"there is a group {name!r} already")
            if any(group.name == name for group in directory.by_id.values()):
                raise RetryError(f"the group {name!r} is being removed; try again in a moment")
            self._check(limits, None)
            group_id = directory.free_id()
            self._volumes.hold_reserve(more_bytes=ROW_SIZE_BYTES)
            group = TenantGroup(group_id, name, self._accounts.make_group(name))
            group.set_limits(limits)
        except HoldfastError as error:
            self._volumes.hold_reserve()
            answer(error)
            return
        directory.add(group)
        self._changed()

        def made(error: HoldfastError | None) -> None:
            # A volume may be in it already: then it stays, as that does, and is durable with a later checkpoint.
            if error is not None and not group.volumes and not group.removing and directory.has(group):
                self._drop(group)
            answer(error or group)

        self._begin(f"create group {name}", made)

    def change(self, name: str, limits: GroupLimits, answer: GroupAnswer) -> None:
        """Set the limits of a group at once; `answer` gets it once that is durable, or the error."""
        try:
            group = self.find(name)
            before = group.limits
            self._check(limits, group)
            self._set(group, limits)
        except HoldfastError as error:
            answer(error)
            return
        self._limits_changed()

        def stored(error: HoldfastError | None) -> None:
            if error is not None:
                self._take_back(group, before)
            answer(error or group)

        self._begin(f"change group {name}", stored)

    def remove(self, name: str, answer: GroupAnswer) -> None:
        """Remove a group that no volume is in; `answer` is called once that is durable."""
        try:
            group = self.find(name)
            if group.name == DEFAULT_GROUP:
                raise RequestError("the default group is there always; `holdfast group set` changes its limits")
            if group.volumes:
                raise RequestError(
                    f"group {name!r} has {group.volumes} volumes, counting snapshots and removed ones whose space is "
                    "not free yet; put them into another one with `holdfast volume set --group`, or remove them"
                )
            if group.memory.usage[Kind.STATE]:
                raise RequestError(
                    f"group {name!r} pays for clients that are connected; disconnect them first, or let it pay for "
                    "none with `holdfast group set --uid none --cgroup none` and have them connect again"
                )
        except HoldfastError as error:
            answer(error)
            return
        group.removing = True
        self._limits_changed()

        def removed(error: HoldfastError | None) -> None:
            if error is None and group.volumes:
                # It had just left, and that could not be made durable: where it came back to has to be there.
                error = RetryError(f"group {name!r} has volumes again, as they could not be moved; try again")
            if error is None:
                self._drop(group)
            group.removing = False
            self._limits_changed()
            answer(error)

        self._begin(f"remove group {name}", removed)

    def _drop(self, group: TenantGroup) -> None:
        """A group is gone, or was not made after all: what it was sure of is everybody's again."""
        self.directory.remove(group)
        group.set_limits(GroupLimits())
        self._changed()
        self._volumes.hold_reserve()

    def _set(self, group: TenantGroup, limits: GroupLimits) -> None:
        """Minimums that nobody has asked to change are no reason to refuse what was asked, held or not."""
        if not limits.same_minimums(group.limits):
            group.set_limits(limits)
            return
        with suppress(RequestError):
            group.keep_limits(limits)

    def _take_back(self, group: TenantGroup, limits: GroupLimits) -> None:
        """A change could not be stored."""
        if not self.directory.has(group):
            return
        try:
            group.keep_limits(limits)
        except RequestError as error:  # what it had been sure of is somebody else's by now
            log_output.warning("%s", error)
        self._limits_changed()

    def _check(self, limits: GroupLimits, ours: TenantGroup | None) -> None:
        check_limits(limits)
        if len(limits.cgroup.encode()) > CGROUP_BYTES_MAX:
            raise RequestError(f"the path of a control group may have {CGROUP_BYTES_MAX} bytes; this one has more")
        if limits.cgroup and not limits.cgroup.startswith("/"):
            raise RequestError(f"{limits.cgroup!r} is not the path of a control group; it begins with a slash")
        self.directory.check_peers(limits, ours)

    def _begin(self, name: str, done: Callable[[HoldfastError | None], None]) -> None:
        self._scheduler.spawn(guarded(self._checkpoint()), name, done)

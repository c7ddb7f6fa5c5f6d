"""The groups of the control API: what is asked of them, and what is answered. The rules of `control/api.py` hold."""

from __future__ import annotations

import re
from typing import Final

from msgspec import UNSET, Struct, UnsetType, field

from holdfast.errors import RequestError
from holdfast.units import BLOCK_SIZE_BYTES

# How a peer that no group names is written: the kernel's own "no user".
NO_UID: Final = (1 << 32) - 1
GROUP_NAME_LENGTH_MAX: Final = 64
CGROUP_BYTES_MAX: Final = 192
LIMIT_BYTES_MAX: Final = (1 << 60) - 1
CGROUP_MOUNT: Final = "/sys/fs/cgroup"

# As for volumes: what needs no quoting anywhere.
_GROUP_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class ChangeGroup(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays as it is. Bytes; 0: no limit, or nothing that the group is sure of. `uid` -1 and `cgroup`
    "": no peers."""

    memory_bytes: int | UnsetType = UNSET
    dirty_bytes: int | UnsetType = UNSET
    space_bytes: int | UnsetType = UNSET
    dirty_min_bytes: int | UnsetType = UNSET
    map_min_bytes: int | UnsetType = UNSET
    uid: int | UnsetType = UNSET
    cgroup: str | UnsetType = UNSET


class CreateGroup(ChangeGroup, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str


class GroupInfo(Struct, frozen=True, kw_only=True):
    name: str
    id: int
    memory_bytes: int = 0  # limit of memory of all kinds; 0: none, here and below
    dirty_bytes: int = 0  # limit of data that was accepted and is not durable
    space_bytes: int = 0  # limit of what its volumes map together
    dirty_min_bytes: int = 0  # nobody else can have these
    map_min_bytes: int = 0
    minimums_held: bool = True  # False: the server has not got the memory for them, and nothing is set aside
    uid: int = -1  # peers with this uid are charged here; -1: none
    cgroup: str = ""  # peers in this control group, or below it, are
    usage: dict[str, int] = field(default_factory=dict)  # bytes by kind of memory
    mapped_bytes: int = 0
    watermark_bytes: int = 0  # dirty data above which its writers are slowed; 0: never
    throttled_s: float = 0.0  # for how long its connections were left alone, taken together
    refusals: dict[str, int] = field(default_factory=dict)  # charges that this group refused, by kind
    volumes: list[str] = field(default_factory=list)


class GroupList(Struct, frozen=True, kw_only=True):
    groups: list[GroupInfo]


class GroupRemoved(Struct, frozen=True, kw_only=True):
    removed: str


def validate_group_name(name: str) -> str:
    """Return `name` if a group may be called so; raise RequestError otherwise."""
    if not name:
        raise RequestError("the group name is empty; give it a name such as red")
    if len(name) > GROUP_NAME_LENGTH_MAX:
        raise RequestError(
            f"the group name {name[:32]!r}... has {len(name)} characters; at most {GROUP_NAME_LENGTH_MAX} are allowed"
        )
    if _GROUP_NAME_PATTERN.fullmatch(name) is None:
        raise RequestError(
            f"{name!r} is not a group name; use letters, digits, dot, underscore and dash, with no leading dot or dash"
        )
    return name


def validate_limit(count_bytes: int) -> int:
    """Return `count_bytes` if it can be a limit or minimum, 0 for none; raise RequestError otherwise. What fits the
    pool the server knows."""
    if not 0 <= count_bytes <= LIMIT_BYTES_MAX:
        raise RequestError(f"a limit of {count_bytes} bytes cannot be meant; give less than 1024P, or none (0)")
    return count_bytes


def validate_space(count_bytes: int) -> int:
    """The same for space, which is counted in blocks."""
    if 0 < count_bytes < BLOCK_SIZE_BYTES:
        raise RequestError(f"a space limit of {count_bytes} bytes is less than a block; give at least 4K, or none (0)")
    return validate_limit(count_bytes)


def validate_uid(uid: int) -> int:
    """Return `uid` if a user may have it, or -1 for none; raise RequestError otherwise."""
    if not -1 <= uid < NO_UID:
        raise RequestError(f"{uid} is not a uid; give 0 to {NO_UID - 1}, or none (-1)")
    return uid


def validate_cgroup(path: str) -> str:
    """Return the path of a control group as the kernel writes it, "" for none; raise RequestError if it is no such
    path."""
    if not path:
        return path
    if not path.startswith("/"):
        raise RequestError(f"{path!r} is not the path of a control group; it begins with a slash")
    if path == CGROUP_MOUNT or path.startswith(CGROUP_MOUNT + "/"):
        raise RequestError(
            f"{path!r} is where control groups are mounted; give the path as /proc/PID/cgroup has it, such as "
            f"{path.removeprefix(CGROUP_MOUNT).rstrip('/') or '/user.slice'}"
        )
    try:
        count_bytes = len(path.encode())
    except UnicodeEncodeError:
        raise RequestError(f"{path!r} is not UTF-8; only such a control group can be named") from None
    if count_bytes > CGROUP_BYTES_MAX:
        raise RequestError(
            f"the path of the control group has {count_bytes} bytes; at most {CGROUP_BYTES_MAX} are allowed; name one "
            "further up"
        )
    stripped = path.rstrip("/")
    if not stripped:
        raise RequestError("every process is in the control group /, or below it; name one below, or limit `default`")
    return stripped


def validate_group(change: ChangeGroup) -> None:
    """Raise RequestError for what cannot be meant."""
    if isinstance(change, CreateGroup):
        validate_group_name(change.name)
    for count_bytes in (change.memory_bytes, change.dirty_bytes, change.dirty_min_bytes, change.map_min_bytes):
        if count_bytes is not UNSET:
            validate_limit(count_bytes)
    if change.space_bytes is not UNSET:
        validate_space(change.space_bytes)
    if change.uid is not UNSET:
        validate_uid(change.uid)
    if change.cgroup is not UNSET:
        validate_cgroup(change.cgroup)

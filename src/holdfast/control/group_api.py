"""The groups of the control API: what is asked of them, and what is answered. The rules of `control/api.py` hold."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType, field

from holdfast.errors import RequestError

# How a peer that no group names is written: the kernel's own "no user".
NO_UID = (1 << 32) - 1


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


def validate_group(change: ChangeGroup) -> None:
    """Raise RequestError for figures that cannot be meant; what fits the pool the server knows."""
    for name in ("memory_bytes", "dirty_bytes", "space_bytes", "dirty_min_bytes", "map_min_bytes"):
        value = getattr(change, name)
        if value is not UNSET and not 0 <= value < 1 << 60:
            raise RequestError(f"{name}={value} is no size; give 0 for none")
    if change.uid is not UNSET and not -1 <= change.uid < NO_UID:
        raise RequestError(f"{change.uid} is not a uid; give -1 for none")

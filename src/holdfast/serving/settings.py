"""What the control API wants of volumes and groups, as the engine takes it: for a served pool and an idle one alike."""

from __future__ import annotations

from msgspec import UNSET

from holdfast.control.api import ChangeVolume, CloneVolume, CreateVolume, TakeSnapshots, validate_identity
from holdfast.control.group_api import ChangeGroup, validate_cgroup, validate_group
from holdfast.control.names import validate_snapshot_name
from holdfast.engine import Engine
from holdfast.pool.tables import NO_IDENTITY, NO_UID, GroupLimits
from holdfast.volume.settings import VolumeSettings
from holdfast.volume.volume import OnError, OnFull, ReadOnly

ON_FULL = {"error": OnFull.ERROR, "read-only": OnFull.READ_ONLY}
ON_ERROR = {"retry": OnError.RETRY, "read-only": OnError.READ_ONLY}


def volume_settings(engine: Engine, wanted: CreateVolume | CloneVolume | ChangeVolume) -> VolumeSettings:
    """Raises NotFoundError for a group that does not exist."""
    return VolumeSettings(
        quota_bytes=wanted.quota_bytes,
        on_full_wait_s=wanted.on_full_wait_s,
        on_full=None if wanted.on_full is None else ON_FULL[wanted.on_full],
        on_error=None if wanted.on_error is None else ON_ERROR[wanted.on_error],
        group=None if wanted.group is None else engine.groups.find(wanted.group),
        read_only=ReadOnly.NO if isinstance(wanted, ChangeVolume) and wanted.writable else None,
        provisioned=wanted.provisioned if isinstance(wanted, ChangeVolume) else wanted.provisioned or None,
        protected=wanted.protected if isinstance(wanted, ChangeVolume) else None,
    )


def pairs(wanted: TakeSnapshots) -> list[tuple[str, str]]:
    """Volume and name of each snapshot. Raises RequestError."""
    found = []
    for name in wanted.names:
        volume, _at, label = validate_snapshot_name(name).partition("@")
        found.append((volume, label))
    return found


def identity(wanted: TakeSnapshots) -> bytes:
    """Of the snapshot to be taken, if it is the copy of another one. Raises RequestError."""
    validate_identity(wanted)
    return bytes.fromhex(wanted.identity) or NO_IDENTITY


def group_limits(change: ChangeGroup, before: GroupLimits) -> GroupLimits:
    """Raises RequestError for what cannot be meant: nobody else has looked where the pool is idle."""
    validate_group(change)
    return GroupLimits(
        memory_bytes=_changed(change.memory_bytes, before.memory_bytes),
        dirty_bytes=_changed(change.dirty_bytes, before.dirty_bytes),
        space_bytes=_changed(change.space_bytes, before.space_bytes),
        dirty_min_bytes=_changed(change.dirty_min_bytes, before.dirty_min_bytes),
        map_min_bytes=_changed(change.map_min_bytes, before.map_min_bytes),
        uid=before.uid if change.uid is UNSET else NO_UID if change.uid == -1 else change.uid,
        cgroup=before.cgroup if change.cgroup is UNSET else validate_cgroup(change.cgroup),
    )


def _changed(value: int | object, before: int) -> int:
    return value if isinstance(value, int) else before

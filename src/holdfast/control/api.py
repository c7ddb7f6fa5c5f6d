"""The control API: what is asked of a pool besides reading and writing blocks, and what is answered.

These structures are the JSON of `POOL/control.sock`, the `--json` output of the commands, and the types between the
HTTP side (`control/http.py`, `control/routes.py`) and the server that implements `Service`.  One definition serves all
three, so that they cannot drift apart.

1. Fields are only ever added, with a default: an older client decodes a newer answer and the other way round.  What a
   request leaves at its default is not sent, so that an older server, which refuses what it does not know, need not.
2. Sizes and positions are plain integers with their unit in the name; times are ISO 8601 in UTC.
3. An error travels as its kind (one for each class of `errors.py`), its message and its errno, and is rebuilt as the
   same class on the other side.
"""

from __future__ import annotations

import errno as errno_codes
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct, field

from holdfast.control.group_api import ChangeGroup, CreateGroup, GroupInfo, GroupRemoved
from holdfast.control.space_api import ChangePool, FillInfo, ResizeVolume, VolumeResized
from holdfast.errors import (
    CorruptionError,
    DiskError,
    GoneError,
    HoldfastError,
    NoSpaceError,
    NotFoundError,
    PoolBusyError,
    ReadOnlyError,
    RequestError,
    RetryError,
    ShortageError,
)
from holdfast.units import BLOCK_SIZE_BYTES, VOLUME_SIZE_BYTES_MAX, format_size

WAIT_S_MAX = 24 * 3600
WAITS_MAX = 1000  # in one answer; clients can make ten thousands
SNAPSHOTS_LISTED_MAX = 1000  # in one answer; there can be ten thousands


def validate_volume_size(size_bytes: int) -> int:
    """Return `size_bytes` if a volume may have that size; raise RequestError otherwise."""
    if size_bytes <= 0:
        raise RequestError(f"a volume cannot have {size_bytes} bytes; give a size such as 10G")
    if size_bytes > VOLUME_SIZE_BYTES_MAX:
        largest = format_size(VOLUME_SIZE_BYTES_MAX)
        raise RequestError(f"a volume of {format_size(size_bytes)} is too large; at most {largest} are allowed")
    return size_bytes


def validate_quota(quota_bytes: int) -> int:
    """Return `quota_bytes` if a volume may have that quota, 0 for none; raise RequestError otherwise."""
    if quota_bytes < 0 or 0 < quota_bytes < BLOCK_SIZE_BYTES:
        raise RequestError(f"a quota of {quota_bytes} bytes is less than a block; give at least 4K, or none")
    return quota_bytes


def validate_wait(seconds: int) -> int:
    """Return `seconds` if a write may wait so long for space; raise RequestError otherwise."""
    if not 0 <= seconds <= WAIT_S_MAX:
        raise RequestError(f"a write cannot wait for {seconds} s; give 1 to {WAIT_S_MAX}, or error")
    return seconds


# --- Requests ---------------------------------------------------------------------------------------------------------


OnFull: TypeAlias = Literal["error", "read-only"]
OnError: TypeAlias = Literal["retry", "read-only"]
VolumeKind: TypeAlias = Literal["volume", "snapshot"]


class CreateVolume(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    size_bytes: int
    quota_bytes: int = 0
    on_full_wait_s: int = 0
    on_full: OnFull | None = None
    on_error: OnError | None = None
    group: str | None = None
    provisioned: bool = False


class CloneVolume(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A volume with the content of a snapshot. What is left out is as for a new volume, but the group is the
    snapshot's."""

    name: str
    quota_bytes: int = 0
    on_full_wait_s: int = 0
    on_full: OnFull | None = None
    on_error: OnError | None = None
    group: str | None = None
    provisioned: bool = False


class TakeSnapshots(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Of several volumes at one moment, each as VOLUME@SNAPSHOT."""

    names: list[str]
    identity: str = ""  # of one snapshot: it is a copy of the one that has this identity


class ChangeVolume(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is left out stays as it is. Of a snapshot only `protected` can be changed."""

    quota_bytes: int | None = None
    on_full_wait_s: int | None = None
    on_full: OnFull | None = None
    on_error: OnError | None = None
    group: str | None = None
    writable: bool = False  # it takes writes again: what made it read-only is mended
    protected: bool | None = None  # it cannot be removed
    provisioned: bool | None = None  # space for all of it is held back


class AcknowledgeLoss(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    loss_epoch: int


def validate_identity(wanted: TakeSnapshots) -> None:
    """Raise RequestError unless the identity is one, of one snapshot, or left out."""
    identity = wanted.identity
    if identity and (len(identity) != 32 or not set(identity) <= set("0123456789abcdef")):
        raise RequestError("an identity has 32 hexadecimal digits")
    if identity and len(wanted.names) != 1:
        raise RequestError("an identity is that of one snapshot; name one")


# --- Answers ----------------------------------------------------------------------------------------------------------


class DamagedRange(Struct, frozen=True, kw_only=True):
    """A part of a volume that answers EIO."""

    offset: int
    length: int
    what: str


class VolumeInfo(Struct, frozen=True, kw_only=True):
    """A volume or a snapshot."""

    name: str  # of a snapshot: VOLUME@SNAPSHOT
    id: int
    size_bytes: int
    mapped_bytes: int = 0  # data blocks in its own map times 4096; of a snapshot: what it keeps that no newer one has
    quota_bytes: int = 0  # how much of it may be mapped; 0: as much as there is
    on_full_wait_s: int = 0  # how long a write waits for space before it is answered ENOSPC
    uris: list[str] = field(default_factory=list)  # NBD URIs; none while the pool is idle
    connections: int = 0
    damaged: list[DamagedRange] = field(default_factory=list)
    created: str = ""
    write_back_failures: int = 0  # attempts since the start that failed and met data of this volume
    write_back_errno: int = 0  # of the last of them
    on_full: OnFull = "error"  # what it does then
    on_error: OnError = "retry"  # what it does when write-back fails
    read_only: bool = False  # one of these two made it so
    group: str = "default"
    loss_epoch: int = 0  # how often accepted data was found to be lost for good
    loss_open: bool = False  # FLUSH fails until that is acknowledged
    kind: VolumeKind = "volume"
    origin: str = ""  # of a clone: the snapshot that it was made from, if there still is one
    protected: bool = False  # it cannot be removed
    snapshots: int = 0  # of a volume: how many it has
    snapshots_bytes: int = 0  # ... and `mapped_bytes` of all of them
    # Of `mapped_bytes`, what snapshots before it see as well, and what comes free if a snapshot is removed, or a volume
    # with all its snapshots. None: not counted (in lists), or it depends on clones.
    shared_bytes: int | None = None
    freed_bytes: int | None = None
    provisioned: bool = False  # no write to it is answered ENOSPC
    held_bytes: int = 0  # what is held back for that
    identity: str = ""  # of a snapshot: what it holds, in whatever pool; 32 hexadecimal digits


class VolumeList(Struct, frozen=True, kw_only=True):
    volumes: list[VolumeInfo]


class SnapshotList(Struct, frozen=True, kw_only=True):
    """At most `SNAPSHOTS_LISTED_MAX`, in the order of their ids. `next`: what to give as `after` to get those that
    follow; 0: these are all."""

    snapshots: list[VolumeInfo]
    next: int = 0


class VolumeRemoved(Struct, frozen=True, kw_only=True):
    removed: str
    snapshots: int = 0  # how many went with it


class Stopping(Struct, frozen=True, kw_only=True):
    stopping: bool = True


class SegmentCounts(Struct, frozen=True, kw_only=True):
    """How many segments of the pool are in which state: `unprepared`, `free`, `open` and `sealed` add up to `total`."""

    total: int = 0
    unprepared: int = 0  # within the capacity, but without a file, or not written through yet
    free: int = 0  # written through and holding nothing: never used, or used and come free again
    open: int = 0
    sealed: int = 0  # with those that come free at the next checkpoint, or that the cleaner fills
    reserved: int = 0  # no state: how many of the free ones clients' data may not take


class CleanerInfo(Struct, frozen=True, kw_only=True):
    """What the cleaner has done since the start of the server."""

    running: bool = False
    helps: bool = True  # it has not found that nothing can be gained
    copied_bytes: int = 0
    segments_written: int = 0  # cold ones, filled with what was copied
    segments_freed: int = 0  # by checkpoints, whoever emptied them
    damaged_blocks: int = 0  # found while copying, and left where they are
    failures: int = 0  # segments that it could not read or write


class MustSucceedInfo(Struct, frozen=True, kw_only=True):
    """A caller that must not fail, with what is held back for it."""

    name: str
    why: str
    segments: int = 0
    ring_bytes: int = 0
    staging_bytes: int = 0


class MemoryUse(Struct, frozen=True, kw_only=True):
    budget_bytes: int = 0
    resident_bytes: int = 0
    accounted_bytes: int = 0  # what should be resident, by our own accounts
    base_bytes: int = 0  # of that, the process itself: what was resident beyond the rest when the server was ready
    pressure: str = "none"
    reserved: list[MustSucceedInfo] = field(default_factory=list)
    ring_bytes: int = 0
    ring_used_bytes: int = 0
    map_pages: int = 0
    map_pages_max: int = 0


class CheckpointInfo(Struct, frozen=True, kw_only=True):
    """The newest durable checkpoint; recovery rolls forward from its log position."""

    sequence: int = 0
    log_position: int = 0


class PoolStatus(Struct, frozen=True, kw_only=True):
    path: str
    uuid: str
    pid: int | None = None  # of the server; none while the pool is idle
    format_version: int = 0
    capacity_bytes: int = 0
    live_bytes: int = 0
    used_bytes: int = 0  # of these, those that data and maps of volumes take
    usable_bytes: int = 0  # how many of them there may be: what is beyond is ENOSPC
    held_bytes: int = 0  # of the usable ones, not used yet and held back for provisioned volumes
    segment_size_bytes: int = 0
    segments: SegmentCounts = field(default_factory=SegmentCounts)
    cleaner: CleanerInfo = field(default_factory=CleanerInfo)
    memory: MemoryUse = field(default_factory=MemoryUse)
    dirty_bytes: int = 0
    log_position: int = 0
    durable_log_position: int = 0
    checkpoint: CheckpointInfo = field(default_factory=CheckpointInfo)
    uptime_s: float = 0.0
    connections: int = 0
    volumes: int = 0
    snapshots: int = 0
    removed: int = 0  # volumes and snapshots that are removed and still there: on their way out, or needed by clones
    removed_bytes: int = 0  # data blocks that only these hold, times 4096
    listening: list[str] = field(default_factory=list)
    fill: list[FillInfo] = field(default_factory=list)  # of all that can become full, the pool first; none while idle


class WaitInfo(Struct, frozen=True, kw_only=True):
    """An operation, or a part of the engine, that waits."""

    operation: str
    volume: str = ""  # none: it is the pool's own
    peer: str = ""  # the client that asked for it
    since_s: float = 0.0  # how long it has waited, to a quarter of a second
    waits_for: str
    held: list[str] = field(default_factory=list)  # what it has meanwhile
    ended_by: list[str] = field(default_factory=list)  # who can end the wait
    meant: bool = False  # it waits for a client, or because the volume's owner wants it so


class WaitList(Struct, frozen=True, kw_only=True):
    """The longest waits first, at most `WAITS_MAX` of `total`. `cycles`: a sentence each; there should never be one."""

    waits: list[WaitInfo] = field(default_factory=list)
    total: int = 0
    cycles: list[str] = field(default_factory=list)


Statistics: TypeAlias = dict[str, int | float]
Answer: TypeAlias = VolumeInfo | VolumeList | VolumeRemoved | VolumeResized | GroupInfo | GroupRemoved | PoolStatus


# --- Errors on the wire -----------------------------------------------------------------------------------------------


class ErrorBody(Struct, frozen=True, kw_only=True):
    kind: str
    message: str
    errno: int = errno_codes.EIO


class ErrorAnswer(Struct, frozen=True, kw_only=True):
    error: ErrorBody


# Kind on the wire, class, HTTP status.  A subclass stands before its base: the first that fits is used.
ERROR_KINDS: tuple[tuple[str, type[HoldfastError], int], ...] = (
    ("retry", RetryError, 503),
    ("not_found", NotFoundError, 404),
    ("request", RequestError, 400),
    ("no_space", NoSpaceError, 507),
    ("shortage", ShortageError, 503),
    ("read_only", ReadOnlyError, 409),
    ("disk", DiskError, 500),
    ("corruption", CorruptionError, 500),
    ("pool_busy", PoolBusyError, 409),
    ("gone", GoneError, 503),
)


def describe_error(error: HoldfastError) -> tuple[int, ErrorAnswer]:
    """The HTTP status and the body that tell a client of `error`."""
    for kind, error_class, status in ERROR_KINDS:
        if isinstance(error, error_class):
            return status, ErrorAnswer(error=ErrorBody(kind=kind, message=str(error), errno=error.errno))
    return 500, ErrorAnswer(error=ErrorBody(kind="error", message=str(error), errno=error.errno))


def rebuild_error(body: ErrorBody) -> HoldfastError:
    """The error that `describe_error` described.  A kind that this version does not know becomes a HoldfastError."""
    for kind, error_class, _status in ERROR_KINDS:
        if kind == body.kind:
            error = error_class(body.message)
            error.errno = body.errno
            return error
    unknown = HoldfastError(body.message)
    unknown.errno = body.errno
    return unknown


# --- The server's side ------------------------------------------------------------------------------------------------

Reply: TypeAlias = Callable[[Answer | HoldfastError], None]


class Service(Protocol):
    """What the server does for `ControlConnection`.

    The plain methods answer at once from memory and raise HoldfastError.  Those that change something are answered by
    calling `reply` exactly once, during the call or later, from the loop's thread; errors found at once may
    be raised as well.
    """

    def status(self) -> PoolStatus: ...

    def statistics(self) -> Statistics: ...

    def metrics(self, *, age_ns_max: int = 0) -> bytes:
        """In the text format of Prometheus; of now, or at most so old."""
        ...

    def waits(self) -> WaitList: ...

    def volumes(self) -> list[VolumeInfo]: ...

    def snapshots(self, *, of: str = "", after: int = 0) -> SnapshotList:
        """Those of one volume, or all, with ids above `after`. Raises NotFoundError."""
        ...

    def volume(self, name: str, reply: Reply) -> None:
        """Replies with the VolumeInfo, of a snapshot as well, once it is known what it shares."""
        ...

    def create_volume(self, wanted: CreateVolume, reply: Reply) -> None:
        """Replies with the VolumeInfo once the volume is durable. What is wanted is valid already."""
        ...

    def change_volume(self, name: str, change: ChangeVolume, reply: Reply) -> None:
        """Replies with the VolumeInfo once that is durable; it holds from the call on."""
        ...

    def remove_volume(self, name: str, reply: Reply, *, force: bool = False, snapshots: bool = False) -> None:
        """Replies with VolumeRemoved. Without `force` a volume with connections is refused with RequestError, without
        `snapshots` one that has some."""
        ...

    def take_snapshots(self, wanted: TakeSnapshots, reply: Reply) -> None:
        """Replies with the VolumeList of the snapshots, all of the moment of the call, once they are durable."""
        ...

    def clone_volume(self, source: str, wanted: CloneVolume, reply: Reply) -> None:
        """Replies with the VolumeInfo of the clone of a snapshot, or of a volume at this moment."""
        ...

    def promote_volume(self, name: str, reply: Reply) -> None: ...

    def roll_back_volume(self, snapshot: str, reply: Reply) -> None:
        """Replies with the VolumeInfo of the volume, which is what its snapshot was."""
        ...

    def resize_volume(self, name: str, wanted: ResizeVolume, reply: Reply) -> None:
        """Replies with VolumeResized once that is durable. Making it smaller is refused with RequestError without
        `force`, saying what that would cut off, and while it has connections."""
        ...

    def change_pool(self, change: ChangePool, reply: Reply) -> None:
        """Replies with the PoolStatus once the capacity is durable; what lies behind a smaller one is moved before."""
        ...

    def acknowledge_loss(self, name: str, loss_epoch: int, reply: Reply) -> None:
        """Replies with the VolumeInfo once it is durable that an operator knows of the loss."""
        ...

    def groups(self) -> list[GroupInfo]: ...

    def group(self, name: str) -> GroupInfo:
        """Raises NotFoundError."""
        ...

    def create_group(self, wanted: CreateGroup, reply: Reply) -> None: ...

    def change_group(self, name: str, change: ChangeGroup, reply: Reply) -> None: ...

    def remove_group(self, name: str, reply: Reply) -> None: ...

    def shutdown(self) -> None:
        """Begin the orderly shutdown and return; the answer is still sent."""
        ...


class OfflineService(Protocol):
    """The same for a pool that nobody serves, opened in-process: every call returns when it is durable, or raises."""

    def status(self) -> PoolStatus: ...

    def volumes(self) -> list[VolumeInfo]: ...

    def snapshots(self, of: str = "") -> list[VolumeInfo]: ...

    def volume(self, name: str) -> VolumeInfo: ...

    def create_volume(self, wanted: CreateVolume) -> VolumeInfo: ...

    def change_volume(self, name: str, change: ChangeVolume) -> VolumeInfo: ...

    def remove_volume(self, name: str, *, force: bool = False, snapshots: bool = False) -> VolumeRemoved: ...

    def take_snapshots(self, wanted: TakeSnapshots) -> VolumeList: ...

    def clone_volume(self, source: str, wanted: CloneVolume) -> VolumeInfo: ...

    def promote_volume(self, name: str) -> VolumeInfo: ...

    def roll_back_volume(self, snapshot: str) -> VolumeInfo: ...

    def resize_volume(self, name: str, wanted: ResizeVolume) -> VolumeResized: ...

    def change_pool(self, change: ChangePool) -> PoolStatus: ...

    def acknowledge_loss(self, name: str, loss_epoch: int) -> VolumeInfo: ...

    def groups(self) -> list[GroupInfo]: ...

    def group(self, name: str) -> GroupInfo: ...

    def create_group(self, wanted: CreateGroup) -> GroupInfo: ...

    def change_group(self, name: str, change: ChangeGroup) -> GroupInfo: ...

    def remove_group(self, name: str) -> object: ...

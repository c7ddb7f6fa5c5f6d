"""What can go wrong, sorted by what the reader of the message should do.

    HoldfastError            never raised itself
    ├── RetryError           try again later: the condition passes by itself (EAGAIN)
    ├── RequestError         fix the request: it can never succeed as it was put (EINVAL)
    │   └── NotFoundError    ... because what it names does not exist (ENOENT)
    ├── NoSpaceError         free space, or give the pool more (ENOSPC)
    ├── ShortageError        give the group that it names, or the server, more memory (ENOMEM)
    ├── ReadOnlyError        mend what made the volume read-only, then say so (EPERM)
    ├── DiskError            the disk below failed; the message names the file and the errno (EIO, or what it said)
    ├── CorruptionError      stored bytes are not what was written; check and repair (EIO)
    └── GoneError            the thing asked is shutting down or already closed (ESHUTDOWN)
        └── PoolBusyError    another server has the pool (EBUSY)

Each names the exhausted or damaged resource in plain words and says what to do.  `errno` is what a client is told; the
NBD edge maps it to the errors that the protocol knows (`nbd.protocol.wire_errno`).  `resource` is the same for
programs: a label of the metrics and a field of the log, from one short list, each with what to do about it.
"""

from __future__ import annotations

import errno as errno_codes
from enum import StrEnum


class Resource(StrEnum):
    """What can be exhausted, or fail. The value is the label in metrics and logs; docs/metrics.md lists them."""

    POOL_SPACE = "pool space"
    QUOTA = "quota"
    GROUP_SPACE = "group space"
    MEMORY = "memory"
    HOST_FILESYSTEM = "host filesystem"
    DISK = "disk"
    DAMAGE = "damage"
    RING = "ring"
    DESCRIPTORS = "descriptors"
    THREADS = "threads"
    CONNECTIONS = "connections"
    READ_ONLY = "read-only volume"  # by --on-full or --on-error
    REQUEST = "request"  # nothing is short: what was asked is not valid


# What an operator does about it, one sentence each: the field `action` of a log line.
ACTIONS: dict[Resource, str] = {
    Resource.POOL_SPACE: "trim or remove volumes, or serve the pool with more --capacity",
    Resource.QUOTA: "trim the volume, or raise its quota with `holdfast volume set --quota`",
    Resource.GROUP_SPACE: "trim or remove volumes of the group, or give it more with `holdfast group set --space`",
    Resource.MEMORY: "give the group more with `holdfast group set --memory`, or serve the pool with more --memory",
    Resource.HOST_FILESYSTEM: "free space on the filesystem that holds the pool",
    Resource.DISK: "look at the disk below the pool and at the kernel's log",
    Resource.DAMAGE: "overwrite the damaged blocks whole, and run `holdfast check` when the pool is idle",
    Resource.RING: "free space in /dev/shm or in the pool's directory, or give a smaller --memory",
    Resource.DESCRIPTORS: "raise the limit of open files (ulimit -n, LimitNOFILE=), or have fewer clients",
    Resource.THREADS: "raise the limit of tasks (ulimit -u, TasksMax=)",
    Resource.CONNECTIONS: "close connections that nobody uses",
    Resource.READ_ONLY: "mend what made it so, then `holdfast volume set --writable`",
    Resource.REQUEST: "fix the request",
}


def resource_of(errno: int) -> Resource:
    """What is short or broken when an operation on the pool's files ended with this errno."""
    if errno in (errno_codes.ENOSPC, errno_codes.EDQUOT):
        return Resource.HOST_FILESYSTEM
    if errno in (errno_codes.EMFILE, errno_codes.ENFILE):
        return Resource.DESCRIPTORS
    return Resource.DISK


def errno_name(errno: int) -> str:
    return errno_codes.errorcode.get(errno, str(errno))


def log_fields(
    resource: Resource | None, *, action: str | None = None, volume: str | None = None, errno: int | None = None
) -> dict[str, str]:
    """`extra` of a log call about a shortage or an error: `--log-format json` prints these fields."""
    fields = {
        "resource": resource,
        "action": action or (ACTIONS[resource] if resource is not None else None),
        "volume": volume,
        "errno": errno_name(errno) if errno else None,
    }
    return {name: str(value) for name, value in fields.items() if value is not None}


class HoldfastError(Exception):
    """`resource`: what is exhausted or broken; None where nothing is."""

    errno: int = errno_codes.EIO
    resource: Resource | None = None

    def __init__(self, *arguments: object, resource: Resource | None = None) -> None:
        super().__init__(*arguments)
        if resource is not None:
            self.resource = resource


class RetryError(HoldfastError):
    errno = errno_codes.EAGAIN


class RequestError(HoldfastError):
    errno = errno_codes.EINVAL
    resource = Resource.REQUEST


class NotFoundError(RequestError):
    errno = errno_codes.ENOENT


class NoSpaceError(HoldfastError):
    errno = errno_codes.ENOSPC
    resource = Resource.POOL_SPACE


class ShortageError(HoldfastError):
    """A memory limit is reached, and whoever asked does not want to wait."""

    errno = errno_codes.ENOMEM
    resource = Resource.MEMORY


class ReadOnlyError(HoldfastError):
    errno = errno_codes.EPERM
    resource = Resource.READ_ONLY


class DiskError(HoldfastError):
    """An I/O operation on the pool's files failed. `errno` is the kernel's own."""

    def __init__(self, message: str, errno: int = errno_codes.EIO) -> None:
        super().__init__(message, resource=resource_of(errno))
        self.errno = errno


class CorruptionError(HoldfastError):
    errno = errno_codes.EIO
    resource = Resource.DAMAGE


class GoneError(HoldfastError):
    errno = errno_codes.ESHUTDOWN


class PoolBusyError(GoneError):
    errno = errno_codes.EBUSY

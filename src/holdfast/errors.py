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
NBD edge maps it to the errors that the protocol knows (`nbd.protocol.wire_errno`).
"""

from __future__ import annotations

import errno as errno_codes


class HoldfastError(Exception):
    errno: int = errno_codes.EIO


class RetryError(HoldfastError):
    errno = errno_codes.EAGAIN


class RequestError(HoldfastError):
    errno = errno_codes.EINVAL


class NotFoundError(RequestError):
    errno = errno_codes.ENOENT


class NoSpaceError(HoldfastError):
    errno = errno_codes.ENOSPC


class ShortageError(HoldfastError):
    """A memory limit is reached, and whoever asked does not want to wait."""

    errno = errno_codes.ENOMEM


class ReadOnlyError(HoldfastError):
    errno = errno_codes.EPERM


class DiskError(HoldfastError):
    """An I/O operation on the pool's files failed. `errno` is the kernel's own."""

    def __init__(self, message: str, errno: int = errno_codes.EIO) -> None:
        super().__init__(message)
        self.errno = errno


class CorruptionError(HoldfastError):
    errno = errno_codes.EIO


class GoneError(HoldfastError):
    errno = errno_codes.ESHUTDOWN


class PoolBusyError(GoneError):
    errno = errno_codes.EBUSY

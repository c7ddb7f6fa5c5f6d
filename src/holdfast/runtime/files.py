"""The pool's files: their names, and the system calls on them that take more than one line.

    DIRECTORY/superblock
    DIRECTORY/segments/%08x.seg

Everything here may wait for the device, so it is called by worker threads, or before serving.
"""

from __future__ import annotations

import errno
import os
import re
import resource

from holdfast.units import BLOCK_SIZE_BYTES

SUPERBLOCK_NAME = "superblock"
SEGMENTS_NAME = "segments"
_SEGMENT_PATTERN = re.compile(r"([0-9a-f]{8})\.seg")
# Taken for the limit where there is none; more than anything here ever opens.
_NO_DESCRIPTOR_LIMIT = 1 << 20


def segment_name(file: int) -> str:
    return f"{file:08x}.seg"


def segment_number(name: str) -> int | None:
    """The id of the segment whose file has this name; None for every other file."""
    match = _SEGMENT_PATTERN.fullmatch(name)
    return int(match[1], 16) if match else None


def open_direct(path: str, flags: int) -> tuple[int, bool]:
    """A descriptor, and whether it is one for direct I/O: some filesystems refuse that with EINVAL."""
    try:
        return os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC, 0o600), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(path, flags | os.O_CLOEXEC, 0o600), False


def write_all(fd: int, view: memoryview, offset: int, flags: int) -> int:
    """Write all of it: 0, or -EIO if the kernel makes no progress. Raises OSError."""
    written = os.pwritev(fd, (view,), offset, flags)
    length = len(view)
    if written == length:
        return 0
    at = written & -BLOCK_SIZE_BYTES
    while at < length:
        # After a short write go on at a block: direct I/O takes no other place.
        step = os.pwritev(fd, (view[at:],), offset + at, flags)
        if step != length - at:
            step &= -BLOCK_SIZE_BYTES
        if step <= 0:
            return -errno.EIO
        at += step
    return 0


def write_through(path: str, length: int, zeroes: memoryview) -> None:
    """Make `path` a file of `length` zeroes, all of them written and durable; its name is not yet. Raises OSError.

    `zeroes` is an aligned buffer; its length is that of one write.
    """
    fd, _ = open_direct(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        # Allocated in one go first: fewer extents, and a full filesystem says so before anything is written.
        os.posix_fallocate(fd, 0, length)
        for offset in range(0, length, len(zeroes)):
            if write_all(fd, zeroes[: length - offset], offset, 0):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(fd)
    finally:
        os.close(fd)


def has_size(path: str, size_bytes: int) -> bool:
    try:
        return os.stat(path).st_size == size_bytes
    except FileNotFoundError:
        return False


def remove_if_there(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)


def make_directory(path: str) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    sync_directory(os.path.dirname(os.path.abspath(path)))


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def raise_descriptor_limit() -> int:
    """Take what the system grants: segments and connections each need descriptors. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _NO_DESCRIPTOR_LIMIT if hard == resource.RLIM_INFINITY else hard

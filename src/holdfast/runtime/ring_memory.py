"""The ring's memory: a mapped file that outlives the process, but not a power failure.

Acknowledged data that is not yet in the log exists only here, so its place decides promise 2 (acknowledged survives the
server).  The first choice is /dev/shm: memory and nothing else.  Containers often have 64 MiB there; then the ring is a
mapped file beside the pool, which outlives the process just as well and costs write-back that nobody needs.

1. The file has its final name only once all its space is allocated: a server that dies while making it leaves nothing
   that looks like a ring.
2. All of it is allocated and touched before it is used: no page fault, no ENOSPC (SIGBUS) while serving.
3. A file that is there is attached with the size it has.  What is in it is for recovery to judge, not for this module.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

from holdfast.errors import NoSpaceError, Resource
from holdfast.units import MIB, format_size

SHM_DIRECTORY = "/dev/shm"
# Left free in the directory for whatever else lives there: a /dev/shm filled to the brim breaks other programs.
FREE_MARGIN_BYTES = 32 * MIB
# In <linux/mman.h> since 5.14; the mmap module of Python 3.11 has no name for it.
_MADV_POPULATE_WRITE = 23
_PAGE_BYTES = mmap.PAGESIZE

_log = logging.getLogger("holdfast.runtime.ring")


def ring_name(pool_uuid: str) -> str:
    return f"holdfast-{pool_uuid}.ring"


class SharedRing:
    """`RingMemory` over a file `name` in the first of `directories` that holds it already, or else has room for it.

    Raises NoSpaceError, naming every directory with what it has and what is missing, if none has room.

    refuses: says of a directory that a new ring cannot be made there, for `--fault`
    """

    def __init__(
        self,
        name: str,
        size_bytes: int,
        *,
        directories: Sequence[str | os.PathLike[str]],
        refuses: Callable[[str], object] = lambda _directory: False,
    ) -> None:
        assert size_bytes > 0, size_bytes
        assert size_bytes % _PAGE_BYTES == 0, size_bytes
        assert directories
        places = [os.fspath(directory) for directory in directories]
        existing = _find(name, places)
        if existing is None:
            self.path, fd = _make(name, size_bytes, places, refuses)
        else:
            self.path, fd = existing
        self._found = existing is not None
        try:
            self.size_bytes = os.fstat(fd).st_size
            memory = mmap.mmap(fd, self.size_bytes, flags=mmap.MAP_SHARED)
        finally:
            os.close(fd)
        self._view = memoryview(memory)
        _touch(memory, self._view)
        # Whether the kernel agreed to keep it resident (mlock).  A small RLIMIT_MEMLOCK refuses; that is no error.
        self.locked = _lock_in_memory(self._view)

    @property
    def view(self) -> memoryview:
        return self._view

    @property
    def found(self) -> bool:
        return self._found

    def discard(self) -> None:
        """Remove the file. The mapping goes when the last view or array over it does. May be called twice."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return

    def close(self) -> None:
        """Let go of the memory and leave the file for the next owner. `view` may not be used after this."""
        self._view = memoryview(b"")


def _find(name: str, directories: list[str]) -> tuple[str, int] | None:
    for directory in directories:
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if os.fstat(fd).st_size > 0:
            return path, fd
        # Empty, so not made by us (invariant 1) and without anything to lose; it cannot be mapped either.
        os.close(fd)
        os.unlink(path)
    return None


def _make(name: str, size_bytes: int, directories: list[str], refuses: Callable[[str], object]) -> tuple[str, int]:
    refusals = []
    for directory in directories:
        free_bytes = _free_bytes(directory)
        if free_bytes < size_bytes + FREE_MARGIN_BYTES:
            refusals.append(f"{directory} has {format_size(free_bytes)} free")
            continue
        if refuses(directory):
            refusals.append(f"{directory} refused it on purpose")
            continue
        path = os.path.join(directory, name)
        try:
            return path, _allocate(path, size_bytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            refusals.append(f"{directory} refused it ({os.strerror(error.errno)})")
    raise NoSpaceError(
        f"no room for a ring of {format_size(size_bytes)} (and {format_size(FREE_MARGIN_BYTES)} to spare): "
        f"{'; '.join(refusals)}; free space there, or give a smaller --memory",
        resource=Resource.RING,
    )


def _free_bytes(directory: str) -> int:
    try:
        status = os.statvfs(directory)
    except FileNotFoundError:
        return 0
    return status.f_bavail * status.f_frsize


def _allocate(path: str, size_bytes: int) -> int:
    """A descriptor of the new, fully allocated file `path`. Leaves nothing behind when it fails."""
    temporary = path + ".new"
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
        os.rename(temporary, path)
    except OSError:
        os.close(fd)
        os.unlink(temporary)
        raise
    return fd


def _touch(memory: mmap.mmap, view: memoryview) -> None:
    """Fault every page in for writing, its contents unchanged."""
    try:
        memory.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # kernels before 5.14 do not know the advice
            raise
        view[::_PAGE_BYTES] = bytes(view[::_PAGE_BYTES])


def _lock_in_memory(view: memoryview) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    locked = bool(libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(view))) == 0)
    if not locked:
        _log.info("the ring is not locked in memory: %s", os.strerror(ctypes.get_errno()))
    return locked


def ring_path(pool_uuid: bytes, pool_directory: str | os.PathLike[str]) -> Path | None:
    """Where the ring file of a pool is, or None if there is none."""
    name = ring_name(str(UUID(bytes=pool_uuid)))
    for directory in (SHM_DIRECTORY, pool_directory):
        path = Path(directory) / name
        if path.exists():
            return path
    return None

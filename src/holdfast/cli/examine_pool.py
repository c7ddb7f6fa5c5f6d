"""What `holdfast doctor POOL` looks at besides the host: the pool's place, what it holds back, its filesystem.

Nothing is changed.  The checks of a filesystem write one block to an unnamed file that is gone when it is closed.
"""

from __future__ import annotations

import errno as errno_codes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from holdfast.cli.finding import BAD, OK, WARN, Finding
from holdfast.cli.locate import is_pool
from holdfast.cli.output import format_held_back
from holdfast.control.client import ControlClient
from holdfast.errors import HoldfastError
from holdfast.runtime.host import IN_MEMORY, filesystem_type
from holdfast.units import GIB, format_size

# Network filesystems answer neither O_DIRECT nor fdatasync as disks do.
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs"})


def examine_pool(pool: Path) -> Iterator[Finding]:
    """Its place, then the filesystem there, if it can be a pool's place at all."""
    directory = next(path for path in (pool.absolute(), *pool.absolute().parents) if os.path.lexists(path))
    if not directory.is_dir():
        yield Finding(
            subject="pool",
            state=BAD,
            found=f"{directory} is not a directory",
            why="a pool is a directory",
            what_to_do="give another path, or move away what is there",
        )
        return
    if directory != pool.absolute():
        yield Finding(subject="pool", state=OK, found="not there yet", why=f"holdfast serve {pool} will make it")
    elif is_pool(pool):
        yield Finding(subject="pool", state=OK, found=str(directory))
        yield from _held_back(pool)
    else:
        yield Finding(
            subject="pool", state=OK, found="a directory without one", why=f"holdfast serve {pool} will make it there"
        )
    yield from _filesystem(directory.resolve())


def _held_back(pool: Path) -> Iterator[Finding]:
    """What a served pool holds back for those who must not fail; of an idle one it is computed when it is opened."""
    try:
        client = ControlClient.connect_if_served(pool)
        if client is None:
            return
        with client:
            reserved = client.status().memory.reserved
    except HoldfastError as error:
        yield Finding(subject="server", state=WARN, found=str(error))
        return
    for caller in reserved:
        yield Finding(subject=f"held back: {caller.name}", state=OK, found=format_held_back(caller), why=caller.why)


def _filesystem(directory: Path) -> Iterator[Finding]:
    kind = filesystem_type(directory)
    yield _filesystem_kind(directory, kind)
    yield _free_space(directory)
    yield from _file_operations(directory)


def _filesystem_kind(directory: Path, kind: str) -> Finding:
    found = f"{kind} at {directory}"
    if kind in IN_MEMORY:
        return Finding(
            subject="filesystem",
            state=WARN,
            found=found,
            why="it is memory: nothing survives a power failure, and control groups count it as the server's own",
            what_to_do="put the pool on a disk",
        )
    if kind in _REMOTE:
        return Finding(
            subject="filesystem",
            state=WARN,
            found=found,
            why="what a flush means there is not in our hands",
            what_to_do="put the pool on a local disk (ext4 or XFS)",
        )
    return Finding(subject="filesystem", state=OK, found=found)


def _free_space(directory: Path) -> Finding:
    counts = os.statvfs(directory)
    free_bytes = counts.f_bavail * counts.f_frsize
    if free_bytes < GIB:
        return Finding(
            subject="free space",
            state=WARN,
            found=format_size(free_bytes),
            why="a pool needs its capacity on disk, with segments to spare",
            what_to_do="free space, or put the pool elsewhere",
        )
    return Finding(subject="free space", state=OK, found=format_size(free_bytes))


def _file_operations(directory: Path) -> Iterator[Finding]:
    """O_DIRECT and RWF_NOWAIT, tried on an unnamed file."""
    direct_failure: OSError | None = None
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        state = BAD if error.errno in (errno_codes.EACCES, errno_codes.EPERM, errno_codes.EROFS) else WARN
        yield Finding(
            subject="writing",
            state=state,
            found=(error.strerror or str(error)).lower(),
            why=f"no file can be made in {directory} without a name",
            what_to_do="give the server's user the right to write there" if state is BAD else "use ext4 or XFS",
        )
        return
    try:
        with mmap.mmap(-1, 4096) as block:
            try:
                direct = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
                try:
                    os.pwrite(direct, block, 0)
                finally:
                    os.close(direct)
            except OSError as error:
                direct_failure = error
                os.pwrite(fd, block, 0)
            yield _direct_io(direct_failure)
            yield _read_nowait(fd, block)
    finally:
        os.close(fd)


def _direct_io(failure: OSError | None) -> Finding:
    if failure is None:
        return Finding(subject="O_DIRECT", state=OK, found="works")
    return Finding(
        subject="O_DIRECT",
        state=WARN,
        found=(failure.strerror or str(failure)).lower(),
        why="writes go through the page cache: slower, and less predictable under memory pressure",
        what_to_do="put the pool on ext4 or XFS on a disk",
    )


def _read_nowait(fd: int, block: mmap.mmap) -> Finding:
    try:
        os.preadv(fd, [block], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        pass  # not cached: but it was understood
    except OSError as error:
        return Finding(
            subject="RWF_NOWAIT",
            state=WARN,
            found=(error.strerror or str(error)).lower(),
            why="every read that the ring cannot answer goes to a worker thread",
            what_to_do="put the pool on ext4, XFS or btrfs",
        )
    return Finding(subject="RWF_NOWAIT", state=OK, found="works")

"""What `holdfast doctor` looks at: each function examines one property of the host and says what it means for a pool.

Nothing is changed.  The checks of a filesystem write one block to an unnamed file that is gone when it is closed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

from holdfast.cli.examine_pool import examine_pool
from holdfast.cli.finding import OK, WARN, Finding
from holdfast.cli.locate import SUPERBLOCK_NAME
from holdfast.errors import CorruptionError
from holdfast.pool.superblock import SLOT_OFFSETS, decode_superblock
from holdfast.runtime.host import (
    MemoryGroup,
    default_memory_bytes,
    host_available_bytes,
    memory_groups,
)
from holdfast.runtime.ring_memory import SHM_DIRECTORY, ring_name
from holdfast.units import BLOCK_SIZE_BYTES, MIB, format_size

# The server's descriptors: two for each open segment file at worst, one for each client, and some twenty.
_DESCRIPTORS_WANTED = 4096

# Room for the smallest useful ring, and what ring_memory leaves free for others.
_SHM_BYTES_WANTED = 96 * MIB

# Beside the budget there is the interpreter with its libraries, and what the kernel charges to the group for us.
_MEMORY_MARGIN_BYTES = 128 * MIB

# The names of more ring files than this would fill the screen; their number and size say enough.
_RINGS_NAMED_MAX = 3

_CAP_SYS_RESOURCE_BIT = 24
_SYS_IO_URING_SETUP = 425  # on all architectures that have it under the common numbering: x86-64, AArch64, RISC-V
_PEER_TOOLS = ("nbdcopy", "nbdinfo", "qemu-img", "qemu-nbd", "nbdkit", "fio", "nbd-client")


def examine(pool: Path | None) -> Iterator[Finding]:
    """Everything about the host, and about the filesystem of `pool` if one is given (it need not exist yet)."""
    for check in _HOST_CHECKS:
        yield check()
    for group in memory_groups():
        yield _memory_group(group)
    yield _memory_budget()
    yield from other_rings(Path(SHM_DIRECTORY), pool)
    if pool is not None:
        yield from examine_pool(pool)
    yield from _optional()


# --- The process and the kernel ---------------------------------------------------------------------------------------


def _python() -> Finding:
    return Finding(
        subject="Python", state=OK, found=f"{platform.python_version()} ({platform.python_implementation()})"
    )


def _kernel() -> Finding:
    release = platform.release()
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in (release + ".0").split(".")[:2])
    if (major, minor) < (5, 4):
        return Finding(
            subject="kernel",
            state=WARN,
            found=release,
            why="nothing before 5.4 is tested",
            what_to_do="use a newer kernel",
        )
    return Finding(subject="kernel", state=OK, found=f"{release} {platform.machine()}")


def _shared_memory() -> Finding:
    try:
        counts = os.statvfs("/dev/shm")
    except FileNotFoundError:
        return Finding(
            subject="/dev/shm",
            state=WARN,
            found="missing",
            why="the ring becomes a file beside the pool, which costs write-back",
            what_to_do="mount a tmpfs on /dev/shm",
        )
    free_bytes = counts.f_bavail * counts.f_frsize
    found = f"{format_size(free_bytes)} free of {format_size(counts.f_blocks * counts.f_frsize)}"
    if free_bytes < _SHM_BYTES_WANTED:
        return Finding(
            subject="/dev/shm",
            state=WARN,
            found=found,
            why="too small for a ring: it becomes a file beside the pool, which costs write-back",
            what_to_do="enlarge it (docker run --shm-size=1g, mount -o remount,size=1G /dev/shm)",
        )
    return Finding(subject="/dev/shm", state=OK, found=found)


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{_limit(soft)}, can be raised to {_limit(hard)}"
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS_WANTED:
        return Finding(
            subject="open files",
            state=WARN,
            found=found,
            why="few clients and few open segments at a time",
            what_to_do=f"raise the hard limit to {_DESCRIPTORS_WANTED} (LimitNOFILE= or ulimit -Hn)",
        )
    return Finding(subject="open files", state=OK, found=found)


def _locked_memory() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = _limit_size(soft)
    if hard != resource.RLIM_INFINITY and hard < default_memory_bytes() and not _has_capability(14):  # CAP_IPC_LOCK
        return Finding(
            subject="locked memory",
            state=WARN,
            found=found,
            why="the ring may be swapped out, which makes writes wait for the disk",
            what_to_do="LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited; without swap it does not matter",
        )
    return Finding(subject="locked memory", state=OK, found=found)


def _io_uring() -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)  # struct io_uring_params, all zero
    fd = libc.syscall(_SYS_IO_URING_SETUP, 1, parameters)
    if fd >= 0:
        os.close(fd)
        return Finding(subject="io_uring", state=OK, found="permitted")
    reason = os.strerror(ctypes.get_errno()).lower()
    return Finding(
        subject="io_uring",
        state=OK,
        found=f"not available ({reason})",
        why="worker threads do the same work",
    )


def _io_flusher() -> Finding:
    if _has_capability(_CAP_SYS_RESOURCE_BIT):
        return Finding(subject="IO_FLUSHER", state=OK, found="permitted (CAP_SYS_RESOURCE)")
    return Finding(
        subject="IO_FLUSHER",
        state=OK,
        found="not permitted (no CAP_SYS_RESOURCE)",
        why="matters only where the server's own host mounts its volumes; a bonus there",
    )


_HOST_CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _kernel,
    _shared_memory,
    _descriptors,
    _locked_memory,
    _io_uring,
    _io_flusher,
)


# --- Memory -----------------------------------------------------------------------------------------------------------


def _memory_group(group: MemoryGroup) -> Finding:
    found = f"{format_size(group.headroom_bytes)} left of {format_size(group.limit_bytes)}"
    subject = f"cgroup v{group.version} {group.path}"
    if group.headroom_bytes < default_memory_bytes() + _MEMORY_MARGIN_BYTES:
        return Finding(
            subject=subject,
            state=WARN,
            found=found,
            why="at its limit the kernel kills; it does not say no",
            what_to_do="raise the limit, give --memory less, or move others out of the group",
        )
    return Finding(subject=subject, state=OK, found=found)


def _memory_budget() -> Finding:
    budget_bytes, available_bytes = default_memory_bytes(), host_available_bytes()
    found = f"{format_size(budget_bytes)} by default; the host has {format_size(available_bytes)} available"
    if available_bytes < budget_bytes + _MEMORY_MARGIN_BYTES:
        return Finding(
            subject="memory",
            state=WARN,
            found=found,
            why="the host is short of memory now",
            what_to_do="give --memory less, or free memory",
        )
    return Finding(subject="memory", state=OK, found=found)


def other_rings(directory: Path, pool: Path | None) -> Iterator[Finding]:
    """The ring files in `directory` that are not known to be of `pool`: information, as their pools may be anywhere."""
    own = _ring_name_of(pool) if pool is not None else None
    sizes = {path.name: _size_bytes(path) for path in sorted(directory.glob(ring_name("*"))) if path.name != own}
    if not sizes:
        return
    names = list(sizes)[:_RINGS_NAMED_MAX] + ["..."] * (len(sizes) > _RINGS_NAMED_MAX)
    yield Finding(
        subject="rings",
        state=OK,
        found=f"{len(sizes)} in {directory}, {format_size(sum(sizes.values()))}",
        why=f"of {'other ' if own is not None else ''}pools, served now or left by a dead server: {', '.join(names)}",
        what_to_do=f"where a pool is gone for good: rm {directory}/{ring_name('UUID')}",
    )


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # its server has stopped in this moment


def _ring_name_of(pool: Path) -> str | None:
    """The name of the pool's ring file; None where the pool cannot be told, because there is none or it is damaged."""
    try:
        with open(pool / SUPERBLOCK_NAME, "rb") as file:
            slots = [os.pread(file.fileno(), BLOCK_SIZE_BYTES, offset) for offset in SLOT_OFFSETS]
    except OSError:
        return None
    for slot in slots:
        try:
            superblock = decode_superblock(slot) if len(slot) == BLOCK_SIZE_BYTES else None
        except CorruptionError:  # valid, but of a version that we cannot read
            return None
        if superblock is not None:
            return ring_name(str(UUID(bytes=superblock.uuid)))
    return None


# --- What is nice to have ---------------------------------------------------------------------------------------------


def _optional() -> Iterator[Finding]:
    for module, purpose in (
        ("nbd", "nbd-client, a disk of this host"),
        ("ublk_drv", "ublk, a faster disk of this host"),
    ):
        yield Finding(subject=f"module {module}", state=OK, found=_module_state(module), why=f"for {purpose}")
    present = [tool for tool in _PEER_TOOLS if shutil.which(tool)]
    missing = [tool for tool in _PEER_TOOLS if tool not in present]
    yield Finding(
        subject="tools",
        state=OK,
        found=", ".join(present) or "none",
        why=f"not here: {', '.join(missing)}" if missing else "",
    )


def _module_state(module: str) -> str:
    if Path("/sys/module", module).is_dir():
        return "loaded"
    directory = Path("/lib/modules", platform.release())
    for index, state in (("modules.builtin", "built in"), ("modules.dep", "can be loaded")):
        path = directory / index
        if path.is_file() and f"/{module}.ko" in path.read_text():
            return state
    return "not here"


def _has_capability(bit: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _limit_size(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else format_size(value)

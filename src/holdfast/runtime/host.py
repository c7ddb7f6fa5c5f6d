"""How much memory this host, and every control group around this process, leaves us.

In a memory control group without swap the kernel answers an allocation too many with SIGKILL, not with ENOMEM.  So the
budget is chosen, and checked, against the limits before anything is allocated.  A limit counts on every level: a group
is killed for its parent's limit as well as for its own.  Version 1 and version 2 groups are read alike, and both at the
same time on hybrid hosts.

Inside a container the group's own directory is often mounted as the root of the hierarchy while /proc names it by its
path outside, or by `/..` outside its namespace.  Where the named directory cannot be found, the mount's root stands for
it: the container's own group is what is seen there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.units import MIB

PROC = Path("/proc")

# The default for `--memory`: half of what the host or its groups allow, and no more than this.  The ring absorbs bursts
# and the map cache covers working sets; measured, neither gains much from more than this on one disk.
DEFAULT_MEMORY_BYTES_MAX = 256 * MIB

# Filesystems whose files are memory, charged to whoever writes them.
IN_MEMORY = ("tmpfs", "ramfs")

# Version 1 writes "no limit" as the largest multiple of the page size that fits 63 bits; any limit beyond 2^60 is none.
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One control group with a memory limit, somewhere between this process and the root."""

    path: str
    version: int
    limit_bytes: int
    usage_bytes: int
    reclaimable_bytes: int  # clean page cache, roughly: the kernel takes it back before it kills

    @property
    def headroom_bytes(self) -> int:
        return max(0, self.limit_bytes - self.usage_bytes + self.reclaimable_bytes)


def cgroup_memory_limit_bytes(proc: Path = PROC) -> int | None:
    """The lowest memory limit of all groups around this process; None without one."""
    return min((group.limit_bytes for group in memory_groups(proc)), default=None)


def cgroup_headroom_bytes(proc: Path = PROC) -> int | None:
    """What may still be allocated before some group around this process is at its limit; None without a limit."""
    return min((group.headroom_bytes for group in memory_groups(proc)), default=None)


def host_memory_bytes(proc: Path = PROC) -> int:
    return _meminfo(proc, "MemTotal")


def host_available_bytes(proc: Path = PROC) -> int:
    return _meminfo(proc, "MemAvailable")


def default_memory_bytes(proc: Path = PROC) -> int:
    """The budget of `--memory auto`: half of the lowest limit (or of the host's memory), at most 256 MiB.

    Whole MiB, and never below one, so that a host with absurd limits is told so by the server, in its own words.
    """
    limit_bytes = cgroup_memory_limit_bytes(proc)
    total_bytes = host_memory_bytes(proc)
    base_bytes = total_bytes if limit_bytes is None else min(limit_bytes, total_bytes)
    return max(min(base_bytes // 2, DEFAULT_MEMORY_BYTES_MAX) // MIB, 1) * MIB


Place = tuple[Path, str, int]  # directory of a group, its path in the hierarchy, the hierarchy's version


def memory_groups(proc: Path = PROC) -> list[MemoryGroup]:
    """Every group with a memory limit around this process, the innermost first."""
    return read_groups(group_places(proc))


def group_places(proc: Path = PROC) -> list[Place]:
    """Where the groups around this process are found, whether they have limits or not."""
    return [
        (directory, label, version)
        for version, own_path in _own_groups(proc)
        for directory, label in _ancestors(proc, version, own_path)
    ]


def read_groups(places: list[Place]) -> list[MemoryGroup]:
    """Those of them that have a limit, as they are now."""
    groups = (_read_group(directory, label, version) for directory, label, version in places)
    return [group for group in groups if group is not None]


def left_for_files_bytes(proc: Path = PROC) -> int:
    """How large files in memory (on tmpfs) may still become before a control group, or the host, is short."""
    left = cgroup_headroom_bytes(proc)
    available = host_available_bytes(proc)
    return available if left is None else min(left, available)


def own_memory_group(proc: Path = PROC) -> tuple[Path, int]:
    """The directory of the group that this process's memory counts in, and the version of its hierarchy.

    Raises LookupError where there is none."""
    for version, own_path in _own_groups(proc):
        for directory, _label in _ancestors(proc, version, own_path):
            if version == 1 or (directory / "memory.current").exists():
                return directory, version
            break
    raise LookupError("no memory control group is mounted here")


def cgroup_of(pid: int, proc: Path = PROC) -> str:
    """The path of the memory control group that a process is in, as its kernel calls it; "" if that cannot be read."""
    try:
        paths = dict(_groups_of(str(pid), proc))
    except (ProcessLookupError, PermissionError):
        return ""  # it has ended, or is in another namespace
    return paths.get(1) or paths.get(2, "")


def _own_groups(proc: Path) -> Iterator[tuple[int, str]]:
    return _groups_of("self", proc)


def _groups_of(process: str, proc: Path) -> Iterator[tuple[int, str]]:
    """(version, path) of the groups of a process that may limit memory, from lines `id:controllers:path`."""
    try:
        text = (proc / process / "cgroup").read_text()
    except FileNotFoundError:
        return  # a kernel without control groups, or a process that has ended
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield 2, path
        elif "memory" in controllers.split(","):
            yield 1, path


def _ancestors(proc: Path, version: int, own_path: str) -> Iterator[tuple[Path, str]]:
    """The directories of a group and of all groups above it, as far as they are mounted here."""
    mount = _find_mount(proc, version)
    if mount is None:
        return
    mount_point, root = mount
    relative = os.path.relpath(own_path, root) if own_path.startswith("/") else own_path
    directory = mount_point / relative
    if relative.startswith("..") or not directory.is_dir():
        directory = mount_point
    while True:
        yield directory, "/" + str(directory.relative_to(mount_point)).removeprefix(".")
        if directory == mount_point:
            return
        directory = directory.parent


def _find_mount(proc: Path, version: int) -> tuple[Path, str] | None:
    """Where the hierarchy is mounted and which of its directories is seen there (proc_pid_mountinfo(5))."""
    for line in (proc / "self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        _id, _parent, _device, root, mount_point = before.split(" ")[:5]
        if kind == "cgroup2" if version == 2 else kind == "cgroup" and "memory" in options.split(","):
            return Path(_unescape(mount_point)), _unescape(root)
    return None


def _unescape(text: str) -> str:
    """mountinfo writes blanks, tabs, newlines and backslashes as three octal digits."""
    for sign in " \t\n\\":
        text = text.replace(f"\\{ord(sign):03o}", sign)
    return text


def _read_group(directory: Path, label: str, version: int) -> MemoryGroup | None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    limit_bytes = _read_number(directory / names[0])
    if limit_bytes is None or limit_bytes >= _NO_LIMIT_BYTES:
        return None
    return MemoryGroup(
        path=label,
        version=version,
        limit_bytes=limit_bytes,
        usage_bytes=_read_number(directory / names[1]) or 0,
        reclaimable_bytes=_reclaimable(directory, version),
    )


def _reclaimable(directory: Path, version: int) -> int:
    """The inactive half of the page cache, less what is dirty or under write-back: what gives way without a fight.

    Version 1 counts descendants only in the `total_` fields; version 2 always does.
    """
    prefix = "total_" if version == 1 else ""
    dirty_names = ("total_dirty", "total_writeback") if version == 1 else ("file_dirty", "file_writeback")
    fields: dict[str, int] = {}
    try:
        for line in (directory / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            fields[name] = int(value)
    except FileNotFoundError:
        return 0
    dirty_bytes = sum(fields.get(name, 0) for name in dirty_names)
    return max(0, fields.get(prefix + "inactive_file", 0) - dirty_bytes)


def _read_number(path: Path) -> int | None:
    """None where the file is missing (the root group has none) or says `max`."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    return None if text == "max" else int(text)


def _meminfo(proc: Path, name: str) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"{proc}/meminfo has no {name}")


def filesystem_type(directory: Path) -> str:
    """The type of the filesystem that is mounted last at or above `directory`."""
    best_length, best_kind = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount_point = Path(_unescape(before.split(" ")[4]))
        if directory.is_relative_to(mount_point) and len(str(mount_point)) >= best_length:
            best_length, best_kind = len(str(mount_point)), after.split(" ")[0]
    return best_kind


def filesystem_space(directory: Path) -> tuple[int, int]:
    """Bytes of the filesystem of `directory` that are used, and that there are for users who are not root."""
    status = os.statvfs(directory)
    used = status.f_blocks - status.f_bfree
    return used * status.f_frsize, (used + status.f_bavail) * status.f_frsize


def boot_tag() -> int:
    """A number for this run of the kernel: what memory held before a reboot is not what it holds now."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
    return int(text, 16) & ((1 << 64) - 1)


def resident_bytes() -> int:
    """Resident memory of this process, shared memory included."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0

"""What this machine is, and how noisy it is today.

A figure without its machine says nothing, and on a shared or virtual one the disk of now is not that of an hour ago.
So the hardware and the tools are recorded once, and before each round a short probe of the disk, the memory and the
interpreter is; if those wander between rounds, so may the table.
"""

from __future__ import annotations

import mmap
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from holdfast.units import KIB, MIB

PROBE_BYTES = 64 * MIB
PROBE_SYNC_WRITES = 200
PROBE_LARGE_WRITES = 64

_VERSION = re.compile(r"\d+\.\d+[\w.]*")


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    cpu_count: int
    memory_bytes: int
    kernel: str
    python: str
    filesystem: str
    tools: dict[str, str]
    commit: str


@dataclass(frozen=True, slots=True)
class Noise:
    """One probe, under half a second of it on a fast disk."""

    load_average: float
    sync_write_4k_p50_us: float  # one O_DIRECT + RWF_DSYNC write into written space: what a flush costs at least
    sync_write_4k_p99_us: float
    direct_write_1m_mib_per_s: float
    memory_copy_mib_per_s: float
    python_loop_ns: float  # one step of an empty `for`: the interpreter, the CPU's clock and its neighbours


def describe(scratch: Path, repository: Path) -> Machine:
    return Machine(
        cpu=cpu_model(Path("/proc/cpuinfo").read_text()),
        cpu_count=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=platform.release(),
        python=platform.python_version() + (" free-threaded" if "free-threading" in sys.version else ""),
        filesystem=filesystem_of(scratch.resolve(), Path("/proc/self/mounts").read_text()),
        tools={tool: tool_version(tool) for tool in ("fio", "nbdkit", "qemu-nbd", "nbdcopy")},
        commit=commit_of(repository),
    )


def cpu_model(cpuinfo: str) -> str:
    found = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def filesystem_of(path: Path, mounts: str) -> str:
    """The type of the filesystem that `path` is on, by the longest mount point above it."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        _, mount_point, mount_kind, *_ = line.split()
        if path.is_relative_to(mount_point) and len(mount_point) >= len(best):
            best, kind = mount_point, mount_kind
    return kind


def tool_version(tool: str) -> str:
    try:
        done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "not installed"
    found = _VERSION.search(done.stdout)
    return found.group() if found else done.stdout.strip()[:40]


def commit_of(repository: Path) -> str:
    """The commit that is measured, marked when the tree differs from it; empty outside a repository."""
    try:
        command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def measure_noise(directory: Path) -> Noise:
    """Probe with a scratch file in `directory`, which is written in full first and removed afterwards."""
    path = directory / "probe"
    try:
        with mmap.mmap(-1, MIB) as page:
            page.write(os.urandom(MIB))
            view = memoryview(page)
            try:
                return _probe(path, view)
            finally:
                view.release()
    finally:
        path.unlink(missing_ok=True)


def _open_direct(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    except OSError:  # tmpfs of older kernels, some network filesystems
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _probe(path: Path, view: memoryview) -> Noise:
    load_average = os.getloadavg()[0]
    file = _open_direct(path)
    try:
        for offset in range(0, PROBE_BYTES, MIB):
            os.pwrite(file, view, offset)
        os.fsync(file)
        large_s = _seconds(lambda: [os.pwrite(file, view, index * MIB) for index in range(PROBE_LARGE_WRITES)])
        latencies_us = []
        block = view[: 4 * KIB]
        for index in range(PROBE_SYNC_WRITES):
            offset = (index * 7919 * 4 * KIB) % PROBE_BYTES  # a prime stride: far apart, the same every time
            latencies_us.append(1e6 * _seconds(lambda at=offset: os.pwritev(file, [block], at, os.RWF_DSYNC)))
        block.release()
    finally:
        os.close(file)
    target = bytearray(MIB)
    copy_s = _seconds(lambda: [target.__setitem__(slice(None), view) for _ in range(256)])
    loop_s = _seconds(lambda: [None for _ in range(1_000_000)])
    return Noise(
        load_average=load_average,
        sync_write_4k_p50_us=statistics.median(latencies_us),
        sync_write_4k_p99_us=sorted(latencies_us)[len(latencies_us) * 99 // 100],
        direct_write_1m_mib_per_s=PROBE_LARGE_WRITES / large_s,
        memory_copy_mib_per_s=256 / copy_s,
        python_loop_ns=loop_s * 1000,
    )


def _seconds(action: object) -> float:
    assert callable(action)
    started = time.perf_counter()
    action()
    return time.perf_counter() - started

"""What a server costs: CPU seconds and memory of one process, read from /proc.

CPU time is utime + stime of /proc/PID/stat, which covers every thread the process has or had, at the kernel's tick
(10 ms mostly): a run of seconds is measured to better than a percent.  Memory is VmHWM, the kernel's own high-water
mark, which no sampling can miss; a sampler beside it says what the peak was made of (anonymous, shared memory such as
the ring, mapped files).  Page cache that the kernel keeps of the server's files is nobody's resident memory and is not
in it, for any server.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from types import TracebackType

from holdfast.units import GIB, KIB

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SAMPLE_INTERVAL_S = 0.05


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `peak` is the most that `resident` ever was."""

    peak: int = 0
    resident: int = 0
    anonymous: int = 0
    shared: int = 0
    mapped_files: int = 0


def parse_stat_cpu_seconds(stat: str) -> float:
    """utime + stime of a /proc/PID/stat line. The command's name, in parentheses, may hold spaces and parentheses."""
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def parse_status_memory(status: str) -> Memory:
    """The memory lines of /proc/PID/status, which are in KiB."""
    values = {
        name: int(rest.split()[0]) * KIB
        for name, _, rest in (line.partition(":") for line in status.splitlines())
        if name.startswith(("Vm", "Rss")) and rest.split()
    }
    return Memory(
        peak=values.get("VmHWM", 0),
        resident=values.get("VmRSS", 0),
        anonymous=values.get("RssAnon", 0),
        shared=values.get("RssShmem", 0),
        mapped_files=values.get("RssFile", 0),
    )


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        return parse_stat_cpu_seconds(stat.read())


def memory(pid: int) -> Memory:
    with open(f"/proc/{pid}/status") as status:
        return parse_status_memory(status.read())


def thread_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def cpu_seconds_per_gib(seconds: float, moved_bytes: int) -> float | None:
    """None when nothing was moved: there is no such figure then, and 0 would look like a very good one."""
    return seconds * GIB / moved_bytes if moved_bytes > 0 else None


class Meter:
    """`with Meter(pid) as meter:` what the process used in between.

    Afterwards `cpu_seconds` is the CPU time of the block, `memory` the sample with the largest resident size, its
    `peak` replaced by the process's high-water mark (since its start: loading and filling count too).
    """

    # Fields: I fixed at construction, S sampler thread until stopped, then the owner.

    def __init__(self, pid: int) -> None:
        self.pid = pid  # I
        self.cpu_seconds = 0.0
        self.memory = Memory()  # S
        self._cpu_before = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="meter", daemon=True)

    def __enter__(self) -> Meter:
        self._cpu_before = cpu_seconds(self.pid)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:  # after a failure the process may be gone, and the failure is what must be seen
            self.cpu_seconds = cpu_seconds(self.pid) - self._cpu_before
            self._take_sample()

    def _take_sample(self) -> None:
        sample = memory(self.pid)
        largest = max(sample, self.memory, key=lambda each: each.resident)
        # The kernel brings its mark up to date lazily: a sample may be ahead of it.
        peak = max(sample.peak, largest.resident)
        self.memory = Memory(peak, largest.resident, largest.anonymous, largest.shared, largest.mapped_files)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_INTERVAL_S):
            try:
                self._take_sample()
            except (FileNotFoundError, ProcessLookupError):
                return  # the server is gone; who waits for its client will say so

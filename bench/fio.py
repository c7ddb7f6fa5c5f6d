"""One run of fio's NBD engine: the job file written, the JSON read.

fio is the client of every fio row, for every server: one connection a job, requests from one thread.  A run is bounded
by time and by bytes (`bytes_max`), whichever ends first; the second keeps a log-structured server within the space it
was given.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.settings import BenchError
from holdfast.units import MIB

# Beyond its runtime: connecting, and draining up to depth requests, each of which may wait for a flush.
GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """What to run. Sizes in bytes; `runtime_s` 0 means until `region_bytes` (or `bytes_max`) is done."""

    pattern: str  # fio's rw: read, write, randread, randwrite
    block_bytes: int
    depth: int
    region_bytes: int
    runtime_s: float = 0.0
    bytes_max: int = 0
    flush_every: int = 0
    flush_at_end: bool = False
    connections: int = 1  # a URI, jobs that share the region
    visit_once: bool = False  # each block at most once (reads that must stay cold)
    seed: int = 1
    offset_bytes: int = 0  # where the region begins
    distribution: str = ""  # fio's random_distribution; "" is uniform
    skip_bytes: int = 0  # of sequential patterns: so much is left out after each block
    rate_iops: int = 0  # 0: as fast as it goes


@dataclass(frozen=True, slots=True)
class FioResult:
    iops: float
    bytes_per_s: float
    moved_bytes: int
    requests: int
    runtime_s: float
    latency_p50_us: float
    latency_p99_us: float
    flushes: int


def job_text(job: Job, uris: Sequence[str]) -> str:
    """The job file: one section for each URI, reported as one group."""
    lines = [
        "[global]",
        "ioengine=nbd",
        "thread=1",
        "group_reporting=1",
        f"rw={job.pattern}" + (f":{job.skip_bytes}" if job.skip_bytes else ""),
        f"bs={job.block_bytes}",
        f"iodepth={job.depth}",
        f"size={job.region_bytes}",
        f"randseed={job.seed}",
        "random_generator=tausworthe64",  # the default repeats itself above 2^32 blocks
        f"norandommap={0 if job.visit_once else 1}",
        f"numjobs={job.connections}",
    ]
    if job.offset_bytes:
        lines.append(f"offset={job.offset_bytes}")
    if job.distribution:
        lines.append(f"random_distribution={job.distribution}")
    if job.rate_iops:
        lines.append(f"rate_iops={job.rate_iops}")
    if job.runtime_s:
        lines.append(f"runtime={round(job.runtime_s * 1000)}ms")
    if job.runtime_s and not job.bytes_max:
        lines.append("time_based=1")
    if job.bytes_max:
        lines.append(f"io_size={job.bytes_max}")
    if job.flush_every:
        lines.append(f"fsync={job.flush_every}")
    if job.flush_at_end:
        lines.append("end_fsync=1")
    for index, uri in enumerate(uris):
        lines += [f"[job{index}]", f"uri={uri}"]
    return "\n".join(lines) + "\n"


def parse(output: str) -> FioResult:
    """The result of all jobs together. Notes may precede the JSON. Raises BenchError if fio failed or did nothing."""
    start = output.find("{")
    if start < 0:
        raise BenchError(f"fio printed no JSON: {output.strip()[-300:]!r}")
    jobs: list[dict[str, Any]] = json.loads(output[start:])["jobs"]
    for job in jobs:
        if job["error"]:
            raise BenchError(f"fio's job {job['jobname']} ended with errno {job['error']}")
    sides = [job[side] for job in jobs for side in ("read", "write") if job[side]["total_ios"]]
    if not sides:
        raise BenchError("fio finished without a single request")
    requests = sum(side["total_ios"] for side in sides)
    return FioResult(
        iops=sum(side["iops"] for side in sides),
        bytes_per_s=float(sum(side["bw_bytes"] for side in sides)),
        moved_bytes=sum(side["io_bytes"] for side in sides),
        requests=requests,
        runtime_s=max(side["runtime"] for side in sides) / 1000,
        latency_p50_us=_latency_us(sides, "50.000000"),
        latency_p99_us=_latency_us(sides, "99.000000"),
        flushes=sum(job["sync"]["total_ios"] for job in jobs),
    )


def _latency_us(sides: list[dict[str, Any]], percentile: str) -> float:
    """With group_reporting there is one side; of several, the one with most requests stands for all."""
    busiest = max(sides, key=lambda side: int(side["total_ios"]))
    return float(busiest["clat_ns"].get("percentile", {}).get(percentile, 0)) / 1000


def run(job: Job, uris: Sequence[str], directory: Path) -> FioResult:
    """Run `job` against `uris`; the job file stays in `directory` to be looked at."""
    job_file = directory / "job.fio"
    job_file.write_text(job_text(job, uris))
    timeout_s = (job.runtime_s or 600.0) + GRACE_S
    command = ["fio", "--output-format=json", "--eta=never", str(job_file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"fio did not finish within {timeout_s:.0f} s ({job.pattern}, depth {job.depth})") from error
    except FileNotFoundError as error:
        raise BenchError("fio is not installed; install the Debian package fio") from error
    if done.returncode:
        raise BenchError(f"fio failed: {(done.stderr or done.stdout).strip()[-300:]!r}")
    return parse(done.stdout)


def fill(uri: str, region_bytes: int, directory: Path) -> FioResult:
    """Write the whole region once, with data that does not compress, and make it durable."""
    return run(Job("write", MIB, 4, region_bytes, flush_at_end=True), [uri], directory)


def read_through(uri: str, region_bytes: int, directory: Path) -> FioResult:
    """Read the whole region once, so that it is in the page cache if there is room for it."""
    return run(Job("read", MIB, 4, region_bytes), [uri], directory)

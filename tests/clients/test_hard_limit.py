"""Row T6 and promise 8: inside a hard memory limit the server is not killed, whatever clients do, and loses nothing.

The limit is a real control group without swap, in which the kernel does not refuse memory: it kills. Four volumes,
sixteen connections of fio for a minute: fio writes at random and in sequence and verifies what it wrote, another fio
reads, and clients that mean ill flood, do not read their replies, and open 256 connections.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.units import MIB
from tests.clients import hostile
from tests.clients.hostile import Target, at_work
from tests.clients.memory_cgroup import MemoryCgroup, memory_cgroup
from tests.clients.running import RunningServer
from tests.conftest import Tool

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.root]

LIMIT_BYTES = 128 * MIB
SECONDS = 60
HOSTILE_BYTES = 128 * MIB
# The interpreter's own heap grows and shrinks; what a leak would add in a minute of this is many times as much.
DRIFT_BYTES_MAX = 16 * MIB


def drift_bytes(server: RunningServer) -> int:
    """Resident memory beyond what the server accounts for."""
    with server.control() as client:
        memory = client.status().memory
    return memory.resident_bytes - memory.accounted_bytes


def seconds_while(jobs: list[subprocess.Popen[str]]) -> Iterator[int]:
    """About one a second, as long as the first job runs."""
    for second in range(10 * SECONDS):
        yield second
        try:
            jobs[0].wait(1)
        except subprocess.TimeoutExpired:
            continue
        return


@pytest.fixture
def group() -> Iterator[MemoryCgroup]:
    with memory_cgroup(LIMIT_BYTES) as group:
        yield group


def start_fio(tool: Tool, directory: Path, uri: str, connections: int, *options: str) -> subprocess.Popen[str]:
    # A fio whose connection is refused may say so for ever: its output is bounded.
    words = [
        "timeout",
        str(3 * SECONDS),
        tool("fio"),
        "--name=limit",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--numjobs={connections}",
        "--group_reporting=1",
    ]
    return subprocess.Popen(
        [*words, *options], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.timeout(SECONDS + 240)
def test_nobody_is_killed_and_everything_acknowledged_is_there(tool: Tool, tmp_path: Path, group: MemoryCgroup) -> None:
    volumes = [f"{name}=256M" for name in ("random", "sequential", "reads", "hostile")]
    server = RunningServer(tmp_path / "pool", volumes=volumes, memory="64M", capacity="6G", within=group.wrap).start()
    verify = ("--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--verify_backlog=64")
    spread = ("--size=24M", "--offset_increment=30M")
    try:
        target = Target(server.unix_path, "hostile", HOSTILE_BYTES)
        with at_work(
            target,
            hostile.never_reads_simple_replies,
            hostile.never_reads_structured_replies,
            hostile.floods_with_large_writes,
            hostile.opens_256_connections,
        ):
            jobs = [
                start_fio(
                    tool, tmp_path, server.uri("random"), 4, "--rw=randwrite", "--bs=4k", "--norandommap=1",
                    "--iodepth=1", "--rate=2m", f"--io_size={2 * SECONDS}M", *spread, *verify,
                ),
                start_fio(
                    tool, tmp_path, server.uri("sequential"), 4, "--rw=write", "--bs=64k", "--iodepth=8", "--rate=4m",
                    f"--io_size={4 * SECONDS}M", *spread, *verify,
                ),
                start_fio(
                    tool, tmp_path, server.uri("reads"), 8, "--rw=randrw", "--bs=16k", "--iodepth=4", "--rate=2m,500k",
                    "--time_based", f"--runtime={SECONDS}", *spread,
                ),
            ]  # fmt: skip
            drifts = [drift_bytes(server) for _ in seconds_while(jobs)]
            told = [job.communicate()[0] for job in jobs]
        assert [job.returncode for job in jobs] == [0, 0, 0], "\n".join(told)
        assert target.struck >= {hostile.floods_with_large_writes, hostile.opens_256_connections}
        assert group.kills == 0
        assert server.is_running
        assert group.peak_bytes > LIMIT_BYTES // 2, "the group was not even used"
        assert len(drifts) > SECONDS // 4
        print(f"resident beyond what is accounted for: {min(drifts) / MIB:.1f} to {max(drifts) / MIB:.1f} MiB")
        assert min(drifts) > -DRIFT_BYTES_MAX
        assert max(drifts) < DRIFT_BYTES_MAX, "the accounts are to say what is really there"
        server.stop()
    finally:
        server.end()
        shutil.rmtree(server.pool)

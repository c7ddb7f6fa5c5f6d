"""Row T2: a group that is stuck at its limit, or whose client has stopped reading, does not disturb another.

The other group's load is measured alone and beside each disturbance in turn, many short times, so that what else the
machine does falls on both alike; the medians are compared. While they differ by more than they may, more rounds are
taken, up to a limit: a real difference stays.

Two of the disturbers are stuck: they cost the other nothing. What the writer wrote until it was stuck went through the
ring, whose blocks the other would have read from memory; so with these two each measurement begins with a run that is
not counted, and finds the ring as the other alone has left it. The third goes on writing, as fast as its limit of dirty
data lets it; it shares the disk with the other, whose reads wait for its writes now and then. So the other keeps its
throughput, and of its slowest requests it is only held that they stay within a few times of what they were.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from holdfast.control.api import ChangeVolume
from holdfast.control.group_api import CreateGroup
from holdfast.units import KIB, MIB
from tests.clients import hostile
from tests.clients.hostile import Target, at_work
from tests.clients.raw_client import RawClient
from tests.clients.running import RunningServer
from tests.conftest import Tool
from tests.nbd.wire import write

pytestmark = [pytest.mark.clients, pytest.mark.slow]

CHANGE_MAX = 0.20
SHARED_DISK_CHANGE_MAX = 4.0  # of the slowest requests, beside one that keeps the disk busy; measured: 0.9 to 1.8
ROUNDS_MIN = 5
ROUNDS_MAX = 25
ROUND_S = 1.0
VOLUME_BYTES = 256 * MIB
SPACE_BYTES = 16 * MIB
DIRTY_BYTES = 2 * MIB


@dataclass(slots=True)
class Figures:
    iops: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Stage:
    """A served pool with a quiet tenant, whose load is measured, and a loud one."""

    server: RunningServer
    fio: str
    directory: Path

    def measure(self, into: Figures, *, stuck: bool) -> None:
        if stuck:
            self._run()
        job = self._run()
        into.iops.append(job["read"]["iops"] + job["write"]["iops"])
        into.p99_us.append(max(job[way]["clat_ns"]["percentile"]["99.000000"] for way in ("read", "write")) / 1000)

    def _run(self) -> Any:
        """The same requests each time: the seeds of fio are fixed."""
        command = [
            self.fio, "--name=quiet", "--ioengine=nbd", f"--uri={self.server.uri('quiet')}", "--rw=randrw", "--bs=4k",
            "--iodepth=4", "--rate_iops=1500,1500", "--size=128M", "--time_based", f"--runtime={ROUND_S}",
            "--output-format=json",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=self.directory, check=True, capture_output=True, text=True)
        return json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]


def change(before: list[float], beside: list[float]) -> float:
    return statistics.median(beside) / statistics.median(before) - 1


@pytest.fixture(scope="module")
def stage(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("isolation")
    server = RunningServer(
        directory / "pool", volumes=[f"{name}={VOLUME_BYTES >> 20}M" for name in ("quiet", "loud")], memory="64M"
    ).start()
    with server.control() as client:
        client.create_group(CreateGroup(name="quiet"))
        client.create_group(CreateGroup(name="loud", space_bytes=SPACE_BYTES, dirty_bytes=DIRTY_BYTES))
        client.change_volume("quiet", ChangeVolume(group="quiet"))
        client.change_volume("loud", ChangeVolume(group="loud", on_full_wait_s=3600))
    try:
        yield Stage(server, tool("fio"), directory)
    finally:
        server.end()
        shutil.rmtree(server.pool)


@contextmanager
def client_that_has_stopped_reading(server: RunningServer) -> Iterator[None]:
    """It has asked for gigabytes, and takes none of the answers."""
    target = Target(server.unix_path, "loud", VOLUME_BYTES)
    with at_work(target, hostile.never_reads_structured_replies):
        while not target.struck:
            target.pause()
        yield


@contextmanager
def writer_at_the_limit_of_space(server: RunningServer) -> Iterator[None]:
    """Its volume wants to wait for space, and there is none in its group: its writes stand still."""
    client = RawClient(server.unix_path)
    client.choose("loud")
    client.socket.settimeout(0.2)
    try:
        for number in range(2 * SPACE_BYTES // MIB):
            client.send(write(number * MIB, b"\x5a" * MIB))
    except TimeoutError:
        pass  # it stands still, as it should
    else:
        raise AssertionError("all of it was written")
    yield
    client.close()


@contextmanager
def writer_at_the_limit_of_dirty_data(server: RunningServer) -> Iterator[None]:
    """It writes the same few blocks again and again, as fast as it is let."""
    end = threading.Event()

    def go_on() -> None:
        client = RawClient(server.unix_path)
        client.choose("loud")
        batch = b"".join(write(number * 64 * KIB, b"\xa5" * (64 * KIB)) for number in range(64))
        while not end.is_set():
            client.send(batch)
            client.receive(64 * 16)
        client.close()

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        yield
    finally:
        end.set()
        writer.join()


Disturbance = Callable[[RunningServer], AbstractContextManager[None]]
DISTURBANCES = [
    (client_that_has_stopped_reading, True),
    (writer_at_the_limit_of_space, True),
    (writer_at_the_limit_of_dirty_data, False),
]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("disturbance", "stuck"), DISTURBANCES, ids=lambda value: getattr(value, "__name__", ""))
def test_another_group_hardly_notices(stage: Stage, disturbance: Disturbance, stuck: bool) -> None:
    latency_max = CHANGE_MAX if stuck else SHARED_DISK_CHANGE_MAX
    alone, beside = Figures(), Figures()
    for number in range(ROUNDS_MAX):
        stage.measure(alone, stuck=stuck)
        with disturbance(stage.server):
            stage.measure(beside, stuck=stuck)
        throughput, latency = change(alone.iops, beside.iops), change(alone.p99_us, beside.p99_us)
        if number + 1 >= ROUNDS_MIN and throughput > -CHANGE_MAX and latency < latency_max:
            break
    print(
        f"{disturbance.__name__}: {len(alone.iops)} rounds; throughput {throughput:+.0%}, "
        f"p99 {statistics.median(alone.p99_us):.0f} -> {statistics.median(beside.p99_us):.0f} us ({latency:+.0%})"
    )
    assert throughput > -CHANGE_MAX
    assert latency < latency_max

"""What ill-behaved clients do to the others: nothing that these would notice.

Beside each kind of them a well-behaved client (libnbd, in a process of its own) writes and reads back its own data and
takes the time.  Then all are gone, and the server must be as before: nobody connected, memory within its bound.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.units import MIB
from tests.clients import hostile
from tests.clients.hostile import Hostility, Target, at_work
from tests.clients.running import RunningServer, run
from tests.conftest import Tool

pytestmark = [pytest.mark.clients, pytest.mark.slow]

SIZE_BYTES = 256 * MIB
# What the interpreter, numpy and the stacks take besides --memory.
BASE_BYTES_MAX = 90 * MIB
MEDIAN_S_MAX = 0.05

# Two seconds of requests to its own 8 MiB: each write is read back later, whatever others do.  Times in seconds.
WELL_BEHAVED = """
import json, random, time
rng = random.Random(9)
model, times = {}, []
def timed(call, *arguments):
    began = time.monotonic()
    result = call(*arguments)
    times.append(time.monotonic() - began)
    return result
number, end = 0, time.monotonic() + 2
while time.monotonic() < end:
    number += 1
    block = rng.randrange(2048)
    model[block] = rng.randbytes(4096)
    timed(h.pwrite, model[block], block * 4096)
    if number % 50 == 0:
        h.flush()
    block = rng.choice(list(model))
    assert timed(h.pread, 4096, block * 4096) == model[block], block
for block, data in model.items():
    assert h.pread(4096, block * 4096) == data, block
times.sort()
print(json.dumps({"median": times[len(times) // 2], "p99": times[len(times) * 99 // 100], "longest": times[-1],
    "requests": len(times)}))
"""


@pytest.fixture
def server(tmp_path: Path, tool: Tool) -> Iterator[RunningServer]:
    """With a disk whose upper half holds data, so that those who read there get more than holes."""
    tool("nbdsh")
    running = RunningServer(
        tmp_path / "pool", volumes=[f"disk0={SIZE_BYTES}"], memory="64M", capacity="24G", segment_size="16M"
    ).start()
    script = f"[h.pwrite(b'data' * (1 << 20), {SIZE_BYTES // 2} + (n << 22)) for n in range(16)]; h.flush()"
    run("nbdsh", "-u", running.uri("disk0"), "-c", script)
    yield running
    running.stop(expected="disconnected: ")
    shutil.rmtree(running.pool)  # gigabytes


def check_others_are_served(server: RunningServer, *hostilities: Hostility) -> None:
    target = Target(server.unix_path, "disk0", SIZE_BYTES)
    with at_work(target, *hostilities):
        told = json.loads(run("nbdsh", "-u", server.uri("disk0"), "-c", WELL_BEHAVED))
    assert target.struck == set(hostilities)
    server.wait_until_drained("disk0")
    peak_bytes = server.memory_peak_bytes()
    requests = told.pop("requests")
    times = ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in told.items())
    print(f"{requests} requests: {times}")
    print(f"resident at most {peak_bytes / MIB:.0f} MiB with {server.memory_bytes // MIB} MiB of --memory")
    assert told["median"] < MEDIAN_S_MAX
    assert peak_bytes <= server.memory_bytes + BASE_BYTES_MAX
    with server.control() as control:
        assert control.status().connections == 0
        assert control.statistics()["tasks"] == 0


ALL: list[list[Hostility]] = [
    [hostile.never_reads_simple_replies] * 24,
    [hostile.never_reads_structured_replies] * 24,
    [hostile.sends_a_byte_at_a_time] * 4,
    [hostile.vanishes_in_the_middle_of_a_payload] * 2,
    [hostile.floods_options] * 2,
    [hostile.lies_about_lengths] * 2,
    [hostile.writes_slowly] * 8,
    [hostile.writes_as_fast_as_it_can] * 2,
    [hostile.opens_256_connections],
]


@pytest.mark.parametrize("hostilities", ALL, ids=lambda kind: kind[0].__name__)
def test_others_are_served_beside_one_that(server: RunningServer, hostilities: list[Hostility]) -> None:
    check_others_are_served(server, *hostilities)


def test_others_are_served_beside_all_of_them_at_once(server: RunningServer) -> None:
    check_others_are_served(server, *(kind[0] for kind in ALL))

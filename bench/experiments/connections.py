"""Many connections to one volume: what they cost in speed and memory, for holdfast and for its peers.

Random 4 KiB reads and writes, a few requests in flight on each connection.  fio runs a thread for each, so at 256 its
own share of the machine is large; the peers have the same fio.
"""

from __future__ import annotations

from bench import fio
from bench.experiments import Context, Experiment, Value
from bench.measure import Meter, cpu_seconds_per_gib
from bench.servers import Disk, Server, new_disk, serving
from bench.settings import BenchError, Settings, remove_disk
from holdfast.units import GIB, KIB, MIB

NAME = "connections"
TITLE = "1 to 256 connections to one volume"

DISK_BYTES = 1 * GIB
DEPTH_EACH = 4


def counts(settings: Settings) -> list[int]:
    return [1, 16, 64] if settings.quick else [1, 4, 16, 64, 256]


def runtime_s(settings: Settings) -> float:
    return min(settings.runtime_s, 3.0)


def write_bytes_max(settings: Settings) -> int:
    return int(runtime_s(settings) * GIB)


def scratch_bytes(settings: Settings) -> int:
    return (DISK_BYTES + write_bytes_max(settings)) * 5 // 4 + GIB


def run(context: Context) -> Experiment:
    rows: list[list[Value]] = []
    for count in counts(context.settings):
        for server in context.servers:
            rows += [_one(context, server, count, pattern) for pattern in ("randwrite", "randread")]
    return Experiment(
        NAME,
        TITLE,
        ["connections", "server", "pattern", "IOPS", "p99 us", "CPU s/GiB", "peak MiB"],
        rows,
        notes=[
            f"4 KiB, depth {DEPTH_EACH} on each connection, the disk of {DISK_BYTES // GIB} GiB written in full before."
        ],
    )


def _one(context: Context, server: Server, count: int, pattern: str) -> list[Value]:
    settings = context.settings
    writes = pattern == "randwrite"
    disk = new_disk(server, context.directory, DISK_BYTES, DISK_BYTES + (write_bytes_max(settings) if writes else 0))
    job = fio.Job(
        *(pattern, 4 * KIB, DEPTH_EACH, DISK_BYTES),
        runtime_s=runtime_s(settings),
        bytes_max=write_bytes_max(settings) // count if writes else 0,
        connections=count,
    )
    try:
        return [count, server.name, pattern, *_measure(context, server, disk, job)]
    except BenchError as error:
        context.say(f"connections: {server.name}, {count}, {pattern}: {error}")
        return [count, server.name, pattern, str(error), None, None, None]
    finally:
        remove_disk(context.directory)


def _measure(context: Context, server: Server, disk: Disk, job: fio.Job) -> list[Value]:
    with serving(server, disk, context.socket_path) as running:
        fio.fill(running.uri(), disk.size_bytes, disk.directory)
        with Meter(running.pid) as meter:
            result = fio.run(job, [running.uri()], disk.directory)
    context.say(f"connections: {server.name}, {job.connections}, {job.pattern}: {result.iops:,.0f} IOPS")
    cost = cpu_seconds_per_gib(meter.cpu_seconds, result.moved_bytes)
    return [
        *(round(result.iops), round(result.latency_p99_us)),
        None if cost is None else round(cost, 2),
        meter.memory.peak // MIB,
    ]

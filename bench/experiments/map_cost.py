"""What the size of a volume costs: random 4 KiB writes over all of it, from 1 GiB to 64 TiB.

On a small volume the map stays in memory.  On the largest nearly every write lands in a map page of its own, which
must be brought in, changed, and written out again: the worst that a client can do to the map.  Memory must stay where
it was.
"""

from __future__ import annotations

from bench import fio
from bench.experiments import Context, Experiment, Value
from bench.measure import Meter
from bench.servers import new_disk, serving
from bench.settings import BenchError, Settings, remove_disk
from holdfast.units import GIB, KIB, MIB, TIB, format_size

NAME = "map"
TITLE = "Random writes over volumes of 1 GiB to 64 TiB"

DEPTH = 16
# On a huge volume a write of one block makes several: itself, its map page at the next checkpoint, that page's parents,
# and the commit headers of all of them.
LOG_BLOCKS_PER_WRITE = 5


def sizes(settings: Settings) -> list[int]:
    return [GIB, 64 * TIB] if settings.quick else [GIB, 16 * GIB, 256 * GIB, 4 * TIB, 64 * TIB]


def write_bytes_max(settings: Settings) -> int:
    return int(settings.runtime_s * GIB // 2)


def scratch_bytes(settings: Settings) -> int:
    return write_bytes_max(settings) * LOG_BLOCKS_PER_WRITE * 5 // 4 + GIB


def run(context: Context) -> Experiment:
    rows: list[list[Value]] = [_one(context, size_bytes) for size_bytes in sizes(context.settings)]
    return Experiment(
        NAME,
        TITLE,
        ["volume", "volume GiB", "IOPS", "p99 us", "CPU s/GiB", "peak MiB", "over --memory MiB", "restart s"],
        rows,
        notes=[
            f"Depth {DEPTH}, onto an empty volume, so that the map grows as it is written.",
            f"--memory {context.settings.memory_bytes // MIB}M.",
        ],
        plot=["volume GiB", "IOPS", ""],
    )


def _one(context: Context, size_bytes: int) -> list[Value]:
    settings = context.settings
    server = context.holdfast()
    disk = new_disk(server, context.directory, size_bytes, write_bytes_max(settings) * LOG_BLOCKS_PER_WRITE)
    job = fio.Job(
        *("randwrite", 4 * KIB, DEPTH, size_bytes),
        runtime_s=settings.runtime_s,
        bytes_max=write_bytes_max(settings),
    )
    try:
        with serving(server, disk, context.socket_path) as running, Meter(running.pid) as meter:
            result = fio.run(job, [running.uri()], disk.directory)
        with serving(server, disk, context.socket_path) as running:
            restart_s = running.ready_s
    except BenchError as error:
        context.say(f"map: {format_size(size_bytes)}: {error}")
        return [format_size(size_bytes), size_bytes // GIB, str(error), None, None, None, None, None]
    finally:
        remove_disk(context.directory)
    context.say(f"map: {format_size(size_bytes)}: {result.iops:,.0f} IOPS, peak {meter.memory.peak // MIB} MiB")
    return [
        *(format_size(size_bytes), size_bytes // GIB, round(result.iops), round(result.latency_p99_us)),
        round(meter.cpu_seconds * GIB / result.moved_bytes, 2),
        meter.memory.peak // MIB,
        (meter.memory.peak - settings.memory_bytes) // MIB,
        round(restart_s, 3),
    ]

"""What many volumes cost: time to readiness, resident memory, and the speed of writing to eight of them at once."""

from __future__ import annotations

from bench import fio
from bench.experiments import Context, Experiment, Value
from bench.measure import Meter, memory
from bench.servers import new_disk, serving
from bench.settings import Settings, remove_disk
from holdfast.units import GIB, KIB, MIB

NAME = "volumes"
TITLE = "1 to 1000 volumes in a pool"

VOLUME_BYTES = 1 * GIB
BUSY_VOLUMES_MAX = 8
DEPTH_EACH = 8


def counts(settings: Settings) -> list[int]:
    return [1, 10, 100] if settings.quick else [1, 10, 100, 1000]


def log_bytes(settings: Settings) -> int:
    return int(settings.runtime_s * GIB)


def scratch_bytes(settings: Settings) -> int:
    return log_bytes(settings) * 5 // 4 + GIB


def run(context: Context) -> Experiment:
    rows: list[list[Value]] = [_one(context, count) for count in counts(context.settings)]
    return Experiment(
        NAME,
        TITLE,
        ["volumes", "first start s", "start s", "idle MiB", "written to", "IOPS", "CPU s/GiB", "peak MiB"],
        rows,
        notes=[
            f"Volumes of {VOLUME_BYTES // GIB} GiB, made by the first start.",
            f"--memory {context.settings.memory_bytes // MIB}M.",
            f"Random 4 KiB writes, one connection to each of the volumes written to, depth {DEPTH_EACH} on each.",
        ],
    )


def _one(context: Context, count: int) -> list[Value]:
    settings = context.settings
    names = [f"volume{index}" for index in range(count)]
    server = context.holdfast(volumes=dict.fromkeys(names, VOLUME_BYTES))
    disk = new_disk(server, context.directory, VOLUME_BYTES, log_bytes(settings))
    try:
        with serving(server, disk, context.socket_path) as running:
            first_start_s = running.ready_s
        with serving(server, disk, context.socket_path) as running:
            start_s = running.ready_s
            idle_bytes = memory(running.pid).resident
            busy = names[:: max(1, count // BUSY_VOLUMES_MAX)][:BUSY_VOLUMES_MAX]
            job = fio.Job(
                *("randwrite", 4 * KIB, DEPTH_EACH, VOLUME_BYTES),
                runtime_s=settings.runtime_s,
                bytes_max=log_bytes(settings) // len(busy),
            )
            with Meter(running.pid) as meter:
                result = fio.run(job, [running.uri(name) for name in busy], disk.directory)
    finally:
        remove_disk(context.directory)
    context.say(f"volumes: {count}: ready after {start_s:.2f} s, {result.iops:,.0f} IOPS")
    return [
        *(count, round(first_start_s, 3), round(start_s, 3), idle_bytes // MIB, len(busy), round(result.iops)),
        round(meter.cpu_seconds * GIB / result.moved_bytes, 2),
        meter.memory.peak // MIB,
    ]

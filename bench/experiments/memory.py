"""Resident memory against `--memory`: the base is what remains, and it must not depend on the budget.

Each budget serves the same hard hour in small: a full fill, random writes at depth 64, large writes, reads of
everything, and reads from 64 connections.  The peak is the kernel's high-water mark over all of it.
"""

from __future__ import annotations

from bench import fio
from bench.experiments import Context, Experiment, Value
from bench.measure import Meter
from bench.servers import new_disk, serving
from bench.settings import BenchError, Settings, remove_disk
from holdfast.units import GIB, KIB, MIB, format_size

NAME = "memory"
TITLE = "Resident memory against --memory"

DISK_BYTES = 1 * GIB
BASE_AIM_BYTES = 70 * MIB


def budgets(settings: Settings) -> list[int]:
    return [64 * MIB, 256 * MIB] if settings.quick else [64 * MIB, 128 * MIB, 256 * MIB, 512 * MIB]


def write_bytes_max(settings: Settings) -> int:
    return int(settings.runtime_s / 2 * GIB)


def scratch_bytes(settings: Settings) -> int:
    return (DISK_BYTES + 2 * write_bytes_max(settings)) * 5 // 4 + GIB


def run(context: Context) -> Experiment:
    rows: list[list[Value]] = [_one(context, budget_bytes) for budget_bytes in budgets(context.settings)]
    return Experiment(
        NAME,
        TITLE,
        ["--memory", "peak MiB", "base MiB", "anonymous MiB", "shared MiB", "mapped files MiB", "base under the aim"],
        rows,
        notes=[
            f"base = peak - --memory; aim: {BASE_AIM_BYTES // MIB} MiB. The parts are those of the largest sample.",
            "Load: fill, randwrite depth 64, write 1M depth 16, read all, randread over 64 connections.",
        ],
    )


def _one(context: Context, budget_bytes: int) -> list[Value]:
    settings = context.settings
    server = context.holdfast(memory_bytes=budget_bytes)
    limit_bytes = write_bytes_max(settings)
    disk = new_disk(server, context.directory, DISK_BYTES, DISK_BYTES + 2 * limit_bytes)
    half_s = settings.runtime_s / 2
    jobs = [
        fio.Job("randwrite", 4 * KIB, 64, DISK_BYTES, runtime_s=half_s, bytes_max=limit_bytes),
        fio.Job("write", MIB, 16, DISK_BYTES, runtime_s=half_s, bytes_max=limit_bytes),
        fio.Job("read", MIB, 16, DISK_BYTES),
        fio.Job("randread", 4 * KIB, 4, DISK_BYTES, runtime_s=half_s, connections=64),
    ]
    try:
        with serving(server, disk, context.socket_path) as running, Meter(running.pid) as meter:
            fio.fill(running.uri(), DISK_BYTES, disk.directory)
            for job in jobs:
                fio.run(job, [running.uri()], disk.directory)
    except BenchError as error:
        context.say(f"memory: {format_size(budget_bytes)}: {error}")
        return [format_size(budget_bytes), str(error), None, None, None, None, None]
    finally:
        remove_disk(context.directory)
    used = meter.memory
    base_bytes = used.peak - budget_bytes
    context.say(f"memory: {format_size(budget_bytes)}: peak {used.peak // MIB} MiB, base {base_bytes // MIB} MiB")
    return [
        *(format_size(budget_bytes), used.peak // MIB, base_bytes // MIB),
        *(used.anonymous // MIB, used.shared // MIB, used.mapped_files // MIB),
        "yes" if base_bytes <= BASE_AIM_BYTES else "no",
    ]

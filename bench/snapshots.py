"""What snapshots cost: taking one, the first write after it, and reading and writing with many of them.

    python -m bench.snapshots [--quick] [--sizes 1G,10G] [--snapshots 1000] [--out bench/results]

 1. *Instant*: a snapshot and a clone of a volume of 1 TiB in which so much was written (`--sizes`), and of one whose
    map is as large as if 100 GiB were: a block in each 2 MiB. Asked for over the control socket (wall time: with the
    checkpoint that makes it durable), and in this process, where the CPU time of the engine's thread is measured.
 2. *The first write after it*: pages of maps that the next checkpoint writes, against those without a snapshot.
 3. *Many*: random reads and writes of a volume with `--snapshots` of them, taken while a client wrote, beside one of
    the same history without.
 4. qcow2 with 10 internal snapshots, and holdfast with 10, each beside itself without, after the same random writes.

Writes `snapshots.json` and `snapshots.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench import fio
from bench.machine import describe
from bench.servers import EXPORT, Disk, Holdfast, QemuQcow2, Running, Server, serving
from bench.settings import (
    REPOSITORY,
    SOCKET_PATH_BYTES_MAX,
    BenchError,
    check_space,
    find_holdfast,
    hold_scratch,
    remove_disk,
)
from holdfast.control.api import CloneVolume, TakeSnapshots
from holdfast.control.client import ControlClient
from holdfast.serving.offline import offline
from holdfast.units import GIB, KIB, MIB, TIB, format_size, parse_size

LEAF_BYTES = 2 * MIB
MAP_OF_BYTES = 100 * GIB
TAKEN = 20  # snapshots and clones of each size; the median counts
FEW = 10
Results = dict[str, Any]


class Scratch:
    """Where disks and sockets are."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.path: Path = options.scratch

    def disk(self, name: str, size_bytes: int) -> Disk:
        directory = self.path / name
        directory.mkdir()
        return Disk(directory, size_bytes)

    def socket(self, name: str) -> Path:
        return self.path / f"{name}.s"

    def holdfast(self, size_bytes: int, capacity_bytes: int) -> Holdfast:
        return Holdfast(
            executable=find_holdfast(),
            memory_bytes=self.options.memory,
            volumes={EXPORT: size_bytes},
            capacity_bytes=capacity_bytes,
            preallocate=False,
        )


def control_of(disk: Disk) -> ControlClient:
    return ControlClient(disk.directory / "pool" / "control.sock", timeout_s=120)


def times_ms(what: Callable[[int], object], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    return [timed_ms(partial(what, number), clock) for number in range(TAKEN)]


def timed_ms(what: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    what()
    return (clock() - began) * 1000


# ---- 1 and 2


def instant(scratch: Scratch, name: str, job: fio.Job, capacity_bytes: int) -> Results:
    """Snapshots and clones of a volume of 1 TiB after `job`."""
    disk = scratch.disk(name, TIB)
    server = scratch.holdfast(TIB, capacity_bytes)
    try:
        with serving(server, disk, scratch.socket("i")) as running:
            fio.run(job, [running.uri()], disk.directory)
            with control_of(disk) as control:
                dirty = first_snapshot_ms(control)
                snapshots = times_ms(lambda number: control.take_snapshots(_snapshot(f"s{number}")))
                clones = times_ms(lambda number: control.clone_volume(f"{EXPORT}@s0", CloneVolume(name=f"c{number}")))
                mapped = control.volume(EXPORT).mapped_bytes
                pages = first_write(running, control, disk)
        engine, clone_engine = engine_ms(disk)
    finally:
        remove_disk(disk.directory)
    found = {
        "written": name,
        "mapped_bytes": mapped,
        "first_ms": dirty,
        "snapshot_ms": statistics.median(snapshots),
        "snapshot_max_ms": max(snapshots),
        "clone_ms": statistics.median(clones),
        "snapshot_engine_ms": engine,
        "clone_engine_ms": clone_engine,
        **pages,
    }
    print(found, flush=True)
    return found


def _snapshot(name: str) -> TakeSnapshots:
    return TakeSnapshots(names=[f"{EXPORT}@{name}"])


def first_snapshot_ms(control: ControlClient) -> float:
    """The first waits for a checkpoint of all that the client has just written."""
    return timed_ms(lambda: control.take_snapshots(_snapshot("first")))


def engine_ms(disk: Disk) -> tuple[float, float]:
    """CPU time of the engine's thread for a snapshot, and for a clone, from the call to its being durable."""
    with offline(str(disk.directory / "pool")) as pool:
        thread = time.thread_time
        snapshots = times_ms(lambda number: pool.take_snapshots(_snapshot(f"e{number}")), thread)
        clones = times_ms(lambda number: pool.clone_volume(f"{EXPORT}@e0", CloneVolume(name=f"d{number}")), thread)
    return statistics.median(snapshots), statistics.median(clones)


def first_write(running: Running, control: ControlClient, disk: Disk) -> Results:
    """Pages that a checkpoint writes for one block that is overwritten: first after a snapshot, and once more.

    Checkpoints are asked for by taking a snapshot of another volume."""
    from holdfast.control.api import CreateVolume

    control.create_volume(CreateVolume(name="other", size_bytes=MIB))
    marks = iter(range(1000))

    def pages(overwrite: bool) -> int:
        if overwrite:
            job = fio.Job("write", 4 * KIB, 1, 4 * KIB, bytes_max=4 * KIB, flush_at_end=True)
            fio.run(job, [running.uri()], disk.directory)
        before = int(control.statistics()["map_pages_written"])
        control.take_snapshots(TakeSnapshots(names=[f"other@m{next(marks)}"]))
        return int(control.statistics()["map_pages_written"]) - before

    pages(overwrite=False)
    first = pages(overwrite=True)
    again = pages(overwrite=True)
    control.take_snapshots(_snapshot("empty"))
    pages(overwrite=False)
    later = pages(overwrite=True)
    return {"pages_first_write": later, "pages_second_write": again, "pages_first_write_before": first}


# ---- 3 and 4


def speeds(uri: str, disk: Disk, region_bytes: int, seconds: float, seed: int) -> dict[str, float]:
    """IOPS of 4 KiB at random, once all of it is in the page cache."""
    fio.read_through(uri, region_bytes, disk.directory)
    found = {}
    for pattern in ("randread", "randwrite"):
        job = fio.Job(pattern, 4 * KIB, 16, region_bytes, runtime_s=seconds, seed=seed)
        found[pattern] = fio.run(job, [uri], disk.directory).iops
    return found


def many(scratch: Scratch, count: int) -> Results:
    """Holdfast with `count` snapshots beside itself with none."""
    options = scratch.options
    size = options.region
    server = scratch.holdfast(size, size * 8)
    disks = {name: scratch.disk(name, size) for name in ("with", "none")}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in disks}
    try:
        with (
            serving(server, disks["with"], scratch.socket("with")) as one,
            serving(server, disks["none"], scratch.socket("none")) as two,
        ):
            running = {"with": one, "none": two}
            for name, disk in disks.items():
                fio.fill(running[name].uri(), size, disk.directory)
                with control_of(disk) as control, ThreadPoolExecutor(1) as executor:
                    job = fio.Job("randwrite", 4 * KIB, 4, size, bytes_max=size // 2, rate_iops=options.history_rate)
                    history = executor.submit(fio.run, job, [running[name].uri()], disk.directory)
                    if name == "with":
                        for number in range(count):
                            control.take_snapshots(_snapshot(f"s{number}"))
                    history.result()
            for number in range(options.rounds):
                for name, disk in disks.items():
                    rounds[name].append(speeds(running[name].uri(), disk, size, options.seconds, number + 1))
                    print(f"{count} snapshots, {name}: {rounds[name][-1]}", flush=True)
    finally:
        for disk in disks.values():
            remove_disk(disk.directory)
    return {"snapshots": count, **relative(rounds["with"], rounds["none"])}


def relative(there: list[dict[str, float]], none: list[dict[str, float]]) -> Results:
    """Medians with and without, and what the first are of the second; in the first round alone as well, in which what
    the snapshots keep is overwritten for the first time."""
    found: Results = {}
    for pattern in there[0]:
        with_, without = (statistics.median(each[pattern] for each in rounds) for rounds in (there, none))
        first = there[0][pattern] / none[0][pattern]
        found[pattern] = {"with": with_, "none": without, "ratio": with_ / without, "first_ratio": first}
    return found


def few(scratch: Scratch, server: Server, name: str) -> Results:
    """A server with 10 snapshots beside itself without, after the same random writes between them."""
    options = scratch.options
    size = options.region
    disks = {kind: scratch.disk(kind, size) for kind in ("with", "none")}
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in disks}
    try:
        for kind, disk in disks.items():
            server.make(disk)
            with serving(server, disk, scratch.socket("f")) as running:
                fio.fill(running.uri(), size, disk.directory)
            for number in range(FEW):
                if kind == "with":
                    _take_idle(server, disk, f"s{number}")
                with serving(server, disk, scratch.socket("f")) as running:
                    job = fio.Job("randwrite", 4 * KIB, 16, size, bytes_max=size // 16, flush_at_end=True, seed=number)
                    fio.run(job, [running.uri()], disk.directory)
        with (
            serving(server, disks["with"], scratch.socket("with")) as one,
            serving(server, disks["none"], scratch.socket("none")) as two,
        ):
            for number in range(options.rounds):
                for kind, running in (("with", one), ("none", two)):
                    disk = disks[kind]
                    rounds[kind].append(speeds(running.uri(), disk, size, options.seconds, number + 50))
                    print(f"{name}, {FEW} snapshots, {kind}: {rounds[kind][-1]}", flush=True)
    finally:
        for disk in disks.values():
            remove_disk(disk.directory)
    return {"server": name, "snapshots": FEW, **relative(rounds["with"], rounds["none"])}


def _take_idle(server: Server, disk: Disk, name: str) -> None:
    """Internal snapshots of qcow2 are taken of an image that nobody serves; so are all here."""
    if isinstance(server, Holdfast):
        with offline(str(disk.directory / "pool")) as pool:
            pool.take_snapshots(_snapshot(name))
        return
    command = ["qemu-img", "snapshot", "-c", name, str(disk.directory / "disk.qcow2")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"qemu-img failed: {done.stderr.strip()}")


# ---- the report


def report(results: Results) -> str:
    machine = results["machine"]
    lines = [
        "# What snapshots cost",
        "",
        "Made by `python -m bench.snapshots`; do not edit. What is what: its docstring.",
        "",
        (
            f"{machine['cpu']}, {machine['cpu_count']} CPUs, Linux {machine['kernel']}, {machine['filesystem']}; "
            f"commit {machine['commit']}."
        ),
        "",
        (
            f"A volume of 1 TiB; medians of {TAKEN}. Engine: CPU time of its thread. The first also writes what the "
            "client had left dirty."
        ),
        "",
        (
            "| written | engine, snapshot ms | engine, clone ms | socket, snapshot ms (most) | clone ms | the first ms "
            "| map pages: first write after a snapshot | later ones |"
        ),
        "|---|" + "---:|" * 7,
    ]
    lines += [
        f"| {row['written']} | {row['snapshot_engine_ms']:.1f} | {row['clone_engine_ms']:.1f} | "
        f"{row['snapshot_ms']:.1f} ({row['snapshot_max_ms']:.1f}) | {row['clone_ms']:.1f} | {row['first_ms']:.1f} | "
        f"{row['pages_first_write']} | {row['pages_second_write']} |"
        for row in results.get("instant", [])
    ]
    lines += [
        "",
        (
            "Random 4 KiB at depth 16, IOPS, medians of rounds that alternate with those of the same server without "
            "snapshots. In the first round most writes are the first ones after a snapshot:"
        ),
        "",
        (
            "| server | snapshots | reads | without | ratio | writes | without | ratio "
            "| writes, first round alone, ratio |"
        ),
        "|---|" + "---:|" * 8,
    ]
    for row in results.get("beside", []):
        cells = []
        for pattern in ("randread", "randwrite"):
            one = row[pattern]
            cells.append(f"{one['with']:,.0f} | {one['none']:,.0f} | {one['ratio']:.2f}")
        cells.append(f"{row['randwrite']['first_ratio']:.2f}")
        lines.append(f"| {row.get('server', 'holdfast')} | {row['snapshots']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sizes(text: str) -> list[int]:
    return [parse_size(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.snapshots", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small: to see that it works, not to quote")
    parser.add_argument("--sizes", type=sizes)
    parser.add_argument("--snapshots", type=int)
    parser.add_argument("--region", type=parse_size, help="what is read and written at random")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--history-rate", type=int, default=4000, help="IOPS of the client while snapshots are taken")
    parser.add_argument("--memory", type=parse_size, default=256 * MIB)
    parser.add_argument("--only", choices=["instant", "many", "few"])
    parser.add_argument("--scratch", type=Path, default=REPOSITORY / "bench" / ".scratch")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench" / "results")
    options = parser.parse_args()
    quick = options.quick
    options.sizes = options.sizes or ([256 * MIB] if quick else [GIB, 10 * GIB])
    options.snapshots = options.snapshots or (50 if quick else 1000)
    options.region = options.region or (128 * MIB if quick else 512 * MIB)
    options.rounds = options.rounds or (1 if quick else 5)
    options.seconds = options.seconds or (1 if quick else 4)
    options.scratch = options.scratch.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if len(str(options.scratch / "with.s")) > SOCKET_PATH_BYTES_MAX:
        raise BenchError(f"{options.scratch} is too long a path for a socket; choose a shorter --scratch")
    check_space(options.scratch, max(*options.sizes, 2 * GIB, 16 * options.region) * 3 // 2)
    kept = options.out / "snapshots.json"
    results: Results = json.loads(kept.read_text()) if kept.exists() else {}
    held = hold_scratch(options.scratch)
    try:
        scratch = Scratch(options)
        if options.only in (None, "instant"):
            results["instant"] = measure_instant(scratch, options)
        beside = {(row.get("server"), row["snapshots"]): row for row in results.get("beside", [])}
        if options.only in (None, "many"):
            row = many(scratch, options.snapshots)
            beside[None, options.snapshots] = row
        if options.only in (None, "few"):
            for name, server in (
                ("holdfast", scratch.holdfast(options.region, options.region * 8)),
                ("qemu-nbd qcow2", QemuQcow2()),
            ):
                beside[name, FEW] = few(scratch, server, name)
        results["beside"] = list(beside.values())
        results["machine"] = asdict(describe(options.scratch, REPOSITORY))
    finally:
        remove_disk(options.scratch)
        os.close(held)
    kept.write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "snapshots.md").write_text(report(results))
    print(report(results))


def measure_instant(scratch: Scratch, options: argparse.Namespace) -> list[Results]:
    found = []
    for size_bytes in options.sizes:
        job = fio.Job("write", MIB, 4, size_bytes, flush_at_end=True)
        found.append(instant(scratch, format_size(size_bytes), job, size_bytes * 5 // 4 + 2 * GIB))
    map_of = GIB if options.quick else MAP_OF_BYTES
    job = fio.Job("write", 4 * KIB, 16, map_of, skip_bytes=LEAF_BYTES - 4 * KIB, flush_at_end=True)
    found.append(instant(scratch, f"a block in each 2M of {format_size(map_of)}", job, 4 * GIB))
    return found


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")

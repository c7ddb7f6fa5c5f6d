"""What cleaning costs: write amplification and throughput against utilisation.

    python -m bench.cleaning [--quick] [--capacity 1G] [--segment 4M] [--memory 16M] [--out bench/results]

A pool is filled to one share after another of what it can hold. At each, fio overwrites 4 KiB blocks at random until
`WARM` times the live data was written, and then what the next `MEASURED` times cost is counted: uniform, and skewed
(80 % of the writes to 20 % of the blocks, side by side). Then the latency of a client with a fixed rate, with segments
to spare and with none. Writes `cleaning.json`, `cleaning.md` and `cleaning.png`.

Write amplification is all that the pool wrote to its segment files over what the client wrote. Parts: `log` is the
client's data with commit headers, summaries, tables and the ends of segments; `cleaner` are cold segments; `metadata`
are pages of maps. Counts, so that others at work on the machine do not change them much.

Utilisation is the client's live data over the pool's capacity (`of capacity`), or over what the pool can hold at most
(`of usable`: docs/cleaning.md, "How much a pool holds"). The bound is with all of the capacity to write to, and
segments of any size: under uniform load that of greedy cleaning, where with v the live part of the emptiest segment
utilisation is (v - 1) / ln v and write amplification 1 / (1 - v); under skewed load that of two such logs, one for what
is hot, with the best share of what is free.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

from bench import fio
from bench.machine import describe
from bench.plots import COLOURS, MARKERS
from bench.servers import EXPORT, Disk, Holdfast, Running, serving
from bench.settings import (
    REPOSITORY,
    SOCKET_PATH_BYTES_MAX,
    BenchError,
    check_space,
    find_holdfast,
    hold_scratch,
    remove_disk,
)
from holdfast.control.api import PoolStatus, Statistics
from holdfast.control.client import ControlClient
from holdfast.units import BLOCK_SIZE_BYTES, GIB, KIB, MIB, format_size, parse_size

LEVELS = (0.50, 0.60, 0.70, 0.80, 0.85, 0.90, 0.95)
WARM, MEASURED = 2.0, 1.0
LOADS = {"uniform": "", "skewed": "zoned:80/20:20/80"}
TARGETS = {"uniform": 2.3, "skewed": 1.6}  # at 80 %
KEPT = "cleaning.json"
DEPTH = 32
BESIDE_S = 2  # that writes beside go on for longer than the reads do
POLL_S = 0.01
# Pages of maps: one for 2 MiB, those above, and what a checkpoint may hold of them twice.
MAP_SHARE = 1 / 512 + 1 / 512**2


@dataclass(frozen=True, slots=True)
class Written:
    """What a pool has written since its server started, in bytes."""

    log: int
    cold: int
    copied: int
    pages: int
    checkpoints: int

    @classmethod
    def of(cls, status: PoolStatus, statistics: Statistics) -> Written:
        return cls(
            int(statistics["durable_position"]) * BLOCK_SIZE_BYTES,
            status.cleaner.segments_written * status.segment_size_bytes,
            status.cleaner.copied_bytes,
            int(statistics["map_pages_written"]) * BLOCK_SIZE_BYTES,
            int(statistics["checkpoints"]),
        )


@dataclass(frozen=True, slots=True)
class Point:
    load: str
    of_usable: float
    of_capacity: float
    amplification: float
    log_part: float
    cleaner_part: float
    metadata_part: float
    bound: float  # of cleaning, if all of the capacity were written to: `LEAST`
    iops: float
    p99_us: float
    checkpoints: int


def greedy_bound(utilisation: float) -> float:
    """Write amplification of greedy cleaning when all of a space is written to at random (Desnoyers 2012; Rosenblum and
    Ousterhout's cost of cleaning with the utilisation that victims have in the steady state)."""
    low, high = 1e-9, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        if (middle - 1) / log(middle) < utilisation:
            low = middle
        else:
            high = middle
    return 1 / (1 - low)


def separated_bound(utilisation: float, hot_share: float = 0.2, hot_writes: float = 0.8) -> float:
    """The least of two loads that are each uniform: hot blocks, a share of all, get so much of the writes. As if each
    had a log of its own, what is free between them as is best, which takes to know beforehand which block is hot."""
    hot, cold = utilisation * hot_share, utilisation * (1 - hot_share)
    free = 1 - utilisation
    parts = (part / 1000 for part in range(1, 1000))
    return min(
        hot_writes * greedy_bound(hot / (hot + free * part))
        + (1 - hot_writes) * greedy_bound(cold / (cold + free * (1 - part)))
        for part in parts
    )


LEAST = {"uniform": greedy_bound, "skewed": separated_bound}


def point_of(
    load: str, live_bytes: int, status: PoolStatus, before: Written, after: Written, result: fio.FioResult
) -> Point:
    client = result.moved_bytes
    pages = after.pages - before.pages
    of_capacity = live_bytes / status.capacity_bytes
    log_bytes = after.log - before.log
    cold = after.cold - before.cold
    return Point(
        load=load,
        of_usable=live_bytes / status.usable_bytes,
        of_capacity=of_capacity,
        amplification=(log_bytes + cold) / client,
        log_part=(log_bytes - pages) / client,
        cleaner_part=cold / client,
        metadata_part=pages / client,
        bound=LEAST[load](of_capacity),
        iops=result.iops,
        p99_us=result.latency_p99_us,
        checkpoints=after.checkpoints - before.checkpoints,
    )


class Pool:
    """A pool that is served, in which a client overwrites the first `live_bytes` of a volume."""

    def __init__(self, running: Running, directory: Path) -> None:
        self.uri = running.uri()
        self.directory = directory
        self.control = ControlClient(directory / "pool" / "control.sock", timeout_s=120)
        self.live_bytes = 0
        self.seed = 1

    def written(self) -> tuple[PoolStatus, Written]:
        status = self.control.status()
        return status, Written.of(status, self.control.statistics())

    def fill_to(self, share: float) -> None:
        """Live data is `share` of what the pool holds, its map left out."""
        usable = self.control.status().usable_bytes
        wanted = int(usable * share * (1 - MAP_SHARE * 2)) & -MIB
        if wanted > self.live_bytes:
            more = wanted - self.live_bytes
            fio.run(fio.Job("write", MIB, 4, more, offset_bytes=self.live_bytes), [self.uri], self.directory)
            self.live_bytes = wanted

    def at_rate(self, pattern: str, iops: int, runtime_s: float) -> fio.FioResult:
        """4 KiB at random at a rate that the pool keeps up with."""
        self.seed += 1
        job = fio.Job(pattern, 4 * KIB, 4, self.live_bytes, runtime_s=runtime_s, rate_iops=iops, seed=self.seed)
        return fio.run(job, [self.uri], self.directory)

    def overwrite(self, times: float, distribution: str) -> fio.FioResult:
        self.seed += 1
        job = fio.Job(
            *("randwrite", 4 * KIB, DEPTH, self.live_bytes),
            bytes_max=int(self.live_bytes * times) & -MIB,
            flush_at_end=True,
            distribution=distribution,
            seed=self.seed,
        )
        return fio.run(job, [self.uri], self.directory)

    def point(self, load: str, share: float, warm: float, measured: float) -> Point:
        self.fill_to(share)
        self.overwrite(warm, LOADS[load])
        _, before = self.written()
        result = self.overwrite(measured, LOADS[load])
        status, after = self.written()
        return point_of(load, self.live_bytes, status, before, after, result)


def server_of(options: argparse.Namespace) -> Holdfast:
    return Holdfast(
        executable=find_holdfast(),
        memory_bytes=options.memory,
        volumes={EXPORT: options.capacity},
        capacity_bytes=options.capacity,
        segment_bytes=options.segment,
    )


def measure(options: argparse.Namespace, load: str) -> Iterator[Point]:
    server = server_of(options)
    directory = options.scratch / load
    directory.mkdir(parents=True)
    disk = Disk(directory, options.capacity)
    try:
        with serving(server, disk, options.scratch / "s") as running:
            pool = Pool(running, directory)
            for share in options.levels:
                started = time.monotonic()
                point = pool.point(load, share, options.warm, options.measured)
                took_s = time.monotonic() - started
                print(f"{load} {point.of_usable:.0%} of usable, {point.of_capacity:.0%} of capacity: "
                      f"WA {point.amplification:.2f} (log {point.log_part:.2f}, cleaner {point.cleaner_part:.2f}, "
                      f"metadata {point.metadata_part:.2f}; bound {point.bound:.2f}), {point.iops:,.0f} IOPS, "
                      f"p99 {point.p99_us:,.0f} us, {point.checkpoints} checkpoints, {took_s:.0f} s",
                      flush=True)  # fmt: skip
                yield point
    finally:
        remove_disk(directory)


def table(results: dict[str, Any]) -> str:
    """The points as Markdown."""
    lines = [
        ("| load | of usable | of capacity | WA | log | cleaner | metadata | bound | IOPS | p99 ms | checkpoints |"),
        "|---|" + "---:|" * 10,
    ]
    for raw in results.get("points", []):
        point = Point(**raw)
        lines.append(
            f"| {point.load} | {point.of_usable:.0%} | {point.of_capacity:.0%} | **{point.amplification:.2f}** | "
            f"{point.log_part:.2f} | {point.cleaner_part:.2f} | {point.metadata_part:.2f} | {point.bound:.2f} | "
            f"{point.iops:,.0f} | {point.p99_us / 1000:.1f} | {point.checkpoints} |"
        )
    return "\n".join(lines)


def write_report(results: dict[str, Any], out: Path) -> None:
    machine, settings = results["machine"], results.get("settings", {})
    text = [
        "# What cleaning costs",
        "",
        "Made by `python -m bench.cleaning`; do not edit. What is what: its docstring and docs/cleaning.md.",
        "",
        f"{machine['cpu']}, {machine['cpu_count']} CPUs, Linux {machine['kernel']}, {machine['filesystem']}; commit "
        f"{machine['commit']}. " + ", ".join(f"{name} {value}" for name, value in settings.items()) + ".",
        "",
        table(results),
        "",
        (
            "| client, 4 KiB, depth 4 | IOPS | p50 us | p99 us | p50 us, cleaning | p99 us, cleaning "
            "| p99 ratio | copied MiB |"
        ),
        "|---|" + "---:|" * 7,
    ]
    for raw in results.get("latency", []):
        one = Latency(**raw)
        text.append(
            f"| {one.pattern} | {one.iops} | {one.p50_us:.0f} | {one.p99_us:.0f} | {one.cleaning_p50_us:.0f} | "
            f"{one.cleaning_p99_us:.0f} | {one.ratio:.1f} | {one.copied_mib} |"
        )
    (out / "cleaning.md").write_text("\n".join(text) + "\n")
    if results.get("points"):
        draw([Point(**raw) for raw in results["points"]], out / "cleaning.png")


def draw(points: Sequence[Point], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for index, load in enumerate(LOADS):
        mine = [point for point in points if point.load == load]
        style = {"color": COLOURS[index], "marker": MARKERS[index], "label": load}
        left.plot([100 * point.of_capacity for point in mine], [point.amplification for point in mine], **style)
        right.plot([100 * point.of_usable for point in mine], [point.iops for point in mine], **style)
    shares = [point / 100 for point in range(35, 93)]
    for (load, bound), line in zip(LEAST.items(), ("-", ":"), strict=True):
        left.plot([100 * share for share in shares], [bound(share) for share in shares], color="black", linewidth=1,
                  linestyle=line, label=f"bound, {load}")  # fmt: skip
    left.set_xlabel("live data, % of the pool's capacity")
    left.set_ylabel("write amplification")
    left.set_ylim(1, 8)
    right.set_xlabel("live data, % of usable")
    right.set_ylabel("4 KiB overwrites a second")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


@dataclass(frozen=True, slots=True)
class Latency:
    pattern: str
    iops: int
    p50_us: float
    p99_us: float
    cleaning_p50_us: float
    cleaning_p99_us: float
    copied_mib: int

    @property
    def ratio(self) -> float:
        return self.cleaning_p99_us / self.p99_us


def measure_latency(options: argparse.Namespace) -> list[Latency]:
    """Writes, and reads beside writes, at a fixed rate: in a pool with segments to spare, and in the same one when it
    has none."""
    directory = options.scratch / "latency"
    directory.mkdir(parents=True)
    found = []
    try:
        with serving(server_of(options), Disk(directory, options.capacity), options.scratch / "s") as running:
            pool = Pool(running, directory)
            pool.fill_to(0.8)
            loads = {"randwrite": _writes, "randread": _reads_beside_writes}
            before = {pattern: load(pool, options) for pattern, load in loads.items()}
            if pool.written()[1].copied:
                raise BenchError("the cleaner was at work before it was to be: choose a larger --capacity")
            pool.overwrite(options.warm, "")
            for pattern, load in loads.items():
                pool.overwrite(0.1, "")  # so that no segment is left that is not held back
                _, start = pool.written()
                result = load(pool, options)
                copied = pool.written()[1].copied - start.copied
                if not copied:
                    raise BenchError(f"the cleaner was not at work beside {pattern}: choose a higher --rate")
                was = before[pattern]
                found.append(
                    Latency(pattern, options.rate, was.latency_p50_us, was.latency_p99_us, result.latency_p50_us,
                            result.latency_p99_us, copied // MIB)
                )  # fmt: skip
                print(found[-1], f"{found[-1].ratio:.1f} x", flush=True)
    finally:
        remove_disk(directory)
    return found


def _writes(pool: Pool, options: argparse.Namespace) -> fio.FioResult:
    return pool.at_rate("randwrite", options.rate, options.seconds)


def _reads_beside_writes(pool: Pool, options: argparse.Namespace) -> fio.FioResult:
    """Reads alone give the cleaner nothing to do: another client overwrites meanwhile, before and while it cleans."""
    (pool.directory / "beside").mkdir(exist_ok=True)
    job = fio.Job(
        *("randwrite", 4 * KIB, 4, pool.live_bytes),
        runtime_s=options.seconds + BESIDE_S,
        rate_iops=options.rate,
        seed=77,
    )
    _, start = pool.written()
    with ThreadPoolExecutor(1) as executor:
        writes = executor.submit(fio.run, job, [pool.uri], pool.directory / "beside")
        while pool.written()[1].log == start.log and not writes.done():
            time.sleep(POLL_S)
        result = pool.at_rate("randread", options.rate, options.seconds)
        writes.result()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cleaning", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small: to see that it works, not to quote")
    parser.add_argument("--capacity", type=parse_size)
    parser.add_argument("--segment", type=parse_size)
    parser.add_argument("--memory", type=parse_size, default=16 * MIB)
    parser.add_argument("--levels", type=lambda text: [float(part) / 100 for part in text.split(",")], default=LEVELS)
    parser.add_argument("--loads", type=lambda text: text.split(","), default=list(LOADS))
    parser.add_argument("--warm", type=float, default=WARM)
    parser.add_argument("--measured", type=float, default=MEASURED)
    parser.add_argument("--scratch", type=Path, default=REPOSITORY / "bench" / ".scratch")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench" / "results")
    parser.add_argument("--rate", type=int, default=2500, help="IOPS of the clients whose latency is measured")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--latency-only", action="store_true")
    parser.add_argument("--no-latency", action="store_true")
    options = parser.parse_args()
    options.capacity = options.capacity or (256 * MIB if options.quick else 1 * GIB)
    options.segment = options.segment or (MIB if options.quick else 4 * MIB)
    options.scratch = options.scratch.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    check_space(options.scratch, options.capacity * 5 // 4)
    if len(str(options.scratch / "s")) > SOCKET_PATH_BYTES_MAX:
        raise BenchError(f"{options.scratch} is too long a path for a socket; choose a shorter --scratch")
    held = hold_scratch(options.scratch)
    kept = options.out / KEPT
    results = json.loads(kept.read_text()) if kept.exists() else {}
    try:
        if not options.latency_only:
            points = [asdict(point) for load in options.loads for point in measure(options, load)]
            results["settings"] = {
                "capacity": format_size(options.capacity),
                "segment": format_size(options.segment),
                "memory": format_size(options.memory),
                "warm": options.warm,
                "measured": options.measured,
            }
            results["points"] = points
            save(results, options)
        if not options.no_latency:
            results["latency"] = [asdict(latency) for latency in measure_latency(options)]
            save(results, options)
    finally:
        remove_disk(options.scratch)
        os.close(held)


def save(results: dict[str, Any], options: argparse.Namespace) -> None:
    results["machine"] = asdict(describe(options.scratch, REPOSITORY))
    (options.out / KEPT).write_text(json.dumps(results, indent=1) + "\n")
    write_report(results, options.out)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")

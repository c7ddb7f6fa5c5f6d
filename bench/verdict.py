"""From cells to a verdict: medians over rounds, the ratio to the best real peer, met or missed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.table import Cell
from bench.workloads import Row

HOLDFAST = "holdfast"


@dataclass(frozen=True, slots=True)
class Summary:
    """One server in one row, over all rounds. `spread` is (largest - smallest) / median."""

    server: str
    rounds: int
    value: float
    spread: float
    latency_p50_us: float
    latency_p99_us: float
    cpu_seconds_per_gib: float | None
    peak_bytes: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row. `ratio` is holdfast / best peer, None where either is missing; `met` is None where nothing is asked, or
    nothing known."""

    row: str
    summaries: dict[str, Summary]
    best_peer: str
    ratio: float | None
    target: float | None
    met: bool | None


def summarise(server: str, cells: Sequence[Cell]) -> Summary:
    """Medians over the cells that worked; if any failed, its message is kept beside them."""
    good = [cell for cell in cells if not cell.error]
    error = next((cell.error for cell in cells if cell.error), "")
    if not good:
        return Summary(server, 0, 0.0, 0.0, 0.0, 0.0, None, 0, error or "not measured")
    values = [cell.value for cell in good]
    median = statistics.median(values)
    costs = [cell.cpu_seconds_per_gib for cell in good if cell.cpu_seconds_per_gib is not None]
    return Summary(
        server,
        rounds=len(good),
        value=median,
        spread=(max(values) - min(values)) / median if median else 0.0,
        latency_p50_us=statistics.median(cell.latency_p50_us for cell in good),
        latency_p99_us=statistics.median(cell.latency_p99_us for cell in good),
        cpu_seconds_per_gib=statistics.median(costs) if costs else None,
        peak_bytes=max(cell.memory.peak for cell in good),
        error=error,
    )


def judge(row: Row, cells: Sequence[Cell], peers: Sequence[str], keep_flushed: Sequence[str]) -> Verdict:
    """`peers`: the names that may be the best. Where the row flushes, only those in `keep_flushed` are compared: a
    server that ignores a flush has not done the same work."""
    names = list(dict.fromkeys(cell.server for cell in cells))
    summaries = {name: summarise(name, [cell for cell in cells if cell.server == name]) for name in names}
    rivals = [
        summaries[name]
        for name in peers
        if name in summaries and summaries[name].rounds and (not row.needs_flush or name in keep_flushed)
    ]
    best = max(rivals, key=lambda summary: summary.value, default=None)
    own = summaries.get(HOLDFAST)
    ratio = None
    if best is not None and best.value and own is not None and own.rounds:
        ratio = own.value / best.value
    met = None if row.target is None or ratio is None else ratio >= row.target
    if own is not None and own.error and row.target is not None:
        met = False  # a round that failed is not made good by the others
    return Verdict(row.name, summaries, best.server if best else "", ratio, row.target, met)

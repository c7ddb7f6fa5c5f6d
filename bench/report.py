"""The results: one JSON file, from which the Markdown is rendered, so that a table can be read again without a new run.

Rows and experiments are stored by name, each with the time and the commit it was measured at.  A run of some rows
replaces those and leaves the others: within a row all servers were measured in the same run, as a ratio needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.experiments import Experiment
from bench.machine import Machine, Noise
from bench.servers import Server
from bench.settings import Settings
from bench.table import Cell
from bench.verdict import HOLDFAST, Summary, Verdict, judge
from bench.workloads import ROWS, Row
from holdfast.units import MIB, format_size, parse_size

JSON_NAME = "bench.json"
MARKDOWN_NAME = "README.md"
FORMAT_VERSION = 1


@dataclass(slots=True)
class RowRecord:
    """One row, as it was last measured."""

    measured_at: str  # ISO 8601, UTC
    commit: str
    cells: list[Cell] = field(default_factory=list)


@dataclass(slots=True)
class ExperimentRecord:
    measured_at: str
    commit: str
    experiment: Experiment


@dataclass(slots=True)
class Results:
    format_version: int = FORMAT_VERSION
    machine: Machine | None = None
    settings: dict[str, str] = field(default_factory=dict)
    noise: list[Noise] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    keep_flushed: list[str] = field(default_factory=list)
    rows: dict[str, RowRecord] = field(default_factory=dict)
    experiments: dict[str, ExperimentRecord] = field(default_factory=dict)

    def verdicts(self) -> list[tuple[Row, Verdict]]:
        """In the order of the table, of the rows that were measured."""
        return [
            (row, judge(row, self.rows[row.name].cells, self.peers, self.keep_flushed))
            for row in ROWS
            if row.name in self.rows
        ]


def load(directory: Path) -> Results:
    """The results of earlier runs; empty ones where there are none, or where they are of another format."""
    path = directory / JSON_NAME
    if not path.exists():
        return Results()
    results = msgspec.json.decode(path.read_bytes(), type=Results)
    return results if results.format_version == FORMAT_VERSION else Results()


def save(results: Results, directory: Path) -> None:
    """JSON and Markdown, each replaced as a whole."""
    directory.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(results), indent=1)
    for name, content in ((JSON_NAME, encoded + b"\n"), (MARKDOWN_NAME, markdown(results).encode())):
        temporary = directory / f".{name}.new"
        temporary.write_bytes(content)
        temporary.replace(directory / name)


def describe_settings(settings: Settings) -> dict[str, str]:
    """For the reader: without paths, which say something about a developer's machine only."""
    return {
        "rounds": str(settings.rounds),
        "seconds a cell": f"{settings.runtime_s:g}",
        "ramp seconds": f"{settings.ramp_s:g}",
        "disk": format_size(settings.disk_bytes),
        "copied": format_size(settings.copy_bytes),
        "just-written region": format_size(settings.ring_region_bytes),
        "--memory": format_size(settings.memory_bytes),
    }


def remember_servers(results: Results, servers: Sequence[Server]) -> None:
    """Who may be the best, for later renderings: servers of this run and of earlier ones."""
    for server in servers:
        if server.peer and server.name not in results.peers:
            results.peers.append(server.name)
        if server.keeps_flushed and server.name not in results.keep_flushed:
            results.keep_flushed.append(server.name)


def markdown(results: Results) -> str:
    """The whole report."""
    parts = ["# Benchmark results\n", "Made by `python -m bench`; do not edit.\n"]
    if results.machine is not None:
        parts.append(_machine(results.machine, results.settings))
    verdicts = results.verdicts()
    if verdicts:
        parts += [_summary(verdicts), _table(results, verdicts), _costs(verdicts), _base(results), _failures(verdicts)]
    parts += [_experiment(record) for record in results.experiments.values()]
    if results.noise:
        parts.append(_noise(results.noise))
    return "\n".join(part for part in parts if part)


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column left-aligned, the others right-aligned."""
    lines = [f"| {' | '.join(columns)} |", "|" + "|".join(["---"] + ["---:"] * (len(columns) - 1)) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def format_value(value: float, unit: str) -> str:
    if unit == "IOPS" and value >= 100_000:
        return f"{value / 1000:.0f}k"
    if unit == "IOPS" and value >= 1000:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}"


def format_verdict(verdict: Verdict) -> str:
    if verdict.target is None:
        return "no target"
    if verdict.met is None:
        return "not measured"
    return "met" if verdict.met else "**missed**"


def _machine(machine: Machine, settings: dict[str, str]) -> str:
    tools = ", ".join(f"{name} {version}" for name, version in machine.tools.items())
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"{machine.cpu}, {machine.cpu_count} CPUs, {format_size(machine.memory_bytes)} of memory, "
        f"Linux {machine.kernel}, {machine.filesystem}, Python {machine.python}; {tools}.\n\n"
        f"Settings of the last run: {told}.\n"
    )


def _summary(verdicts: Sequence[tuple[Row, Verdict]]) -> str:
    asked = [verdict for _, verdict in verdicts if verdict.target is not None]
    met = sum(verdict.met is True for verdict in asked)
    missed = [verdict.row for verdict in asked if verdict.met is False]
    text = f"**{met} of {len(asked)} targets met.**"
    unknown = [verdict.row for verdict in asked if verdict.met is None]
    for word, names in (("Missed", missed), ("Not measured", unknown)):
        text += f" {word}: {', '.join(names)}." if names else ""
    return text + "\n"


def _servers(verdicts: Sequence[tuple[Row, Verdict]]) -> list[str]:
    """Holdfast first, the others in the order they were first seen."""
    names = dict.fromkeys(name for _, verdict in verdicts for name in verdict.summaries)
    return sorted(names, key=lambda name: name != HOLDFAST)


def _cell(row: Row, summary: Summary | None, best_peer: str) -> str:
    if summary is None:
        return ""
    if not summary.rounds:
        return "failed"
    text = format_value(summary.value, row.unit)
    if summary.rounds > 1:
        text += f" ±{summary.spread * 50:.0f}%"
    return f"**{text}**" if summary.server == best_peer else text


def _table(results: Results, verdicts: Sequence[tuple[Row, Verdict]]) -> str:
    servers = _servers(verdicts)
    rows = []
    for row, verdict in verdicts:
        cells = []
        for name in servers:
            text = _cell(row, verdict.summaries.get(name), verdict.best_peer)
            ignores = row.needs_flush and name not in results.keep_flushed and text
            cells.append(f"({text})" if ignores else text)
        ratio = "" if verdict.ratio is None else f"{verdict.ratio:.2f}"
        target = "" if verdict.target is None else f"≥ {verdict.target:g}"
        rows.append([f"{row.title}, {row.unit}", *cells, ratio, target, format_verdict(verdict)])
    legend = (
        "Medians over rounds, ± half of the distance between the smallest and the largest. The best peer is bold; the "
        "ratio is holdfast / best peer. In parentheses: a server that ignores flushes, not compared where the row "
        "flushes. "
        "nbdkit null keeps nothing and is never compared: it is what the client and the socket can do.\n"
    )
    return f"## Side by side\n\n{grid(['workload', *servers, 'ratio', 'target', 'verdict'], rows)}\n{legend}"


def _costs(verdicts: Sequence[tuple[Row, Verdict]]) -> str:
    """CPU, memory and latency, holdfast beside the others."""
    servers = _servers(verdicts)
    cpu_rows, memory_rows, latency_rows = [], [], []
    for row, verdict in verdicts:
        found = [verdict.summaries.get(name) for name in servers]
        costs = [each.cpu_seconds_per_gib if each else None for each in found]
        cpu_rows.append([row.title, *("" if cost is None else f"{cost:.2f}" for cost in costs)])
        peaks = [each.peak_bytes if each else 0 for each in found]
        memory_rows.append([row.title, *(str(peak // MIB) if peak else "" for peak in peaks)])
        if row.client == "fio":
            latencies = [f"{each.latency_p50_us:.0f} / {each.latency_p99_us:.0f}" if each else "" for each in found]
            latency_rows.append([row.title, *latencies])
    columns = ["workload", *servers]
    return "\n".join(
        [
            f"## CPU seconds of the server for each GiB moved\n\n{grid(columns, cpu_rows)}",
            f"## Peak resident memory, MiB\n\nThe ring included.\n\n{grid(columns, memory_rows)}",
            f"## Latency, µs, median / 99th percentile\n\n{grid(columns, latency_rows)}" if latency_rows else "",
        ]
    )


def _base(results: Results) -> str:
    """What holdfast needed beyond its budget, at the most, in all rows."""
    peaks = [
        (cell.memory.peak, cell.row)
        for record in results.rows.values()
        for cell in record.cells
        if cell.server == HOLDFAST and not cell.error
    ]
    if not peaks or "--memory" not in results.settings:
        return ""
    peak_bytes, row = max(peaks)
    budget_bytes = parse_size(results.settings["--memory"])
    return (
        f"holdfast's largest: {peak_bytes // MIB} MiB in {row}, which is --memory {format_size(budget_bytes)} and "
        f"{(peak_bytes - budget_bytes) // MIB} MiB.\n"
    )


def _failures(verdicts: Sequence[tuple[Row, Verdict]]) -> str:
    lines = [
        f"- {row.name}, {summary.server}: {summary.error}"
        for row, verdict in verdicts
        for summary in verdict.summaries.values()
        if summary.error
    ]
    return "## Cells that failed\n\n" + "\n".join(lines) + "\n" if lines else ""


def _experiment(record: ExperimentRecord) -> str:
    experiment = record.experiment
    rows = [["" if value is None else str(value) for value in row] for row in experiment.rows]
    notes = "".join(f"\n{note}\n" for note in experiment.notes)
    return f"## {experiment.title}\n\n{grid(experiment.columns, rows)}{notes}"


def _noise(noise: Sequence[Noise]) -> str:
    columns = ["probe", *(str(index + 1) for index in range(len(noise)))]
    names = [each.name for each in dataclasses.fields(Noise)]
    rows = [[name.replace("_", " "), *(f"{getattr(each, name):.1f}" for each in noise)] for name in names]
    return f"## How noisy the machine was\n\nA short probe before each round.\n\n{grid(columns, rows)}"

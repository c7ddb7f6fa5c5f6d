"""The table and the experiments as pictures: PNG, by matplotlib, which is imported only here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.experiments import Experiment
from bench.report import Results
from bench.servers import peers
from bench.verdict import HOLDFAST, Verdict
from bench.workloads import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable in grey and for the colour-blind (after Okabe and Ito).
COLOURS = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#999999"]
MARKERS = ["D", "o", "s", "^", "v", "x"]
# Each server looks the same in every picture, whoever else is in it.
STYLE_ORDER = [HOLDFAST, *(server.name for server in peers())]


def draw(results: Results, directory: Path) -> list[Path]:
    """All pictures that these results allow; returns their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    drawn = []
    verdicts = [(row, verdict) for row, verdict in results.verdicts() if verdict.best_peer]
    if verdicts:
        drawn.append(_draw_table(verdicts, directory / "table.png"))
    for name, record in results.experiments.items():
        if record.experiment.plot:
            drawn.append(_draw_experiment(record.experiment, directory / f"{name}.png"))
    return drawn


def relative_values(verdicts: Sequence[tuple[Row, Verdict]]) -> dict[str, list[float | None]]:
    """Server -> its value in each row divided by the best peer's; None where it has none."""
    servers = dict.fromkeys(name for _, verdict in verdicts for name in verdict.summaries)
    relative: dict[str, list[float | None]] = {}
    for name in sorted(servers, key=lambda each: each != HOLDFAST):
        relative[name] = []
        for _, verdict in verdicts:
            summary, best = verdict.summaries.get(name), verdict.summaries[verdict.best_peer]
            known = summary is not None and summary.rounds
            relative[name].append(summary.value / best.value if summary is not None and known else None)
    return relative


def _draw_table(verdicts: Sequence[tuple[Row, Verdict]], path: Path) -> Path:
    """A line a workload, a mark a server, all as multiples of the best peer; a bar where the target is."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 1.5 + 0.36 * len(verdicts)), layout="constrained")
    heights = list(range(len(verdicts), 0, -1))
    for name, values in relative_values(verdicts).items():
        index = STYLE_ORDER.index(name) if name in STYLE_ORDER else len(STYLE_ORDER)
        points = [(value, height) for value, height in zip(values, heights, strict=True) if value]
        axes.scatter(
            [value for value, _ in points],
            [height for _, height in points],
            label=name,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            s=60 if name == HOLDFAST else 26,
            zorder=4 if name == HOLDFAST else 3,
        )
    for (_, verdict), height in zip(verdicts, heights, strict=True):
        if verdict.target is not None:
            axes.plot([verdict.target] * 2, [height - 0.35, height + 0.35], color="black", linewidth=1.5, zorder=2)
    axes.axvline(1.0, color="grey", linewidth=0.8, zorder=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} x")
    axes.set_yticks(heights, [row.title for row, _ in verdicts])
    axes.set_xlabel("throughput as a multiple of the best peer (right is better); black bars: targets")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.0 + 1.6 / (2 + len(verdicts))), ncols=6, fontsize="small")
    return _save(figure, path)


def experiment_lines(experiment: Experiment) -> dict[str, list[tuple[float, float]]]:
    """Line -> points, of the columns that the experiment names for its plot. Rows without a figure are left out."""
    x_name, y_name, line_name = experiment.plot
    x_index, y_index = experiment.columns.index(x_name), experiment.columns.index(y_name)
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in experiment.rows:
        x, y = row[x_index], row[y_index]
        if isinstance(x, int | float) and isinstance(y, int | float):
            line = str(row[experiment.columns.index(line_name)]) if line_name else y_name
            lines.setdefault(line, []).append((float(x), float(y)))
    return lines


def _draw_experiment(experiment: Experiment, path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for index, (line, points) in enumerate(experiment_lines(experiment).items()):
        points.sort()
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot([x for x, _ in points], [y for _, y in points], label=line, color=colour, marker=marker)
    _label(axes, experiment)
    return _save(figure, path)


def _label(axes: Axes, experiment: Experiment) -> None:
    axes.set_title(experiment.title)
    axes.set_xlabel(experiment.plot[0])
    axes.set_ylabel(experiment.plot[1])
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if experiment.plot[2]:
        axes.legend()


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the library's version and date in it, an unchanged picture is an unchanged file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return path

"""`python -m bench`: the command line.

Without `--only` everything is measured: the table, then the experiments.  Results are added to those in `--out` row by
row and saved after each, so that a run may be stopped, and a single row measured again.
"""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from bench import machine, micro, plots, profiling, report
from bench.experiments import Context, connections, map_cost, memory, recovery, volumes
from bench.servers import Holdfast, Server, missing_tools, peers
from bench.settings import (
    REPOSITORY,
    SOCKET_PATH_BYTES_MAX,
    BenchError,
    Settings,
    check_space,
    find_holdfast,
    hold_scratch,
    remove_disk,
)
from bench.table import Cell, run_table, scratch_bytes
from bench.workloads import ROWS, Row
from holdfast.units import MIB, format_size, parse_size

EXPERIMENTS: list[ModuleType] = [micro, recovery, volumes, connections, map_cost, memory]


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A size as people write it: 512M, 2G."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def select(patterns: Sequence[str]) -> tuple[list[Row], list[ModuleType]]:
    """The rows and experiments that any of the patterns names; `table` is all rows, no pattern is everything.

    Raises BenchError for a pattern that names nothing: a misspelt row would otherwise look measured.
    """
    if not patterns:
        return list(ROWS), list(EXPERIMENTS)
    names = [row.name for row in ROWS] + [str(module.NAME) for module in EXPERIMENTS]
    chosen: set[str] = set()
    for pattern in patterns:
        found = [row.name for row in ROWS] if pattern == "table" else fnmatch.filter(names, pattern)
        if not found:
            raise BenchError(f"there is no row or experiment {pattern!r}; `--list` names them all")
        chosen.update(found)
    return [row for row in ROWS if row.name in chosen], [module for module in EXPERIMENTS if module.NAME in chosen]


def select_peers(patterns: Sequence[str]) -> list[Server]:
    """The peers that the patterns name (with spaces or dashes), all if there are none; `none` for holdfast alone."""
    if not patterns:
        return peers()
    if list(patterns) == ["none"]:
        return []
    chosen = [
        peer
        for peer in peers()
        if any(fnmatch.fnmatch(peer.name.replace(" ", "-"), pattern.replace(" ", "-")) for pattern in patterns)
    ]
    if not chosen:
        raise BenchError(f"no peer is called {', '.join(patterns)}; there are {', '.join(p.name for p in peers())}")
    return chosen


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Small and short: to see that all of it works, not to quote.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of the table.  [default: 3, quick 1]")
@click.option("--runtime", type=click.FloatRange(0.2), help="Seconds a cell.  [default: 4, quick 1]")
@click.option("--ramp", type=click.FloatRange(0), help="Seconds before, not counted.  [default: 0.5, quick 0.2]")
@click.option("--size", type=Size(), help="Size of the disks.  [default: 2G, quick 512M]")
@click.option("--copy-size", type=Size(), help="How much is copied.  [default: 1G, quick 256M]")
@click.option("--memory", "memory_bytes", type=Size(), default="256M", show_default=True, help="holdfast's --memory.")
@click.option("--only", multiple=True, metavar="NAME", help="Row or experiment, a pattern, or `table`; repeatable.")
@click.option("--peers", "peer_names", multiple=True, metavar="NAME", help="Only these peers, or `none`; repeatable.")
@click.option("--no-holdfast", is_flag=True, help="Only the peers.")
@click.option("--holdfast", "executable", type=click.Path(path_type=Path), help="The holdfast to measure.")
@click.option("--scratch", type=click.Path(path_type=Path), default=REPOSITORY / "bench" / ".scratch")
@click.option("--out", type=click.Path(path_type=Path), default=REPOSITORY / "bench" / "results")
@click.option("--profile", metavar="ROW", help="Profile holdfast in this row instead of measuring.")
@click.option("--profiler", type=click.Choice(["cprofile", "py-spy"]), default="cprofile", show_default=True)
@click.option("--render", is_flag=True, help="Measure nothing; write report and plots again from the JSON.")
@click.option("--list", "list_names", is_flag=True, help="Name the rows and experiments, and go.")
def main(**options: Any) -> None:
    """Measure holdfast beside other NBD servers: same machine, same client, same run.

    Writes JSON, a Markdown report and plots into --out. Exit codes: 0 measured (whatever the verdicts),
    2 could not run.

    \b
    Examples:
      python -m bench                                  everything; about an hour
      python -m bench --quick                          everything in small
      python -m bench --only 'randread-*'              some rows
      python -m bench --only recovery --only map       some experiments
      python -m bench --profile randwrite-d64          where the time goes
    """
    try:
        _run(**options)
    except BenchError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(
    *,
    quick: bool,
    rounds: int | None,
    runtime: float | None,
    ramp: float | None,
    size: int | None,
    copy_size: int | None,
    memory_bytes: int,
    only: tuple[str, ...],
    peer_names: tuple[str, ...],
    no_holdfast: bool,
    executable: Path | None,
    scratch: Path,
    out: Path,
    profile: str | None,
    profiler: str,
    render: bool,
    list_names: bool,
) -> None:
    if list_names:
        _list()
        return
    if render:
        _write(report.load(out), out)
        return
    base = Settings(scratch.resolve(), (executable or find_holdfast()).absolute(), memory_bytes=memory_bytes)
    settings = Settings(
        scratch=base.scratch,
        holdfast=base.holdfast,
        quick=quick,
        rounds=rounds or (1 if quick else base.rounds),
        runtime_s=runtime or (1.0 if quick else base.runtime_s),
        ramp_s=ramp if ramp is not None else (0.2 if quick else base.ramp_s),
        disk_bytes=_whole_mebibytes(size or (512 * MIB if quick else base.disk_bytes)),
        copy_bytes=_whole_mebibytes(copy_size or (256 * MIB if quick else base.copy_bytes)),
        memory_bytes=memory_bytes,
    )
    holdfast = Holdfast(executable=settings.holdfast, memory_bytes=settings.memory_bytes)
    servers = ([] if no_holdfast else [holdfast]) + select_peers(peer_names)
    rows, experiments = select([profile] if profile else only)
    held = hold_scratch(settings.scratch)
    try:
        _check(settings, rows, servers, experiments)
        if profile:
            if len(rows) != 1:
                raise BenchError(f"{profile!r} is not the name of one row; `--list` names them all")
            click.echo(profiling.profile_row(rows[0], settings, out, profiler))
        else:
            _measure(settings, rows, servers, experiments, out)
    finally:
        remove_disk(settings.scratch)
        os.close(held)


def _whole_mebibytes(size_bytes: int) -> int:
    if size_bytes < 64 * MIB or size_bytes % MIB:
        raise BenchError(f"{format_size(size_bytes)} will not do: a disk is whole mebibytes, and 64M at least")
    return size_bytes


def _list() -> None:
    for row in ROWS:
        target = f"target {row.target:g} x" if row.target is not None else ""
        click.echo(f"{row.name:<24} {row.title:<52} {target}".rstrip())
    for module in EXPERIMENTS:
        click.echo(f"{module.NAME:<24} {module.TITLE}")


def _check(
    settings: Settings, rows: Sequence[Row], servers: Sequence[Server], experiments: Sequence[ModuleType]
) -> None:
    """Everything that would otherwise fail an hour from now."""
    missing = missing_tools(servers) if rows or any(module is not micro for module in experiments) else []
    if missing:
        raise BenchError(f"not installed: {', '.join(missing)}; install these Debian packages, or leave peers out")
    if len(str(settings.scratch / "s").encode()) > SOCKET_PATH_BYTES_MAX:
        raise BenchError(f"{settings.scratch} is too long a path for a socket; choose a shorter --scratch")
    need_bytes = max(
        [scratch_bytes(rows, servers, settings) if rows else 0]
        + [int(module.scratch_bytes(settings)) for module in experiments]
    )
    check_space(settings.scratch, need_bytes)


def _measure(
    settings: Settings,
    rows: Sequence[Row],
    servers: Sequence[Server],
    experiments: Sequence[ModuleType],
    out: Path,
) -> None:
    results = report.load(out)
    results.machine = machine.describe(settings.scratch, REPOSITORY)
    results.settings = report.describe_settings(settings)
    report.remember_servers(results, servers)
    stamp = (datetime.now(UTC).isoformat(timespec="seconds"), results.machine.commit)
    if rows:
        results.noise = []
        fresh = {row.name: report.RowRecord(*stamp) for row in rows}

        def keep(cell: Cell) -> None:
            # The old record stands until the first new cell replaces it as a whole: rounds of two runs never mix.
            results.rows[cell.row] = fresh[cell.row]
            fresh[cell.row].cells.append(cell)
            report.save(results, out)

        run_table(rows, servers, settings, say=click.echo, on_round=results.noise.append, on_cell=keep)
    # Experiments need the disk that the table's disks took.
    for leftover in settings.scratch.iterdir():
        if leftover.is_dir():
            remove_disk(leftover)
    failed = []
    for module in experiments:
        try:
            experiment = module.run(Context(settings, servers, click.echo))
        except BenchError as error:
            click.echo(f"{module.NAME}: {error}", err=True)
            failed.append(str(module.NAME))
            continue
        results.experiments[experiment.name] = report.ExperimentRecord(*stamp, experiment)
        report.save(results, out)
    _write(results, out)
    if failed:
        raise BenchError(f"could not be measured: {', '.join(failed)}")


def _write(results: report.Results, out: Path) -> None:
    report.save(results, out)
    for path in (out / report.MARKDOWN_NAME, *plots.draw(results, out)):
        click.echo(f"wrote {path}")
    for row, verdict in results.verdicts():
        ratio = "-" if verdict.ratio is None else f"{verdict.ratio:.2f}"
        target = "-" if verdict.target is None else f"{verdict.target:g}"
        click.echo(f"{row.name:<24} ratio {ratio:>6}  target {target:>4}  {report.format_verdict(verdict)}")


if __name__ == "__main__":
    main()

"""`python -m holdfast.sim`: run seeds, replay one, run the exhaustive loops."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from holdfast.sim.campaign import COVERING_SEEDS, Tally, run_cases, run_seeds, time_limit
from holdfast.sim.exhaustive import Case, cases, run_case
from holdfast.sim.faults import FAULTS, describe
from holdfast.sim.run import Outcome
from holdfast.sim.shrink import Kind, run_edited, shrink

FAILURES_SHOWN_MAX = 5

EXAMPLES = """\b
Examples:
  Two hundred seeds on all processors:
    ./dev sim --seeds 200
  As many as fit into ten minutes, from seed 100000 on:
    ./dev sim --minutes 10 --first-seed 100000
  One seed again, with all that happens in it:
    ./dev sim --seed 4711 --trace
  Fill pools to the last block and let go of some, again and again, with deaths in between:
    ./dev sim --full --seeds 100 --operations 300
  Fail every call of the fixed course in turn, and cut the power at its every effect:
    ./dev sim --exhaustive
"""


@click.command(epilog=EXAMPLES, context_settings={"max_content_width": 100})
@click.option("--seeds", type=click.IntRange(1), help="Run so many seeds.  [default: 200, or what --minutes allow]")
@click.option("--first-seed", type=int, default=0, show_default=True, help="The first of them.")
@click.option("--operations", type=click.IntRange(1), default=1000, show_default=True, help="Requests in each run.")
@click.option("--jobs", type=click.IntRange(1), default=lambda: len(os.sched_getaffinity(0)), help="Processes.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Begin no run after so long.")
@click.option("--seed", type=int, help="Run this one seed, here.")
@click.option("--edit", "edits", multiple=True, help="Change the run of --seed, as a shrunken failure says.")
@click.option("--full", is_flag=True, help="Seeds of another kind: pools that are filled up and let go of, in turn.")
@click.option("--trace", is_flag=True, help="With --seed or --case: print what happens, a line an event.")
@click.option("--exhaustive", is_flag=True, help="The fixed course with every fault at every place.")
@click.option("--case", "case_text", help="One case of --exhaustive again: 'POINT,KIND,NUMBER'.")
@click.option("--no-shrink", is_flag=True, help="Do not make failing runs shorter.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def main(
    *,
    seeds: int | None,
    first_seed: int,
    operations: int,
    jobs: int,
    minutes: float | None,
    seed: int | None,
    edits: tuple[str, ...],
    full: bool,
    trace: bool,
    exhaustive: bool,
    case_text: str | None,
    no_shrink: bool,
    as_json: bool,
) -> None:
    """Run the engine in a simulated world, where time, disks, power, memory and clients come from one seed, and check
    that it keeps its promises. Exit code 0: all were kept. 1: not. 2: could not run."""
    if not __debug__:
        raise click.UsageError("without assertions nothing would be checked: leave out -O and PYTHONOPTIMIZE")
    logging.disable(logging.CRITICAL)
    if minutes is not None and not math.isfinite(minutes):
        raise click.UsageError("--minutes is a number of minutes")
    if (trace or edits) and seed is None and (edits or case_text is None):
        raise click.UsageError("--trace and --edit go with --seed (--trace with --case, too)")
    if as_json and (seed is not None or case_text is not None):
        raise click.UsageError("--json goes with --seeds, --minutes or --exhaustive; one run prints text")
    if seed is not None and seeds is not None:
        raise click.UsageError("--seed is one seed, --seeds so many from --first-seed on: give one of them")
    kind = Kind.FILLING if full else Kind.MIXED
    if seed is not None:
        sys.exit(_one(seed, operations, list(edits), kind, trace=trace))
    if case_text is not None:
        sys.exit(_one_case(case_text, trace=trace))
    if exhaustive:
        sys.exit(_every_case(jobs, as_json=as_json))
    count = seeds or (None if minutes else 200)
    sys.exit(_many(first_seed, count, operations, kind, jobs, minutes, shrinking=not no_shrink, as_json=as_json))


def _one(seed: int, operations: int, edits: list[str], kind: Kind, *, trace: bool) -> int:
    write = _print_line if trace else None
    try:
        outcome = run_edited(seed, operations, edits, kind=kind, write=write)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    print(
        f"seed {seed}: {outcome.operations} requests, {outcome.crashes} deaths, {outcome.effects} effects, "
        f"{outcome.simulated_ns / 1e9:.1f} simulated seconds, trace {outcome.trace}"
    )
    if outcome.failure:
        print(f"seed {seed}: BROKEN: {outcome.failure}")
    return 1 if outcome.failure else 0


def _one_case(text: str, *, trace: bool) -> int:
    parts = text.split(",")
    known = len(parts) == 3 and tuple(parts[:2]) in {*FAULTS, ("power", "off"), ("kill", "-9")}
    if not known or not re.fullmatch(r"[0-9]{1,9}", parts[2]):
        raise click.UsageError("--case is POINT,KIND,NUMBER, as --exhaustive prints it")
    failure = run_case(Case(parts[0], parts[1], int(parts[2])), _print_line if trace else None)
    print(f"case {text}: {'BROKEN: ' + failure if failure else 'held'}")
    return 1 if failure else 0


def _print_line(line: str) -> None:
    print(line)


def _progress() -> Progress:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _many(
    first: int,
    count: int | None,
    operations: int,
    kind: Kind,
    jobs: int,
    minutes: float | None,
    *,
    shrinking: bool,
    as_json: bool,
) -> int:
    with _progress() as progress:
        task = progress.add_task("seeds", total=count)

        def each(outcome: Outcome) -> None:
            progress.advance(task)
            if outcome.failure:
                progress.console.print(f"seed {outcome.seed}: {outcome.failure[:300]}", markup=False)

        tally = run_seeds(first, count, operations, jobs=jobs, minutes=minutes, each=each, kind=kind)
    untried = tally.untried() if tally.seeds >= COVERING_SEEDS and kind is Kind.MIXED else []
    if as_json:
        print(json.dumps(_as_json(tally, untried), indent=2))
    else:
        _print_tally(tally)
    for failed in sorted(tally.failures, key=lambda outcome: int(outcome.seed))[:FAILURES_SHOWN_MAX]:
        _explain(failed, operations, kind, shrinking=shrinking)
    for fault in untried:
        print("never tried:", *fault, file=sys.stderr)
    if tally.interrupted:
        return 130
    if not tally.seeds:
        print("no seed was run in that time", file=sys.stderr)
        return 2
    return 1 if tally.failures or untried else 0


def _explain(failed: Outcome, operations: int, kind: Kind, *, shrinking: bool) -> None:
    edits: list[str] = []
    if shrinking:
        edits, failed = shrink(failed.seed, operations, partial(_in_time, kind=kind), kind=kind)
    options = "".join(f" --edit '{edit}'" for edit in edits)
    if kind is Kind.FILLING:
        options = " --full" + options
    print(
        f"seed {failed.seed}: {failed.failure}\n"
        f"  {failed.operations} requests; commit {_commit()}; again:\n"
        f"  ./dev sim --operations {operations} --seed {failed.seed}{options} --trace",
        file=sys.stderr,
    )


def _in_time(seed: int | str, operations: int, edits: list[str], kind: Kind) -> Outcome:
    with time_limit():
        return run_edited(seed, operations, edits, kind=kind)


def _commit() -> str:
    """What the failure belongs to: the commit of a working copy, else the version."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return f"unknown, version {version('holdfast')}"
    return found.stdout.strip()


def _every_case(jobs: int, *, as_json: bool) -> int:
    every = list(cases())
    with _progress() as progress:
        task = progress.add_task("cases", total=len(every))
        broken = run_cases(every, jobs=jobs, each=lambda: progress.advance(task))
    if as_json:
        found = [{"case": str(case), "failure": failure} for case, failure in broken]
        print(json.dumps({"cases": len(every), "broken": found}, indent=2))
    else:
        print(f"{len(every)} cases, {len(broken)} broken")
    for case, failure in broken[:FAILURES_SHOWN_MAX]:
        again = f"./dev sim --case '{case.point},{case.kind},{case.number}' --trace"
        print(f"{case}: {failure}\n  commit {_commit()}; again:\n  {again}", file=sys.stderr)
    return 1 if broken else 0


def _as_json(tally: Tally, untried: list[tuple[str, str]]) -> dict[str, object]:
    return {
        "seeds": tally.seeds,
        "operations": tally.operations,
        "operations_least": tally.operations_least,
        "crashes": tally.crashes,
        "power_failures": tally.power_failures,
        "effects": tally.effects,
        "cycles": tally.cycles,
        "simulated_seconds": round(tally.simulated_ns / 1e9, 1),
        "seconds": round(tally.seconds, 1),
        "faults": {f"{point} {kind}": count for point, kind, count in describe(tally.struck)},
        "untried": [f"{point} {kind}" for point, kind in untried],
        "failures": {str(outcome.seed): outcome.failure for outcome in tally.failures},
    }


def _print_tally(tally: Tally) -> None:
    cycles = f"{tally.cycles:,} times full and let go of, " if tally.cycles else ""
    print(
        f"{tally.seeds:,} seeds: {tally.operations:,} requests, {tally.crashes:,} deaths of the server "
        f"({tally.power_failures:,} with the power), {tally.effects:,} effects, "
        f"{cycles}{tally.simulated_ns / 3.6e12:.1f} simulated hours in {tally.seconds:.0f} s; "
        f"{len(tally.failures)} broken"
    )
    table = Table("fault point", "kind", "struck")
    for point, kind, count in describe(tally.struck):
        table.add_row(point, kind, f"{count:,}")
    Console().print(table)


if __name__ == "__main__":
    main()

"""`holdfast lab`: situations in which storage fails its users, played with today's kernel and with holdfast.

Both are simulated. The plays are `holdfast.sim.lab`; here they are chosen, and printed. Of all that only the catalogue
is imported before one is played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from holdfast.cli.command import EXIT_NO, CommandError, LazyGroup, ManualCommand
from holdfast.cli.output import print_json, print_table
from holdfast.sim.lab.catalog import CATALOG, PLAYABLE, Entry, find
from holdfast.units import format_size

if TYPE_CHECKING:
    from holdfast.sim.lab.scenario import Policy, Result, Told

_LATER = "comes with a later version"


class ScenarioType(click.ParamType[Entry]):
    """The name of a situation that can be played."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Entry:
        if isinstance(value, Entry):
            return value
        entry = find(value)
        if entry is None:
            self.fail(f"there is no situation {value!r}; there are: {', '.join(PLAYABLE)}", param, ctx)
        if not entry.playable:
            raise CommandError(f"{value}: {_LATER} of holdfast; play one of: {', '.join(PLAYABLE)}")
        return entry

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [
            CompletionItem(entry.name, help=entry.title)
            for entry in CATALOG
            if entry.playable and entry.name.startswith(incomplete)
        ]


@dataclass(frozen=True, slots=True)
class LabReport:
    """What `lab run --json` prints. `kept`: whether holdfast kept all its promises; null if its side was not played."""

    scenario: str
    rows: str
    title: str
    seed: int
    kept: bool | None
    results: list[Result]


@click.group(name="lab", cls=LazyGroup)
def command() -> None:
    """Play situations in which storage fails its users, with today's kernel and with holdfast.

    Both are simulated: the engine is the one that serves disks, the kernel a small model of what Linux does.  Nothing
    on this host is touched.
    """


@command.command(
    name="list",
    cls=ManualCommand,
    examples=[
        ("What can be played", "holdfast lab list"),
        ("The names, for a script", "holdfast lab list --json | jq -r '.[] | select(.playable) | .name'"),
    ],
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_(as_json: bool) -> None:
    """List the situations.

    FROM is the letter of the discussion among kernel developers that a situation comes from.
    """
    if as_json:
        print_json(CATALOG)
        return
    print_table(
        ("NAME", "FROM", "SITUATION", "STATE"),
        [(entry.name, entry.rows, entry.title, "can be played" if entry.playable else _LATER) for entry in CATALOG],
    )


@command.command(
    cls=ManualCommand,
    exit_codes={0: "holdfast kept its promises, or was not played", 1: "holdfast broke a promise"},
    examples=[
        ("Both sides of a situation, side by side", "holdfast lab run writeback-error"),
        ("What happened there, event by event", "holdfast lab run thin-full --policy today --trace | less"),
        ("Other accidents, and a picture of them", "holdfast lab run thin-full --seed 7 --picture full.svg"),
        ("What was lost today, in bytes", "holdfast lab run writeback-error --json | jq '.results[0].lost_bytes'"),
    ],
)
@click.argument("scenario", type=ScenarioType(), metavar="NAME")
@click.option("--policy", type=click.Choice(("today", "holdfast", "both")), default="both", help="Which side to play.")
@click.option("--seed", type=int, default=1, help="Where all chance comes from. The same seed plays the same.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--trace", is_flag=True, help="Print every event, before the tables.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw it: an SVG.")
def run(scenario: Entry, policy: str, seed: int, as_json: bool, trace: bool, picture: Path | None) -> int:
    """Play the situation NAME.

    The same people, with the same requests, meet the same accidents twice: above the behaviour of today's kernel, and
    above holdfast.  In the end everything that was acknowledged is read back and compared.  Times are simulated.
    """
    if trace and as_json:
        raise click.UsageError("--trace and --json exclude each other")
    from holdfast.sim.lab.picture import draw
    from holdfast.sim.lab.plays import PLAYS
    from holdfast.sim.lab.scenario import POLICIES

    plays = []
    write: Callable[[str], None] | None = click.echo if trace else None
    for side in POLICIES:
        if policy in (side, "both"):
            if trace:
                click.echo(f"--- {side}")
            plays.append(PLAYS[scenario.name](side, seed, write))
    if trace:
        click.echo("---")
    if picture is not None:
        picture.write_text(draw(plays), encoding="utf-8")
    results = [play.result for play in plays]
    kept = next((result.kept for result in results if result.policy == "holdfast"), None)
    if as_json:
        print_json(LabReport(scenario.name, scenario.rows, scenario.title, seed, kept, results))
    else:
        _print_results(scenario, seed, results)
    return EXIT_NO if kept is False else 0


def _print_results(scenario: Entry, seed: int, results: Sequence[Result]) -> None:
    click.echo(f"{scenario.name}, seed {seed}: {scenario.title}\n")
    sides = tuple(_title(result.policy) for result in results)
    columns = [_cells(result) for result in results]
    print_table(("", *sides), [(name, *(column[name] for column in columns)) for name in columns[0]])
    click.echo()
    print_table(
        ("PROMISE", *sides),
        [
            (promises[0].text, *("kept" if promise.kept else "broken" for promise in promises))
            for promises in zip(*(result.promises for result in results), strict=True)
        ],
        styles={"kept": "green", "broken": "bold red"},
    )


def _title(policy: Policy) -> str:
    return policy.upper()


def _cells(result: Result) -> dict[str, str]:
    killed = [f"{who}, who does not die" if who in result.unanswered else who for who in result.killed]
    memory = format_size(result.peak_memory_bytes)
    if result.memory_limit_bytes:
        memory += f" of {format_size(result.memory_limit_bytes)}"
    return {
        "acknowledged": format_size(result.acknowledged_bytes),
        "of it flushed": format_size(result.flushed_bytes),
        "lost": _lost(result),
        "lost though flushed": format_size(result.lost_flushed_bytes),
        "told of an error": "; ".join(map(_told, result.told)) or "nobody",
        "killed": ", ".join(killed) or "nobody",
        "never answered": ", ".join(result.unanswered) or "nobody",
        "requests answered": ", ".join(f"{who} {count}" for who, count in sorted(result.answered.items())) or "none",
        "longest wait": f"{_duration(result.longest_wait_ns)} ({result.longest_wait})",
        "writes below": f"{result.attempts}, {result.attempts_failed} failed",
        "peak memory": memory,
        "time": _duration(result.duration_ns),
    }


def _lost(result: Result) -> str:
    whose = ", ".join(f"{who} {format_size(lost_bytes)}" for who, lost_bytes in result.lost_by.items())
    return format_size(result.lost_bytes) + (f" ({whose})" if whose else "")


def _told(told: Told) -> str:
    return f"{told.who} ({told.request}: {told.error}, {told.times} x)"


def _duration(duration_ns: int) -> str:
    if duration_ns < 1_000_000_000:
        return f"{duration_ns / 1e6:.3g} ms"
    return f"{duration_ns / 1e9:.1f} s"

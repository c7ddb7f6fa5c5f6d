"""`holdfast top`: a served pool, looked at each second; or, with --waits, who waits for what in it.

What is shown as a rate is the difference of two looks at counters of the server, so nothing is counted for its sake.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from holdfast.cli.command import CommandError, ManualCommand
from holdfast.cli.locate import POOL, PoolPath, is_pool
from holdfast.cli.output import format_columns, format_held_back, format_snapshots, format_used, print_json, shorten
from holdfast.control.api import CleanerInfo, MemoryUse, PoolStatus, Statistics, VolumeInfo, WaitInfo, WaitList
from holdfast.control.client import ControlClient
from holdfast.control.group_api import GroupInfo
from holdfast.control.space_api import FillInfo
from holdfast.errors import NotFoundError
from holdfast.units import BLOCK_SIZE_BYTES, format_duration, format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

# A counter of the server, what a step of it is worth, and what its rate is called.
_RATES = (
    ("log_position", BLOCK_SIZE_BYTES, "appended"),
    ("durable_position", BLOCK_SIZE_BYTES, "made durable"),
    ("flusher_writes", 1, "writes"),
    ("flusher_syncs", 1, "syncs"),
    ("flusher_failures", 1, "failures"),
    ("map_pages_read", 1, "map pages read"),
    ("checkpoints", 1, "checkpoints"),
)


FILL_SHOWN_MAX = 5


class Snapshot(Struct, frozen=True, kw_only=True):
    """What --json prints: one look."""

    pool: PoolStatus
    statistics: Statistics
    volumes: list[VolumeInfo]
    groups: list[GroupInfo]


@dataclass(frozen=True, slots=True)
class Table:
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Screen:
    """What one look shows: titled lines, then tables."""

    lines: list[tuple[str, str]]
    tables: list[Table]


@click.command(
    name="top",
    cls=ManualCommand,
    examples=[
        ("Watch a pool, until Ctrl-C", "holdfast top ./pool"),
        ("See why a disk stands still", "holdfast top ./pool --waits"),
        ("What has waited for more than 10 s, for a script",
         "holdfast top ./pool --waits --json | jq '.waits[] | select(.since_s > 10 and (.meant | not))'"),
    ],
)  # fmt: skip
@click.argument("pool", type=POOL)
@click.option("--waits", is_flag=True, help="Show each operation that waits: for what, what it holds, who ends it.")
@click.option("--once", is_flag=True, help="One picture, then end. The default where the output is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="One look, as JSON.")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, metavar="SECONDS", help="How often to look.")
def command(pool: PoolPath, waits: bool, once: bool, as_json: bool, interval: float) -> None:
    """Watch POOL, which must be served: memory, dirty data, free segments, what is written, and its volumes.

    With --waits: each operation that waits, the longest first, with what it holds and who can end the wait.  A wait
    that is meant (a client that does not read; a volume that waits for space by its owner's wish) is marked.  Should
    operations ever wait for each other in a cycle, it is named below.
    """
    with _connect(pool) as client:
        if as_json:
            print_json(client.waits() if waits else _look(client))
            return
        look = _waits_of(client) if waits else _pool_of(client, interval)
        if once or not sys.stdout.isatty():
            _print(look())
        else:
            watch(look, pause_s=interval if waits else 0)


def _connect(pool: PoolPath) -> ControlClient:
    client = ControlClient.connect_if_served(pool.pool)
    if client is None:
        why = "nobody serves it" if is_pool(pool.pool) else "there is no pool here"
        raise CommandError(f"{pool}: {why}; `holdfast serve {pool}` does")
    return client


# --- Looks ------------------------------------------------------------------------------------------------------------


def _look(client: ControlClient) -> Snapshot:
    return Snapshot(
        pool=client.status(), statistics=client.statistics(), volumes=client.volumes(), groups=_groups_of(client)
    )


def _groups_of(client: ControlClient) -> list[GroupInfo]:
    """None where the server is older than groups are: all else can be watched still."""
    try:
        return client.groups()
    except NotFoundError:
        return []


def _pool_of(client: ControlClient, interval_s: float) -> Callable[[], Screen]:
    """Looks at the pool; each takes until so much time has passed since the one before."""
    last = _look(client)
    last_s = time.monotonic()

    def look() -> Screen:
        nonlocal last, last_s
        time.sleep(max(0.0, last_s + interval_s - time.monotonic()))
        now, now_s = _look(client), time.monotonic()
        screen = pool_screen(now, rates(last.statistics, now.statistics, now_s - last_s))
        last, last_s = now, now_s
        return screen

    return look


def _waits_of(client: ControlClient) -> Callable[[], Screen]:
    return lambda: waits_screen(client.waits())


def rates(before: Statistics, after: Statistics, seconds: float) -> dict[str, float]:
    """What happened in a second, by its name. A counter that one of the looks does not have is left out."""
    return {
        title: (after[counter] - before[counter]) * unit / seconds
        for counter, unit, title in _RATES
        if counter in before and counter in after
    }


# --- What is shown ----------------------------------------------------------------------------------------------------


def pool_screen(look: Snapshot, rate: dict[str, float]) -> Screen:
    pool, memory, segments = look.pool, look.pool.memory, look.pool.segments
    amounts = {title for _, unit, title in _RATES if unit > 1}
    shown = [
        f"{title} {format_size(round(value)) if title in amounts else f'{value:.0f}'}/s"
        for title, value in rate.items()
    ]
    resident = f"{format_size(memory.resident_bytes)} resident, {format_size(memory.accounted_bytes)} accounted for"
    held = f"map pages {memory.map_pages} of {memory.map_pages_max}"
    ring = f"ring {format_size(memory.ring_used_bytes)} of {format_size(memory.ring_bytes)}"
    held_back = f", {format_size(pool.held_bytes)} of it held back" if pool.held_bytes else ""
    used = f"{format_size(pool.used_bytes)} used of {format_size(pool.usable_bytes)} usable{held_back}"
    free = f"{segments.free} free, {segments.reserved} of them held back, {segments.unprepared} to be made"
    lines = [
        ("pool", f"{pool.path}, served by process {pool.pid}, {pool.connections} clients"),
        ("memory", f"{resident}, budget {format_size(memory.budget_bytes)}; {held}; pressure: {memory.pressure}"),
        ("dirty", f"{format_size(pool.dirty_bytes)} not durable yet; {ring}"),
        ("space", f"{used}; segments: {free}"),
        ("cleaner", _cleaner(pool.cleaner)),
        ("fill", "; ".join(map(_fill, _worth_showing(pool.fill))) or "-"),
        *([("removed", held_by_removed(pool))] if pool.removed else []),
        ("reserve", _reserve(memory)),
        ("rates", ", ".join(shown) or "-"),
    ]
    volumes = Table(
        ("NAME", "SIZE", "MAPPED", "QUOTA", "SNAPSHOTS", "CLIENTS", "DAMAGED", "FAILURES"),
        [
            (
                shorten(volume.name),
                format_size(volume.size_bytes),
                format_size(volume.mapped_bytes),
                format_size(volume.quota_bytes) if volume.quota_bytes else "-",
                format_snapshots(volume),
                str(volume.connections),
                str(len(volume.damaged)),
                str(volume.write_back_failures),
            )
            for volume in look.volumes
        ],
        frozenset({"SIZE", "MAPPED", "QUOTA", "SNAPSHOTS", "CLIENTS", "DAMAGED", "FAILURES"}),
    )
    groups = Table(
        ("GROUP", "VOLUMES", "MAPPED", "DIRTY", "MEMORY", "THROTTLED", "REFUSED"),
        [
            (
                shorten(group.name),
                str(len(group.volumes)),
                format_used(group.mapped_bytes, group.space_bytes),
                format_used(group.usage.get("ring", 0), group.dirty_bytes),
                format_used(sum(group.usage.values()), group.memory_bytes),
                f"{group.throttled_s:.1f}s",
                str(sum(group.refusals.values())),
            )
            for group in look.groups
        ],
        frozenset({"VOLUMES", "MAPPED", "DIRTY", "MEMORY", "THROTTLED", "REFUSED"}),
    )
    return Screen(lines, [table for table in (groups, volumes) if table.rows])


def held_by_removed(pool: PoolStatus) -> str:
    """What is not free yet although somebody removed it."""
    return f"{format_size(pool.removed_bytes)} held by {pool.removed} removed snapshots and volumes"


def _cleaner(cleaner: CleanerInfo) -> str:
    state = "at work" if cleaner.running else "rests" if cleaner.helps else "finds nothing to gain"
    return f"{state}; {format_size(cleaner.copied_bytes)} copied, {cleaner.segments_freed} segments came free"


def _worth_showing(fill: list[FillInfo]) -> list[FillInfo]:
    """The pool, and whatever else is nearly full."""
    others = [info for info in fill if info.kind != "pool" and info.over_percent]
    others.sort(key=lambda info: info.used_bytes / max(1, info.limit_bytes), reverse=True)
    return [info for info in fill if info.kind == "pool"] + others[:FILL_SHOWN_MAX]


def _fill(info: FillInfo) -> str:
    percent = 100 * info.used_bytes // info.limit_bytes if info.limit_bytes else 100
    name = f"{info.kind} {shorten(info.name)}" if info.name else info.kind
    used = f"{name} {percent}% ({format_used(info.used_bytes, info.limit_bytes)})"
    return f"{used}, full in {format_duration(info.full_in_s)}" if info.full_in_s is not None else used


def _reserve(memory: MemoryUse) -> str:
    """What is held back for those who must not fail."""
    parts = [f"{caller.name}: {format_held_back(caller)}" for caller in memory.reserved]
    return "; ".join(parts) or "-"


def waits_screen(found: WaitList) -> Screen:
    lines = [("waiting", str(found.total))]
    if len(found.waits) < found.total:
        lines.append(("shown", f"the {len(found.waits)} longest"))
    lines += [("CYCLE", cycle) for cycle in found.cycles]
    table = Table(
        ("SINCE", "OPERATION", "VOLUME", "CLIENT", "WAITS FOR", "HOLDS", "ENDED BY"),
        [_wait_row(wait) for wait in found.waits],
        frozenset({"SINCE"}),
    )
    return Screen(lines, [table] if found.waits else [])


def _wait_row(wait: WaitInfo) -> tuple[str, ...]:
    return (
        f"{wait.since_s:.1f}s",
        wait.operation,
        shorten(wait.volume) or "-",
        wait.peer or "-",
        wait.waits_for + (" (meant)" if wait.meant else ""),
        ", ".join(wait.held) or "-",
        ", ".join(wait.ended_by) or "-",
    )


# --- Showing it -------------------------------------------------------------------------------------------------------


def _print(screen: Screen) -> None:
    for title, value in screen.lines:
        click.echo(f"{title:<8}  {value}")
    for table in screen.tables:
        click.echo()
        for line in format_columns(table.titles, table.rows, right=table.right):
            click.echo(line)


def watch(look: Callable[[], Screen], *, pause_s: float) -> None:
    """Show each look until Ctrl-C, which is how this is meant to end."""
    from rich.live import Live

    try:
        with Live(_render(look()), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(pause_s)
                live.update(_render(look()), refresh=True)
    except KeyboardInterrupt:
        return


def _render(screen: Screen) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(f"{title:<8}  {value}", style="bold red" if title == "CYCLE" else "") for title, value in screen.lines
    ]
    for table in screen.tables:
        shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in table.titles:
            shown.add_column(title, justify="right" if title in table.right else "left", overflow="fold")
        for row in table.rows:
            shown.add_row(*map(Text, row))
        parts.append(shown)
    return Group(*parts)

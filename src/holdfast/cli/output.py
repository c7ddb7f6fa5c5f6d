"""What the commands print: tables for people, plain columns for pipes, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import click
import msgspec

from holdfast.control.api import MustSucceedInfo, VolumeInfo
from holdfast.units import format_size

# A name may have 255 characters; a few such would leave no room for the other columns.
_NAME_LENGTH_MAX = 40


def shorten(name: str) -> str:
    """A name as a table shows it. Where it must be whole (JSON, URIs, single values) it is not shortened."""
    return name if len(name) <= _NAME_LENGTH_MAX else name[: _NAME_LENGTH_MAX - 3] + "..."


def format_used(used_bytes: int, limit_bytes: int) -> str:
    """An amount, and of how much, where there is a limit."""
    return f"{format_size(used_bytes)} of {format_size(limit_bytes)}" if limit_bytes else format_size(used_bytes)


def count_snapshots(count: int) -> str:
    return "1 snapshot" if count == 1 else f"{count} snapshots"


def format_snapshots(volume: VolumeInfo) -> str:
    """How many snapshots a volume has, and what they keep beyond what newer ones and the volume have."""
    return f"{volume.snapshots} ({format_size(volume.snapshots_bytes)})" if volume.snapshots else "-"


def format_held_back(caller: MustSucceedInfo) -> str:
    """What is held back for a caller that must not fail."""
    amounts = (
        f"{caller.segments} segments" if caller.segments else "",
        f"{format_size(caller.ring_bytes)} of the ring" if caller.ring_bytes else "",
        f"{format_size(caller.staging_bytes)} of memory" if caller.staging_bytes else "",
    )
    return ", ".join(filter(None, amounts))


def print_json(value: object) -> None:
    """`value` (structures, dataclasses, lists of them) as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: frozenset[str] = frozenset(),
    styles: dict[str, str] | None = None,
) -> None:
    """A table on a terminal, the same columns without frame, colour or line breaks elsewhere.

    `right` names the columns of numbers; `styles` colours a cell that consists of one of its keys.
    """
    if sys.stdout.isatty():
        _print_rich_table(titles, rows, right=right, styles=styles or {})
    else:
        for line in format_columns(titles, rows, right=right):
            click.echo(line)


def format_columns(titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[str]) -> list[str]:
    """The lines of a plain table, title line first: columns two blanks apart, nothing at the ends of lines."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = []
    for row in (titles, *rows):
        cells = [
            cell.rjust(width) if title in right else cell.ljust(width)
            for title, cell, width in zip(titles, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _print_rich_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[str], styles: dict[str, str]
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles:
        justify: Literal["left", "right"] = "right" if title in right else "left"
        table.add_column(title, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    Console().print(table)

"""Experiments: one question each, a small table for an answer.

Each module has NAME, TITLE, `scratch_bytes(settings)`, and `run(context)`, which returns an `Experiment`.  They are not
the main table: they are measured once, and a value that surprises is measured again by running the experiment again
(`python -m bench --only NAME`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.servers import Holdfast, Server
from bench.settings import Settings

Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class Experiment:
    """A finished experiment. `rows` follow `columns`; `notes` are sentences for the reader. `plot`, where there is one,
    names the column of x, the column of y, and the column that tells the lines apart (or "")."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Value]]
    notes: list[str] = field(default_factory=list)
    plot: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Context:
    """What an experiment gets: the settings, the servers that were asked for, and a way to say how far it is."""

    settings: Settings
    servers: Sequence[Server]
    say: Callable[[str], None]

    @property
    def directory(self) -> Path:
        return self.settings.scratch / "experiment"

    @property
    def socket_path(self) -> Path:
        return self.settings.scratch / "s"

    def holdfast(self, **changes: Any) -> Holdfast:
        """Holdfast as this run has it, with other options where an experiment needs them."""
        options: dict[str, Any] = {
            "executable": self.settings.holdfast,
            "memory_bytes": self.settings.memory_bytes,
            "preallocate": False,
        }
        return Holdfast(**(options | changes))

"""Memory pressure of the host and of every control group around this process: how much room is left, and whether others
already stand still for want of it.

Two signs, the worse one counts:

    head-room   what may still be allocated before some group is at its limit, where the kernel kills without asking
                (in a group without swap no allocation is ever refused); the clean page cache counts as free
    stalls      pressure stall information (PSI): the share of the last 10 s in which some task stood still for memory,
                of the innermost group on version 2, else of the host

Read some times a second; nothing here is kept open, because groups come and go.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from holdfast.runtime.host import PROC, MemoryGroup, Place, group_places, read_groups
from holdfast.units import MIB

# Below these shares of its limit a group's head-room is little, and very little; or below these amounts.
LITTLE_PERCENT = 8
VERY_LITTLE_PERCENT = 4
LITTLE_BYTES = 16 * MIB
VERY_LITTLE_BYTES = 8 * MIB
# Percent of the time that some task stood still.
STALLED_SOME = 10.0
STALLED_HIGH = 40.0


class Level(IntEnum):
    NONE = 0
    SOME = 1
    HIGH = 2


class PressureWatch:
    """`level` looks anew. A level goes down only once it has been lower at `CALM_LOOKS` looks in a row, so that what
    is given up is not taken back at once."""

    CALM_LOOKS = 8
    LOOKS_A_SEARCH = 64  # groups seldom change, and to find them costs more than to read them

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._places: list[Place] = []
        self._psi: list[Path] = []
        self._looks = 0
        self._level = Level.NONE
        self._calmer = 0

    def level(self) -> Level:
        if self._looks % self.LOOKS_A_SEARCH == 0:
            self._places = group_places(self._proc)
            self._psi = _psi_files(self._proc, self._places)
        self._looks += 1
        seen = max(_head_room(read_groups(self._places)), _stalls(self._psi))
        if seen >= self._level:
            self._level, self._calmer = seen, 0
        else:
            self._calmer += 1
            if self._calmer >= self.CALM_LOOKS:
                self._level, self._calmer = seen, 0
        return self._level


def _head_room(groups: list[MemoryGroup]) -> Level:
    worst = Level.NONE
    for group in groups:
        left = group.headroom_bytes
        if left < min(VERY_LITTLE_BYTES, group.limit_bytes * VERY_LITTLE_PERCENT // 100):
            return Level.HIGH
        if left < min(LITTLE_BYTES, group.limit_bytes * LITTLE_PERCENT // 100):
            worst = Level.SOME
    return worst


def _stalls(files: list[Path]) -> Level:
    percent = _stalled_percent(files)
    if percent >= STALLED_HIGH:
        return Level.HIGH
    return Level.SOME if percent >= STALLED_SOME else Level.NONE


def _stalled_percent(files: list[Path]) -> float:
    """`avg10` of the line `some avg10=0.00 avg60=...`; 0 where the kernel does not keep it."""
    for path in files:
        try:
            text = path.read_text()
        except OSError:  # not built in, switched off (EOPNOTSUPP), or the group has gone
            continue
        for line in text.splitlines():
            kind, _, fields = line.partition(" ")
            if kind == "some":
                return float(dict(field.split("=") for field in fields.split())["avg10"])
    return 0.0


def _psi_files(proc: Path, places: list[Place]) -> list[Path]:
    """Where stalls are told of, the best source first."""
    own = [directory / "memory.pressure" for directory, _label, version in places[:1] if version == 2]
    return [path for path in (*own, proc / "pressure/memory") if path.exists()]

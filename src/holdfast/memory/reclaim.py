"""Reclaim: what gives memory back when some group, or the host, has too little (rows A4, A7).

Charges that are refused, and notices of pressure, are only noted where they happen. What is done about them is done
here, in a turn of its own (`Reclaimer.run`), with nobody's locks or buffers in hand, in this order:

    1. caches shrink: clean pages of the maps are dropped
    2. under pressure, what may be sacrificed is: repairs give up (`victims`)
    3. under high pressure, writers are throttled

Nothing is ever killed. A **shrinker** belongs to the room whose memory it frees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from holdfast.memory.context import Context
from holdfast.memory.group import Group, Kind


class Pressure(IntEnum):
    """What the host, or a control group around us, says (runtime/pressure.py)."""

    NONE = 0
    SOME = 1  # clean caches are to give way
    HIGH = 2  # whatever can be done without is


@dataclass(frozen=True, slots=True)
class Shrinker:
    """`shrink(group)`: drop a batch of what is clean, of this group, or of all if it is the root; returns the bytes
    that came free for others. `give_back(pressure)`: hand memory to the host, or take it again when there is no
    pressure any more; returns the bytes handed over."""

    name: str
    kind: Kind
    shrink: Callable[[Group], int]
    give_back: Callable[[Pressure], int]


class Reclaimer:
    def __init__(self) -> None:
        self.shrinkers: list[Shrinker] = []
        self.victims: list[Callable[[Pressure], None]] = []  # repairs, and whoever else gives up first
        self.pressure = Pressure.NONE
        self.io_wanted: set[Kind] = set()  # kinds that only I/O can free; the engine sees to it, and clears it
        self.reclaimed_bytes = [0] * len(Kind)
        self.given_back_bytes = 0
        self.runs = 0
        self.short: dict[tuple[int, Kind], Group] = {}  # what `run` is wanted for

    def note_shortage(self, group: Group, kind: Kind, context: Context) -> None:
        """A charge was refused by `group`: the part of reclaim that runs in the context of a caller."""
        self.short[group.number, kind] = group
        if context.may_start_io:
            self.io_wanted.add(kind)

    def note_pressure(self, pressure: Pressure) -> None:
        self.pressure = pressure

    def run(self) -> int:
        """Let the caches of the groups that are short shrink; returns the bytes that came free."""
        short, self.short = self.short, {}
        freed = 0
        self.runs += 1
        for (_number, kind), group in short.items():
            for shrinker in self.shrinkers:
                # A limit on all kinds together is short of all of them.
                if shrinker.kind is kind or group.total_bytes >= group.limit_bytes:
                    count = shrinker.shrink(group)
                    self.reclaimed_bytes[shrinker.kind] += count
                    freed += count
        return freed

    def under_pressure(self) -> int:
        """To be called some times a second: hand memory to the host as long as it has too little."""
        given = sum(shrinker.give_back(self.pressure) for shrinker in self.shrinkers)
        self.given_back_bytes += given
        if self.pressure is not Pressure.NONE:
            for victim in self.victims:
                victim(self.pressure)
        return given

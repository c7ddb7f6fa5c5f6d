"""What a planted bug is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """`bug`: the mistake. `breaks`: the promise (P1..P8) or the row of ORIGINS.md that is not kept with it. `filling`:
    runs that fill pools (`holdfast.sim.filling`) are to find it."""

    name: str
    bug: str
    breaks: str
    module: str
    old: str
    new: str
    filling: bool = False

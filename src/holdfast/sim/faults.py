"""What can go wrong in the simulated world, where, and how often it did.

A **fault point** is a place where the engine asks the world for something; a **kind** is a way in which that can fail.
`FAULTS` is all of them. A run turns some of them on, each with a rate; `Faults.strike` draws, and counts what struck,
so that a campaign can tell which pairs were tried and that none was left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from errno import EAGAIN, EINTR, EIO, ENOMEM, ENOSPC
from random import Random

from holdfast.runtime.ports import PREPARE, READ, REMOVE, SUPERBLOCK, SYNC, WRITE, Io

# Kinds that are an errno.
ERRNOS = {"EIO": EIO, "ENOSPC": ENOSPC, "ENOMEM": ENOMEM, "EINTR": EINTR, "EAGAIN": EAGAIN}
# A part of the operation is done, and then it fails: what is left of a short count when the disk cannot go on.
SHORT = "short"
# Damage: the operation says that it went well.
FLIP = "flip"  # one reading returns a changed bit; the next one may not
ROT = "rot"  # the stored bytes change afterwards
FORGET = "forget"  # a write that is never carried out
MISDIRECT = "misdirect"  # a write that lands somewhere else
REFUSE = "refuse"  # a charge of memory, a worker that cannot be had

VANISH = "vanish"  # the client is gone, just when the server has something to tell it

FAILURES = (*ERRNOS, SHORT)
DAMAGE = (ROT, FORGET, MISDIRECT)

POINTS: dict[str, tuple[str, ...]] = {
    "read": (*FAILURES, FLIP),
    "read cached": (FLIP,),
    "write": (*FAILURES, *DAMAGE),
    "write superblock": FAILURES,
    "sync": tuple(ERRNOS),
    "prepare": tuple(ERRNOS),
    "remove": tuple(ERRNOS),
    "map pages": (REFUSE,),
    "read buffers": (REFUSE,),
    "ring": (REFUSE,),
    "state": (REFUSE,),
    "staging": (REFUSE,),
    "worker": (REFUSE,),
    "send": (VANISH,),
}
FAULTS: tuple[tuple[str, str], ...] = tuple((point, kind) for point, kinds in POINTS.items() for kind in kinds)

_POINT_OF_OP = {READ: "read", WRITE: "write", SYNC: "sync", PREPARE: "prepare", REMOVE: "remove"}


def point_of(io: Io) -> str:
    if io.op == WRITE and io.file == SUPERBLOCK:
        return "write superblock"
    return _POINT_OF_OP[io.op]


@dataclass(slots=True)
class Faults:
    """Which faults are on, with what rate, and what struck so far.

    `countdown`: the fault (point or "", kind) strikes once, at the call after so many; for exhaustive loops.
    """

    rng: Random
    rates: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    struck: Counter[tuple[str, str]] = field(default_factory=Counter)
    offered: Counter[str] = field(default_factory=Counter)
    countdown: tuple[str, str, int] | None = None

    def turn_on(self, point: str, kind: str, rate: float) -> None:
        assert kind in POINTS[point], (point, kind)
        self.rates.setdefault(point, []).append((kind, rate))

    def calm(self) -> None:
        """Nothing fails any more."""
        self.rates.clear()
        self.countdown = None

    def strike(self, point: str) -> str:
        """The kind of fault that strikes now at this point, or ""."""
        self.offered[point] += 1
        if self.countdown is not None:
            kind = self._count_down(point)
            if kind:
                return self._note(point, kind)
        for kind, rate in self.rates.get(point, ()):
            if self.rng.random() < rate:
                return self._note(point, kind)
        return ""

    def _count_down(self, point: str) -> str:
        assert self.countdown is not None
        where, kind, left = self.countdown
        if where not in ("", point) or kind not in POINTS[point]:
            return ""
        if left:
            self.countdown = where, kind, left - 1
            return ""
        self.countdown = None
        return kind

    def _note(self, point: str, kind: str) -> str:
        self.struck[point, kind] += 1
        return kind

    def failing(self) -> bool:
        """True while writing back may fail, or a volume's damage be found."""
        return bool(self.rates) or self.countdown is not None


def describe(struck: Counter[tuple[str, str]]) -> Iterator[tuple[str, str, int]]:
    """Each fault there is with the number of times that it struck: none is left out."""
    for point, kind in FAULTS:
        yield point, kind, struck[point, kind]

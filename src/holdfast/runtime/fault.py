"""Faults on purpose: `serve --fault POINT=ERRNO:1/N` makes one in N attempts at a named point fail.

For people who want to see what their stack does when a disk, memory or a thread cannot be had, and for our own tests of
the real server. A rule is

    POINT=ERRNO[:1/N][,seed=S][,after=K][,count=C][,for=SECONDS]

    1/N    how often, drawn for each attempt; always, without it
    seed   of the draws: the same seed strikes the same attempts
    after  the first K attempts at the point are spared
    count  strikes at most so often
    for    strikes for so long, from its first strike on
"""

from __future__ import annotations

import errno
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from holdfast.errors import RequestError
from holdfast.runtime.ports import PREPARE, READ, REMOVE, SUPERBLOCK, SYNC, WRITE, Io

SHORT = "short"  # half of it is written, and then the disk cannot go on

_IO_ERRNOS = ("EIO", "ENOSPC", "ENOMEM", "EAGAIN", "EINTR", "EDQUOT", "EROFS", "ETIMEDOUT", "ENODEV")
# What is attempted at each point, and how that can fail.
FAULT_POINTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "writeback": ("a write of the log to a segment file", (*_IO_ERRNOS, SHORT)),
    "flush": ("making written data durable: a sync, or a durable write", _IO_ERRNOS),
    "checkpoint": ("a write of the superblock", _IO_ERRNOS),
    "read": ("a read of a segment file that the page cache does not serve", _IO_ERRNOS),
    "prepare": ("making a new segment file", _IO_ERRNOS),
    "remove": ("deleting the file of a segment that the pool does not need any more", _IO_ERRNOS),
    "charge": ("a charge for a page of the map or a read buffer", ("ENOMEM",)),
    "worker": ("starting a thread for I/O", ("EAGAIN",)),
    "ring": ("making the ring in one of its directories", ("ENOSPC",)),
}
_RULE = re.compile(r"(?P<point>\w+)=(?P<kind>\w+)(:1/(?P<one_in>\d+))?(?P<options>(,\w+=[\d.]+)*)")
_OPTIONS = ("seed", "after", "count", "for")


@dataclass(frozen=True, slots=True)
class FaultRule:
    point: str
    kind: str
    one_in: int = 1
    seed: int = 0
    after: int = 0
    count: int | None = None
    duration_ns: int | None = None

    @property
    def errno(self) -> int:
        return errno.EIO if self.kind == SHORT else int(getattr(errno, self.kind))


def parse_fault(text: str) -> FaultRule:
    """Raises RequestError for what is no rule."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise RequestError(
            f"{text!r} is no fault; write POINT=ERRNO:1/N[,seed=S][,after=K][,count=C][,for=SECONDS], "
            "such as writeback=ENOMEM:1/16"
        )
    point, kind = match["point"], match["kind"]
    if point not in FAULT_POINTS:
        raise RequestError(f"there is no fault point {point!r}; there are {', '.join(FAULT_POINTS)}")
    kinds = FAULT_POINTS[point][1]
    if kind not in kinds:
        raise RequestError(f"{point} cannot fail with {kind!r}; it can with {', '.join(kinds)}")
    one_in = int(match["one_in"] or 1)
    if one_in < 1:
        raise RequestError(f"{text!r}: 1/0 is no rate; 1/1 strikes each time")
    options: dict[str, str] = {}
    for option in filter(None, match["options"].split(",")):
        name, _, value = option.partition("=")
        if name not in _OPTIONS or name in options:
            raise RequestError(f"{text!r}: {option!r} is no option; there are {', '.join(_OPTIONS)}, each once")
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?" if name == "for" else r"\d{1,18}", value):
            kind = "seconds" if name == "for" else "a whole number"
            raise RequestError(f"{text!r}: {option!r} is not {kind}")
        options[name] = value
    return FaultRule(
        point=point,
        kind=kind,
        one_in=one_in,
        seed=int(options.get("seed", 0)),
        after=int(options.get("after", 0)),
        count=int(options["count"]) if "count" in options else None,
        duration_ns=int(float(options["for"]) * 1e9) if "for" in options else None,
    )


def point_of(io: Io) -> str:
    if io.op == WRITE:
        return "checkpoint" if io.file == SUPERBLOCK else "writeback"
    return {READ: "read", SYNC: "flush", PREPARE: "prepare", REMOVE: "remove"}[io.op]


@dataclass(slots=True)
class _Course:
    """A rule, and how far it has got."""

    rule: FaultRule
    rng: Random
    seen: int = 0
    struck: int = 0
    until_ns: int | None = None

    def strikes(self, now_ns: Callable[[], int]) -> bool:
        rule = self.rule
        self.seen += 1
        if self.seen <= rule.after or (rule.count is not None and self.struck >= rule.count):
            return False
        if self.until_ns is not None and now_ns() > self.until_ns:
            return False
        if rule.one_in > 1 and self.rng.randrange(rule.one_in):
            return False
        if rule.duration_ns is not None and self.until_ns is None:
            self.until_ns = now_ns() + rule.duration_ns
        self.struck += 1
        return True


@dataclass(slots=True)
class FaultInjector:
    """Says of each attempt whether it is to fail. `told` is called with a line for people for each one that is."""

    rules: Sequence[FaultRule]
    now_ns: Callable[[], int] = time.monotonic_ns
    told: Callable[[str], None] = lambda _text: None
    struck: Counter[str] = field(default_factory=Counter)  # by point
    _courses: dict[str, list[_Course]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rule in self.rules:
            self._courses.setdefault(rule.point, []).append(_Course(rule, Random(rule.seed)))

    def watches(self, point: str) -> bool:
        return point in self._courses

    def strike(self, point: str, what: object) -> FaultRule | None:
        """The rule by which this attempt at `what` fails, or None."""
        for course in self._courses.get(point, ()):
            if course.strikes(self.now_ns):
                self.struck[point] += 1
                self.told(f"fault {point}={course.rule.kind}: {what}")
                return course.rule
        return None

"""What a play of a situation is, and what comes out of it.

A scenario is played to one **policy** at a time: `today`, the behaviour of today's kernel in the lower layer, or
`holdfast`. Its scripts are the same for both, and so are its promises: sentences that the result is held to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

Policy = Literal["today", "holdfast"]
POLICIES: tuple[Policy, ...] = ("today", "holdfast")


@dataclass(frozen=True, slots=True)
class Told:
    """`who` was told `error`, the name of an errno, so many times, in answer to a `request` of that kind."""

    who: str
    request: str
    error: str
    times: int


@dataclass(frozen=True, slots=True)
class Promise:
    text: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What a play came to. Bytes are counted in whole blocks; times are simulated."""

    scenario: str
    policy: Policy
    seed: int
    acknowledged_bytes: int  # written, and the writer was told so
    flushed_bytes: int  # ... of these, covered by a FLUSH that was told to have succeeded
    lost_bytes: int  # acknowledged, and at the end they read as something else
    lost_flushed_bytes: int
    told: tuple[Told, ...]
    killed: tuple[str, ...]
    answered: dict[str, int]  # who -> requests of his that were answered with success
    acknowledged_by: dict[str, int]  # who -> bytes
    lost_by: dict[str, int]  # who had written them -> bytes
    unanswered: tuple[str, ...]  # who still waits for an answer at the end
    longest_wait_ns: int
    longest_wait: str  # who waited that long, and for what
    longest_wait_by_ns: dict[str, int]
    attempts: int  # operations on the layer below
    attempts_failed: int
    duration_ns: int
    peak_memory_bytes: int
    memory_limit_bytes: int  # 0: none
    promises: tuple[Promise, ...] = ()

    @property
    def kept(self) -> bool:
        return all(promise.kept for promise in self.promises)

    def was_told(self, who: str, error: str) -> bool:
        return any(told.who == who and told.error == error for told in self.told)


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    at_ns: int
    lane: str
    kind: str


@dataclass(frozen=True, slots=True)
class Span:
    """Somebody waited. `over` is False if he still did at the end."""

    begin_ns: int
    end_ns: int
    lane: str
    over: bool


@dataclass(frozen=True, slots=True)
class Play:
    """A result, and what a picture shows of the way there. Times count from the beginning of the play."""

    result: Result
    lanes: tuple[str, ...]
    marks: list[Mark] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)  # time, bytes in use from then on


Promises = tuple[tuple[str, Callable[[Result], bool]], ...]


def hold_to(play: Play, promises: Promises) -> Play:
    kept = tuple(Promise(text, holds(play.result)) for text, holds in promises)
    return replace(play, result=replace(play.result, promises=kept))


class Scenario(Protocol):
    """`write` gets the lines of the trace."""

    def __call__(self, policy: Policy, seed: int, write: Callable[[str], None] | None) -> Play: ...

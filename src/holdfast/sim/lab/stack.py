"""What both sides have in common: people who begin, a clock that goes on, a disk that is watched.

A **stack** is what stands between the people and the disk: holdfast, or today's kernel. A scenario is written against
this class, and so is the same for both.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

from holdfast.runtime.ports import WRITE, Io
from holdfast.sim.lab.actor import Actor, Party, Script, Wait, sleep
from holdfast.sim.lab.journal import Journal
from holdfast.sim.lab.scenario import Play, Policy
from holdfast.sim.loop import SimClock, SimLoop
from holdfast.sim.trace import Trace
from holdfast.units import BLOCK_SIZE_BYTES


class WatchedTrace(Trace):
    """A trace that somebody looks at while it is made."""

    def __init__(self, write: Callable[[str], None] | None) -> None:
        super().__init__(write)
        self.watch: Callable[[str, str, object], None] = lambda who, what, detail: None

    def note(self, at_ns: int, who: str, what: str, detail: object = "") -> None:
        super().note(at_ns, who, what, detail)
        self.watch(who, what, detail)


# A disk that is none of the stack's business, has room, and never fails.
ELSEWHERE = "elsewhere"


class Stack(ABC):
    policy: Policy

    def __init__(self, clock: SimClock, trace: WatchedTrace) -> None:
        self.clock = clock
        self.trace = trace
        self.journal = Journal(clock, trace)
        self.actors: dict[str, Actor] = {}
        self.elsewhere: dict[int, bytes] = {}
        trace.watch = self._watch

    @property
    @abstractmethod
    def loop(self) -> SimLoop: ...

    @abstractmethod
    def connect(self, who: str, disk: str) -> Wait:
        """The wait for a DiskClient."""

    @abstractmethod
    def fail_writes(self, kind: str, rate: float) -> None:
        """From now on each write on the layer below fails so, with this probability; 0: none does."""

    @abstractmethod
    def lose_power(self) -> None:
        """Power off and on again. The people are gone."""

    @abstractmethod
    def read_back(self, disk: str, first: int, count: int) -> bytes | None:
        """What is there, at the very end; None if it cannot be read."""

    @abstractmethod
    def attempts(self) -> tuple[int, int]:
        """Writes on the layer below, and how many of them failed."""

    @property
    @abstractmethod
    def memory_limit_bytes(self) -> int: ...

    # ---- people

    def begin(self, who: str, script: Script) -> None:
        """Somebody begins."""
        self.actors[who] = Actor(script)

    def party(self, who: str, disk: str) -> Script:
        """The script by which somebody opens a disk; returns a Party."""
        client = yield self.connect(who, disk)
        return Party(who, self.journal, disk, client)

    def sleep(self, duration_ns: int) -> Wait:
        return sleep(self.loop, duration_ns)

    def over(self) -> bool:
        return all(actor.over for actor in self.actors.values())

    # ---- time

    def go_on(self, duration_ns: int, until: Callable[[], bool]) -> bool:
        """Go on until something holds, for so long at most; returns whether it does."""
        end_ns = self.clock.at_ns + duration_ns
        while not until():
            if self.clock.at_ns > end_ns:
                return False
            self.loop.turn()
        return True

    # ---- the end

    def finish(
        self,
        scenario: str,
        seed: int,
        lanes: tuple[str, ...],
        *,
        before_reading: Callable[[], object] = lambda: None,
    ) -> Play:
        attempts, attempts_failed = self.attempts()
        return self.journal.play(
            scenario=scenario,
            policy=self.policy,
            seed=seed,
            lanes=lanes,
            before_reading=before_reading,
            read_back=self._read_back,
            attempts=attempts,
            attempts_failed=attempts_failed,
            memory_limit_bytes=self.memory_limit_bytes,
        )

    def _read_back(self, disk: str, first: int, count: int) -> bytes | None:
        if disk != ELSEWHERE:
            return self.read_back(disk, first, count)
        return b"".join(self.elsewhere.get(lba, bytes(BLOCK_SIZE_BYTES)) for lba in range(first, first + count))

    # ---- what the simulated disk does

    def _watch(self, who: str, what: str, detail: object) -> None:
        if not isinstance(detail, Io) or detail.op != WRITE or detail.file < 0:
            return
        if who == "fault":
            self.journal.mark("write-back", "fails", what)
        elif who == "disk" and what == "done" and detail.result == 0:
            self.journal.mark("disk", "written")


class LogLines(logging.Handler):
    """What the simulated server logs goes into the trace, and not to whoever runs the lab.

    A context: within it the logger `holdfast` has this handler and no other."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(logging.INFO)
        self._stack = stack
        self._logger = logging.getLogger("holdfast")

    def emit(self, record: logging.LogRecord) -> None:
        self._stack.trace.note(self._stack.clock.at_ns, "server", "logs", record.getMessage())

    def __enter__(self) -> None:
        logger = self._logger
        self._before = logger.handlers, logger.propagate, logger.level
        logger.handlers = [self]
        logger.propagate = False
        logger.setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        self._logger.handlers, self._logger.propagate, level = self._before
        self._logger.setLevel(level)

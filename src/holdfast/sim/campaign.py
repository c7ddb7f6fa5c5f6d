"""Many runs: seeds spread over processes, progress told, failures gathered, and what was tried counted."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from holdfast.sim.exhaustive import Case, run_case
from holdfast.sim.faults import FAULTS
from holdfast.sim.run import Outcome
from holdfast.sim.shrink import Kind, run_edited

# A hundred times what the longest runs take.
RUN_S_MAX = 120.0
# How often it is looked whether the processes are alive.
LOOK_S = 0.02
# Of this many seeds it is expected that they try every fault there is.
COVERING_SEEDS = 1000


@dataclass(slots=True)
class Tally:
    """What a campaign came to."""

    seeds: int = 0
    operations: int = 0
    operations_least: int = 0  # in the shortest run
    crashes: int = 0
    power_failures: int = 0
    effects: int = 0
    cycles: int = 0  # of filling a pool and letting go
    simulated_ns: int = 0
    seconds: float = 0.0
    struck: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    interrupted: bool = False

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.operations_least = min(outcome.operations, self.operations_least) if self.seeds > 1 else outcome.operations
        self.operations += outcome.operations
        self.crashes += outcome.crashes
        self.power_failures += outcome.power_failures
        self.effects += outcome.effects
        self.cycles += outcome.cycles
        self.simulated_ns += outcome.simulated_ns
        self.struck += outcome.struck
        if outcome.failure:
            self.failures.append(outcome)

    def untried(self) -> list[tuple[str, str]]:
        """Faults that never struck."""
        return [fault for fault in FAULTS if not self.struck[fault]]


def run_seeds(
    first: int,
    count: int | None,
    operations: int,
    *,
    jobs: int,
    minutes: float | None,
    each: Callable[[Outcome], None],
    kind: Kind = Kind.MIXED,
) -> Tally:
    """Run seeds from `first` on in `jobs` processes, `count` of them or until the time is up; `each` hears of every one
    that ended."""
    tally = Tally()
    started = time.monotonic()
    deadline = None if minutes is None else started + 60 * minutes
    try:
        for outcome in _spread(partial(run_one, operations=operations, kind=kind), first, count, jobs, deadline):
            tally.add(outcome)
            each(outcome)
    except KeyboardInterrupt:
        tally.interrupted = True  # what was done until then counts
    tally.seconds = time.monotonic() - started
    return tally


def run_cases(cases: list[Case], *, jobs: int, each: Callable[[], None]) -> list[tuple[Case, str]]:
    """Run the exhaustive loops; returns the cases that broke a promise."""
    broken = []
    for case, failure in _spread(partial(_run_case, cases), 0, len(cases), jobs, None):
        if failure:
            broken.append((case, failure))
        each()
    return broken


def run_one(seed: int, operations: int, kind: Kind) -> Outcome:
    return run_edited(seed, operations, [], kind=kind)


def _run_case(cases: list[Case], number: int) -> tuple[Case, str]:
    return cases[number], run_case(cases[number])


def _spread(
    work: Callable[[int], Any], first: int, count: int | None, jobs: int, deadline: float | None
) -> Iterator[Any]:
    """`work` of each number from `first` on, in so many processes, each of which takes the next when it is done. What
    comes of it arrives in any order. Raises RuntimeError if a process ends before its time."""
    context = multiprocessing.get_context("spawn")
    taken = context.Value("q", 0)
    results: multiprocessing.SimpleQueue[Any] = context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(work, first, count, taken, deadline, results), daemon=True)
        for _ in range(jobs)
    ]
    for process in processes:
        process.start()
    running = jobs
    try:
        while running:
            while results.empty() and all(process.exitcode in (None, 0) for process in processes):
                wait([process.sentinel for process in processes if process.exitcode is None], LOOK_S)
            if results.empty():
                raise RuntimeError("a process of the simulator was killed: is memory short?")
            result = results.get()
            if result is None:
                running -= 1
            else:
                yield result
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(
    work: Callable[[int], Any],
    first: int,
    count: int | None,
    taken: Any,  # a shared counter, whose type has no public name
    deadline: float | None,
    results: multiprocessing.SimpleQueue[Any],
) -> None:
    """In a process of its own: take the next number until there is none. The last result is None."""
    _quieten()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees to the end
    gc.collect()
    gc.freeze()
    gc.disable()  # what a run leaves is collected after it, all at once
    parent = multiprocessing.parent_process()
    while (deadline is None or time.monotonic() < deadline) and parent is not None and parent.is_alive():
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if count is not None and number >= count:
            break
        with time_limit():
            result = work(first + number)
        results.put(result)
        gc.collect()
    results.put(None)


def _quieten() -> None:
    """The engine has every reason to complain in these runs, and nobody to read it."""
    logging.disable(logging.CRITICAL)


@contextmanager
def time_limit(seconds: float = RUN_S_MAX) -> Iterator[None]:
    """Raise AssertionError inside of the block when it takes longer: an end to runs that would not end, for what loops
    without letting simulated time pass. In the main thread only, for signals reach no other."""

    def over(_signal: int, frame: FrameType | None) -> None:
        where = "" if frame is None else f", in {frame.f_code.co_qualname} of {frame.f_code.co_filename}"
        raise AssertionError(f"it had not ended after {seconds:.0f} seconds{where}")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

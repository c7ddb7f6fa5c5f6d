"""What all fuzzers share: cases one after the other until the time is over, and a failing one that is replayed alone.

A case is the number of it and a seed: together they make its generator of random numbers, and nothing else goes in. So
the command that a failure prints, with `--only`, does again what failed.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Fuzzer:
    """`path`: of the script, from the root of the repository. `checks`: taken in turn; one that raises has found
    something, unless it is one of the `answers`: errors that are a right answer to what was made up."""

    path: str
    description: str
    checks: Sequence[Callable[[Random], None]]
    answers: tuple[type[Exception], ...] = ()

    def run_case(self, seed: int, number: int) -> None:
        try:
            self.checks[number % len(self.checks)](Random(f"{seed}:{number}"))
        except self.answers:
            return

    def fuzz(self, *, seconds: float, seed: int) -> int:
        """Run cases until the time is over; the number of them. A failing one raises, with its command in a note."""
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            try:
                self.run_case(seed, number)
            except Exception as failure:
                failure.add_note(f"replay: python {self.path} --seed {seed} --only {number}")
                raise
            number += 1
        return number

    def main(self) -> int:
        """The command line; returns the exit code, or raises what a case has found."""
        parser = argparse.ArgumentParser(description=self.description)
        parser.add_argument("--seconds", type=float, default=10)
        parser.add_argument("--seed", type=int, default=1)
        parser.add_argument("--only", type=int, help="run this case alone")
        arguments = parser.parse_args()
        logging.disable(logging.CRITICAL)  # thousands of complaints about what was damaged on purpose
        if arguments.only is not None:
            self.run_case(arguments.seed, arguments.only)
            print(f"case {arguments.only} of seed {arguments.seed} passed")
            return 0
        print(f"seed {arguments.seed}", flush=True)
        print(f"{self.fuzz(seconds=arguments.seconds, seed=arguments.seed)} cases passed")
        return 0

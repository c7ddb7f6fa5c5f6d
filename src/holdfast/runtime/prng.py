"""The real source of randomness behind the `Prng` port: the kernel's, so that no seed has to be kept or guessed."""

from __future__ import annotations

import os
import random


class SystemPrng:
    """Identifiers and jitter. Not on the hot path, so that a system call for each number does not matter."""

    __slots__ = ("_random",)

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def below(self, bound: int) -> int:
        assert bound > 0, bound
        return self._random.randrange(bound)

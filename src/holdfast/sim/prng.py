"""The seed, and everything that is drawn from it."""

from __future__ import annotations

from random import Random


class SeededPrng:
    """The `Prng` port."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def below(self, bound: int) -> int:
        return self._rng.randrange(bound)


def stream(seed: int | str, purpose: str) -> Random:
    """A generator of its own for each purpose, so that one more draw for one of them changes nothing of the others.

    The seed is text, which Python hashes by SHA-512: the same in each process, whatever PYTHONHASHSEED.
    """
    return Random(f"{purpose} {seed}")

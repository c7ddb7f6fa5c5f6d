"""Victims that were of no use to the cleaner, so that it does not look at them again and again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from holdfast.pool.space import SpaceTable
from holdfast.runtime.ports import Clock

# Until when, besides a time: in any case only for as long as the victim has as many live blocks.
FOR_GOOD = -1  # damage, or blocks that are neither data nor pages
UNTIL_CHECKPOINT = -2  # the next one writes all that is live in it somewhere else


class SetAside:
    """All fields belong to the loop thread."""

    def __init__(self, space: SpaceTable, clock: Clock) -> None:
        self._space = space
        self._clock = clock
        self._victims: dict[int, tuple[int, int]] = {}  # live blocks that it had, and until when

    def renew(self) -> None:
        """The pool has another capacity."""
        for segment in [segment for segment in self._victims if segment >= self._space.capacity_segments]:
            del self._victims[segment]

    def put(self, segment: int, until_ns: int) -> None:
        self._victims[segment] = self._space.live_words[segment], until_ns

    def take_out_of(self, candidates: npt.NDArray[np.bool_]) -> None:
        """Strike out those that are set aside; forget those for which that is over."""
        now_ns = self._clock.now_ns()
        for segment, (live, until_ns) in list(self._victims.items()):
            if self._space.live_words[segment] != live or 0 <= until_ns <= now_ns:
                del self._victims[segment]
            else:
                candidates[segment] = False

    def is_over(self) -> bool:
        """True if the time of one of them is."""
        now_ns = self._clock.now_ns()
        return any(0 <= until_ns <= now_ns for _, until_ns in self._victims.values())

    def waits_for_checkpoint(self) -> bool:
        """True if a checkpoint empties one of them."""
        return any(until_ns == UNTIL_CHECKPOINT for _, until_ns in self._victims.values())

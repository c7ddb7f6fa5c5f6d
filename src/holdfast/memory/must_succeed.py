"""The callers that must not fail, each with its worst case, and the reserve that follows from them (row A6).

Whoever is what others wait for when something runs short is listed here: were it refused, nothing would ever come free
again. What is held back of segments, of the ring and of memory is computed from this list and from nothing else.
`holdfast doctor` and `holdfast top` show it.
"""

from __future__ import annotations

from dataclasses import dataclass

COMMIT_OVERHEAD_PERCENT = 2  # there is a header for each 252 blocks, and some commits are not full


@dataclass(frozen=True, slots=True)
class MustSucceed:
    """The worst case of one caller, for one time that it runs.

    log_blocks      blocks that it appends to the log, commit headers not counted
    times           how often it may run before what it needs has come free again
    segments        that it may begin on top, because those before it are not full
    ring_blocks     slots of the ring without which it does not get on at all: more come free as it goes
    staging_bytes   memory in which it puts together what it writes
    """

    name: str
    why: str
    log_blocks: int = 0
    times: int = 1
    segments: int = 0
    ring_blocks: int = 0
    staging_bytes: int = 0

    def segments_needed(self, segment_blocks: int) -> int:
        blocks = self.times * self.log_blocks * (100 + COMMIT_OVERHEAD_PERCENT)
        return -(-blocks // 100 // segment_blocks) + self.segments


class Registry:
    """By name, in the order in which they were registered."""

    def __init__(self, segment_blocks: int) -> None:
        self._segment_blocks = segment_blocks
        self._callers: dict[str, MustSucceed] = {}

    def register(self, caller: MustSucceed) -> None:
        """Add a caller, or change its worst case."""
        self._callers[caller.name] = caller

    @property
    def callers(self) -> list[MustSucceed]:
        return list(self._callers.values())

    def segments(self, *names: str) -> int:
        """Segments that these callers need, or all of them."""
        return sum(
            caller.segments_needed(self._segment_blocks) for caller in self.callers if not names or caller.name in names
        )

    @property
    def ring_blocks(self) -> int:
        """They run one after another in the ring, each behind what the flusher has written: the largest counts, once
        for the one that appends and once for the end of the segment that it finds."""
        return sum(sorted((caller.ring_blocks for caller in self.callers), reverse=True)[:2])

    @property
    def staging_bytes(self) -> int:
        """They run at the same time: the sum counts."""
        return sum(caller.staging_bytes for caller in self.callers)

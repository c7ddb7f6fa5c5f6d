"""What everybody asked for, when, and what he was told.

Each written block has a content of its own, by which it is known again at the end: **lost** is what was acknowledged
and then cannot be read back. Nothing else is taken for it, whatever the layers in between may think.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from errno import errorcode

from holdfast.sim.lab.scenario import Mark, Play, Policy, Result, Span, Told
from holdfast.sim.loop import SimClock
from holdfast.sim.trace import Trace
from holdfast.units import BLOCK_SIZE_BYTES

# How many blocks are read back at a time.
_RUN_BLOCKS = 256

# Reads blocks [first, first + count) of a disk; None if that fails.
ReadBack = Callable[[str, int, int], bytes | None]


@dataclass(slots=True)
class _Block:
    who: str
    stamp: int
    moment: int


class Journal:
    def __init__(self, clock: SimClock, trace: Trace) -> None:
        self.moment = 0  # counts acknowledged writes
        self.began_ns = clock.at_ns
        self.killed: list[str] = []
        self.peak_memory_bytes = 0
        self._clock = clock
        self._trace = trace
        self._stamp = 0
        self._blocks: dict[tuple[str, int], _Block] = {}
        self._flushed: dict[str, int] = {}  # disk -> acknowledged before this moment is flushed
        self._dropped: dict[tuple[str, int], int] = {}  # when a layer gave up on a block
        self._died: dict[str, int] = {}
        self._told: Counter[tuple[str, str, str]] = Counter()
        self._answered: Counter[str] = Counter()
        self._requests: dict[int, tuple[str, str, int]] = {}  # that wait for their answer
        self._request = 0
        self._longest: dict[str, tuple[int, str]] = {}  # who -> how long, for what
        self._marks: list[Mark] = []
        self._spans: list[Span] = []
        self._memory: list[tuple[int, int]] = []

    def begin(self) -> None:
        """Everything is set up: time counts from now."""
        self.began_ns = self._clock.at_ns
        self._marks.clear()
        self._memory.clear()

    # ---- what happens

    def mark(self, lane: str, kind: str, detail: object = "") -> None:
        self._marks.append(Mark(self._clock.at_ns - self.began_ns, lane, kind))
        self._trace.note(self._clock.at_ns, lane, kind, detail)

    def memory_is(self, used_bytes: int) -> None:
        self.peak_memory_bytes = max(self.peak_memory_bytes, used_bytes)
        if not self._memory or self._memory[-1][1] != used_bytes:
            self._memory.append((self._clock.at_ns - self.began_ns, used_bytes))

    def kill(self, who: str) -> None:
        """SIGKILL for somebody. It may take him some time to die."""
        self.killed.append(who)
        self.mark(who, "killed")

    def dead(self, who: str) -> None:
        """Nobody waits any more for what he had asked for."""
        self._died[who] = self._clock.at_ns - self.began_ns
        self._requests = {number: request for number, request in self._requests.items() if request[0] != who}

    # ---- requests

    def begun(self, who: str, what: str) -> int:
        self._request += 1
        self._requests[self._request] = who, what, self._clock.at_ns
        return self._request

    def answered(self, number: int, errno: int) -> None:
        request = self._requests.pop(number, None)
        if request is None:
            return  # he was killed in the meantime
        who, what, begun_ns = request
        self._waited(who, what, begun_ns, over=True)
        if errno:
            name = errorcode.get(errno, str(errno))
            self._told[who, what, name] += 1
            self.mark(who, "told an error", f"{what} {name}")
        else:
            self._answered[who] += 1
            self.mark(who, {"FLUSH": "flushed", "TRIM": "trimmed"}.get(what, "answered"), what)

    def _waited(self, who: str, what: str, begun_ns: int, *, over: bool) -> None:
        now_ns = self._clock.at_ns
        self._spans.append(Span(begun_ns - self.began_ns, now_ns - self.began_ns, who, over))
        self._longest[who] = max(self._longest.get(who, (0, "")), (now_ns - begun_ns, what))

    # ---- blocks

    @staticmethod
    def content(stamp: int) -> bytes:
        return stamp.to_bytes(8, "big") * (BLOCK_SIZE_BYTES // 8)

    def new_stamps(self, count: int) -> range:
        first = self._stamp + 1
        self._stamp += count
        return range(first, first + count)

    def acknowledged(self, who: str, disk: str, first: int, stamps: range) -> None:
        """Somebody was told that blocks are written, with these stamps as their contents."""
        self.moment += 1
        for lba, stamp in enumerate(stamps, first):
            self._blocks[disk, lba] = _Block(who, stamp, self.moment)
            self._dropped.pop((disk, lba), None)

    def flushed(self, disk: str, covered: int) -> None:
        self._flushed[disk] = max(covered, self._flushed.get(disk, 0))

    def trimmed(self, disk: str, first: int, count: int) -> None:
        for lba in range(first, first + count):
            self._blocks.pop((disk, lba), None)

    def dropped(self, disk: str, lba: int) -> None:
        """A layer let go of the only copy of a block. Whether it was, is seen at the end."""
        self._dropped[disk, lba] = self._clock.at_ns - self.began_ns

    # ---- the end

    def play(
        self,
        *,
        scenario: str,
        policy: Policy,
        seed: int,
        lanes: tuple[str, ...],
        before_reading: Callable[[], object],
        read_back: ReadBack,
        attempts: int,
        attempts_failed: int,
        memory_limit_bytes: int,
    ) -> Play:
        """Draw the sum, do what is to be done `before_reading`, then read everything back. To be called last."""
        duration_ns = self._clock.at_ns - self.began_ns
        unanswered = tuple(dict.fromkeys(who for who, _, _ in self._requests.values()))
        for who, what, begun_ns in self._requests.values():
            self._waited(who, what, begun_ns, over=False)
        marks, memory, peak_memory_bytes = list(self._marks), list(self._memory), self.peak_memory_bytes
        acknowledged, flushed = list(self._blocks.values()), self._count_flushed(self._blocks)
        (wait_ns, what), waited = max((longest, who) for who, longest in self._longest.items())
        before_reading()
        lost = self._find_lost(read_back)
        marks += sorted({self._mark_of_loss(key, block, duration_ns) for key, block in lost.items()})
        result = Result(
            scenario=scenario,
            policy=policy,
            seed=seed,
            acknowledged_bytes=len(acknowledged) * BLOCK_SIZE_BYTES,
            flushed_bytes=flushed * BLOCK_SIZE_BYTES,
            lost_bytes=len(lost) * BLOCK_SIZE_BYTES,
            lost_flushed_bytes=self._count_flushed(lost) * BLOCK_SIZE_BYTES,
            told=tuple(Told(*key, times) for key, times in self._told.items()),
            killed=tuple(self.killed),
            answered=dict(self._answered),
            acknowledged_by=_bytes_by_writer(acknowledged),
            lost_by=_bytes_by_writer(list(lost.values())),
            unanswered=unanswered,
            longest_wait_ns=wait_ns,
            longest_wait=f"{waited}: {what}",
            longest_wait_by_ns={who: longest_ns for who, (longest_ns, _) in sorted(self._longest.items())},
            attempts=attempts,
            attempts_failed=attempts_failed,
            duration_ns=duration_ns,
            peak_memory_bytes=peak_memory_bytes,
            memory_limit_bytes=memory_limit_bytes,
        )
        return Play(result, lanes, marks, self._spans, memory)

    def _mark_of_loss(self, key: tuple[str, int], block: _Block, end_ns: int) -> Mark:
        """When a block was lost: when it was dropped, or with the death of whoever had it in his memory."""
        if key in self._dropped:
            return Mark(self._dropped[key], "write-back", "lost")
        return Mark(self._died.get(block.who, end_ns), block.who, "lost")

    def _count_flushed(self, blocks: dict[tuple[str, int], _Block]) -> int:
        return sum(block.moment <= self._flushed.get(disk, 0) for (disk, _), block in blocks.items())

    def _find_lost(self, read_back: ReadBack) -> dict[tuple[str, int], _Block]:
        lost = {}
        keys = sorted(self._blocks)
        at = 0
        while at < len(keys):
            disk, first = keys[at]
            count = 1
            while at + count < len(keys) and count < _RUN_BLOCKS and keys[at + count] == (disk, first + count):
                count += 1
            data = read_back(disk, first, count)
            for index in range(count):
                block = self._blocks[disk, first + index]
                at_byte = index * BLOCK_SIZE_BYTES
                if data is None or data[at_byte : at_byte + BLOCK_SIZE_BYTES] != self.content(block.stamp):
                    lost[disk, first + index] = block
            at += count
        return lost


def _bytes_by_writer(blocks: list[_Block]) -> dict[str, int]:
    counted = Counter(block.who for block in blocks)
    return {who: count * BLOCK_SIZE_BYTES for who, count in sorted(counted.items())}

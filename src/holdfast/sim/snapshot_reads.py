"""What snapshots hold: what was found there once is found ever after.

A snapshot holds, of each block, what could have been read at the moment at which it was taken. Which of that it was is
found out by reading it, and by asking what changed between two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from holdfast.errors import HoldfastError
from holdfast.sim.model import ZERO
from holdfast.sim.operator import both
from holdfast.sim.world import World, caught
from holdfast.units import BLOCK_SHIFT


@dataclass(slots=True)
class Record:
    """What a snapshot may hold: of each block of its volume that was ever written the contents allowed."""

    allowed: dict[int, list[bytes]]
    size_bytes: int
    sure: bool = False  # it is known to exist
    readers: int = 0

    @property
    def settled(self) -> bool:
        """True if all of it is known."""
        return all(len(contents) == 1 for contents in self.allowed.values())


class SnapshotReads:
    """`records`: of the snapshots that there are, by name; changed by their owner (`sim/history.py`), and what they may
    hold here. `excuse`: gives a function that says whether what was begun now may have ended with an errno."""

    def __init__(
        self, world: World, records: dict[str, Record], rng: Random, *, excuse: Callable[[], Callable[[], bool]]
    ) -> None:
        self.records = records
        self._world = world
        self._rng = rng
        self._excuse = excuse

    def any(self) -> str | None:
        sure = [name for name, record in self.records.items() if record.sure]
        return self._rng.choice(sure) if sure else None

    def look(self) -> None:
        """Read a few blocks of a snapshot."""
        name = self.any()
        if name is None or not self.records[name].allowed:
            return
        record = self.records[name]
        first = self._rng.choice(list(record.allowed))
        count = min(self._rng.choice([1, 1, 8, 64]), (record.size_bytes >> BLOCK_SHIFT) - first)
        if count <= 0:
            return
        into = memoryview(bytearray(count << BLOCK_SHIFT))
        engine = self._world.engine
        work = engine.reader.read(engine.find(name), first << BLOCK_SHIFT, into)
        excused = self._excuse()
        record.readers += 1

        def read(outcome: object) -> None:
            record.readers -= 1
            if isinstance(outcome, HoldfastError):
                assert excused(), f"{name}: {outcome}"
            else:
                for index in range(count):
                    self.found(name, first + index, bytes(into[index << BLOCK_SHIFT : index + 1 << BLOCK_SHIFT]))

        self._world.wait_for(lambda done: engine.scheduler.spawn(caught(work), f"look at {name}", both(read, done)))

    def found(self, name: str, lba: int, content: bytes) -> None:
        """A block of a snapshot was read."""
        record = self.records[name]
        allowed = record.allowed.get(lba, [ZERO])
        assert content in allowed, (
            f"block {lba} of {name} holds {content[:8].hex()}, allowed {[each[:8].hex() for each in allowed]}"
        )
        if lba in record.allowed:
            record.allowed[lba] = [content]

    def compare(self) -> None:
        """Ask what changed between two snapshots of a volume. What did not must be the same in both."""
        newer = self.any()
        if newer is None or not self.records[newer].allowed:
            return
        volume = newer.partition("@")[0]
        older = [
            name
            for name, record in self.records.items()
            if name.startswith(f"{volume}@") and record.sure and number_of(name) < number_of(newer)
        ]
        if not older:
            return
        since = self._rng.choice(older)
        first = self._rng.choice(list(self.records[newer].allowed))
        count = min(self._rng.choice([1, 64, 4096]), (self.records[newer].size_bytes >> BLOCK_SHIFT) - first)
        if count <= 0:
            return
        engine = self._world.engine
        work = engine.differences.extents(
            engine.find(newer), engine.find(since), first << BLOCK_SHIFT, count << BLOCK_SHIFT
        )
        excused = self._excuse()
        both_records = self.records[newer], self.records[since]
        for record in both_records:
            record.readers += 1

        def compared(outcome: object) -> None:
            for record in both_records:
                record.readers -= 1
            if isinstance(outcome, HoldfastError):
                assert excused(), f"{since} to {newer}: {outcome}"
                return
            assert isinstance(outcome, list)
            lba = first
            for length, changed in outcome:
                stop = lba + (length >> BLOCK_SHIFT)
                if not changed:
                    self._are_alike(newer, since, lba, stop)
                lba = stop
            assert first < lba <= first + count, outcome

        self._world.wait_for(
            lambda done: engine.scheduler.spawn(caught(work), f"compare {newer}", both(compared, done))
        )

    def _are_alike(self, newer: str, older: str, first: int, stop: int) -> None:
        """Blocks [first, stop) hold the same in both snapshots: what one of them cannot hold, the other does not."""
        now, before = self.records[newer].allowed, self.records[older].allowed
        for lba in {lba for lba in now.keys() | before.keys() if first <= lba < stop}:
            theirs = before.get(lba, [ZERO])
            alike = [content for content in now.get(lba, [ZERO]) if content in theirs]
            assert alike, f"block {lba} of {newer} is said not to have changed since {older}, and has"
            for allowed in (now, before):
                if lba in allowed:
                    allowed[lba] = alike


def number_of(snapshot: str) -> int:
    """How many were taken before it, and it."""
    return int(snapshot.rpartition("@s")[2])

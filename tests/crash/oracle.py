"""What a volume may hold after a crash: the history of each of its cells.

A **cell** is 512 bytes.  It is smaller than the server's blocks on purpose: two writes in flight at once may then share
a block without sharing a cell, and whether the server's read-modify-write loses one of them shows.  Whoever puts load
on a volume has at most one change of a cell in flight, so the order of the changes of a cell is known, whatever the
order in which the server takes the requests of different connections.

Cells describe themselves: volume, cell number, generation, and a pattern made of these; a failure says what one holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

CELL_BYTES = 512
_WORDS = CELL_BYTES // 8
_ZERO_CELL = bytes(CELL_BYTES)
_COUNTING = np.arange(_WORDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def pattern(volume: int, offset: int, length: int, generation: int) -> bytes:
    """What a write of this generation puts into a byte range."""
    first = offset // CELL_BYTES
    stop = -(-(offset + length) // CELL_BYTES)
    cells = np.arange(first, stop, dtype=np.uint64)
    words = cells[:, None] * np.uint64(0xD1B54A32D192ED03) + _COUNTING + np.uint64(generation)
    words[:, 0] = np.uint64(volume << 48) | cells
    words[:, 1] = generation
    start = offset - first * CELL_BYTES
    return words.tobytes()[start : start + length]


def describe(volume: int, cell: int, content: bytes) -> str:
    """What a cell holds, in words."""
    if content == _ZERO_CELL:
        return "zeroes"
    head, generation = (int.from_bytes(content[at : at + 8], "little") for at in (0, 8))
    whole = pattern(head >> 48, (head & (1 << 48) - 1) * CELL_BYTES, CELL_BYTES, generation) if head >> 48 < 16 else b""
    if content != whole:
        return f"a mixture or garbage that begins with {content[:16].hex()}"
    owner = (head >> 48, head & (1 << 48) - 1)
    place = "" if owner == (volume, cell) else f" of volume {owner[0]}, cell {owner[1]}"
    return f"generation {generation}{place}"


@dataclass(eq=False, slots=True)
class Change:
    """A request that changes the volume. `number` counts the changes of a volume since the last start, from 1 on."""

    number: int
    cells: range
    fua: bool
    what: str
    acknowledged: int = 0  # how many changes of the volume were, this one included; 0: it is in flight


@dataclass(slots=True)
class Flush:
    covers: int  # acknowledged changes when it was sent


@dataclass
class VolumeOracle:
    """`content` is the volume with all changes that were sent."""

    volume: int
    size_bytes: int
    content: bytearray = field(init=False)
    busy: npt.NDArray[np.bool_] = field(init=False)  # cells with a request in flight
    histories: dict[int, list[tuple[Change | None, int]]] = field(default_factory=dict)  # (who, digest), oldest first
    changes: list[Change] = field(default_factory=list)
    acknowledged: int = 0
    flushed: int = 0  # the first so many acknowledged changes are covered by a flush

    def __post_init__(self) -> None:
        self.content = bytearray(self.size_bytes)
        self.busy = np.zeros(self.size_bytes // CELL_BYTES, np.bool_)

    # ---- while the server runs

    def change(self, offset: int, data: bytes, *, fua: bool, what: str) -> Change:
        """A change of a byte range is about to be sent."""
        cells = cells_of(offset, len(data))
        change = Change(len(self.changes) + 1, cells, fua, what)
        self.changes.append(change)
        for cell in cells:
            if cell not in self.histories:
                self.histories[cell] = [(None, self._digest(cell))]
        self.content[offset : offset + len(data)] = data
        for cell in cells:
            self.histories[cell].append((change, self._digest(cell)))
        self.busy[cells.start : cells.stop] = True
        return change

    def changed(self, change: Change) -> None:
        """A change was acknowledged."""
        self.acknowledged += 1
        change.acknowledged = self.acknowledged
        self.busy[change.cells.start : change.cells.stop] = False

    def flush(self) -> Flush:
        return Flush(self.acknowledged)

    def flush_done(self, flush: Flush) -> None:
        self.flushed = max(self.flushed, flush.covers)

    def _digest(self, cell: int) -> int:
        return xxh3_64_intdigest(self.content[cell * CELL_BYTES : (cell + 1) * CELL_BYTES])

    # ---- after it came back

    def is_durable(self, change: Change) -> bool:
        return change.acknowledged > 0 and (change.fua or change.acknowledged <= self.flushed)

    def check_acknowledged(self, found: bytearray) -> None:
        """Promise 2: each cell holds its last acknowledged change, or the one that was in flight."""
        for cell in self._differing(found):
            history = self.histories.get(cell, [])
            late = len(history) > 1 and _change_of(history[-1]).acknowledged == 0
            if not late or history[-2][1] != _digest_in(found, cell):
                raise AssertionError(self._complaint(cell, found, "an acknowledged change is lost"))

    def check_flushed(self, found: bytearray) -> None:
        """Promise 1, cell by cell: each holds its last durable change or a later one."""
        for cell in self._differing(found):
            history = self.histories.get(cell, [])
            floor = max((at for at, (who, _) in enumerate(history) if who is None or self.is_durable(who)), default=0)
            if _digest_in(found, cell) not in [digest for _, digest in history[floor:]]:
                raise AssertionError(self._complaint(cell, found, "a durable change is lost"))

    def check_prefix(self, found: bytearray) -> None:
        """Promise 3, for changes that were sent one after the other: the volume is as it was after the first p of them,
        the next one perhaps in part, for a p that takes in all that was flushed."""
        self.check_flushed(found)
        total = len(self.changes)
        floor = max((change.number for change in self.changes if self.is_durable(change)), default=0)
        fitting = np.zeros(total + 2, np.int64)
        for cell, history in self.histories.items():
            digest = _digest_in(found, cell)
            numbers = [0 if who is None else who.number for who, _ in history]
            last = -1
            for number, following, (_, its) in zip(numbers, [*numbers[1:], total + 1], history, strict=True):
                # It is there from its own number on, or from one before, as a part; until the next change of the cell.
                first = max(number - 1, last + 1, 0)
                if its == digest and first < following:
                    fitting[first] += 1
                    fitting[following] -= 1
                    last = following - 1
        if not np.any(np.cumsum(fitting)[floor : total + 1] == len(self.histories)):
            raise AssertionError(self._mixture(found, floor))

    def adopt(self, found: bytearray) -> None:
        """What came back is what counts from here on."""
        self.content[:] = found
        self.busy[:] = False
        self.histories.clear()
        self.changes.clear()
        self.acknowledged = self.flushed = 0

    def _differing(self, found: bytearray) -> Iterable[int]:
        if found == self.content:
            return []
        left = np.frombuffer(found, np.uint64).reshape(-1, _WORDS)
        right = np.frombuffer(self.content, np.uint64).reshape(-1, _WORDS)
        cells: list[int] = np.flatnonzero((left != right).any(axis=1)).tolist()
        return cells

    def _complaint(self, cell: int, found: bytearray, what: str) -> str:
        lines = [f"volume {self.volume}, cell {cell} (block {cell // 8}): {what}"]
        holds = bytes(found[cell * CELL_BYTES : (cell + 1) * CELL_BYTES])
        lines.append(f"  found: {describe(self.volume, cell, holds)}")
        digest = _digest_in(found, cell)
        for who, its in self.histories.get(cell, []):
            state = "as it was" if who is None else f"change {who.number} of {len(self.changes)} ({who.what})"
            if who is not None:
                state += " durable" if self.is_durable(who) else " acknowledged" if who.acknowledged else " in flight"
            lines.append(f"  {state}{'   <- found' if its == digest else ''}")
        return "\n".join(lines)

    def _mixture(self, found: bytearray, floor: int) -> str:
        newest, oldest = (0, -1), (len(self.changes) + 1, -1)
        for cell, history in self.histories.items():
            digest = _digest_in(found, cell)
            numbers = [0 if who is None else who.number for who, _ in history] + [len(self.changes) + 1]
            at = [index for index, (_, its) in enumerate(history) if its == digest]
            newest = max(newest, (numbers[at[0]], cell))
            oldest = min(oldest, (numbers[at[-1] + 1], cell))
        return (
            f"volume {self.volume} is a mixture: cell {newest[1]} holds change {newest[0]}, but cell {oldest[1]} lacks "
            f"change {oldest[0]}; flushed were {floor} of {len(self.changes)}"
        )


def cells_of(offset: int, length: int) -> range:
    return range(offset // CELL_BYTES, -(-(offset + length) // CELL_BYTES))


def _change_of(entry: tuple[Change | None, int]) -> Change:
    assert entry[0] is not None
    return entry[0]


def _digest_in(found: bytearray, cell: int) -> int:
    return xxh3_64_intdigest(found[cell * CELL_BYTES : (cell + 1) * CELL_BYTES])

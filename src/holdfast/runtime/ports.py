"""The ports through which everything else reaches the outside: time, randomness, the disk, shared memory.

The engine is a deterministic state machine.  It is handed these ports when it is made and calls nothing else of the
world; `runtime/` implements them with the real thing, `sim/` with a seeded one, and one conformance suite
(`tests/conformance/`) holds both to the contracts below.

Files are named by number: a segment file by its segment id (0 and up), the superblock file by `SUPERBLOCK`.
Offsets and lengths are bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

SUPERBLOCK = -1

# Operations of an Io.
READ = 0  # fill `view` from `offset`; short reads beyond the end of the file are an error (-EIO)
WRITE = 1  # write `view` at `offset`, all of it; with `durable`, it is on stable storage when this completes
SYNC = 2  # everything written to `file` and completed before this was started is on stable storage
PREPARE = 3  # create segment file `file` of `length` bytes, write it through with zeroes, make file and name durable


class Io:
    """One operation on the disk, from start to completion.

    The view belongs to the disk from `start` until completion: its bytes must not change for a WRITE and must not be
    looked at for a READ.  Views of WRITEs begin at a multiple of 4096 in memory, and `offset` and length are multiples
    of 4096 (direct I/O).  `result` is 0 or a negative errno.  `done` is called with this object by the loop, after
    `start` returned, never inside it.
    """

    __slots__ = ("done", "durable", "file", "length", "offset", "op", "result", "view")

    def __init__(
        self,
        op: int,
        file: int,
        offset: int = 0,
        view: memoryview | None = None,
        *,
        length: int = 0,
        durable: bool = False,
        done: Callable[[Io], None] | None = None,
    ) -> None:
        self.op = op
        self.file = file
        self.offset = offset
        self.view = view
        self.length = length if view is None else len(view)
        self.durable = durable
        self.done = done
        self.result = 0

    def __repr__(self) -> str:
        name = ("read", "write", "sync", "prepare")[self.op]
        return f"<{name} file={self.file} offset={self.offset} length={self.length} result={self.result}>"


class Clock(Protocol):
    def now_ns(self) -> int:
        """Monotonic time, in nanoseconds, from an arbitrary start."""
        ...

    def wall_ns(self) -> int:
        """Time since 1970, in nanoseconds. For records that people read; nothing may be ordered by it."""
        ...


class Prng(Protocol):
    def bytes(self, count: int) -> bytes: ...

    def below(self, bound: int) -> int:
        """An integer in [0, bound)."""
        ...


class Disk(Protocol):
    """The directory of the pool: its segment files and its superblock file."""

    def read_now(self, file: int, offset: int, view: memoryview) -> bool:
        """Fill `view` if that needs no waiting (page cache). False: nothing is known, use a READ."""
        ...

    def will_read(self, file: int, offset: int, length: int) -> None:
        """A hint that a READ of this range is about to come. Never blocks, never fails."""
        ...

    def drop_cached(self, file: int, offset: int, length: int) -> None:
        """A hint that the cached copy of a range is doubtful: the next read is to come from the disk. Never fails."""
        ...

    def start(self, io: Io) -> None:
        """Begin `io`; its `done` is called later from the loop."""
        ...

    def run(self, io: Io) -> int:
        """Perform `io` at once, blocking; returns (and sets) its result. For start-up and offline tools only."""
        ...

    def segments(self) -> list[int]:
        """The ids of the segment files that exist, ascending."""
        ...

    def exists(self, file: int) -> bool: ...


class RingMemory(Protocol):
    """Memory that outlives the process but not a power failure."""

    @property
    def view(self) -> memoryview:
        """The whole of it, writable, page aligned, touched."""
        ...

    @property
    def found(self) -> bool:
        """True if it was there already, with what an earlier owner left in it."""
        ...

    def discard(self) -> None:
        """Remove it: nothing in it is needed any more."""
        ...

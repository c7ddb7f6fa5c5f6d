"""The ports through which everything else reaches the outside: time, randomness, the disk, shared memory, clients.

The engine is a deterministic state machine.  It is handed these ports when it is made and calls nothing else of the
world; `runtime/` implements them with the real thing, `sim/` with a seeded one, and one conformance suite
(`tests/conformance/`) holds both to the contracts below.

Files are named by number: a segment file by its segment id (0 and up), the superblock file by `SUPERBLOCK`.
Offsets and lengths are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

SUPERBLOCK = -1

# Operations of an Io.
READ = 0  # fill `view` from `offset`; short reads beyond the end of the file are an error (-EIO)
WRITE = 1  # write `view` at `offset`, all of it; with `durable`, it is on stable storage when this completes
SYNC = 2  # everything written to `file` and completed before this was started is on stable storage
PREPARE = 3  # create segment file `file` of `length` bytes, write it through with zeroes, make file and name durable
REMOVE = 4  # delete segment file `file`, durably; nobody uses it any more, and that there is none is no error


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
        name = ("read", "write", "sync", "prepare", "remove")[self.op]
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
    def path(self) -> str:
        """Its name, for people."""
        ...

    @property
    def view(self) -> memoryview:
        """The whole of it, writable, page aligned, touched."""
        ...

    @property
    def found(self) -> bool:
        """True if it was there already, with what an earlier owner left in it."""
        ...

    def discard(self) -> None:
        """Remove it: nothing in it is needed any more. May be called twice."""
        ...

    def close(self) -> None:
        """Let go of it and leave it for the next owner. `view` may not be used after this."""
        ...


class Timer(Protocol):
    def cancel(self) -> None:
        """May be called at any time, also after it ran."""
        ...


class Loop(Protocol):
    """What serves clients: it calls back when a socket is ready or a time has come, one call at a time.

    before_sleep: what is called at the end of each turn, in this order
    looks: how often it is worth looking again for what a peer is about to send; 0 where it cannot run meanwhile
    """

    before_sleep: list[Callable[[], object]]
    looks: int

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Call `callback` whenever `fd` is readable, at its end or broken. Replaces an earlier one."""
        ...

    def remove_reader(self, fd: int) -> None: ...

    def set_writer(self, fd: int, callback: Callable[[], object] | None) -> None:
        """Call `callback` whenever `fd` is writable or broken; None ends that."""
        ...

    def close(self, fd: int) -> None:
        """Forget `fd`, which its owner is about to close."""
        ...

    def call_later(self, delay_ns: int, callback: Callable[[], object]) -> Timer: ...

    def turn_again(self) -> None:
        """Turn once more without waiting, whether anything is ready or not."""
        ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection. `uid` and `cgroup` are the kernel's word, and known on Unix sockets
    only."""

    label: str
    uid: int | None = None
    cgroup: str = ""

    def __str__(self) -> str:
        return self.label


class Socket(Protocol):
    """One end of a connection, non-blocking: what cannot be done at once raises BlockingIOError, and OSError what can
    not be done at all."""

    def fileno(self) -> int: ...

    def recv_into(self, buffer: memoryview) -> int:
        """Fill the beginning of `buffer` with what has arrived; 0 at the end of the stream."""
        ...

    def send(self, data: memoryview | bytearray | bytes) -> int:
        """Send as much of `data` as the peer's buffer takes."""
        ...

    def sendmsg(self, buffers: Sequence[memoryview | bytearray | bytes]) -> int:
        """`send` of all of them, one behind the other."""
        ...

    def close(self) -> None: ...

"""Today's kernel, as far as the scenarios need it: buffered writes, write-back, fsync.

A model of what Linux does with a file or block device that is written through the page cache. Sources: the kernel's
mm/page-writeback.c, mm/filemap.c and lib/errseq.c with Documentation/core-api/errseq.rst; discussion W (2017, "get
PG_error out of the writeback reporting business", Jan Kara and Ted Ts'o); our own runs on Linux 6.18 of a FUSE file,
and of ext4 and XFS on a loop device over it, in which 1 request in 16 fails.

1. A write is acknowledged when its data lies in the page cache. Who dirties more than a limit waits for write-back.
2. Write-back begins in the background beyond a smaller limit, for data of a certain age, and for fsync.
3. When a write-back attempt has ended its pages are **clean, however it ended**. An error is noted at the file
   (`mapping_set_error`); the data is not tried again, and goes for good when the clean page is reclaimed.
4. fsync writes what is dirty, waits, and then reports the error noted at the file, **once to each opener**
   (`errseq_check_and_advance`): whoever asks again is told success. Who opens after an error that somebody was told
   hears nothing of it.
5. At the last close of a block device what is dirty is written back; at that of a file it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from errno import EIO, ENOMEM
from typing import Protocol

from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.ports import PREPARE, READ, SYNC, WRITE, Io
from holdfast.sim.disk import SimDisk
from holdfast.sim.lab.actor import Actor, Script, Wait, sleep
from holdfast.sim.lab.journal import Journal
from holdfast.sim.lab.memory import MemoryGroup, Process
from holdfast.sim.loop import SimLoop
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB

REQUEST_PAGES = 64 * KIB // BLOCK_SIZE_BYTES  # of one write-back attempt
REQUESTS_IN_FLIGHT_MAX = 4
COPY_NS = 400  # a page, from the writer into the cache


class Backing(Protocol):
    """What the page cache writes to. Outcomes: an errno, 0 for success; of `read` the page, empty if that failed."""

    attempts: int
    attempts_failed: int

    def write(self, first: int, pages: list[bytes]) -> Wait: ...
    def read(self, number: int) -> Wait: ...
    def sync(self) -> Wait: ...
    def trim(self, first: int, count: int) -> Wait: ...


@dataclass(frozen=True, slots=True)
class WritebackLimits:
    """`vm.dirty_*`, smaller than they are on a machine, that a play may be short. Ages in simulated time."""

    background_bytes: int = 1 * MIB
    dirty_bytes: int = 4 * MIB
    expire_ns: int = 300_000_000
    interval_ns: int = 50_000_000
    at_last_close: bool = False  # a block device


class ErrorSequence:
    """lib/errseq.c: the last error, how often there was a new one, and whether anybody has seen it."""

    def __init__(self) -> None:
        self._errno = 0
        self._version = 0
        self._seen = True

    def note(self, errno: int) -> None:
        if self._seen or errno != self._errno:
            self._version += 1
        self._errno = errno
        self._seen = False

    def sample(self) -> int:
        """For somebody who opens: an error that nobody has seen yet is news to him as well."""
        return self._version if self._seen else 0

    def check(self, since: int) -> tuple[int, int]:
        """What fsync reports to somebody who has heard everything up to `since`; and what he has heard then."""
        if self._version == since:
            return 0, since
        self._seen = True
        return self._errno, self._version


class PageCache:
    """The cached pages of one file or device. A page is clean, dirty, or under write-back."""

    def __init__(
        self,
        name: str,
        loop: SimLoop,
        backing: Backing,
        group: MemoryGroup,
        journal: Journal,
        limits: WritebackLimits,
    ) -> None:
        self.name = name
        self.backing = backing
        self.errors = ErrorSequence()
        self.openers = 0
        self._loop = loop
        self._group = group
        self._journal = journal
        self._limits = limits
        self._pages: dict[int, bytes] = {}
        self._clean: dict[int, None] = {}
        self._dirty: dict[int, None] = {}
        self._under_writeback: dict[int, None] = {}
        self._in_flight = 0
        self._dirty_since_ns = 0
        self._all_of_it = False  # write-back goes on until nothing is dirty
        self._flushes: list[tuple[dict[int, None], Callable[[None], object]]] = []
        self._throttled: list[Callable[[None], object]] = []
        group.shrinkers.append(self.reclaim)
        self._look_for_old()

    # ---- write(2), read(2), fsync(2), discard

    def write(self, process: Process, first: int, data: bytes) -> Script:
        for at in range(0, len(data), REQUEST_PAGES * BLOCK_SIZE_BYTES):
            part = data[at : at + REQUEST_PAGES * BLOCK_SIZE_BYTES]
            start = first + at // BLOCK_SIZE_BYTES
            numbers = range(start, start + len(part) // BLOCK_SIZE_BYTES)
            if not (yield self._charge_pages(numbers, process)):
                return ENOMEM
            for index, number in enumerate(numbers):
                self._pages[number] = part[index * BLOCK_SIZE_BYTES : (index + 1) * BLOCK_SIZE_BYTES]
                if not self._dirty:
                    self._dirty_since_ns = self._loop.clock.at_ns
                self._clean.pop(number, None)
                self._dirty[number] = None
            self._write_back()
            yield sleep(self._loop, COPY_NS * len(numbers))
            while len(self._dirty) + len(self._under_writeback) > self._limits.dirty_bytes // BLOCK_SIZE_BYTES:
                yield self._throttled.append
        return 0

    def read(self, process: Process, first: int, count: int) -> Script:
        for number in range(first, first + count):
            if number in self._pages:
                yield sleep(self._loop, COPY_NS)
                continue
            if not (yield self._charge_pages(range(number, number + 1), process)):
                return ENOMEM
            page = yield self.backing.read(number)
            if not page:
                self._group.uncharge(BLOCK_SIZE_BYTES)
                return EIO
            self._pages[number] = page
            self._clean[number] = None
        return 0

    def flush(self) -> Script:
        """The part of fsync that is the same for all openers; what it says is `errors.check`'s business."""
        pending = {**self._dirty, **self._under_writeback}
        if pending:
            yield lambda answered: self._begin_flush(pending, answered)
        yield self.backing.sync()

    def trim(self, first: int, count: int) -> Script:
        for number in range(first, first + count):
            if number not in self._under_writeback and self._pages.pop(number, None) is not None:
                self._clean.pop(number, None)
                self._dirty.pop(number, None)
                self._group.uncharge(BLOCK_SIZE_BYTES)
        return (yield self.backing.trim(first, count))

    def closed(self) -> None:
        self.openers -= 1
        if self.openers == 0 and self._limits.at_last_close:
            self._all_of_it = True
            self._write_back()

    # ---- memory

    def _charge_pages(self, numbers: range, process: Process) -> Wait:
        missing = sum(number not in self._pages for number in numbers)
        return self._group.charge(missing * BLOCK_SIZE_BYTES, process) if missing else lambda answered: answered(True)

    def reclaim(self, wanted_bytes: int) -> None:
        """Let go of clean pages, and have dirty ones written back, that they may go next time."""
        while wanted_bytes > 0 and self._clean:
            number = next(iter(self._clean))
            del self._clean[number], self._pages[number]
            self._group.uncharge(BLOCK_SIZE_BYTES)
            wanted_bytes -= BLOCK_SIZE_BYTES
        if wanted_bytes > 0 and self._dirty:
            self._all_of_it = True
            self._write_back()

    def forget(self) -> None:
        """The machine has lost its memory."""
        self._group.uncharge(len(self._pages) * BLOCK_SIZE_BYTES)
        for pages in (self._pages, self._clean, self._dirty):
            pages.clear()

    def cached_dirty(self, number: int) -> bytes | None:
        return self._pages[number] if number in self._pages and number not in self._clean else None

    # ---- write-back

    def _look_for_old(self) -> None:
        if self._dirty and self._loop.clock.at_ns - self._dirty_since_ns >= self._limits.expire_ns:
            self._all_of_it = True
            self._write_back()
        self._loop.call_later(self._limits.interval_ns, self._look_for_old)

    def _begin_flush(self, pending: dict[int, None], answered: Callable[[None], object]) -> None:
        self._flushes.append((pending, answered))
        self._write_back()

    def _write_back(self) -> None:
        while self._dirty and self._in_flight < REQUESTS_IN_FLIGHT_MAX:
            background = len(self._dirty) > self._limits.background_bytes // BLOCK_SIZE_BYTES
            if not (self._flushes or self._all_of_it or background):
                return
            first = next(iter(self._dirty))
            numbers = [first]
            while len(numbers) < REQUEST_PAGES and first + len(numbers) in self._dirty:
                numbers.append(first + len(numbers))
            for number in numbers:
                del self._dirty[number]
                self._under_writeback[number] = None
            self._in_flight += 1
            Actor(self._attempt(first, [self._pages[number] for number in numbers]))
        if not self._dirty:
            self._all_of_it = False

    def _attempt(self, first: int, pages: list[bytes]) -> Script:
        errno = yield self.backing.write(first, pages)
        self._in_flight -= 1
        for number in range(first, first + len(pages)):
            del self._under_writeback[number]
            self._clean[number] = None  # however it ended
            if errno:
                self._journal.dropped(self.name, number)
            for pending, _ in self._flushes:
                pending.pop(number, None)
        if errno:
            self.errors.note(errno)
        done = [answered for pending, answered in self._flushes if not pending]
        self._flushes = [flush for flush in self._flushes if flush[0]]
        throttled, self._throttled = self._throttled, []
        self._write_back()
        for answered in done + throttled:
            answered(None)


class OpenFile:
    """`DiskClient`: a file or device as one process has it open."""

    def __init__(self, cache: PageCache, process: Process) -> None:
        self._cache = cache
        self._process = process
        self._heard = cache.errors.sample()
        self._closed = False
        cache.openers += 1
        process.at_exit.append(self.leave)

    def write(self, first: int, data: bytes) -> Wait:
        return self._call(self._cache.write(self._process, first, data))

    def read(self, first: int, count: int) -> Wait:
        return self._call(self._cache.read(self._process, first, count))

    def flush(self) -> Wait:
        return self._call(self._fsync())

    def _fsync(self) -> Script:
        yield from self._cache.flush()
        errno, self._heard = self._cache.errors.check(self._heard)
        return errno

    def trim(self, first: int, count: int) -> Wait:
        return self._call(self._cache.trim(first, count))

    def _call(self, script: Script) -> Wait:
        """A system call. Who has been killed does not return from it."""

        def begin(answered: Callable[[int], object]) -> None:
            Actor(script, lambda errno: None if self._process.dead else answered(errno))

        return begin

    def leave(self) -> None:
        if not self._closed:
            self._closed = True
            self._cache.closed()


class DiskFile:
    """`Backing` on the simulated disk."""

    def __init__(self, disk: SimDisk, number: int, size_bytes: int) -> None:
        self.attempts = self.attempts_failed = 0
        self._disk = disk
        self.number = number
        assert disk.run(Io(PREPARE, number, length=size_bytes)) == 0

    def write(self, first: int, pages: list[bytes]) -> Wait:
        view = aligned_buffer(len(pages) * BLOCK_SIZE_BYTES)
        view[:] = b"".join(pages)

        def begin(answered: Callable[[int], object]) -> None:
            def done(io: Io) -> None:
                self.attempts_failed += io.result < 0
                answered(-io.result)

            self.attempts += 1
            self._disk.start(Io(WRITE, self.number, first * BLOCK_SIZE_BYTES, view, done=done))

        return begin

    def read(self, number: int) -> Wait:
        view = memoryview(bytearray(BLOCK_SIZE_BYTES))

        def begin(answered: Callable[[bytes], object]) -> None:
            def done(io: Io) -> None:
                answered(b"" if io.result else bytes(view))

            self._disk.start(Io(READ, self.number, number * BLOCK_SIZE_BYTES, view, done=done))

        return begin

    def sync(self) -> Wait:
        def begin(answered: Callable[[int], object]) -> None:
            def done(io: Io) -> None:
                answered(-io.result)

            self._disk.start(Io(SYNC, self.number, done=done))

        return begin

    def trim(self, first: int, count: int) -> Wait:
        """A file on a disk keeps its blocks: nothing here runs short of them."""
        return lambda answered: answered(0)

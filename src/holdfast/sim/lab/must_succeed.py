"""A kernel in which memory that is needed under a lock is allocated in a way that must not fail.

The kernel of discussion A (2015, "How to handle TIF_MEMDIE stalls?", Michal Hocko and Dave Chinner), in small. Sources:
that thread, and mm/page_alloc.c and mm/oom_kill.c of Linux 3.19.

1. A filesystem changes its metadata under a lock, and allocates what it needs for that under it: GFP_NOFS, and in a
   loop that does not end before it has succeeded (`kmem_alloc`, or __GFP_NOFAIL). Such an allocation reclaims what it
   can without the filesystem, pauses (`congestion_wait`), and tries again. It does not call the OOM killer.
2. Any other allocation that finds nothing calls the OOM killer, which chooses the process with most memory and marks it
   (TIF_MEMDIE). A marked process may use the last reserves, and dies as soon as it gets to run.
3. While one is marked and not dead yet, no other is chosen: memory is about to be freed.
4. A process that waits for a lock does not get to run, and so does not die.

Since Linux 4.6 an OOM reaper takes the memory of a marked process though it cannot run, where that memory is anonymous
and not locked. What it cannot take (tmpfs, locked memory, what the kernel itself holds) is as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from holdfast.sim.lab.actor import Actor, Script, Wait, sleep
from holdfast.sim.lab.journal import Journal
from holdfast.sim.lab.memory import Process
from holdfast.sim.lab.theirs import OPEN_NS, Theirs
from holdfast.sim.lab.today import DiskFile
from holdfast.sim.loop import SimLoop
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB

RETRY_NS = 20_000_000  # congestion_wait(BLK_RW_ASYNC, HZ / 50)
OOM_RETRY_NS = 4_000_000  # schedule_timeout_uninterruptible(1), at 250 Hz
RESERVE_BYTES = 256 * KIB  # below the minimum watermark
METADATA_BYTES = 128 * KIB  # what a transaction allocates under the lock: buffers, log items
COMPUTE_NS = 50_000  # what it does with them
COMMIT_NS = 1_000_000  # from the end of a transaction until the log has let go of them


class Lock:
    """Sleeps uninterruptibly, first come, first served."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Callable[[None], object]] = deque()

    def acquire(self) -> Wait:
        def begin(answered: Callable[[None], object]) -> None:
            if self._held:
                self._waiting.append(answered)
            else:
                self._held = True
                answered(None)

        return begin

    def release(self) -> None:
        if self._waiting:
            self._waiting.popleft()(None)
        else:
            self._held = False


class Machine:
    """All memory there is."""

    def __init__(self, loop: SimLoop, journal: Journal, memory_bytes: int) -> None:
        self.processes: dict[str, Process] = {}
        self.victim: Process | None = None
        self._loop = loop
        self._journal = journal
        self._memory_bytes = memory_bytes
        self._used_bytes = 0

    def allocate(self, count_bytes: int, process: Process, *, must_succeed: bool = False) -> Script:
        """Returns True once there is memory; False to a process that is to die and may fail."""
        while not self._take(count_bytes, reserve=process.dead):
            if must_succeed:
                yield sleep(self._loop, RETRY_NS)
                continue
            if process.dead:
                return False
            self._out_of_memory()
            yield sleep(self._loop, OOM_RETRY_NS)
        return True

    def _take(self, count_bytes: int, *, reserve: bool) -> bool:
        limit_bytes = self._memory_bytes - (0 if reserve else RESERVE_BYTES)
        if self._used_bytes + count_bytes > limit_bytes:
            return False
        self._used_bytes += count_bytes
        self._journal.memory_is(self._used_bytes)
        return True

    def free(self, count_bytes: int) -> None:
        self._used_bytes -= count_bytes
        self._journal.memory_is(self._used_bytes)

    def _out_of_memory(self) -> None:
        if self.victim is None:
            self.victim = max(self.processes.values(), key=lambda process: process.rss_bytes)
            self.victim.dead = True
            self._journal.kill(self.victim.name)

    def exit(self, process: Process) -> None:
        if self.processes.pop(process.name, None) is None:
            return
        self.free(process.rss_bytes)
        if process.dead:
            self._journal.dead(process.name)
        if self.victim is process:
            self.victim = None


class OpenUnderLock:
    """`DiskClient`: a file whose every write is a transaction, durable when it is acknowledged."""

    def __init__(self, machine: Machine, lock: Lock, file: DiskFile, loop: SimLoop, process: Process) -> None:
        self._machine = machine
        self._lock = lock
        self._file = file
        self._loop = loop
        self._process = process

    def write(self, first: int, data: bytes) -> Wait:
        return self._call(self._write(first, data))

    def _write(self, first: int, data: bytes) -> Script:
        yield self._lock.acquire()
        yield from self._machine.allocate(METADATA_BYTES, self._process, must_succeed=True)
        yield sleep(self._loop, COMPUTE_NS)
        pages = [data[at : at + BLOCK_SIZE_BYTES] for at in range(0, len(data), BLOCK_SIZE_BYTES)]
        errno = (yield self._file.write(first, pages)) or (yield self._file.sync())
        self._loop.call_later(COMMIT_NS, lambda: self._machine.free(METADATA_BYTES))
        self._lock.release()
        return errno

    def read(self, first: int, count: int) -> Wait:
        """The reader keeps what it has read, in memory of its own."""
        return self._call(self._read(first, count))

    def _read(self, first: int, count: int) -> Script:
        for number in range(first, first + count):
            if not (yield from self._machine.allocate(BLOCK_SIZE_BYTES, self._process)):
                return 0  # it is killed, and nobody hears of it
            self._process.rss_bytes += BLOCK_SIZE_BYTES
            yield self._file.read(number)
        return 0

    def flush(self) -> Wait:
        return self._call(self._flush())

    def _flush(self) -> Script:
        return (yield self._file.sync())

    def trim(self, first: int, count: int) -> Wait:
        return self._file.trim(first, count)

    def leave(self) -> None:
        self._machine.exit(self._process)

    def _call(self, script: Script) -> Wait:
        """A system call: a marked process dies at its end."""

        def begin(answered: Callable[[int], object]) -> None:
            def over(errno: int) -> None:
                if not self._process.dead:
                    answered(errno)
                    return
                if self._process.actor is not None:
                    self._process.actor.kill()
                self._machine.exit(self._process)

            Actor(script, over)

        return begin


class MustSucceed(Theirs):
    """That kernel, as a stack: one disk, one filesystem with one lock, and a machine with little memory."""

    def __init__(
        self,
        seed: int,
        write: Callable[[str], None] | None,
        *,
        memory_bytes: int,
        rss_bytes: dict[str, int],
        disk_bytes: int = 8 * MIB,
    ) -> None:
        super().__init__(seed, write, rss_bytes=rss_bytes)
        self.machine = Machine(self.loop, self.journal, memory_bytes)
        self._file = DiskFile(self.disk, 0, disk_bytes)
        self._lock = Lock()
        self._memory_bytes = memory_bytes

    def begin(self, who: str, script: Script) -> None:
        process = Process(who, 0)
        self.machine.processes[who] = process
        self.actors[who] = process.actor = Actor(self._begin(process, script))

    def _begin(self, process: Process, script: Script) -> Script:
        wanted = self._rss_bytes.get(process.name, 0)
        if (yield from self.machine.allocate(wanted, process)):
            process.rss_bytes = wanted
            yield from script

    def connect(self, who: str, disk: str) -> Wait:
        opened = OpenUnderLock(self.machine, self._lock, self._file, self.loop, self.machine.processes[who])
        return lambda answered: self.loop.call_later(OPEN_NS, lambda: answered(opened))

    def read_back(self, disk: str, first: int, count: int) -> bytes | None:
        pages = [self._stored(self._file, number) for number in range(first, first + count)]
        return None if None in pages else b"".join(page for page in pages if page is not None)

    def attempts(self) -> tuple[int, int]:
        return self._file.attempts, self._file.attempts_failed

    @property
    def memory_limit_bytes(self) -> int:
        return self._memory_bytes

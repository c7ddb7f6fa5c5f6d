"""Today's kernel as a stack that scenarios are played on: processes in a memory cgroup, their disks, the page cache."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.runtime.ports import READ, Io
from holdfast.sim.disk import SimDisk
from holdfast.sim.fate import Fate
from holdfast.sim.faults import Faults
from holdfast.sim.lab.actor import Actor, Script, Wait
from holdfast.sim.lab.memory import MemoryGroup, Process, Tmpfs
from holdfast.sim.lab.scenario import Policy
from holdfast.sim.lab.stack import Stack, WatchedTrace
from holdfast.sim.lab.today import Backing, DiskFile, OpenFile, PageCache, WritebackLimits
from holdfast.sim.loop import SimClock, SimLoop
from holdfast.sim.prng import stream
from holdfast.units import BLOCK_SIZE_BYTES

OPEN_NS = 10_000


class Theirs(Stack):
    """`memory_bytes` is the limit of the cgroup, 0 for none; `rss_bytes` says how much memory of its own a process
    has."""

    policy: Policy = "today"

    def __init__(
        self,
        seed: int,
        write: Callable[[str], None] | None,
        *,
        memory_bytes: int = 0,
        rss_bytes: dict[str, int] | None = None,
    ) -> None:
        trace = WatchedTrace(write)
        clock = SimClock()
        self._loop = SimLoop(clock, stream(seed, "loop"))
        self._faults = Faults(stream(seed, "faults"))
        self._fate = Fate()
        self.disk = SimDisk(self._loop, stream(seed, "disk"), self._faults, self._fate, trace)
        super().__init__(clock, trace)
        self.group = MemoryGroup(self._loop, self.journal, memory_bytes)
        self._rss_bytes = rss_bytes or {}
        self._caches: dict[str, PageCache] = {}

    @property
    def loop(self) -> SimLoop:
        return self._loop

    # ---- disks

    def create(self, disk: str, size_bytes: int, limits: WritebackLimits) -> None:
        """A file on the simulated disk."""
        self._add(disk, DiskFile(self.disk, len(self.disk.segments()), size_bytes), limits)

    def create_on_tmpfs(self, disk: str, limits: WritebackLimits) -> None:
        """A loop device over a file on a tmpfs, charged to the group."""
        self._add(disk, Tmpfs(self._loop, self.group), limits)

    def _add(self, disk: str, backing: Backing, limits: WritebackLimits) -> None:
        self._caches[disk] = PageCache(disk, self._loop, backing, self.group, self.journal, limits)

    # ---- Stack

    def begin(self, who: str, script: Script) -> None:
        process = Process(who, self._rss_bytes.get(who, 0))
        actor = self.actors[who] = Actor(self._life(process, script), lambda _: self.group.exit(process))
        process.actor = actor

    def _life(self, process: Process, script: Script) -> Script:
        if (yield self.group.start(process)):
            yield from script

    def connect(self, who: str, disk: str) -> Wait:
        def begin(answered: Callable[[OpenFile], object]) -> None:
            opened = OpenFile(self._caches[disk], self.group.processes[who])
            self._loop.call_later(OPEN_NS, lambda: answered(opened))

        return begin

    def fail_writes(self, kind: str, rate: float) -> None:
        self._faults.calm()
        if rate:
            self._faults.turn_on("write", kind, rate)

    def lose_power(self) -> None:
        self.trace.note(self.clock.at_ns, "world", "power off")
        for cache in self._caches.values():
            cache.forget()
        self.disk.power_fails()

    def read_back(self, disk: str, first: int, count: int) -> bytes | None:
        """Read by somebody outside the group, after every clean page was reclaimed."""
        cache = self._caches[disk]
        pages = []
        for number in range(first, first + count):
            page = cache.cached_dirty(number)
            if page is None:
                page = self._stored(cache.backing, number)
            if page is None:
                return None
            pages.append(page)
        return b"".join(pages)

    def _stored(self, backing: Backing, number: int) -> bytes | None:
        if isinstance(backing, Tmpfs):
            return backing.pages.get(number, bytes(BLOCK_SIZE_BYTES))
        assert isinstance(backing, DiskFile)
        view = memoryview(bytearray(BLOCK_SIZE_BYTES))
        io = Io(READ, backing.number, number * BLOCK_SIZE_BYTES, view)
        return None if self.disk.run(io) else bytes(view)

    def attempts(self) -> tuple[int, int]:
        backings = [cache.backing for cache in self._caches.values()]
        return sum(backing.attempts for backing in backings), sum(backing.attempts_failed for backing in backings)

    @property
    def memory_limit_bytes(self) -> int:
        return self.group.limit_bytes

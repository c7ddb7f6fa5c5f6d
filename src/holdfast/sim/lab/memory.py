"""Memory as today's kernel has it: a cgroup with a limit, and what happens there.

Sources: the kernel's mm/memcontrol.c (`try_charge_memcg`) and mm/oom_kill.c; for what they lead to, discussion T (2020,
"Charge loop device i/o to issuing cgroup", Dave Chinner's reply) and our own runs of its script on Linux 6.1.

1. Every page is charged to the group of whoever it is allocated for: the memory of its processes, the page cache of
   what they write, and with the patches of that discussion the pages of a tmpfs that a loop device writes for them.
2. At the limit the group reclaims: clean page cache goes, dirty page cache once it has been written back. Pages of a
   tmpfs cannot go anywhere without swap.
3. Where a number of attempts reclaims nothing, the OOM killer kills the process of the group that has most memory of
   its own. What it wrote into a tmpfs does not count as its own, and stays when it is dead.
4. Only where there is nobody left to kill is the charge refused. A killed process does not return from its system call.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOMEM

from holdfast.sim.lab.actor import Actor, Script, Wait, run, sleep
from holdfast.sim.lab.journal import Journal
from holdfast.sim.loop import SimLoop
from holdfast.units import BLOCK_SIZE_BYTES

RECLAIM_RETRIES = 16  # MAX_RECLAIM_RETRIES
RECLAIM_PAUSE_NS = 1_000_000  # a pass over the lists that finds only dirty pages waits for them a little
EXIT_NS = 1_000_000  # from SIGKILL until the memory of a process is free


class Process:
    """Somebody in the group. `rss_bytes`: the memory of its own."""

    def __init__(self, name: str, rss_bytes: int) -> None:
        self.name = name
        self.rss_bytes = rss_bytes
        self.dead = False  # SIGKILL is on its way, or was
        self.actor: Actor | None = None
        self.at_exit: list[Callable[[], None]] = []


class MemoryGroup:
    """`limit_bytes` 0: no limit."""

    def __init__(self, loop: SimLoop, journal: Journal, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.processes: dict[str, Process] = {}
        self.shrinkers: list[Callable[[int], None]] = []  # each lets go of so many bytes of clean cache, or fewer
        self._loop = loop
        self._journal = journal
        self._dying = 0

    # ---- charges

    def charge(self, count_bytes: int, process: Process | None) -> Wait:
        """The wait for memory. Its outcome is False if there is none to be had, or `process` was killed meanwhile."""
        if (process is None or not process.dead) and self._try_charge(count_bytes):
            return lambda answered: answered(True)
        return run(self._charge(count_bytes, process))

    def _charge(self, count_bytes: int, process: Process | None) -> Script:
        retries = RECLAIM_RETRIES
        while True:
            if process is not None and process.dead:
                return False
            if self._try_charge(count_bytes):
                return True
            yield sleep(self._loop, RECLAIM_PAUSE_NS)
            retries -= 1
            if retries == 0:
                if not self._out_of_memory():
                    return False
                retries = RECLAIM_RETRIES

    def _try_charge(self, count_bytes: int) -> bool:
        if self.limit_bytes and self.used_bytes + count_bytes > self.limit_bytes:
            for shrink in self.shrinkers:
                shrink(self.used_bytes + count_bytes - self.limit_bytes)
            if self.used_bytes + count_bytes > self.limit_bytes:
                return False
        self.used_bytes += count_bytes
        self._journal.memory_is(self.used_bytes)
        return True

    def uncharge(self, count_bytes: int) -> None:
        assert self.used_bytes >= count_bytes
        self.used_bytes -= count_bytes
        self._journal.memory_is(self.used_bytes)

    # ---- processes

    def start(self, process: Process) -> Wait:
        """The wait for a new process to have its memory; False if it was killed before that."""
        self.processes[process.name] = process
        return run(self._start(process))

    def _start(self, process: Process) -> Script:
        wanted, process.rss_bytes = process.rss_bytes, 0
        while process.rss_bytes < wanted:
            if not (yield self.charge(BLOCK_SIZE_BYTES, process)):
                return False
            process.rss_bytes += BLOCK_SIZE_BYTES
        return True

    def exit(self, process: Process) -> None:
        """The end of a process, by itself or after SIGKILL."""
        if self.processes.pop(process.name, None) is None:
            return
        if process.actor is not None:
            process.actor.kill()
        self.uncharge(process.rss_bytes)
        for at_exit in process.at_exit:
            at_exit()

    def _out_of_memory(self) -> bool:
        """Kill somebody, unless somebody is dying already. False: nobody is left."""
        if self._dying:
            return True
        if not self.processes:
            return False
        victim = max(self.processes.values(), key=lambda process: process.rss_bytes)
        victim.dead = True
        self._dying += 1
        self._journal.kill(victim.name)
        self._loop.call_later(EXIT_NS, lambda: self._exited(victim))
        return True

    def _exited(self, victim: Process) -> None:
        self._dying -= 1
        self._journal.dead(victim.name)
        self.exit(victim)


class Tmpfs:
    """A file on a tmpfs, as the layer below a loop device: its pages are memory of the group, and stay."""

    # A copy by the loop device's worker.
    COPY_NS = 1_000

    def __init__(self, loop: SimLoop, group: MemoryGroup) -> None:
        self.pages: dict[int, bytes] = {}
        self.attempts = self.attempts_failed = 0
        self._loop = loop
        self._group = group

    def write(self, first: int, pages: list[bytes]) -> Wait:
        return run(self._write(first, pages))

    def _write(self, first: int, pages: list[bytes]) -> Script:
        """By a worker of the kernel: nobody who could be killed. Where it gets no page, the request has failed."""
        self.attempts += 1
        for number, page in enumerate(pages, first):
            if number not in self.pages and not (yield self._group.charge(BLOCK_SIZE_BYTES, None)):
                self.attempts_failed += 1
                return ENOMEM
            self.pages[number] = page
        yield sleep(self._loop, self.COPY_NS * len(pages))
        return 0

    def sync(self) -> Wait:
        return lambda answered: answered(0)

    def read(self, number: int) -> Wait:
        page = self.pages.get(number, bytes(BLOCK_SIZE_BYTES))
        return lambda answered: self._loop.call_later(self.COPY_NS, lambda: answered(page))

    def trim(self, first: int, count: int) -> Wait:
        for number in range(first, first + count):
            if self.pages.pop(number, None) is not None:
                self._group.uncharge(BLOCK_SIZE_BYTES)
        return lambda answered: answered(0)

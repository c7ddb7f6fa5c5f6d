"""Work that waits: generators driven by the engine, one step at a time, in one thread.

A generator that runs as a `Task` yields what it waits for and is resumed with the outcome:

    yield Io(...)          resumed with the Io when it has completed
    yield [Io(...), ...]   started together; resumed with the list when all have completed
    yield waitlist         parked until the list is woken; resumed with None. What it waited for may be gone again by
                           then: look again, and wait again.

Tasks made ready run in the order in which they became ready (`Scheduler.run_ready`), never inside the call that made
them ready, so no step is ever entered from within another.

Each task tells what it waits for and since when, and what it holds meanwhile; each waitlist who can end the wait. That
is all that `work.waits` needs to show who waits for what, and `work.order` to check in which order things are taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Protocol

from holdfast.errors import HoldfastError
from holdfast.runtime.ports import Io

Work = Generator[Any, Any, Any]


class StartIo(Protocol):
    def start(self, io: Io) -> None: ...


class Owner(Protocol):
    """On whose behalf something waits."""

    peer: str

    @property
    def volume_name(self) -> str: ...


class WaitOrder(Protocol):
    """Told of each task that is about to be parked; raises where that is against the order (`work.order`)."""

    def entering(self, task: Task, waitlist: Waitlist) -> None: ...


class Waitlist:
    """Tasks that wait for one condition. `wake` makes all of them ready; each looks at the condition itself.

    kind      what it is called in the order of waits; lists that are made as they are needed share one
    ended_by  who ends the wait besides those that hold the list (`Scheduler.hold`): actors by their names, or lists
              that stand for whoever holds them
    held_as   what holding it is called
    meant     nobody here is to blame for how long it takes: a client, or what the owner of a volume asked for
    passing   whoever waits here gets on with each waking, and does not wait on for the same thing
    """

    __slots__ = ("_scheduler", "ended_by", "held_as", "kind", "meant", "name", "passing", "tasks")

    def __init__(
        self,
        scheduler: Scheduler,
        name: str,
        *,
        kind: str = "",
        ended_by: tuple[str | Waitlist, ...] = (),
        held_as: str = "",
        meant: bool = False,
        passing: bool = False,
    ) -> None:
        self._scheduler = scheduler
        self.name = name
        self.kind = kind or name
        self.ended_by = ended_by
        self.held_as = held_as or name
        self.meant = meant
        self.passing = passing
        self.tasks: deque[Task] = deque()

    def wake(self) -> None:
        while self.tasks:
            task = self.tasks.popleft()
            task.waits_for = None
            self._scheduler.make_ready(task, None)


class Hold:
    """Something that a task has, and that others may wait for. Ended once, by `release`.

    resource: the list of those that wait for it; None if nobody but its own session ever does
    """

    __slots__ = ("_task", "count", "resource", "what")

    def __init__(self, task: Task | None, resource: Waitlist | None, count: int = 0, what: str = "") -> None:
        self._task = task
        self.resource = resource
        self.count = count
        self.what = what
        if task is not None:
            task.held.append(self)

    def release(self) -> None:
        if self._task is not None:
            self._task.held.remove(self)

    def __str__(self) -> str:
        what = self.what or (self.resource.held_as if self.resource is not None else "")
        return f"{self.count} {what}" if self.count else what


class Task:
    """One generator on its way. `finished` is called with its return value, unless it was cancelled.

    since_ns: when it began to wait for what it waits for now, to the tick. Woken only to find that it must wait on, it
    has waited all the while.
    """

    __slots__ = (
        "_parked_for",
        "_pending_ios",
        "_scheduler",
        "cancelled",
        "finished",
        "held",
        "name",
        "owner",
        "since_ns",
        "waits_for",
        "work",
    )

    def __init__(
        self,
        scheduler: Scheduler,
        work: Work,
        name: str,
        finished: Callable[[Any], None] | None,
        owner: Owner | None = None,
    ) -> None:
        self._scheduler = scheduler
        self.work = work
        self.name = name
        self.finished = finished
        self.owner = owner
        self.cancelled = False
        self.waits_for: object = None
        self.since_ns = 0
        self.held: list[Hold] = []
        self._parked_for = ""
        self._pending_ios = 0

    def cancel(self) -> None:
        """End the task at its next turn. Its generator is closed (so its `finally` clauses run) once no I/O of it is
        under way any more, because the I/O uses buffers that it owns."""
        if self.cancelled:
            return
        self.cancelled = True
        if isinstance(self.waits_for, Waitlist):
            self.waits_for.tasks.remove(self)
            self.waits_for = None
            self._scheduler.make_ready(self, None)

    def step(self, value: Any) -> None:
        if self.cancelled:
            self.work.close()
            self._scheduler.tasks.discard(self)
            return
        scheduler = self._scheduler
        outer, scheduler.running = scheduler.running, self
        try:
            awaited = self.work.send(value)
        except StopIteration as stop:
            scheduler.running = outer
            scheduler.tasks.discard(self)
            if self.finished is not None:
                self.finished(stop.value)
            return
        finally:
            scheduler.running = outer
        self._wait(awaited)

    def _wait(self, awaited: Any) -> None:
        scheduler = self._scheduler
        self.waits_for = awaited
        if isinstance(awaited, Waitlist):
            if awaited.name != self._parked_for or awaited.passing:
                self._parked_for = awaited.name
                self.since_ns = scheduler.now_ns
            if scheduler.order is not None:
                scheduler.order.entering(self, awaited)
            awaited.tasks.append(self)
            return
        self._parked_for = ""
        self.since_ns = scheduler.now_ns
        if isinstance(awaited, Io):
            awaited.done = self._io_done
            scheduler.disk.start(awaited)
        else:
            assert awaited, "a task that yields an empty list would never be resumed"
            self._pending_ios = len(awaited)
            for io in awaited:
                io.done = self._one_of_many_done
                scheduler.disk.start(io)

    def _io_done(self, io: Io) -> None:
        self.waits_for = None
        self._scheduler.make_ready(self, io)

    def _one_of_many_done(self, _io: Io) -> None:
        self._pending_ios -= 1
        if self._pending_ios == 0:
            ios, self.waits_for = self.waits_for, None
            self._scheduler.make_ready(self, ios)


class Scheduler:
    """The ready queue, and all tasks that are on their way (insertion order is kept for determinism).

    now_ns: the time of the last tick, which its owner sets: what begins to wait is stamped with it. To ask a clock each
    time would be exact, and cost more than it tells
    """

    def __init__(self, disk: StartIo, order: WaitOrder | None = None) -> None:
        self.disk = disk
        self.order = order
        self.now_ns = 0
        self.running: Task | None = None
        self.tasks: _OrderedSet = _OrderedSet()
        self.ready: deque[tuple[Task, Any]] = deque()

    def spawn(
        self, work: Work, name: str, finished: Callable[[Any], None] | None = None, owner: Owner | None = None
    ) -> Task:
        """Start a task and run its first step at once."""
        task = Task(self, work, name, finished, owner)
        self.tasks.add(task)
        task.step(None)
        return task

    def hold(self, resource: Waitlist, count: int = 0) -> Hold:
        """Note that the running task has something that others may wait for, until `Hold.release`. Outside of a task
        (at start-up) nobody is there to wait, and nothing is noted."""
        return Hold(self.running, resource, count)

    def make_ready(self, task: Task, value: Any) -> None:
        self.ready.append((task, value))

    def run_ready(self) -> None:
        """Run what is ready, including what becomes ready meanwhile."""
        ready = self.ready
        while ready:
            task, value = ready.popleft()
            task.step(value)


class _OrderedSet:
    """A set that iterates in the order of insertion: the engine must not depend on hashes."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: dict[Task, None] = {}

    def add(self, task: Task) -> None:
        self._items[task] = None

    def discard(self, task: Task) -> None:
        self._items.pop(task, None)

    def __contains__(self, task: object) -> bool:
        return task in self._items

    def __iter__(self) -> Any:
        return iter(list(self._items))

    def __len__(self) -> int:
        return len(self._items)


def guarded(work: Work) -> Work:
    """Run work and return the HoldfastError that it ends with, or None: for tasks whose end somebody is told of."""
    try:
        yield from work
    except HoldfastError as error:
        return error
    return None


def run_to_end(work: Work, run_io: Callable[[Io], int]) -> Any:
    """Drive a generator that yields only I/O, blocking: for start-up, before there is a loop, and for offline tools."""
    value: Any = None
    while True:
        try:
            awaited = work.send(value)
        except StopIteration as stop:
            return stop.value
        for io in awaited if isinstance(awaited, list) else [awaited]:
            run_io(io)
        value = awaited

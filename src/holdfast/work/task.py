"""Work that waits: generators driven by the engine, one step at a time, in one thread.

A generator that runs as a `Task` yields what it waits for and is resumed with the outcome:

    yield Io(...)          resumed with the Io when it has completed
    yield [Io(...), ...]   started together; resumed with the list when all have completed
    yield waitlist         parked until the list is woken; resumed with None. What it waited for may be gone again by
                           then: look again, and wait again.

Tasks made ready run in the order in which they became ready (`Scheduler.run_ready`), never inside the call that made
them ready, so no step is ever entered from within another.
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


class Waitlist:
    """Tasks that wait for one condition. `wake` makes all of them ready; each looks at the condition itself."""

    __slots__ = ("_scheduler", "name", "tasks")

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self._scheduler = scheduler
        self.name = name
        self.tasks: deque[Task] = deque()

    def wake(self) -> None:
        while self.tasks:
            task = self.tasks.popleft()
            task.waits_for = None
            self._scheduler.make_ready(task, None)


class Task:
    """One generator on its way. `finished` is called with its return value, unless it was cancelled."""

    __slots__ = ("_pending_ios", "_scheduler", "cancelled", "finished", "name", "waits_for", "work")

    def __init__(self, scheduler: Scheduler, work: Work, name: str, finished: Callable[[Any], None] | None) -> None:
        self._scheduler = scheduler
        self.work = work
        self.name = name
        self.finished = finished
        self.cancelled = False
        self.waits_for: object = None
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
        try:
            awaited = self.work.send(value)
        except StopIteration as stop:
            self._scheduler.tasks.discard(self)
            if self.finished is not None:
                self.finished(stop.value)
            return
        self._wait(awaited)

    def _wait(self, awaited: Any) -> None:
        self.waits_for = awaited
        if isinstance(awaited, Waitlist):
            awaited.tasks.append(self)
        elif isinstance(awaited, Io):
            awaited.done = self._io_done
            self._scheduler.disk.start(awaited)
        else:
            assert awaited, "a task that yields an empty list would never be resumed"
            self._pending_ios = len(awaited)
            for io in awaited:
                io.done = self._one_of_many_done
                self._scheduler.disk.start(io)

    def _io_done(self, io: Io) -> None:
        self.waits_for = None
        self._scheduler.make_ready(self, io)

    def _one_of_many_done(self, _io: Io) -> None:
        self._pending_ios -= 1
        if self._pending_ios == 0:
            ios, self.waits_for = self.waits_for, None
            self._scheduler.make_ready(self, ios)


class Scheduler:
    """The ready queue, and all tasks that are on their way (insertion order is kept for determinism)."""

    def __init__(self, disk: StartIo) -> None:
        self.disk = disk
        self.tasks: _OrderedSet = _OrderedSet()
        self.ready: deque[tuple[Task, Any]] = deque()

    def spawn(self, work: Work, name: str, finished: Callable[[Any], None] | None = None) -> Task:
        """Start a task and run its first step at once."""
        task = Task(self, work, name, finished)
        self.tasks.add(task)
        task.step(None)
        return task

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

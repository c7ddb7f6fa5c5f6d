"""People as scripts: generators that ask for something, wait, and go on with the answer.

A **wait** is a function that begins something and is given what to call with the outcome, later or at once. Scripts of
the simulated kernel are written the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from holdfast.runtime.ports import Loop
from holdfast.sim.lab.journal import Journal

Wait = Callable[[Callable[[Any], object]], object]
Script = Generator[Wait, Any, Any]


class Actor:
    """Plays a script to its end, or until it is killed. `finished` gets what the script returns."""

    def __init__(self, script: Script, finished: Callable[[Any], object] | None = None) -> None:
        self.over = False
        self._script = script
        self._finished = finished
        self._answers: list[Any] = []
        self._running = False
        self._resume(None)

    def kill(self) -> None:
        self.over = True
        self._script.close()

    def _resume(self, value: Any) -> None:
        """Go on with an answer. One that comes while its wait is still being begun is taken up by the loop below."""
        self._answers.append(value)
        if self._running:
            return
        self._running = True
        while self._answers and not self.over:
            try:
                wait = self._script.send(self._answers.pop())
            except StopIteration as stop:
                self.over = True
                if self._finished is not None:
                    self._finished(stop.value)
                return
            wait(self._resume)
        self._running = False


def sleep(loop: Loop, duration_ns: int) -> Wait:
    return lambda answered: loop.call_later(duration_ns, lambda: answered(None))


def run(script: Script) -> Wait:
    """The wait for the end of another script, which begins now."""
    return lambda answered: Actor(script, answered)


class DiskClient(Protocol):
    """A disk, as one of its users has it open. Answers are an errno, 0 for success; offsets and lengths in blocks."""

    def write(self, first: int, data: bytes) -> Wait: ...
    def read(self, first: int, count: int) -> Wait: ...
    def flush(self) -> Wait: ...
    def trim(self, first: int, count: int) -> Wait: ...
    def leave(self) -> None: ...


class Party:
    """Somebody who uses a disk. What he asks for, and what he is told, goes into the journal."""

    def __init__(self, name: str, journal: Journal, disk: str, client: DiskClient) -> None:
        self.name = name
        self._journal = journal
        self._disk = disk
        self._client = client

    def write(self, first: int, count: int) -> Script:
        """Write blocks that nobody wrote before; returns the errno. `first` and `count` are blocks."""
        journal = self._journal
        stamps = journal.new_stamps(count)
        data = b"".join(map(journal.content, stamps))
        request = journal.begun(self.name, "WRITE")
        errno = yield self._client.write(first, data)
        if not errno:
            journal.acknowledged(self.name, self._disk, first, stamps)
        journal.answered(request, errno)
        return errno

    def flush(self) -> Script:
        journal = self._journal
        covered = journal.moment
        request = journal.begun(self.name, "FLUSH")
        errno = yield self._client.flush()
        if not errno:
            journal.flushed(self._disk, covered)
        journal.answered(request, errno)
        return errno

    def read(self, first: int, count: int) -> Script:
        request = self._journal.begun(self.name, "READ")
        errno = yield self._client.read(first, count)
        self._journal.answered(request, errno)
        return errno

    def trim(self, first: int, count: int) -> Script:
        request = self._journal.begun(self.name, "TRIM")
        errno = yield self._client.trim(first, count)
        if not errno:
            self._journal.trimmed(self._disk, first, count)
        self._journal.answered(request, errno)
        return errno

    def leave(self) -> None:
        self._client.leave()
        self._journal.mark(self.name, "leaves")

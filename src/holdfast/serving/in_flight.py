"""The requests of a session that were begun and are not answered: how many, their tasks, and how they end.

Between the hot path, which answers at once or hands a request over, and `Outgoing`, which takes the reply.

Invariants:

 1. A request counts in `count` from its beginning until its reply is with `Outgoing`.
 2. A change is answered once its outcome is known, with FUA once the flusher says that it is durable; a FLUSH on the
    flusher's word. While the volume has lost data for good, and no operator has acknowledged that, both fail.
 3. After `close` nothing is answered, and no task of the session goes on; what waits for I/O ends with that.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO
from typing import Any

from holdfast.engine import Engine
from holdfast.errors import HoldfastError, resource_of
from holdfast.nbd.protocol import CMD_FLAG_FUA
from holdfast.runtime.ports import Io
from holdfast.serving.outgoing import Outgoing
from holdfast.units import KIB
from holdfast.volume.volume import Volume, loss_error
from holdfast.work.task import Hold, Task, Waitlist, Work

REQUESTS_IN_FLIGHT_MAX = 128
BYTES_IN_FLIGHT_MAX = 512 * KIB


class InFlight:
    """Fields: I fixed when made, L loop thread. `go_on` is called whenever what is in flight has become less."""

    def __init__(self, engine: Engine, volume: Volume, outgoing: Outgoing, *, go_on: Callable[[], None]) -> None:
        self.count = 0  # L
        self.payload_bytes = 0  # L: payload that tasks have copies of
        self.closed = False  # L
        self._engine = engine  # I
        self._volume = volume  # I
        self._outgoing = outgoing  # I
        self._go_on = go_on  # I
        self.peer = ""  # L: the client, for people; the connection sets it
        self.cold_reads: dict[Io, int] = {}  # L: reads under way without a task, since when (to the tick)
        self._tasks: dict[Task, None] = {}  # L

    @property
    def volume_name(self) -> str:
        return self._volume.name

    @property
    def full(self) -> bool:
        """True if the session must wait before it begins another request."""
        return self.count >= REQUESTS_IN_FLIGHT_MAX or self.payload_bytes > BYTES_IN_FLIGHT_MAX

    @property
    def waits_as_meant(self) -> bool:
        """True if one of its tasks waits for the client, or for space as the volume's owner wants it."""
        return any(isinstance(task.waits_for, Waitlist) and task.waits_for.meant for task in self._tasks)

    def close(self) -> None:
        """The client is gone: what was begun and did not finish is cancelled."""
        self.closed = True
        for task in list(self._tasks):
            task.cancel()
        self._tasks.clear()

    # ---- beginning

    def begin_flush(self, cookie: int) -> None:
        self.count += 1
        self._engine.flusher.when_durable(lambda errno: self._flushed(cookie, errno), "FLUSH", self)

    def spawn(self, work: Work, operation: str, finished: Callable[[Any], None], *, payload_bytes: int = 0) -> None:
        """Begin a request as a task. Its outcome goes to `finished`, which sees to it that the request ends.
        `payload_bytes`: of it that the task has a copy of."""
        self.count += 1
        holder: list[Task] = []

        def ended(outcome: Any) -> None:
            if holder:
                self._tasks.pop(holder[0], None)
            if not self.closed:
                finished(outcome)

        task = self._engine.scheduler.spawn(work, operation, ended, self)
        if task in self._engine.scheduler.tasks:
            if payload_bytes:
                Hold(task, None, payload_bytes, "bytes of payload")  # nobody else waits for it; until the task's end
            holder.append(task)
            self._tasks[task] = None

    def spawn_change(self, work: Work, operation: str, cookie: int, flags: int) -> None:
        """Begin work of the engine that sends no data; how it ends is answered to `cookie`."""
        self.spawn(self.checked(work), operation, lambda errno: self.changed(cookie, flags, errno))

    def checked(self, work: Work, first: Callable[[], bool] = lambda: True) -> Work:
        """Run work of the engine; returns 0 or the errno of the HoldfastError that it ends with. `first`: asked whether
        that is the first error of its request, which is told of once."""
        try:
            yield from work
        except HoldfastError as error:
            if first():
                self._engine.complaints.answer(error, self._volume.name)
            return error.errno
        return 0

    # ---- ending

    def changed(self, cookie: int, flags: int, errno: int) -> None:
        """A change has been made, or not; with FUA it is answered once it is durable."""
        if errno == 0 and flags & CMD_FLAG_FUA:
            self._engine.flusher.when_durable(lambda outcome: self._flushed(cookie, outcome), "FUA", self)
        else:
            self.answer(cookie, errno)

    def _flushed(self, cookie: int, errno: int) -> None:
        if errno and not self.closed:
            self._engine.complaints.count(errno, resource_of(errno))  # the flusher has logged it
        self.answer(cookie, errno or self._lost())

    def _lost(self) -> int:
        """What a FLUSH is answered although all is durable: EIO, while accepted data is lost and nobody has said that
        he knows."""
        volume = self._volume
        if not volume.loss_open or self.closed:
            return 0
        self._engine.complaints.answer(loss_error(volume), volume.name)
        return EIO

    def answer(self, cookie: int, errno: int) -> None:
        self.count -= 1
        if self.closed:
            return
        if errno:
            self._outgoing.error(cookie, errno, chunk=False)
        else:
            self._outgoing.done(cookie)
        self._go_on()

    def end(self, _outcome: object = None) -> None:
        """A request is over that has answered for itself, or needs no answer."""
        self.count -= 1
        self._go_on()

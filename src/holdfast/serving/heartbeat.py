"""What makes an engine go: a turn at the end of each turn of the loop, a tick some times a second with a look at the
memory of the host, and the end of the pause that write-back makes after a failure."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.engine import Engine
from holdfast.memory.reclaim import Pressure
from holdfast.runtime.ports import Loop, Timer

TICK_NS = 250_000_000


class Heartbeat:
    """Beats from `start` to `stop`. Hooks that answer clients are to come after it in `Loop.before_sleep`."""

    def __init__(self, loop: Loop, engine: Engine, *, pressure: Callable[[], int] = lambda: Pressure.NONE) -> None:
        """`pressure`: asked with each tick; a `Pressure`."""
        self._pressure = pressure
        self._loop = loop
        self._engine = engine
        self._timer: Timer | None = None
        self._pause: Timer | None = None

    def start(self) -> None:
        self._loop.before_sleep.append(self._turn)
        self._tick()

    def stop(self) -> None:
        self._loop.before_sleep.remove(self._turn)
        if self._timer is not None:
            self._timer.cancel()
        if self._pause is not None:
            self._pause.cancel()

    def _turn(self) -> None:
        if self._engine.turn():
            self._loop.turn_again()
        if self._engine.flusher.pause_ns and self._pause is None:
            self._pause = self._loop.call_later(self._engine.flusher.pause_ns, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._engine.flusher.resume()

    def _tick(self) -> None:
        self._engine.pressure(Pressure(self._pressure()))
        self._engine.tick()
        self._timer = self._loop.call_later(TICK_NS, self._tick)

"""What makes an engine go: a turn at the end of each turn of the loop, and a tick some times a second."""

from __future__ import annotations

from holdfast.engine import Engine
from holdfast.runtime.ports import Loop, Timer

TICK_NS = 250_000_000


class Heartbeat:
    """Beats from `start` to `stop`. Hooks that answer clients are to come after it in `Loop.before_sleep`."""

    def __init__(self, loop: Loop, engine: Engine) -> None:
        self._loop = loop
        self._engine = engine
        self._timer: Timer | None = None

    def start(self) -> None:
        self._loop.before_sleep.append(self._turn)
        self._tick()

    def stop(self) -> None:
        self._loop.before_sleep.remove(self._turn)
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        if self._engine.turn():
            self._loop.turn_again()

    def _tick(self) -> None:
        self._engine.tick()
        self._timer = self._loop.call_later(TICK_NS, self._tick)

"""Watches how full everything is that can be: the pool, groups and volumes with a limit of space, and the filesystem
below a pool whose segment files are not all made yet. It warns in the log before a write is refused, once for each
threshold (`fill.py`), and remembers rates for `top` and the metrics.

A look costs one pass over groups and volumes, and one statvfs, every few seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from holdfast.engine import Engine
from holdfast.errors import ACTIONS, Resource, log_fields
from holdfast.runtime.ports import Loop, Timer
from holdfast.serving.fill import Forecast, Thresholds
from holdfast.units import BLOCK_SHIFT, format_duration, format_size

log_output = logging.getLogger("holdfast.space")

LOOK_NS = 5_000_000_000

POOL, GROUP, VOLUME, HOST = "pool", "group", "volume", "host filesystem"
_RESOURCES = {
    POOL: Resource.POOL_SPACE,
    GROUP: Resource.GROUP_SPACE,
    VOLUME: Resource.QUOTA,
    HOST: Resource.HOST_FILESYSTEM,
}


@dataclass(slots=True)
class Watched:
    """Something that can become full. `name`: of the group or volume."""

    kind: str
    name: str
    used_bytes: int = 0
    limit_bytes: int = 0
    thresholds: Thresholds = field(default_factory=Thresholds)
    forecast: Forecast = field(default_factory=Forecast)

    @property
    def seconds_left(self) -> float | None:
        """Until it is full; None: never, as things are."""
        return self.forecast.seconds_left(self.limit_bytes)

    def __str__(self) -> str:
        return f"the {self.kind}" if not self.name else f"{self.kind} {self.name}"


class SpaceWatch:
    """Fields: I fixed when made, L loop thread."""

    def __init__(self, loop: Loop, engine: Engine, *, host: Callable[[], tuple[int, int]]) -> None:
        """`host`: the bytes of the filesystem below the pool that are used, and that there are."""
        self.watched: dict[tuple[str, int], Watched] = {}  # L: by kind and id
        self._loop = loop  # I
        self._engine = engine  # I
        self._host = host  # I
        self._timer: Timer | None = None  # L

    def start(self) -> None:
        self._look_and_go_on()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look_and_go_on(self) -> None:
        self.look()
        self._timer = self._loop.call_later(LOOK_NS, self._look_and_go_on)

    def look(self) -> list[Watched]:
        """Look now: every few seconds, and whenever somebody asks."""
        now_s = self._engine.clock.now_ns() / 1e9
        found: dict[tuple[str, int], Watched] = {}
        for kind, number, name, used_bytes, limit_bytes in self._everything():
            watched = found[kind, number] = self.watched.get((kind, number)) or Watched(kind, name)
            watched.name, watched.used_bytes, watched.limit_bytes = name, used_bytes, limit_bytes
            watched.forecast.look(now_s, used_bytes)
            crossed = watched.thresholds.look(used_bytes, limit_bytes)
            if crossed:
                self._warn(watched, crossed)
        self.watched = found
        return list(found.values())

    def _warn(self, watched: Watched, percent: int) -> None:
        resource = _RESOURCES[watched.kind]
        log_output.warning(
            "%s is over %d%% full, %s of %s%s; %s",
            watched,
            percent,
            format_size(watched.used_bytes),
            format_size(watched.limit_bytes),
            "" if watched.seconds_left is None else f", and full in {format_duration(watched.seconds_left)}",
            ACTIONS[resource],
            extra=log_fields(resource, volume=watched.name if watched.kind == VOLUME else None),
        )

    def _everything(self) -> Iterator[tuple[str, int, str, int, int]]:
        """Kind, id, name, bytes used and limit of everything that can become full."""
        engine = self._engine
        used_bytes, usable_bytes = pool_space(engine)
        yield POOL, 0, "", used_bytes, usable_bytes
        for group in engine.groups.directory.by_id.values():
            if group.limits.space_bytes:
                yield GROUP, group.group_id, group.name, group.mapped_blocks << BLOCK_SHIFT, group.limits.space_bytes
        for volume in engine.by_name.values():
            if volume.quota_bytes:
                yield VOLUME, volume.volume_id, volume.name, volume.mapped_blocks << BLOCK_SHIFT, volume.quota_bytes
        if engine.space.absent or engine.space.preparing:
            host_used_bytes, host_bytes = self._host()
            yield HOST, 0, "", host_used_bytes, host_bytes


def pool_space(engine: Engine) -> tuple[int, int]:
    """Bytes of a pool that hold something of clients, or their maps, or are held back for some, and how many can before
    writes are refused."""
    space = engine.space
    return space.used_blocks + space.held_blocks << BLOCK_SHIFT, engine.space.usable_blocks << BLOCK_SHIFT

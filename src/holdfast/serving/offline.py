"""A pool that nobody serves, opened in this process for one command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from holdfast.control.api import ChangeVolume, CreateVolume, PoolStatus, VolumeInfo, VolumeRemoved
from holdfast.errors import HoldfastError
from holdfast.runtime.loop import EventLoop
from holdfast.serving.pool import PoolOptions, ServedPool
from holdfast.serving.status import pool_status, volume_info
from holdfast.volume.volume import Volume


class OfflinePool:
    """A pool that nobody serves, opened in this process: each call returns when what it does is durable."""

    def __init__(self, pool: ServedPool) -> None:
        self._pool = pool
        self._engine = pool.engine

    def status(self) -> PoolStatus:
        return pool_status(self._pool, pid=None, connections=0, started_ns=self._pool.clock.now_ns(), listening=[])

    def volumes(self) -> list[VolumeInfo]:
        return [volume_info(volume, []) for volume in self._engine.by_name.values()]

    def volume(self, name: str) -> VolumeInfo:
        return volume_info(self._engine.find(name), [])

    def create_volume(self, wanted: CreateVolume) -> VolumeInfo:
        outcome = self._run(
            lambda answer: self._engine.create_volume(
                wanted.name,
                wanted.size_bytes,
                answer,
                quota_bytes=wanted.quota_bytes,
                on_full_wait_s=wanted.on_full_wait_s,
            )
        )
        assert isinstance(outcome, Volume)
        return volume_info(outcome, [])

    def change_volume(self, name: str, change: ChangeVolume) -> VolumeInfo:
        outcome = self._run(
            lambda answer: self._engine.change_volume(
                name, answer, quota_bytes=change.quota_bytes, on_full_wait_s=change.on_full_wait_s
            )
        )
        assert isinstance(outcome, Volume)
        return volume_info(outcome, [])

    def remove_volume(self, name: str, *, force: bool = False) -> VolumeRemoved:
        self._run(lambda answer: self._engine.remove_volume(name, answer))
        return VolumeRemoved(removed=name)

    def _run(self, begin: Callable[[Callable[[Volume | HoldfastError | None], None]], None]) -> Volume | None:
        return _run_in_loop(self._pool.loop, begin)


def _run_in_loop(
    loop: EventLoop, begin: Callable[[Callable[[Volume | HoldfastError | None], None]], None]
) -> Volume | None:
    """Run the loop until what `begin` starts has been answered; raises the answer if it is an error."""
    outcome: list[Volume | HoldfastError | None] = []

    def answer(value: Volume | HoldfastError | None) -> None:
        outcome.append(value)
        loop.stop()

    begin(answer)
    loop.run()  # also when it has been answered already: then the loop ends what belongs to this turn, and stops
    if isinstance(outcome[0], HoldfastError):
        raise outcome[0]
    return outcome[0]


@contextmanager
def offline(path: str) -> Iterator[OfflinePool]:
    """Open a pool that nobody serves; it is closed cleanly at the end. Raises HoldfastError."""
    pool = ServedPool(path, EventLoop(), PoolOptions(), create=False)
    clean = False
    try:
        _run_in_loop(pool.loop, pool.start)
        yield OfflinePool(pool)
        _run_in_loop(pool.loop, pool.stop)
        clean = True
    finally:
        pool.release(clean=clean)
        pool.loop.dispose()

"""A pool that nobody serves, opened in this process for one command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from holdfast.control.api import (
    ChangeVolume,
    CloneVolume,
    CreateVolume,
    PoolStatus,
    TakeSnapshots,
    VolumeInfo,
    VolumeList,
    VolumeRemoved,
)
from holdfast.control.group_api import ChangeGroup, CreateGroup, GroupInfo, GroupRemoved
from holdfast.control.space_api import ChangePool, ResizeVolume, VolumeResized
from holdfast.errors import HoldfastError
from holdfast.pool.tables import GroupLimits
from holdfast.runtime.loop import EventLoop
from holdfast.serving.listing import asked_of, list_snapshots, list_volumes, volume_info
from holdfast.serving.pool import PoolOptions, ServedPool
from holdfast.serving.settings import group_limits, identity, pairs, volume_settings
from holdfast.serving.status import group_info, list_groups, pool_status, volume_resized
from holdfast.volume.groups import TenantGroup
from holdfast.volume.resize import Resized
from holdfast.volume.volume import Volume

# How long a command waits at most for what was removed before.
LET_GO_NS_MAX = 120 * 1_000_000_000

Begin = Callable[[Callable[[object], None]], None]


class OfflinePool:
    """A pool that nobody serves, opened in this process: each call returns when what it does is durable."""

    def __init__(self, pool: ServedPool) -> None:
        self._pool = pool
        self._engine = pool.engine

    def status(self) -> PoolStatus:
        return pool_status(self._pool, pid=None, connections=0, started_ns=self._pool.clock.now_ns(), listening=[])

    def volumes(self) -> list[VolumeInfo]:
        return list_volumes(self._engine, _no_uris)

    def snapshots(self, of: str = "") -> list[VolumeInfo]:
        found: list[VolumeInfo] = []
        after = 0
        while True:
            part = list_snapshots(self._engine, _no_uris, of=of, after=after)
            found += part.snapshots
            if not part.next:
                return found
            after = part.next

    def volume(self, name: str) -> VolumeInfo:
        volume = self._engine.find(name)
        self._run(lambda answer: self._engine.sharing.settle(asked_of(volume), lambda: answer(None)))
        return self._info(volume)

    def _let_go(self) -> None:
        """Of a pool that nobody serves what was removed goes only while a command has it open: to be called before what
        needs the space, or is refused for the lack of it."""

        def begin(answer: Callable[[object], None]) -> None:
            answers = [answer]  # one of the two comes first

            def once() -> None:
                if answers:
                    answers.pop()(None)

            loop = self._pool.loop
            loop.call_later(LET_GO_NS_MAX, once)
            self._engine.volumes.removal.when_done(once)

        self._run(begin)

    def create_volume(self, wanted: CreateVolume) -> VolumeInfo:
        if wanted.provisioned:
            self._let_go()
        settings = volume_settings(self._engine, wanted)
        return self._volume(lambda answer: self._engine.create_volume(wanted.name, wanted.size_bytes, answer, settings))

    def change_volume(self, name: str, change: ChangeVolume) -> VolumeInfo:
        if change.provisioned:
            self._let_go()
        settings = volume_settings(self._engine, change)
        return self._volume(lambda answer: self._engine.change_volume(name, answer, settings))

    def resize_volume(self, name: str, wanted: ResizeVolume) -> VolumeResized:
        self._let_go()
        outcome = self._run(
            lambda answer: self._engine.resize_volume(name, wanted.size_bytes, answer, force=wanted.force)
        )
        assert isinstance(outcome, Resized)
        return volume_resized(outcome)

    def change_pool(self, change: ChangePool) -> PoolStatus:
        self._let_go()
        self._run(lambda answer: self._engine.resize_pool(change.capacity_bytes, answer))
        return self.status()

    def acknowledge_loss(self, name: str, loss_epoch: int) -> VolumeInfo:
        return self._volume(lambda answer: self._engine.volumes.acknowledge_loss(name, loss_epoch, answer))

    def remove_volume(self, name: str, *, force: bool = False, snapshots: bool = False) -> VolumeRemoved:
        chosen = self._engine.volumes.removed_with(name, snapshots=snapshots)
        self._run(lambda answer: self._engine.remove_volume(name, answer, snapshots=snapshots))
        return VolumeRemoved(removed=name, snapshots=len(chosen) - 1)

    def take_snapshots(self, wanted: TakeSnapshots) -> VolumeList:
        taken = self._run(lambda answer: self._engine.snapshots.take(pairs(wanted), answer, identity=identity(wanted)))
        assert isinstance(taken, list)
        return VolumeList(volumes=[self._info(node) for node in taken])

    def clone_volume(self, source: str, wanted: CloneVolume) -> VolumeInfo:
        settings = volume_settings(self._engine, wanted)
        return self._volume(lambda answer: self._engine.snapshots.clone(source, wanted.name, answer, settings))

    def promote_volume(self, name: str) -> VolumeInfo:
        return self._volume(lambda answer: self._engine.snapshots.promote(name, answer))

    def roll_back_volume(self, snapshot: str) -> VolumeInfo:
        return self._volume(lambda answer: self._engine.snapshots.roll_back(snapshot, answer))

    def groups(self) -> list[GroupInfo]:
        return list_groups(self._engine)

    def group(self, name: str) -> GroupInfo:
        return group_info(self._engine.groups.find(name), self._engine)

    def create_group(self, wanted: CreateGroup) -> GroupInfo:
        limits = group_limits(wanted, GroupLimits())
        return self._group(lambda answer: self._engine.groups.create(wanted.name, limits, answer))

    def change_group(self, name: str, change: ChangeGroup) -> GroupInfo:
        limits = group_limits(change, self._engine.groups.find(name).limits)
        return self._group(lambda answer: self._engine.groups.change(name, limits, answer))

    def remove_group(self, name: str) -> GroupRemoved:
        self._run(lambda answer: self._engine.groups.remove(name, answer))
        return GroupRemoved(removed=name)

    def _volume(self, begin: Begin) -> VolumeInfo:
        outcome = self._run(begin)
        assert isinstance(outcome, Volume)
        return self._info(outcome)

    def _info(self, volume: Volume) -> VolumeInfo:
        return volume_info(self._engine, volume, [])

    def _group(self, begin: Begin) -> GroupInfo:
        outcome = self._run(begin)
        assert isinstance(outcome, TenantGroup)
        return group_info(outcome, self._engine)

    def _run(self, begin: Begin) -> object:
        return _run_in_loop(self._pool.loop, begin)


def _no_uris(_name: str) -> list[str]:
    return []


def _run_in_loop(loop: EventLoop, begin: Begin) -> object:
    """Run the loop until what `begin` starts has been answered; raises the answer if it is an error."""
    outcome: list[object] = []

    def answer(value: object) -> None:
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

"""The volumes of a pool: how one is found, made and removed.

Beside the data path: what is written and read here are rows of the volume table, and they become durable with a
checkpoint, which the engine writes.

Invariants:

 1. A volume is found (`by_name`) only once a checkpoint with its row is durable: what a client was told is flushed
    would otherwise go with the volume.
 2. A volume is removed in two steps. First its row is marked, and that made durable: from then on it is sure to go, and
    nobody finds it. Then its blocks are let go of, in the end its row. A crash in between leaves the mark, and the next
    engine goes on (`resume_removals`).
 3. Removing needs little space and gives back more. Where it finds none, or the disk fails, it tries again at each
    tick: a checkpoint frees what it has let go of so far.
 4. The reserve is at least the one for the volumes that there are (`Reserve`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.errors import (
    CorruptionError,
    DiskError,
    HoldfastError,
    NoSpaceError,
    NotFoundError,
    RequestError,
    ShortageError,
    log_fields,
)
from holdfast.memory.context import CONTROL
from holdfast.memory.group import Group, Kind
from holdfast.memory.policy import refused
from holdfast.pool.block import VOLUME_ID_MAX, page_place
from holdfast.pool.space import SpaceTable
from holdfast.pool.tables import VolumeRow
from holdfast.runtime.ports import Clock
from holdfast.units import KIB, VOLUME_SIZE_BYTES_MAX, format_size
from holdfast.volume.groups import GroupDirectory
from holdfast.volume.page_cache import PAGE_SHIFT, PageCache
from holdfast.volume.page_table import PageDamagedError, PageTable
from holdfast.volume.reserve import Reserve
from holdfast.volume.settings import AS_BY_DEFAULT, VolumeSettings, apply_settings
from holdfast.volume.volume import Volume, root_level_for
from holdfast.volume.write import Writer
from holdfast.work.task import Scheduler, Waitlist, Work, guarded

log_output = logging.getLogger("holdfast.volumes")

# What a volume takes in memory whatever it holds: its row, its name, its places in tables.
VOLUME_STATE_BYTES = 2 * KIB

Answer = Callable[["Volume | HoldfastError | None"], None]


class Volumes:
    """Fields: I fixed when made, L loop thread."""

    def __init__(
        self,
        by_id: dict[int, Volume],
        groups: GroupDirectory,
        system: Group,
        reserve: Reserve,
        space: SpaceTable,
        cache: PageCache,
        table: PageTable,
        writer: Writer,
        scheduler: Scheduler,
        clock: Clock,
        *,
        next_id: int,
        checkpoint: Callable[[], Work],
        is_checkpoint_running: Callable[[], bool],
        row_changed: Callable[[], None],
        next_tick: Waitlist,
    ) -> None:
        """`row_changed` is told of changes that are to become durable although nobody waits for that."""
        self._row_changed = row_changed  # I
        self.by_id = by_id  # L: all, also those that are being made or removed
        self.by_name: dict[str, Volume] = {}  # L
        self.groups = groups  # L
        self._system = system  # I: pays for what the volumes themselves take
        self.next_id = next_id  # L
        self._reserve = reserve  # I
        self._space = space  # I
        self._cache = cache  # I
        self._table = table  # I
        self._writer = writer  # I
        self._scheduler = scheduler  # I
        self._clock = clock  # I
        self._checkpoint = checkpoint  # I
        self._is_checkpoint_running = is_checkpoint_running  # I
        self._next_tick = next_tick  # I

    def add(self, volume: Volume) -> None:
        """Add a volume that the pool has already. Raises NoSpaceError."""
        self.by_id[volume.volume_id] = volume
        self.by_name[volume.name] = volume
        volume.group.take_in(volume.mapped_blocks)
        volume.row_changed = self._row_changed
        self._system.charge(Kind.STATE, VOLUME_STATE_BYTES)
        self.hold_reserve()

    def hold_reserve(self, *, more_volumes: int = 0, more_groups: int = 0) -> None:
        """Hold back what the volumes and groups that there are need, and so many more. Raises what `Reserve.hold_for`
        does."""
        volumes, groups = len(self.by_id) + more_volumes, len(self.groups.by_id) + more_groups
        self._reserve.hold_for(volumes, groups, exist=not more_volumes + more_groups)

    def find(self, name: str) -> Volume:
        """The volume of that name. Raises NotFoundError."""
        volume = self.by_name.get(name)
        if volume is None or volume.removing:
            raise NotFoundError(f"there is no volume {name!r}; `holdfast volume list` shows those that exist")
        return volume

    # ---- making one

    def create(self, name: str, size_bytes: int, answer: Answer, settings: VolumeSettings = AS_BY_DEFAULT) -> None:
        """Make a volume; `answer` gets it once that is durable, or the error."""
        refusal = self._refusal(name, size_bytes)
        if refusal is not None:
            answer(refusal)
            return
        volume = Volume(
            VolumeRow(
                volume_id=self.next_id,
                name=name,
                size_bytes=size_bytes,
                root=0,
                root_level=root_level_for(size_bytes),
                mapped_blocks=0,
                created_ns=self._clock.wall_ns(),
                removing=False,
            ),
            self.groups.default,
        )
        volume.group.take_in(0)
        volume.row_changed = self._row_changed
        apply_settings(volume, settings, self._cache)
        self.next_id += 1
        self.by_id[volume.volume_id] = volume  # it is in the checkpoint to come

        def made(error: HoldfastError | None) -> None:
            if error is None:
                self.by_name[name] = volume
            else:
                self._forget(volume)
            answer(error or volume)

        self._scheduler.spawn(guarded(self._checkpoint()), f"create {name}", made)

    def _refusal(self, name: str, size_bytes: int) -> HoldfastError | None:
        """Why a volume cannot be made; None if it can: then its part of the reserve is held back."""
        if any(volume.name == name for volume in self.by_id.values()):
            return RequestError(f"there is a volume {name!r} already")
        if not 0 < size_bytes <= VOLUME_SIZE_BYTES_MAX:
            return RequestError(f"a volume's size is between 1 byte and {format_size(VOLUME_SIZE_BYTES_MAX)}")
        if self.next_id > VOLUME_ID_MAX:
            return RequestError("no volume id is left in this pool")
        try:
            self.hold_reserve(more_volumes=1)
        except (NoSpaceError, ShortageError) as error:
            self.hold_reserve()
            return error
        if self._space.available_segments <= self._space.checkpoint_segments:
            return NoSpaceError("the pool is full: trim or remove volumes, or serve it with more --capacity")
        refuser = self._system.try_charge(Kind.STATE, VOLUME_STATE_BYTES, CONTROL)
        return None if refuser is None else refused(refuser, Kind.STATE, VOLUME_STATE_BYTES)

    def _forget(self, volume: Volume) -> None:
        """A volume is gone, or was not made after all."""
        del self.by_id[volume.volume_id]
        volume.group.let_go(volume.mapped_blocks)
        self._system.release(Kind.STATE, VOLUME_STATE_BYTES)

    # ---- changing one

    def change(self, name: str, answer: Answer, settings: VolumeSettings) -> None:
        """Change a volume at once. `answer` gets it once that is durable, or the error, and then it is as before."""
        try:
            volume = self.find(name)
        except NotFoundError as error:
            answer(error)
            return
        take_back = apply_settings(volume, settings, self._cache)

        def stored(error: HoldfastError | None) -> None:
            if error is not None:
                take_back()
            answer(error or volume)

        self._scheduler.spawn(guarded(self._checkpoint()), f"change {name}", stored)

    def acknowledge_loss(self, name: str, epoch: int, answer: Answer) -> None:
        """An operator knows of the loss: from now on FLUSH succeeds again. `answer` gets the volume once that is
        durable."""
        try:
            volume = self.find(name)
            if not volume.loss_open:
                raise RequestError(f"volume {name!r} has no loss that is not acknowledged")
            if epoch != volume.loss_epoch:
                raise RequestError(f"the loss of volume {name!r} is number {volume.loss_epoch}, not {epoch}")
        except RequestError as error:
            answer(error)
            return

        def stored(error: HoldfastError | None) -> None:
            volume.loss_acknowledged = 0
            if error is None and volume.loss_epoch == epoch:
                volume.loss_open = False
            answer(error or volume)

        self._scheduler.spawn(guarded(self._acknowledge(volume)), f"acknowledge {name}", stored)

    def _acknowledge(self, volume: Volume) -> Work:
        for lba in list(volume.damaged):
            try:
                yield from self._writer.give_up(volume, lba)
            except (CorruptionError, DiskError) as error:
                # Its place in the map cannot be reached: should it be read again after a restart, it is news again.
                log_output.warning("block %d of volume %s is not given up: %s", lba, volume.name, error)
        volume.loss_acknowledged = volume.loss_epoch
        yield from self._checkpoint()

    # ---- removing one

    def remove(self, name: str, answer: Answer) -> None:
        """Remove a volume nobody is connected to; `answer` is called once it is sure to go, its space comes free
        later."""
        try:
            volume = self.find(name)
        except NotFoundError as error:
            answer(error)
            return
        if volume.connections:
            answer(
                RequestError(
                    f"volume {name!r} is in use ({volume.connections} connected); disconnect its clients first"
                )
            )
            return
        volume.removing = True

        def marked(error: HoldfastError | None) -> None:
            volume.removing = error is None
            answer(error)
            if error is None:
                self._begin_removal(volume)

        self._scheduler.spawn(guarded(self._checkpoint()), f"mark {name}", marked)

    def resume_removals(self) -> None:
        """Go on with the removals that an earlier engine had begun."""
        for volume in list(self.by_id.values()):
            if volume.removing:
                self._begin_removal(volume)

    def _begin_removal(self, volume: Volume) -> None:
        self._scheduler.spawn(guarded(self._remove(volume)), f"remove {volume.name}", self._removal_done)

    def _remove(self, volume: Volume) -> Work:
        """Turn the whole volume into holes, then drop its row."""
        first = 0
        while first < volume.size_blocks:
            try:
                yield from self._writer.punch(volume, first, volume.size_blocks)
                break
            except PageDamagedError as error:
                # What lies below the page cannot be found: it stays counted as live until a repair counts again.
                log_output.error(
                    "%s; the space below it is not freed", error, extra=log_fields(error.resource, volume=volume.name)
                )
                level, index = page_place(error.key)
                first = (index + 1) << PAGE_SHIFT * (level + 1)
            except (NoSpaceError, DiskError):
                yield self._next_tick  # a checkpoint frees what was let go of, or the disk recovers; then on from here
        yield from self._checkpoint()
        # A cancelled request may still wait for a page that it had asked for; a checkpoint refers to the volume's
        # pages.
        while self._is_checkpoint_running() or self._table.is_loading(volume):
            yield self._next_tick
        self._cache.forget_volume(volume.key_base)
        del self.by_name[volume.name]
        self._forget(volume)
        self.hold_reserve()
        yield from self._checkpoint()

    def _removal_done(self, error: HoldfastError | None) -> None:
        if error is not None:
            log_output.error(
                "a volume cannot be removed: %s", error, extra=log_fields(error.resource, errno=error.errno)
            )

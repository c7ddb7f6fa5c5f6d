"""The volumes of a pool: how one is found, made and removed. Snapshots and clones are made in `snapshots.py`.

Beside the data path: what is written and read here are rows of the volume table, and they become durable with a
checkpoint, which the engine writes.

Invariants:

 1. A volume is found (`by_name`) only once a checkpoint with its row is durable: what a client was told is flushed
    would otherwise go with the volume.
 2. A volume is removed in two steps. First its row is marked, and that made durable: from then on it is sure to go, and
    nobody finds it. Then it is hidden, and goes in the background (`Removal`). A crash in between leaves the mark, and
    the next engine goes on.
 3. The reserve is at least the one for the volumes that there are (`Reserve`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from holdfast.errors import (
    CorruptionError,
    DiskError,
    HoldfastError,
    NoSpaceError,
    NotFoundError,
    RequestError,
    Resource,
    ShortageError,
    log_fields,
)
from holdfast.memory.context import CONTROL
from holdfast.memory.group import Group, Kind
from holdfast.memory.policy import refused
from holdfast.pool.block import VOLUME_ID_MAX
from holdfast.pool.space import SpaceTable
from holdfast.pool.tables import ROW_SIZE_BYTES, VolumeRow, row_bytes_max
from holdfast.runtime.ports import Clock
from holdfast.units import BLOCK_SHIFT, KIB, VOLUME_SIZE_BYTES_MAX, format_size
from holdfast.volume.groups import GroupDirectory, TenantGroup
from holdfast.volume.long_write import LongWriter
from holdfast.volume.page_cache import PageCache
from holdfast.volume.provision import Provisions
from holdfast.volume.removal import Removal
from holdfast.volume.reserve import Reserve
from holdfast.volume.settings import AS_BY_DEFAULT, VolumeSettings, apply_settings
from holdfast.volume.versions import hide, near_head, place_all
from holdfast.volume.volume import Role, Volume, root_level_for
from holdfast.work.task import Scheduler, Work, guarded

log_output = logging.getLogger("holdfast.volumes")

# What a volume or snapshot takes in memory whatever it holds: itself, its name, its places in tables. Measured with
# 10,000 of them: 1.4 KiB.
VOLUME_STATE_BYTES = KIB + KIB // 2

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
        long_writer: LongWriter,
        scheduler: Scheduler,
        clock: Clock,
        *,
        next_id: int,
        checkpoint: Callable[[], Work],
        row_changed: Callable[[], None],
    ) -> None:
        """`row_changed` is told of changes that are to become durable although nobody waits for that."""
        self.row_changed = row_changed  # I
        self.by_id = by_id  # L: all, also those that are being made or removed
        self.by_name: dict[str, Volume] = {}  # L: volumes and snapshots
        self._claimed: set[str] = set()  # L: names of those that are being made
        self.groups = groups  # L
        self._system = system  # I: pays for what the volumes themselves take
        self.next_id = next_id  # L
        self._reserve = reserve  # I
        self._rows_bytes = 0  # L: that the volume table takes at most, without the groups
        self.removal: Removal  # I: given by the engine
        self._space = space  # I
        self.provisions = Provisions(space)  # I
        self._cache = cache  # I
        self._long_writer = long_writer  # I
        self.scheduler = scheduler  # I
        self._clock = clock  # I
        self.checkpoint = checkpoint  # I

    def add(self, volumes: Iterable[Volume], rows: Iterable[VolumeRow]) -> None:
        """Add the volumes that the pool has already. Raises CorruptionError, NoSpaceError."""
        for volume in volumes:
            self.by_id[volume.volume_id] = volume
            volume.row_bytes = row_bytes_max(volume.role)
            self._rows_bytes += volume.row_bytes
            volume.group.take_in(volume.mapped_blocks)
            volume.row_changed = self.row_changed
            self._system.charge(Kind.STATE, VOLUME_STATE_BYTES)
        place_all(rows, self.by_id)
        for volume in self.by_id.values():
            if volume.role is not Role.HIDDEN:
                self.by_name[volume.name] = volume
        self.hold_reserve()

    def hold_provisioned(self) -> None:
        """All volumes are what they were before the last server ended."""
        for volume in self.heads():
            self.provisions.hold(volume)
        short = self._space.used_blocks - self._space.open_blocks
        if self._space.held_blocks and short > 0:
            log_output.warning(
                "provisioned volumes are promised %s more than the pool has: add --capacity",
                format_size(short << BLOCK_SHIFT),
                extra=log_fields(Resource.POOL_SPACE),
            )

    def hold_reserve(self, *, more_bytes: int = 0, larger: bool = False) -> None:
        """Hold back what the volume table needs as it is, with so many bytes of rows more. `larger`: the pool is to
        become so, which can be refused as well. Raises what `Reserve.hold_for` does."""
        self._reserve.hold_for(self._table_bytes + more_bytes, exist=not (more_bytes or larger))

    def usable_blocks_for(self, capacity_segments: int) -> int:
        """How many blocks could be live in a pool of this capacity."""
        return self._reserve.usable_blocks_for(capacity_segments, self._table_bytes)

    @property
    def _table_bytes(self) -> int:
        return self._rows_bytes + self.groups_bytes

    @property
    def groups_bytes(self) -> int:
        return len(self.groups.by_id) * ROW_SIZE_BYTES

    def find(self, name: str) -> Volume:
        """The volume of that name. Raises NotFoundError."""
        volume = self.by_name.get(name)
        if volume is None or volume.removing:
            if "@" in name:
                raise NotFoundError(
                    f"there is no snapshot {name!r}; `holdfast volume list --snapshots` shows those that exist"
                )
            raise NotFoundError(f"there is no volume {name!r}; `holdfast volume list` shows those that exist")
        return volume

    # ---- making one

    def create(self, name: str, size_bytes: int, answer: Answer, settings: VolumeSettings = AS_BY_DEFAULT) -> None:
        """Make a volume; `answer` gets it once that is durable, or the error."""
        refusal = self._refusal(name, size_bytes)
        if refusal is not None:
            answer(refusal)
            return
        volume = self.make(VolumeRow(self.next_id, name, size_bytes, 0, root_level_for(size_bytes), 0, self.now_ns()))
        apply_settings(volume, settings, self._cache)
        try:
            self.provisions.hold_or_refuse(volume)
        except HoldfastError as error:
            self.forget(volume)
            answer(error)
            return
        self.claim([name])

        def made(error: HoldfastError | None) -> None:
            self.release_claim([name])
            if error is None:
                self.by_name[name] = volume
            else:
                self.forget(volume)
            answer(error or volume)

        self.scheduler.spawn(guarded(self.checkpoint()), f"create {name}", made)

    def now_ns(self) -> int:
        return self._clock.wall_ns()

    def _refusal(self, name: str, size_bytes: int) -> HoldfastError | None:
        """Why a volume cannot be made; None if it can: then its part of the reserve is held back."""
        if not 0 < size_bytes <= VOLUME_SIZE_BYTES_MAX:
            return RequestError(f"a volume's size is between 1 byte and {format_size(VOLUME_SIZE_BYTES_MAX)}")
        try:
            self.check_free(name)
            self.hold_for_more([Role.VOLUME])
        except HoldfastError as error:
            return error
        return None

    def check_free(self, name: str) -> None:
        """Raise RequestError if there is a volume or snapshot of that name, or one is being made."""
        if name in self.by_name or name in self._claimed:
            raise RequestError(f"there is a {'snapshot' if '@' in name else 'volume'} {name!r} already")

    def claim(self, names: Iterable[str]) -> None:
        """Let nobody else take these names while those that will have them are being made."""
        self._claimed.update(names)

    def release_claim(self, names: Iterable[str]) -> None:
        self._claimed.difference_update(names)

    def hold_for_more(self, roles: list[Role]) -> None:
        """Hold back, of space and of memory, what more nodes of these roles need; `make` is called for each of them
        after that. Raises NoSpaceError, ShortageError or RequestError, with nothing held."""
        if self.next_id + len(roles) - 1 > VOLUME_ID_MAX:
            raise RequestError("no volume id is left in this pool")
        space = self._space
        usable_blocks = space.usable_blocks
        try:
            self.hold_reserve(more_bytes=sum(map(row_bytes_max, roles)))
        except (NoSpaceError, ShortageError):
            self.hold_reserve()
            raise
        # What their metadata may need must not be taken from what is mapped.
        too_full = space.usable_blocks < usable_blocks and space.used_blocks > space.open_blocks
        if too_full or space.available_segments < space.checkpoint_segments:
            self.hold_reserve()
            raise NoSpaceError("the pool is full: trim or remove volumes, or serve it with more --capacity")
        state_bytes = len(roles) * VOLUME_STATE_BYTES
        refuser = self._system.try_charge(Kind.STATE, state_bytes, CONTROL)
        if refuser is not None:
            raise refused(refuser, Kind.STATE, state_bytes)

    def make(self, row: VolumeRow, group: TenantGroup | None = None) -> Volume:
        """A new node, of the volume id that is next; it is in the checkpoint to come. `hold_for_more` came before."""
        assert row.volume_id == self.next_id
        volume = Volume(row, group or self.groups.default)
        volume.group.take_in(0)
        volume.row_changed = self.row_changed
        self.next_id += 1
        self.by_id[volume.volume_id] = volume
        self._rows_bytes += row_bytes_max(volume.role)
        volume.row_bytes = row_bytes_max(volume.role)
        return volume

    def forget(self, volume: Volume) -> None:
        """A node is gone, or was not made after all."""
        del self.by_id[volume.volume_id]
        self.let_go(volume)
        self._rows_bytes -= volume.row_bytes
        volume.group.let_go(volume.mapped_blocks)
        self._system.release(Kind.STATE, VOLUME_STATE_BYTES)

    def let_go(self, volume: Volume) -> None:
        """It goes, or was not made after all: nothing is held for it any more."""
        volume.provisioned = False
        self.provisions.hold(volume)

    # ---- changing one

    def change(self, name: str, answer: Answer, settings: VolumeSettings) -> None:
        """Change a volume at once. `answer` gets it once that is durable, or the error, and then it is as before."""
        try:
            volume = self.find(name)
            if volume.role is Role.SNAPSHOT and replace(settings, protected=None) != AS_BY_DEFAULT:
                raise RequestError(
                    f"{name!r} is a snapshot, which can be protected and unprotected only; its group is the volume's"
                )
        except RequestError as error:
            answer(error)
            return
        take_back = apply_settings(volume, settings, self._cache)
        try:
            if settings.provisioned or settings.quota_bytes is not None:
                self.provisions.hold_or_refuse(volume)
        except HoldfastError as error:
            take_back()
            answer(error)
            return
        if settings.group is not None:
            self.gather_snapshots(volume)

        def stored(error: HoldfastError | None) -> None:
            if error is not None:
                take_back()
                if settings.group is not None:
                    self.gather_snapshots(volume)
            self.provisions.hold(volume)  # what is not wanted any more is held until that is durable
            answer(error or volume)

        self.scheduler.spawn(guarded(self.checkpoint()), f"change {name}", stored)

    def gather_snapshots(self, volume: Volume) -> None:
        """A volume is in another group, or has other snapshots than before: let all of them be in its group, what is
        left of removed ones as well."""
        moved = [node for node in self.by_id.values() if node.parent is volume and node.group is not volume.group]
        for node in moved:
            node.move_to(volume.group)
        if moved:
            self._cache.move_volumes({node.volume_id for node in moved}, volume.group.memory)

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

        # From here on whatever is found is a loss that whoever acknowledges this one cannot have seen.
        volume.loss_acknowledged = epoch
        work = self._acknowledge(volume, list(volume.damaged))
        self.scheduler.spawn(guarded(work), f"acknowledge {name}", stored)

    def _acknowledge(self, volume: Volume, lbas: list[int]) -> Work:
        for lba in lbas:
            try:
                yield from self._long_writer.give_up(volume, lba)
            except (CorruptionError, DiskError) as error:
                # Its place in the map cannot be reached: should it be read again after a restart, it is news again.
                log_output.warning("block %d of volume %s is not given up: %s", lba, volume.name, error)
        yield from self.checkpoint()

    # ---- removing one

    def remove(self, name: str, answer: Answer, *, snapshots: bool = False) -> None:
        """Remove a volume or snapshot that nobody is connected to; `answer` is called once it is sure to go, its space
        comes free later. `snapshots`: those of the volume as well."""
        try:
            chosen = self.removed_with(name, snapshots=snapshots)
            for each in chosen:
                self.check_unused(each)
        except RequestError as error:
            answer(error)
            return
        for each in chosen:
            each.removing = True

        def marked(error: HoldfastError | None) -> None:
            for each in chosen:
                each.removing = False
                if error is None:
                    self.by_name.pop(each.name, None)  # one that is just being taken is not found yet
            if error is None:
                for each in chosen:
                    hide(each)
                    self.let_go(each)
                    head = near_head(each)
                    if head is not None:  # what it shares may be less
                        self.provisions.hold(head)
            answer(error)
            self.removal.begin()

        self.scheduler.spawn(guarded(self.checkpoint()), f"mark {name}", marked)

    def removed_with(self, name: str, *, snapshots: bool) -> list[Volume]:
        """What goes if this volume or snapshot is removed: itself, and with `snapshots` those of the volume. Raises
        NotFoundError, and RequestError if some of it is to stay. Clients are not asked about."""
        volume = self.find(name)
        chosen = [volume, *(node for node in self.snapshots_of(volume) if not node.removing)]
        count = len(chosen) - 1
        if count and not snapshots:
            there = "a snapshot; remove it" if count == 1 else f"{count} snapshots; remove them"
            raise RequestError(f"volume {name!r} has {there} first, or all with it: --snapshots")
        for each in chosen:
            if each.protected:
                what = "snapshot" if each.role is Role.SNAPSHOT else "volume"
                raise RequestError(
                    f"{what} {each.name!r} is protected; `holdfast volume set POOL/{each.name} --unprotect` ends that"
                )
        return chosen

    def check_unused(self, volume: Volume) -> None:
        """Raise RequestError if somebody is connected."""
        if volume.connections:
            what = "snapshot" if volume.role is Role.SNAPSHOT else "volume"
            raise RequestError(
                f"{what} {volume.name!r} is in use ({volume.connections} connected); disconnect its clients first"
            )

    def heads(self) -> Iterator[Volume]:
        """The volumes that can be found, without their snapshots."""
        return (node for node in self.by_name.values() if node.role is Role.VOLUME)

    def snapshots_of(self, volume: Volume) -> list[Volume]:
        """Those found under the volume's name, the oldest first."""
        if volume.role is not Role.VOLUME:
            return []
        return [node for node in self.by_id.values() if node.parent is volume and node.role is Role.SNAPSHOT]

    def gone(self, nodes: Iterable[Volume]) -> None:
        """Nothing is left of these removed volumes and snapshots."""
        for node in nodes:
            self.forget(node)
        self.hold_reserve()

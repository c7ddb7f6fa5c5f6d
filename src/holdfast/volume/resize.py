"""Volumes made larger and smaller, while the pool is served.

A new size becomes durable like all that a volume table says: with a checkpoint, in both superblock slots, because no
log could bring it back.

Larger. First the map gets as many levels as the new size needs: a new root whose first entry is the old one. Then the
checkpoint; and only after it is the new size told to clients (`Volume.size_bytes`), because what they write behind the
old end would go with the size if a crash took that back.

Smaller. Nobody may be connected. The smaller size holds at once for whoever comes; the operator is answered once it is
durable. What lies behind the end is let go of after that, without a record in the log: the row of the volume says that
it is to be done (`cutting`), so a crash on the way only means that it is done again (`resume`). Until then the volume
does not grow, and so never shows what was cut off. What snapshots still see of it goes to them, as when it is trimmed:
until that is done the volume is as long as it was for all that looks through it (`map_end_blocks`), and no snapshot is
taken of it.

Invariants:

 1. A map has never fewer levels than the size in the row needs, and the row's root is one of its level: levels are
    added only while no checkpoint is running, which takes the level at its beginning and the root at its end.
 2. Levels are not taken away again. A map may have more of them than its size needs.
 3. Behind the end of a volume its map has nothing but holes, and the rest of its last block is zero, unless `cutting`.

It always advances: it needs pages of map memory and checkpoints, which are never refused for good, and no space, but
for the rest of a last block that is cut in two. Where that finds none, it is tried again at each tick; it is an
overwrite.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from holdfast.errors import (
    CorruptionError,
    DiskError,
    HoldfastError,
    NoSpaceError,
    NotFoundError,
    RequestError,
    log_fields,
)
from holdfast.pool.block import LEVEL_SHIFT, page_place
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, VOLUME_SIZE_BYTES_MAX, format_size
from holdfast.volume.checkpoints import Checkpoints
from holdfast.volume.long_write import LEAVES_PER_TURN, LongWriter
from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT
from holdfast.volume.page_table import PageDamagedError, PageTable
from holdfast.volume.versions import refresh_keepers
from holdfast.volume.volume import Role, Volume, root_level_for
from holdfast.volume.volumes import Volumes
from holdfast.volume.waitlists import Waitlists
from holdfast.volume.write import Writer
from holdfast.work.task import Scheduler, Work, guarded

log_output = logging.getLogger("holdfast.volumes")


@dataclass(frozen=True, slots=True)
class Resized:
    """cut_bytes: how much smaller the volume is; cut_data_bytes: how much of that was mapped, in whole blocks"""

    volume: Volume
    cut_bytes: int = 0
    cut_data_bytes: int = 0


def cut_sentence(resized: Resized) -> str:
    """What making a volume smaller takes away."""
    return f"cuts {format_size(resized.cut_bytes)} off, of which {format_size(resized.cut_data_bytes)} hold data"


def _is_going(volume: Volume) -> bool:
    """True if it is being removed, or was: what is left of it is not to be touched."""
    return volume.removing or volume.role is not Role.VOLUME


ResizeAnswer = Callable[["Resized | HoldfastError"], None]


class Resizes:
    """All fields are fixed when made."""

    def __init__(
        self,
        volumes: Volumes,
        writer: Writer,
        long_writer: LongWriter,
        table: PageTable,
        checkpoints: Checkpoints,
        waitlists: Waitlists,
        scheduler: Scheduler,
    ) -> None:
        self._volumes = volumes
        self._writer = writer
        self._long_writer = long_writer
        self._cache = writer.cache
        self._table = table
        self._views = writer.views
        self._checkpoints = checkpoints
        self._waitlists = waitlists
        self._scheduler = scheduler

    def resize(self, name: str, size_bytes: int, answer: ResizeAnswer, *, force: bool = False) -> None:
        """Give a volume another size; `answer` gets what that was once it is durable, or the error. `force`: make it
        smaller; without it that is refused with what it would cut off."""
        outcome: list[Resized] = []

        def ended(error: HoldfastError | None) -> None:
            answer(error or outcome[0])

        self._scheduler.spawn(guarded(self._resize(name, size_bytes, force, outcome)), f"resize {name}", ended)

    def resume(self) -> None:
        """Go on letting go of what an earlier engine had cut off."""
        for volume in self._volumes.by_id.values():
            if volume.cutting and volume.role is Role.VOLUME:
                volume.resizing = True
                self._begin_cut(volume)

    def _resize(self, name: str, size_bytes: int, force: bool, outcome: list[Resized]) -> Work:
        if not 0 < size_bytes <= VOLUME_SIZE_BYTES_MAX:
            raise RequestError(f"a volume's size is between 1 byte and {format_size(VOLUME_SIZE_BYTES_MAX)}")
        volume = self._volumes.find(name)
        if volume.role is not Role.VOLUME:
            raise RequestError(f"{name!r} is a snapshot, whose size stays; clone it, and give the clone another size")
        while volume.resizing:
            yield self._waitlists.next_tick
        self._check_there(volume)
        volume.resizing = True
        try:
            if size_bytes >= volume.size_bytes:
                yield from self._grow(volume, size_bytes)
                outcome.append(Resized(volume))
            else:
                outcome.append((yield from self._shrink(volume, size_bytes, force=force)))
        except BaseException:
            volume.resizing = False
            raise
        self._begin_cut(volume)

    def _check_there(self, volume: Volume) -> None:
        if _is_going(volume):
            raise NotFoundError(f"volume {volume.name!r} was removed")

    # ---- larger

    def _grow(self, volume: Volume, size_bytes: int) -> Work:
        unsure = volume.cutting  # the checkpoint that was to tell of the smaller size failed
        yield from self._cut(volume)
        if size_bytes == volume.stored_size_bytes and not unsure:
            return
        yield from self._raise_root(volume, root_level_for(size_bytes))
        self._check_there(volume)
        volume.stored_size_bytes = size_bytes
        try:
            self._volumes.provisions.hold_or_refuse(volume)
            yield from self._checkpoints.checkpoint(both_slots=True)
        except HoldfastError:
            volume.stored_size_bytes = volume.size_bytes
            self._volumes.provisions.hold(volume)
            raise
        volume.size_bytes = size_bytes
        refresh_keepers(volume)

    def _raise_root(self, volume: Volume, level: int) -> Work:
        """Put pages above the root until the map has one of this level (a task's work)."""
        cache, waitlists = self._cache, self._waitlists
        while volume.root_level < level:
            key = volume.key_base | volume.root_level << LEVEL_SHIFT
            loading = self._table.loading(key)
            if self._checkpoints.running:
                yield waitlists.checkpoint_end
            elif loading is not None:
                yield loading  # it would be installed as the root
            elif key not in cache.slot_of and not volume.root:
                volume.root_level = level  # there is nothing yet
            elif cache.dirty_pages >= cache.dirty_hard_limit:
                yield waitlists.clean_room
            else:
                slots = cache.take_slots(level - volume.root_level, volume.group.memory)
                if slots:
                    self._put_above(volume, slots)
                else:
                    yield waitlists.page_room

    def _put_above(self, volume: Volume, slots: list[int]) -> None:
        """Pages above the root, one in each slot: the first refers to it, the others to nothing that is stored yet."""
        cache = self._cache
        below = cache.slot_of.get(volume.key_base | volume.root_level << LEVEL_SHIFT, -1)
        for slot in slots:
            volume.root_level += 1
            cache.arena[slot] = 0
            cache.install(slot, volume.key_base | volume.root_level << LEVEL_SHIFT, -1)
            if below >= 0:
                cache.put_below(below, slot)
            if volume.root:
                cache.words[slot << PAGE_SHIFT] = volume.root
                cache.mark_dirty(slot)
                volume.root = 0
            below = slot

    # ---- smaller

    def _shrink(self, volume: Volume, size_bytes: int, *, force: bool) -> Work:
        self._check_unused(volume)
        data_blocks = yield from self._count_behind(volume, size_bytes)
        resized = Resized(volume, volume.size_bytes - size_bytes, data_blocks << BLOCK_SHIFT)
        if not force:
            raise RequestError(
                f"making volume {volume.name!r} {format_size(size_bytes)} large {cut_sentence(resized)}; "
                "give --force to do that"
            )
        self._check_unused(volume)  # somebody may have come meanwhile
        self._check_there(volume)
        volume.size_bytes = volume.stored_size_bytes = size_bytes
        volume.cutting = True
        refresh_keepers(volume)
        # Should this fail, it stays smaller: a checkpoint in between may have told of that already, and what a client
        # then wrote behind the smaller end would be lost with the next crash.
        yield from self._checkpoints.checkpoint(both_slots=True)
        return resized

    def _check_unused(self, volume: Volume) -> None:
        if volume.connections:
            raise RequestError(
                f"volume {volume.name!r} is in use ({volume.connections} connected), and can only grow now; disconnect "
                "its clients to make it smaller"
            )

    def _count_behind(self, volume: Volume, size_bytes: int) -> Work:
        """How many blocks hold data behind an end (a task's work), counted on the smaller side of it, if all that the
        volume has is in its own map."""
        first, size_blocks = -(-size_bytes // BLOCK_SIZE_BYTES), volume.size_blocks
        if size_blocks - first <= first or volume.basis is not None:
            return (yield from self._count(volume, first, size_blocks))
        before = yield from self._count(volume, 0, first)
        return max(0, volume.mapped_blocks - before)

    def _count(self, volume: Volume, first: int, end: int) -> Work:
        """How many of the blocks [first, end) hold data; those that a damaged page hides are left out."""
        count = 0

        def look(_first: int, _stop: int, blocks: int) -> int:
            nonlocal count
            count += blocks
            return 0

        yield from self._visit(volume, first, end, look, on_damage=lambda _error: None)
        return count

    def _visit(
        self,
        volume: Volume,
        first: int,
        end: int,
        visit: Callable[[int, int, int], int],
        *,
        on_damage: Callable[[PageDamagedError], None],
    ) -> Work:
        """Call `visit(first, stop, blocks)` where some of the blocks [first, end) hold data, leaf by leaf (a task's
        work). It returns 0, or the obstacle that is to be overcome before it is called again. Ends early if the volume
        is being removed. Raises DiskError, and NoSpaceError where an obstacle is that."""
        leaves = 0
        while first < end and not _is_going(volume):
            leaves += 1
            if leaves % LEAVES_PER_TURN == 0:
                yield self._waitlists.next_turn
            end_leaf = (end - 1 >> PAGE_SHIFT) + 1
            try:
                leaf = yield from self._views.next_leaf(volume, first >> PAGE_SHIFT, end_leaf)
                slot = -1
                if leaf < end_leaf:
                    slot = yield from self._views.leaf(volume, leaf)
            except PageDamagedError as error:
                on_damage(error)
                level, index = page_place(error.key)
                first = (index + 1) << PAGE_SHIFT * (level + 1)
                continue
            if leaf >= end_leaf:
                return
            first = max(first, leaf << PAGE_SHIFT)
            stop = min(end, leaf + 1 << PAGE_SHIFT)
            at = first & PAGE_MASK
            blocks = 0 if slot < 0 else int(np.count_nonzero(self._cache.arena[slot, at : at + stop - first]))
            obstacle = visit(first, stop, blocks) if blocks and not _is_going(volume) else 0
            if obstacle:
                yield from self._long_writer.overcome(obstacle, volume, first)
            else:
                first = stop

    # ---- what was cut off

    def _begin_cut(self, volume: Volume) -> None:
        def ended(error: HoldfastError | None) -> None:
            volume.resizing = False
            if error is not None:
                log_output.error("what was cut off volume %s stays: %s", volume.name, error)

        self._scheduler.spawn(guarded(self._cut(volume)), f"cut {volume.name}", ended)

    def _cut(self, volume: Volume) -> Work:
        """Let go of what lies behind the end (a task's work), however often that has to be tried."""
        while volume.cutting and volume.role is Role.VOLUME:
            if volume.removing:
                yield self._waitlists.next_tick  # it is removed with what is behind its end, or goes on to be there
                continue
            try:
                yield from self._clear_last_block(volume)
                yield from self._forget_behind(volume)
            except (NoSpaceError, DiskError):
                yield self._waitlists.next_tick
                continue
            if not _is_going(volume):
                volume.cutting = False
                refresh_keepers(volume)
                self._volumes.provisions.hold(volume)
                self._checkpoints.row_changed()

    def _forget_behind(self, volume: Volume) -> Work:
        def forget(first: int, stop: int, _blocks: int) -> int:
            return self._writer.forget_in_leaf(volume, first, stop)

        def report(error: PageDamagedError) -> None:
            log_output.error(
                "%s; the space below it is not freed", error, extra=log_fields(error.resource, volume=volume.name)
            )

        first, end = volume.size_blocks, volume.map_end_blocks
        yield from self._visit(volume, first, end, forget, on_damage=report)
        volume.forget_damage(first, end)

    def _clear_last_block(self, volume: Volume) -> Work:
        lba, start = divmod(volume.size_bytes, BLOCK_SIZE_BYTES)
        if not start:
            return
        try:
            yield from self._long_writer.clear_rest(volume, lba, start)
        except CorruptionError as error:
            # It reads as EIO, before and after the volume grows: what was in it is not shown.
            log_output.error("%s", error, extra=log_fields(error.resource, volume=volume.name))

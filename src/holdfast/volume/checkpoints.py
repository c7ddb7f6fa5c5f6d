"""When a checkpoint is due, and that one runs at a time. How it is written: `pool/checkpoint.py`.

One is due when recovery would have too much log to read, when too much of the map memory is dirty, when space runs out
and a checkpoint would free some, or when something is to be known after a crash that a checkpoint alone tells of.

It always advances: segments, ring and memory are held back for it (`volume/reserve.py`), and it waits for nothing that
a checkpoint alone frees (docs/waits.md). A checkpoint that a crash cut short has changed nothing: the superblock that
leads to it is written last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from holdfast.errors import ACTIONS, HoldfastError, errno_name, log_fields, resource_of
from holdfast.memory.reservation import Reservation
from holdfast.pool.checkpoint import Checkpointer, VolumeTable
from holdfast.pool.space import DYING, SEALED, Privilege
from holdfast.pool.superblock import Superblock
from holdfast.pool.tables import NODE_ROW_SIZE_BYTES, encode_group, root_place
from holdfast.units import BLOCK_SHIFT, GIB
from holdfast.volume.groups import GroupDirectory
from holdfast.volume.metadata_waits import MetadataWaits
from holdfast.volume.page_writer import PageWriter
from holdfast.volume.volume import Volume
from holdfast.volume.waitlists import Waitlists
from holdfast.work.task import Scheduler, Work, guarded

log_output = logging.getLogger("holdfast.engine")

# A checkpoint is due when so much log was written since the last one: recovery reads that much at most.
CHECKPOINT_LOG_BYTES = 1 * GIB
# With little space, when so much of the pool would come free.
WORTH_SHARE = 64


class _Joint:
    """A checkpoint that several commands wait for. `error`: how it failed; of meaning once it has `ended`."""

    __slots__ = ("ended", "error")

    def __init__(self) -> None:
        self.ended = False
        self.error: HoldfastError | None = None


class Checkpoints:
    """Fields: I fixed when made, L loop thread."""

    def __init__(
        self,
        superblock: Superblock,
        block: memoryview,
        pages: PageWriter,
        groups: GroupDirectory,
        metadata: MetadataWaits,
        waitlists: Waitlists,
        scheduler: Scheduler,
        *,
        staging: Reservation,
        next_volume_id: Callable[[], int],
        is_cleaning: Callable[[], bool],
        look: Callable[[], None],
        released: Callable[[], None],
    ) -> None:
        """block: 4096 aligned bytes, for superblocks
        staging: what is held back for putting the tables together
        next_volume_id: what the next volume will be called, at the moment of a checkpoint
        is_cleaning: whether the cleaner is at work, or about to be
        look: called when `due` may say something else than before
        released: called when a checkpoint is durable, after those who wait for what it frees were woken"""
        log, space, volumes = pages.log, pages.log.space, pages.volumes
        self.checkpointer = Checkpointer(  # I
            log,
            space,
            pages,
            superblock,
            block,
            staging=staging,
            volume_table=lambda: _volume_table(volumes, groups, pages.dirty_volumes()),
            root_of=lambda volume_id: volumes[volume_id].root,
            make_room=metadata.make_room,
            until_durable=metadata.until_durable,
            retry=waitlists.next_tick,
            next_turn=waitlists.next_turn,
            blocks_per_turn=pages.pages_per_turn,
            on_error=self._superblock_failed,
        )
        self._log = log  # I
        self._space = space  # I
        self._cache = pages.cache  # I
        self._waitlists = waitlists  # I
        self._scheduler = scheduler  # I
        self._next_volume_id = next_volume_id  # I
        self._is_cleaning = is_cleaning  # I
        self._joint: _Joint | None = None  # L: that of the commands, not begun yet
        self._look = look  # I
        self._released = released  # I
        self.running = False  # L
        self.failures = 0  # L: writes of a superblock or a checkpoint that failed, and were tried again or not
        self._position = 0  # L: where the log was at the last one
        self._pages_wanted = False  # L: one is due, because it makes pages clean that a group is to give up
        self._rows_changed = False  # L: one is due, because it alone tells of that

    # ---- when

    def due(self) -> bool:
        """True if one should be begun now; False while one is running."""
        if self.running:
            return False
        if self._rows_changed or self._pages_wanted:
            return True
        cache = self._cache
        if cache.dirty_pages >= cache.dirty_soft_limit or (self._waitlists.page_room.tasks and cache.dirty_pages):
            return True
        pool_blocks = self._space.limit_segments << self._space.segment_shift
        if self._log.position - self._position >= min(CHECKPOINT_LOG_BYTES >> BLOCK_SHIFT, pool_blocks // 4):
            return True
        return self._space_is_low() and self._would_free()

    def row_changed(self) -> None:
        """A volume has lost data, or takes no writes any more: that is to be known after a crash as well."""
        self._rows_changed = True
        self._look()

    def clean_pages(self) -> None:
        """A group is to give up pages of the map: those that are dirty have to be made clean first."""
        self._pages_wanted = self._cache.dirty_pages > 0
        self._look()

    def _space_is_low(self) -> bool:
        return self._space.available_segments <= self._space.reserve_segments + 1

    def _would_free(self) -> bool:
        """True if enough would come free for one to be worth it. For less the cleaner has one written, as soon as
        somebody waits; in a pool that is written to at random each writes all pages of the map."""
        space = self._space
        dead = (space.state == DYING) | ((space.state == SEALED) & (space.live == 0))
        return int(np.count_nonzero(dead)) >= max(1, space.limit_segments // WORTH_SHARE)

    # ---- one of them

    def begin(self) -> None:
        """Start a task that writes one; none may be running. That it failed is logged."""
        self._scheduler.spawn(guarded(self.write(clean=False)), "checkpoint", self._done)

    def checkpoint(self, *, clean: bool = False, both_slots: bool = False) -> Work:
        """Write a checkpoint of a moment at or after the call (a task's work).

        both_slots: let both superblock slots lead to it, for what only a checkpoint tells of (which volumes there are)
        and no log can bring back should the newer slot be lost.
        """
        while self.running:
            yield self._waitlists.checkpoint_end
        yield from self.write(clean=clean, both_slots=both_slots)

    def for_command(self) -> Work:
        """Write one in both slots for what a command has changed before the call (a task's work). Commands that come
        before it has begun share it: a thousand at once need no thousand checkpoints.

        Each leaves a few live pages between dead tables, and only the cleaner makes a free segment of that. So this
        waits for the cleaner where some of what is held back for checkpoints is missing: as fast as they are given,
        commands do not use up what checkpoints need.
        """
        joint = self._joint
        if joint is not None:
            while not joint.ended:
                yield self._waitlists.checkpoint_end
            if joint.error is not None:
                raise joint.error
            return
        joint = self._joint = _Joint()
        while self.running or self._is_worn():
            yield self._waitlists.checkpoint_end if self.running else self._waitlists.next_tick
        self._joint = None
        try:
            yield from self.write(clean=False, both_slots=True)
        except HoldfastError as error:
            joint.error = error
            raise
        finally:
            joint.ended = True

    def _is_worn(self) -> bool:
        return self._space.available_segments < self._space.checkpoint_segments and self._is_cleaning()

    def should_be_spared(self) -> bool:
        """True if there is nothing left but what is held back for checkpoints and the cleaner, and that one is at work:
        who makes pages dirty, and can do so later as well, waits until it has brought some back."""
        return self._space.least_privilege() > Privilege.FREEING and self._is_cleaning()

    def write(self, *, clean: bool, epoch: int | None = None, both_slots: bool = False) -> Work:
        """Write one at once (a task's work); none may be running. `epoch`: the new one of an opening."""
        waitlists, checkpointer = self._waitlists, self.checkpointer
        self.running = True
        self._position = self._log.position
        self._rows_changed = self._pages_wanted = False
        held = self._scheduler.hold(waitlists.checkpoint_end)
        try:
            yield from checkpointer.write(clean=clean, next_volume_id=self._next_volume_id(), epoch=epoch)
            if both_slots:
                superblock = checkpointer.superblock
                yield from checkpointer.write_superblock(replace(superblock, sequence=superblock.sequence + 1))
                self._space.free_dying()
        finally:
            held.release()
            self.running = False
            self._look()
            waitlists.checkpoint_end.wake()
        waitlists.page_room.wake()
        waitlists.segment_room.wake()
        waitlists.metadata_room.wake()
        self._released()

    def _done(self, outcome: HoldfastError | None) -> None:
        if outcome is not None:
            self.failures += 1
            log_output.error("checkpoint failed: %s", outcome, extra=log_fields(outcome.resource, errno=outcome.errno))

    def _superblock_failed(self, what: str, errno: int) -> None:
        self.failures += 1
        log_output.error(
            "%s: cannot be written (%s); trying again; %s",
            what,
            errno_name(errno),
            ACTIONS[resource_of(errno)],
            extra=log_fields(resource_of(errno), errno=errno),
        )


def _volume_table(volumes: dict[int, Volume], groups: GroupDirectory, written: set[int]) -> VolumeTable:
    """The volume table of this moment. `written`: ids of volumes of whose maps pages are to be written."""
    raw = bytearray().join([encode_group(group.row()) for group in groups.by_id.values() if not group.removing])
    roots = []
    for volume in volumes.values():
        row = volume.encoded_row()
        if volume.volume_id in written:
            roots.append((volume.volume_id, len(raw) + root_place(is_node=len(row) == NODE_ROW_SIZE_BYTES)))
        raw += row
    return VolumeTable(raw, roots)

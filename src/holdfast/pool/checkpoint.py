"""The checkpoint: the maps and tables of one moment go to the log, then a superblock that points at them.

Order, and why nothing is lost wherever it is cut off:

 1. the moment: the open commit is sealed; the log position is the new replay position; dirty pages are frozen, the live
    counts and the volume table copied
 2. frozen pages are appended (`PageWriter`), then the blocks of the tables, then of the index
 3. all of that is made durable
 4. the superblock goes into the slot of the older one: from here on recovery starts at the moment
 5. what only the older checkpoints needed becomes free (`SpaceTable.retire`)

Before 4 recovery starts from the superblock before, for which nothing has changed. The `live` column that is stored
leaves out the blocks of the tables themselves: a table cannot hold its own address. They are counted again when it is
read.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from holdfast.errors import CorruptionError
from holdfast.memory.context import Context
from holdfast.memory.group import Kind
from holdfast.memory.reservation import Reservation
from holdfast.pool.block import ADDRESS_MASK, KIND_META, SEED_META, VOLUME_SHIFT
from holdfast.pool.space import ROW_DTYPE, SEALED, SpaceTable
from holdfast.pool.superblock import INDEX_WORDS_MAX, Superblock, encode_superblock
from holdfast.pool.tables import (
    TABLE_COPIES,
    TABLE_INDEX,
    TABLE_SPACE,
    TABLE_VOLUMES,
    table_blocks,
)
from holdfast.runtime.ports import SUPERBLOCK, WRITE, Io
from holdfast.work.task import Waitlist, Work

_ROOT = struct.Struct("<Q")


class AppendLog(Protocol):
    """What a checkpoint needs of the log's head."""

    room: int
    sealed: int
    segment: int
    next_ordinal: int
    shift: int

    def append(self, block: bytes | bytearray, owner: int, seed: int, kind: int) -> int: ...
    def seal_commit(self) -> None: ...


class FrozenPages(Protocol):
    def begin(self, live: npt.NDArray[np.int64]) -> None: ...
    def write_all(self) -> Work: ...


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeTable:
    """The volume table of one moment, but for the roots of maps that are still being written: `roots` has the id of
    each of those volumes, and where its root is to be put."""

    raw: bytearray
    roots: list[tuple[int, int]]


class Checkpointer:
    """Writes checkpoints, one at a time. `superblock` is the newest durable one."""

    def __init__(
        self,
        log: AppendLog,
        space: SpaceTable,
        pages: FrozenPages,
        superblock: Superblock,
        block: memoryview,
        *,
        staging: Reservation,
        volume_table: Callable[[], VolumeTable],
        root_of: Callable[[int], int],
        make_room: Callable[[], Work],
        until_durable: Callable[[], Work],
        retry: Waitlist,
        next_turn: Waitlist,
        blocks_per_turn: int,
        on_error: Callable[[str, int], None],
    ) -> None:
        """blocks_per_turn: how many blocks of tables are appended before clients have a turn"""
        self.log = log
        self.space = space
        self.pages = pages
        self.superblock = superblock
        self.meta_addresses: list[int] = []  # blocks of the tables that `superblock` points at
        self.written = 0
        self._block = block  # 4096 aligned bytes
        self._staging = staging
        self._context = Context("the checkpoint", reservation=staging)
        self._volume_table = volume_table
        self._root_of = root_of
        self._make_room = make_room
        self._until_durable = until_durable
        self._retry = retry
        self._next_turn = next_turn
        self._blocks_per_turn = blocks_per_turn
        self._on_error = on_error

    def write(self, *, clean: bool, next_volume_id: int, epoch: int | None = None) -> Work:
        """Write one checkpoint (a task's work)."""
        log, space = self.log, self.space
        log.seal_commit()
        replay_position = log.sealed if log.segment >= 0 else log.next_ordinal << log.shift
        replay_segment = max(log.segment, 0)
        sealed = space.state == SEALED
        live = space.live.copy()
        for address in self.meta_addresses:
            live[address >> log.shift] -= 1
        capacity_segments = space.capacity_segments  # stays while a checkpoint is running
        table = self._volume_table()
        staging_bytes = self._charge_staging(len(table.raw))
        try:
            self.pages.begin(live)
            yield from self.pages.write_all()

            for volume_id, at in table.roots:
                _ROOT.pack_into(table.raw, at, self._root_of(volume_id))
            volume_table = table.raw
            space_table = space.encode(live)
            words: list[int] = []
            for _ in range(TABLE_COPIES):
                words += yield from self._append_table(TABLE_VOLUMES, volume_table)
                words += yield from self._append_table(TABLE_SPACE, space_table)
            index = struct.pack(f"<{len(words)}Q", *words)
            index_words: list[int] = []
            for _ in range(TABLE_COPIES):
                index_words += yield from self._append_table(TABLE_INDEX, index)
            if len(index_words) > INDEX_WORDS_MAX:
                raise CorruptionError(f"the pool's tables need {len(words)} blocks, more than the superblock can name")
            log.seal_commit()
            log.room = 0
            if clean:
                # Nothing is left to replay: what was appended for the checkpoint itself holds no client's data.
                replay_position = log.sealed if log.segment >= 0 else log.next_ordinal << log.shift
                replay_segment = max(log.segment, 0)
            yield from self._until_durable()

            superblock = dataclasses.replace(
                self.superblock,
                sequence=self.superblock.sequence + 1,
                epoch=self.superblock.epoch if epoch is None else epoch,
                clean=clean,
                capacity_segments=capacity_segments,
                replay_position=replay_position,
                replay_segment=replay_segment,
                next_volume_id=next_volume_id,
                volume_table_bytes=len(volume_table),
                space_table_bytes=len(space_table),
                index_entries=tuple(index_words),
            )
            yield from self.write_superblock(superblock)
            for address in self.meta_addresses:
                space.live_words[address >> log.shift] -= 1
            self.meta_addresses = [word & ADDRESS_MASK for word in (*words, *index_words)]
            space.retire(sealed & (live == 0))
            self.written += 1
        finally:
            self._staging.release(staging_bytes)

    def _charge_staging(self, rows_bytes: int) -> int:
        """Charge the memory in which the tables are put together; returns the bytes. It cannot be refused: what is
        reserved was reserved for this."""
        staging = self._staging
        table_bytes = rows_bytes + self.space.capacity_segments * ROW_DTYPE.itemsize
        refuser = staging.group.try_charge(Kind.STAGING, table_bytes, self._context)
        assert refuser is None, (staging.size_bytes, staging.drawn_bytes, table_bytes)
        return table_bytes

    def write_superblock(self, superblock: Superblock) -> Work:
        """Put a superblock into its slot, however often that has to be tried."""
        encode_superblock(self._block, superblock)
        while True:
            io = yield Io(WRITE, SUPERBLOCK, superblock.slot_offset, self._block, durable=True)
            if io.result == 0:
                break
            self._on_error("superblock", -io.result)
            yield self._retry
        self.superblock = superblock

    def _append_table(self, table: int, raw: bytes | bytearray) -> Work:
        words = []
        for index, block in enumerate(table_blocks(raw)):
            if (index + 1) % self._blocks_per_turn == 0:
                self.log.room = 0  # the next client finds its own limit again
                yield self._next_turn
            if not self.log.room:
                yield from self._make_room()
            words.append(self.log.append(block, table << VOLUME_SHIFT | index, SEED_META, KIND_META))
        return words

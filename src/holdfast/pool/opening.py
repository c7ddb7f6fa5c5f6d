"""Opening a pool: from the superblock to the tables, and along the log to its end.

What comes out is what the engine starts with; the maps are brought up to date by `Replayer` after that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from holdfast.errors import CorruptionError, DiskError
from holdfast.pool.block import ADDRESS_MASK, KIND_META, VOLUME_SHIFT, block_matches
from holdfast.pool.cold_segment import is_cold
from holdfast.pool.roll_forward import FoundCommit, LogScanner
from holdfast.pool.segment import SegmentFooter, encode_segment_footer, without_summary
from holdfast.pool.space import ABSENT, FREE, OPEN, SEALED, SpaceTable
from holdfast.pool.superblock import SLOT_OFFSETS, Superblock
from holdfast.pool.tables import (
    TABLE_COPIES,
    TABLE_INDEX,
    TABLE_NAMES,
    TABLE_SPACE,
    TABLE_VOLUMES,
    GroupRow,
    VolumeRow,
    decode_volume_table,
    table_block_count,
)
from holdfast.runtime.ports import READ, SUPERBLOCK, WRITE, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.work.task import Work


class SegmentFiles(Protocol):
    """What opening needs of the disk besides I/O."""

    def segments(self) -> list[int]: ...
    def drop_cached(self, file: int, offset: int, length: int) -> None: ...


@dataclass(slots=True)
class OpenedPool:
    rows: list[VolumeRow]
    meta_addresses: list[int]
    groups: list[GroupRow] = field(default_factory=list)
    commits: list[FoundCommit] = field(default_factory=list)
    end: int = 0
    segment: int = -1
    next_ordinal: int = 1
    summary: bytes | None = b""
    torn_summaries: list[SegmentFooter] = field(default_factory=list)


def read_superblock_slots() -> Work:
    """The raw contents of both slots (work that yields I/O). Raises DiskError."""
    slots = []
    for offset in SLOT_OFFSETS:
        view = memoryview(bytearray(BLOCK_SIZE_BYTES))
        io = yield Io(READ, SUPERBLOCK, offset, view)
        if io.result < 0:
            raise DiskError(f"the superblock cannot be read: errno {-io.result}", -io.result)
        slots.append(bytes(view))
    return slots


def drop_torn_summaries(
    footers: list[SegmentFooter], segment_blocks: int, allocate: Callable[[int], memoryview]
) -> Work:
    """Let sealed segments whose summary was torn by a crash say that they have none (a task's work): nobody is to take
    that for damage. Only the first sector of the footer changes, so this write cannot be torn itself. Raises DiskError.
    """
    for footer in footers:
        block = allocate(BLOCK_SIZE_BYTES)
        encode_segment_footer(block, without_summary(footer, segment_blocks))
        io = yield Io(WRITE, footer.segment_id, (segment_blocks - 1) << BLOCK_SHIFT, block, durable=True)
        if io.result < 0:
            errno = -io.result
            raise DiskError(f"segment {footer.segment_id:08x}: its footer cannot be written (errno {errno})", errno)


class Opener:
    def __init__(
        self,
        superblock: Superblock,
        space: SpaceTable,
        disk: SegmentFiles,
        findings: list[str],
        *,
        alone: bool = False,
    ) -> None:
        """`alone`: neither superblock slot leads to another checkpoint. So what was dead at this one is free, as it was
        for the server before, which counted on that when it left to recovery no more segments than that needs."""
        self._alone = alone
        self.superblock = superblock
        self.space = space
        self.disk = disk
        self.findings = findings
        self.shift = space.segment_shift
        # Dead at the checkpoint, freed by the one behind it, and then used by the cleaner: nothing refers to what is in
        # them, and the table knows them by what they were.
        self.refilled: list[int] = []

    def read(self, known_end: int) -> Work:
        """Read the tables and find the end of the log (a task's work); returns an `OpenedPool`.

        Raises CorruptionError if a table is damaged, DiskError if something cannot be read.
        """
        superblock = self.superblock
        opened = yield from self._read_tables()
        if superblock.epoch == 0:
            return opened  # just formatted: there is no log yet
        scanner = LogScanner(
            tag=superblock.tag,
            epoch=superblock.epoch,
            segment_shift=self.shift,
            drop_cached=self.disk.drop_cached,
        )
        candidates = yield from self._candidates(scanner)
        tail = yield from scanner.find_tail(
            replay_position=superblock.replay_position, candidates=candidates, known_end=known_end
        )
        self.findings += tail.findings
        opened.commits = tail.commits
        opened.end = tail.end
        opened.segment = tail.segment
        opened.summary = tail.summary
        opened.torn_summaries = tail.torn_summaries
        self._claim(candidates, tail.end, tail.segment, opened)
        yield from self._claim_tables(scanner, opened.meta_addresses)
        return opened

    def _read_tables(self) -> Work:
        superblock = self.superblock
        index = yield from self._read_table(TABLE_INDEX, _copies(superblock.index_entries))
        volume_blocks = table_block_count(superblock.volume_table_bytes)
        count = volume_blocks + table_block_count(superblock.space_table_bytes)
        if len(index) < TABLE_COPIES * count * 8:
            raise CorruptionError("the superblock's index is shorter than its tables")
        words = struct.unpack_from(f"<{TABLE_COPIES * count}Q", index)
        copies = _copies(words)
        volume_table = yield from self._read_table(TABLE_VOLUMES, [copy[:volume_blocks] for copy in copies])
        space_table = yield from self._read_table(TABLE_SPACE, [copy[volume_blocks:] for copy in copies])
        log_ordinal = superblock.replay_position >> self.shift
        self.space.decode(
            space_table[: superblock.space_table_bytes],
            self.disk.segments(),
            dead=lambda ordinal: self._alone and (is_cold(ordinal) or ordinal < log_ordinal),
        )
        meta = [word & ADDRESS_MASK for word in (*words, *superblock.index_entries)]
        self.space.used_blocks = int(self.space.live.sum())
        for address in meta:
            self.space.live_words[address >> self.shift] += 1
        rows, groups = decode_volume_table(volume_table[: superblock.volume_table_bytes])
        return OpenedPool(rows=rows, groups=groups, meta_addresses=meta)

    def _read_table(self, table: int, copies: list[list[int]]) -> Work:
        """The blocks of a table, joined: each from the first of its copies that is whole. A block that is whole in none
        is looked at once more, from the disk, for a reading can go wrong where the disk is right."""
        blocks: list[bytes | None] = [None] * len(copies[0])
        unreadable: dict[int, int] = {}  # blocks of which a copy could not be read at the last look, and why
        for again in (False, True):
            for number, words in enumerate(copies):
                missing = [index for index, block in enumerate(blocks) if block is None]
                for start in range(0, len(missing), 64):
                    chosen = missing[start : start + 64]
                    if again:
                        self._drop_cached([words[index] for index in chosen])
                    ios = yield [self._table_io(words[index]) for index in chosen]
                    for index, io in zip(chosen, ios, strict=True):
                        name = f"copy {number + 1} of block {index} of the {TABLE_NAMES[table]}"
                        place = f"(segment {io.file:08x}, block {io.offset >> BLOCK_SHIFT})"
                        if io.result < 0:
                            self.findings.append(f"{name} {place} cannot be read: errno {-io.result}")
                            if again:
                                unreadable[index] = -io.result
                        elif block_matches(io.view, table << VOLUME_SHIFT | index, KIND_META, words[index]):
                            blocks[index] = bytes(io.view)
                        elif not again:
                            self.findings.append(f"{name} {place} is damaged")
        for index in [index for index, block in enumerate(blocks) if block is None]:
            what = f"block {index} of the {TABLE_NAMES[table]}"
            errno = unreadable.get(index, 0)
            if errno:
                # What cannot be read now may be whole: nobody should reach for a backup before that is known.
                raise DiskError(f"no copy of {what} can be read: errno {errno}; mend the disk, then try again", errno)
            raise CorruptionError(f"every copy of {what} is damaged; restore the segment files from a backup")
        return b"".join(block for block in blocks if block is not None)

    def _drop_cached(self, words: list[int]) -> None:
        for word in words:
            io = self._table_io(word)
            self.disk.drop_cached(io.file, io.offset, io.length)

    def _table_io(self, word: int) -> Io:
        address = word & ADDRESS_MASK
        offset = (address & (1 << self.shift) - 1) << BLOCK_SHIFT
        return Io(READ, address >> self.shift, offset, memoryview(bytearray(BLOCK_SIZE_BYTES)))

    def _candidates(self, scanner: LogScanner) -> Work:
        """Ordinal -> id of the segments that may belong to the log from the replay position on.

        Either the checkpoint knew them, or they were free at it and have been opened since; or dead at it: the one
        behind it freed them, and its superblock slot was lost. Cold segments never are the log's. A header that does
        not check out is mended, for the log would end there: the segment may be the newest, and nothing else tells of
        it.
        """
        first = self.superblock.replay_position >> self.shift
        state = self.space.state
        candidates: dict[int, int] = {}
        for segment in np.flatnonzero((state != ABSENT) & (state != FREE)).tolist():
            ordinal = int(self.space.ordinal[segment])
            if ordinal >= first and not is_cold(ordinal):
                candidates[ordinal] = segment
        dead = np.flatnonzero((state == SEALED) & (self.space.live == 0)).tolist()
        for segment in [*self.space.free, *dead]:
            header = yield from scanner.segment_header(segment, mend=True)
            if header is None or header.epoch != self.superblock.epoch:
                continue
            if is_cold(header.ordinal):
                if state[segment] == SEALED and int(self.space.ordinal[segment]) != header.ordinal:
                    self.refilled.append(segment)
                continue
            if header.ordinal >= first:
                candidates[header.ordinal] = segment
        return candidates

    def _claim(self, candidates: dict[int, int], end: int, open_segment: int, opened: OpenedPool) -> None:
        """Take the segments of the log off the free list, and those that hold tables."""
        space = self.space
        for segment in np.flatnonzero(space.state == OPEN).tolist():
            space.state[segment] = SEALED
        last = end >> self.shift if open_segment >= 0 else (end >> self.shift) - 1
        for ordinal, segment in candidates.items():
            if ordinal <= last and (space.state[segment] in (ABSENT, FREE) or space.ordinal[segment] != ordinal):
                space.claim(segment, ordinal)
        if open_segment >= 0:
            space.claim(open_segment, end >> self.shift)
            space.state[open_segment] = OPEN
        # Positions go on without a gap: recovery and the ring both take the segment behind this one to have the next
        # ordinal. Segments that were cut off may have it, too; they belong to an epoch that is over.
        opened.next_ordinal = (end >> self.shift) + 1 if open_segment >= 0 else max(1, end >> self.shift)

    def _claim_tables(self, scanner: LogScanner, addresses: list[int]) -> Work:
        """Take the segments that hold tables off the free list. Those opened after the space table was encoded are not
        in it, and not behind the replay position of a clean checkpoint either."""
        for segment in sorted({address >> self.shift for address in addresses}):
            if self.space.state[segment] in (ABSENT, FREE):
                header = yield from scanner.segment_header(segment, mend=True)
                self.space.claim(segment, 0 if header is None else header.ordinal)


def _copies(words: tuple[int, ...]) -> list[list[int]]:
    """Words that come `TABLE_COPIES` times, one list for each time."""
    count = len(words) // TABLE_COPIES
    return [list(words[number * count : (number + 1) * count]) for number in range(TABLE_COPIES)]

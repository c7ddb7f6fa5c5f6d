"""A cold segment: one that the cleaner writes, from its header to its footer, beside the log.

The same format as a segment of the log (`pool/segment.py`, `pool/commit.py`), so whoever reads, checks or cleans
segments makes no difference. Two things are different:

 - Its ordinal has `COLD` set, and below that bit the ordinal of the newest segment whose blocks it holds: their age.
   The log never has such an ordinal, so recovery never takes a cold segment for the log's next one.
 - It is written straight to its file, in pieces of the size of `buffer`, and made durable once, at the end. Nothing
   refers to it before that. If power fails earlier, or a write does, it is a free segment with something in it.

The commits hold data blocks only, each with the entry that it had where it was copied from: owner and check are the
same.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from holdfast.errors import DiskError
from holdfast.pool.block import ENTRY_DTYPE, ENTRY_SIZE_BYTES, KIND_COMMIT, KIND_DATA, EntryArray, WordArray
from holdfast.pool.commit import COMMIT_ENTRIES_AT, COMMIT_ENTRIES_MAX, seal_commit_header
from holdfast.pool.segment import (
    SegmentFooter,
    SegmentHeader,
    encode_segment_footer,
    encode_segment_header,
    summary_blocks,
    summary_check,
)
from holdfast.runtime.ports import SYNC, WRITE, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.work.task import Work

# Above all ordinals of the log: that many segments of 1 MiB are 16 EiB. With 2^18 blocks a segment, positions of cold
# segments still fit 64 bits.
COLD = 1 << 44
BUFFER_BLOCKS_MIN = 8
COMMIT_BLOCKS_MIN = 16  # fewer, behind a full commit, are left for the next piece

_ENTRY = struct.Struct("<QII")


def is_cold(ordinal: int) -> bool:
    return ordinal >= COLD


def age_ordinal(ordinal: int) -> int:
    """The ordinal of the log at which the newest block of a segment was written, whoever wrote it there."""
    return ordinal & COLD - 1


def cold_blocks_max(segment_blocks: int) -> int:
    """How many data blocks a cold segment holds: what a segment is worth when it is filled with nothing else."""
    # Header and footer, then a header for each full commit, then what lists them all.
    blocks = segment_blocks - 2
    while blocks + _commits(blocks) + summary_blocks(blocks + _commits(blocks)) > segment_blocks - 2:
        blocks -= 1
    return blocks


def _commits(blocks: int) -> int:
    return -(-blocks // COMMIT_ENTRIES_MAX)


class ColdSegment:
    """One that is being written. `buffer`: whole blocks, page aligned, lent until the end; at least BUFFER_BLOCKS_MIN.

    Blocks are added while there is room (`has_room`); when `is_full_of_unwritten` says so, `write` must come first.
    """

    def __init__(
        self, segment_id: int, ordinal: int, *, tag: int, epoch: int, segment_blocks: int, buffer: memoryview
    ) -> None:
        assert is_cold(ordinal)
        self.segment_id = segment_id
        self.ordinal = ordinal
        self.blocks = 0  # data blocks so far
        self._tag = tag
        self._epoch = epoch
        self._segment_blocks = segment_blocks
        self._position = ordinal * segment_blocks
        self._buffer = buffer
        self._entry_rows: EntryArray = np.frombuffer(buffer, ENTRY_DTYPE)  # the same memory, as entries
        self._buffer_blocks = len(buffer) >> BLOCK_SHIFT
        assert self._buffer_blocks >= BUFFER_BLOCKS_MIN
        self._summary = bytearray()
        self._written = 0  # blocks of the segment that were handed to the disk
        self._at = 0  # blocks in the buffer
        self._commit_at = -1  # block in the buffer of the open commit's header; -1: none is open
        self._entries = 0  # of the open commit
        header = SegmentHeader(tag, epoch, ordinal, 0, segment_id, segment_blocks)
        encode_segment_header(self._block(0), header)
        self._at = 1

    def _block(self, at: int) -> memoryview:
        return self._buffer[at << BLOCK_SHIFT : (at + 1) << BLOCK_SHIFT]

    @property
    def is_full_of_unwritten(self) -> bool:
        """True if the buffer takes no more: neither another block of the open commit, nor a commit that is worth its
        header."""
        left = self._buffer_blocks - self._at
        if self._entries == COMMIT_ENTRIES_MAX:
            return left < COMMIT_BLOCKS_MIN
        return left < (1 if self._commit_at >= 0 else 2)

    def has_room(self) -> bool:
        """True if one more data block fits before summary and footer."""
        new_commit = self._commit_at < 0 or self._entries == COMMIT_ENTRIES_MAX or self.is_full_of_unwritten
        entries = len(self._summary) // ENTRY_SIZE_BYTES + (self._entries + 1 if self._commit_at >= 0 else 0)
        blocks = self._written + self._at + 1 + new_commit
        return blocks + summary_blocks(entries + 1 + new_commit) + 1 <= self._segment_blocks

    def add(self, block: memoryview | bytes, owner: int, check: int) -> int:
        """Copy a data block behind those that are there; returns its block address."""
        assert self.has_room()
        assert not self.is_full_of_unwritten
        if self._entries == COMMIT_ENTRIES_MAX:
            self._seal_commit()
        if self._commit_at < 0:
            self._commit_at = self._at
            self._at += 1
        _ENTRY.pack_into(
            self._buffer,
            (self._commit_at << BLOCK_SHIFT) + COMMIT_ENTRIES_AT + self._entries * ENTRY_SIZE_BYTES,
            owner,
            check,
            KIND_DATA,
        )
        self._block(self._at)[:] = block
        address = self.segment_id * self._segment_blocks + self._written + self._at
        self._entries += 1
        self._at += 1
        self.blocks += 1
        return address

    def room_in_commit(self) -> int:
        """How many blocks `add_run` takes now; 0: `add` one, which opens a commit."""
        if self._commit_at < 0:
            return 0
        room = min(COMMIT_ENTRIES_MAX - self._entries, self._buffer_blocks - self._at)
        entries = len(self._summary) // ENTRY_SIZE_BYTES + self._entries + 1
        used = self._written + self._at + 1  # with the footer
        while room > 0 and used + room + summary_blocks(entries + room) > self._segment_blocks:
            room -= 1
        return room

    def add_run(self, view: memoryview, offsets: list[int], owner: WordArray, check: npt.NDArray[np.uint32]) -> int:
        """Copy `len(offsets) <= room_in_commit()` data blocks, which lie at these offsets of `view`; returns the block
        address of the first, which the others follow."""
        count = len(offsets)
        assert 0 < count <= self.room_in_commit()
        first = ((self._commit_at << BLOCK_SHIFT) + COMMIT_ENTRIES_AT) // ENTRY_SIZE_BYTES + self._entries
        entries = self._entry_rows[first : first + count]
        entries["owner"] = owner
        entries["check"] = check
        entries["meta"] = KIND_DATA
        buffer, at = self._buffer, self._at << BLOCK_SHIFT
        for offset in offsets:
            buffer[at : at + BLOCK_SIZE_BYTES] = view[offset : offset + BLOCK_SIZE_BYTES]
            at += BLOCK_SIZE_BYTES
        address = self.segment_id * self._segment_blocks + self._written + self._at
        self._entries += count
        self._at += count
        self.blocks += count
        return address

    def _seal_commit(self) -> None:
        if self._commit_at < 0:
            return
        header = self._block(self._commit_at)
        position = self._position + self._written + self._commit_at
        check = seal_commit_header(
            header,
            tag=self._tag,
            epoch=self._epoch,
            position=position,
            durable_position=0,
            entry_count=self._entries,
            block_count=self._entries,
        )
        self._summary += _ENTRY.pack(position, check & 0xFFFFFFFF, KIND_COMMIT | self._entries << 8)
        self._summary += header[COMMIT_ENTRIES_AT : COMMIT_ENTRIES_AT + self._entries * ENTRY_SIZE_BYTES]
        self._commit_at = -1
        self._entries = 0

    def write(self) -> Work:
        """Write what is in the buffer. Raises DiskError: the segment is good for nothing then."""
        self._seal_commit()
        if self._at:
            yield from self._write(self._written, self._buffer[: self._at << BLOCK_SHIFT])
        self._written += self._at
        self._at = 0

    def finish(self) -> Work:
        """Write the rest, the summary and the footer, and make all of it durable. Raises DiskError."""
        yield from self.write()
        commits_end = self._written
        entries = self._summary
        for start in range(0, len(entries), len(self._buffer)):
            part = entries[start : start + len(self._buffer)]
            blocks = summary_blocks(len(part) // ENTRY_SIZE_BYTES)
            room = self._buffer[: blocks << BLOCK_SHIFT]
            room[: len(part)] = part
            room[len(part) :] = bytes(len(room) - len(part))
            yield from self._write(self._written, room)
            self._written += blocks
        footer = SegmentFooter(
            tag=self._tag,
            epoch=self._epoch,
            ordinal=self.ordinal,
            segment_id=self.segment_id,
            entry_count=len(entries) // ENTRY_SIZE_BYTES,
            summary_offset=commits_end,
            commits_end=commits_end,
            summary_check=summary_check(entries),
        )
        assert self._written < self._segment_blocks
        encode_segment_footer(self._block(0), footer)
        yield from self._write(self._segment_blocks - 1, self._block(0))
        io = yield Io(SYNC, self.segment_id)
        self._raise_failure(io)

    def _write(self, block: int, view: memoryview) -> Work:
        io = yield Io(WRITE, self.segment_id, block << BLOCK_SHIFT, view)
        self._raise_failure(io)

    def _raise_failure(self, io: Io) -> None:
        if io.result < 0:
            raise DiskError(f"segment {self.segment_id:08x} cannot be written (errno {-io.result})", -io.result)


assert COMMIT_ENTRIES_AT % ENTRY_SIZE_BYTES == 0
assert COMMIT_ENTRIES_AT + COMMIT_ENTRIES_MAX * ENTRY_SIZE_BYTES <= BLOCK_SIZE_BYTES

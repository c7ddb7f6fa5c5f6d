"""What a sealed segment holds, and which sealed segment is best emptied.

`stored_blocks` reads the reverse map of one segment: from its summary in one read, or, where that cannot be used, from
its commit headers one by one. `choose` is the cleaner's policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from holdfast.errors import CorruptionError, DiskError
from holdfast.pool.block import KIND_COMMIT, STORED_KINDS, EntryArray
from holdfast.pool.cold_segment import COLD
from holdfast.pool.commit import COMMIT_MAGIC, COMMIT_SEED, decode_commit_header, mend_single_byte
from holdfast.pool.segment import (
    FIRST_COMMIT_OFFSET,
    decode_segment_footer,
    decode_summary,
    summary_blocks,
)
from holdfast.runtime.ports import READ, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.work.task import Work


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """The data blocks and map pages of one segment, in the order of their addresses; parallel columns.

    block     offset in the segment
    owner     owner word
    check     32 bits
    kind      KIND_DATA or KIND_MAP, or KIND_META
    """

    block: npt.NDArray[np.uint32]
    owner: npt.NDArray[np.uint64]
    check: npt.NDArray[np.uint32]
    kind: npt.NDArray[np.uint8]


def stored_blocks(segment: int, ordinal: int, *, tag: int, segment_blocks: int, buffer: memoryview) -> Work:
    """The stored blocks of a sealed segment (a task's work). `buffer`: into which is read; free again afterwards.

    Raises DiskError; CorruptionError where neither summary nor headers tell all of it.
    """
    reader = _Reader(segment, ordinal, tag=tag, segment_blocks=segment_blocks, buffer=buffer)
    listed: tuple[list[EntryArray], int] | None = yield from reader.from_summary()
    if listed is None:
        listed = yield from reader.from_headers()
    return _columns(listed[0])


def _columns(parts: list[EntryArray]) -> StoredBlocks:
    """The entries of commits, each led by a KIND_COMMIT entry, as columns."""
    entries = np.concatenate(parts) if parts else np.zeros(0, _entry_dtype())
    kinds = (entries["meta"] & np.uint32(0xFF)).astype(np.uint8)
    stored = np.isin(kinds, STORED_KINDS)
    block = FIRST_COMMIT_OFFSET + np.cumsum(stored | (kinds == KIND_COMMIT)) - 1
    return StoredBlocks(
        block[stored].astype(np.uint32),
        entries["owner"][stored].astype(np.uint64),
        entries["check"][stored].astype(np.uint32),
        kinds[stored],
    )


def _entry_dtype() -> np.dtype[np.void]:
    return np.dtype([("owner", "<u8"), ("check", "<u4"), ("meta", "<u4")])


class _Reader:
    def __init__(self, segment: int, ordinal: int, *, tag: int, segment_blocks: int, buffer: memoryview) -> None:
        self._segment = segment
        self._ordinal = ordinal
        self._tag = tag
        self._segment_blocks = segment_blocks
        self._buffer = buffer

    def _read(self, block: int, count: int) -> Work:
        view = self._buffer[: count << BLOCK_SHIFT]
        io = yield Io(READ, self._segment, block << BLOCK_SHIFT, view)
        if io.result < 0:
            where = f"segment {self._segment:08x}, block {block}"
            raise DiskError(f"{where}: cannot be read by the cleaner (errno {-io.result})", -io.result)
        return view

    def from_summary(self) -> Work:
        """All entries, and the block behind the last commit; None where there is no summary that can be used, or it is
        so long, for a flood of trims, that it does not fit the buffer."""
        raw = yield from self._read(self._segment_blocks - 1, 1)
        footer = decode_segment_footer(raw, self._segment_blocks)
        if footer is None or footer.tag != self._tag or footer.ordinal != self._ordinal or not footer.entry_count:
            return None
        blocks = summary_blocks(footer.entry_count)
        if blocks << BLOCK_SHIFT > len(self._buffer):
            return None
        raw = yield from self._read(footer.summary_offset, blocks)
        entries = decode_summary(raw, footer)
        return None if entries is None else ([entries], footer.commits_end)

    def from_headers(self) -> Work:
        """The same from the headers of the commits, without the records of holes."""
        raw = yield from self._read(self._segment_blocks - 1, 1)
        footer = decode_segment_footer(raw, self._segment_blocks)
        known = footer is not None and footer.tag == self._tag and footer.ordinal == self._ordinal
        stop = footer.commits_end if known and footer is not None else self._segment_blocks - 1
        parts: list[EntryArray] = []
        block = FIRST_COMMIT_OFFSET
        while block < stop:
            raw = yield from self._read(block, 1)
            header = decode_commit_header(raw)
            if header is None and known:
                mended = mend_single_byte(raw, COMMIT_MAGIC, COMMIT_SEED)
                header = None if mended is None else decode_commit_header(mended)
            position = self._ordinal * self._segment_blocks + block
            if header is None or header.tag != self._tag or header.position != position:
                if known:
                    raise CorruptionError(
                        f"segment {self._segment:08x}, block {block}: neither a summary nor a commit header says what "
                        "is here: run `holdfast check`"
                    )
                break  # where its footer is damaged the last commit is not known either
            lead = np.zeros(1, header.entries.dtype)
            lead["meta"] = KIND_COMMIT
            stored = np.isin(header.entries["meta"] & np.uint32(0xFF), STORED_KINDS)
            parts += [lead, header.entries[stored]]
            block += 1 + header.block_count
        return parts, block


class Haste(Enum):
    """How victims are chosen.

    NONE        by cost and benefit, as in LFS (Rosenblum and Ousterhout 1992): (1 - u) * age / (1 + u), for what has
                been left alone for long will be, and its dead blocks are all that will ever be gained of it
    WAITED_FOR  first those that give at least half of what the emptiest gives, with the root of the age; the others
                after them, the emptiest first. Little is lost against always taking the emptiest where all blocks are
                overwritten alike, for which no choice is better; with 80 % of the writes to 20 % of the blocks a sixth
                less is written than by that
    RESERVE     the emptiest first: nobody writes, and each round is to bring its end nearer
    """

    NONE = 0
    WAITED_FOR = 1
    RESERVE = 2


def choose(
    live: npt.NDArray[np.int64],
    ordinal: npt.NDArray[np.uint64],
    candidates: npt.NDArray[np.bool_],
    *,
    worth: int,
    now_ordinal: int,
    haste: Haste,
) -> list[int]:
    """Segments in the order in which they are best emptied.

    live, ordinal, candidates   columns of the space table; only candidates are chosen
    worth                       blocks that a segment holds at most
    haste                       see there
    """
    segments = np.flatnonzero(candidates)
    used = np.minimum(live[segments] / worth, 1.0)
    gain = 1 - used
    age = np.maximum(now_ordinal - (ordinal[segments] & np.uint64(COLD - 1)).astype(np.int64), 1)
    if haste is Haste.NONE:
        score = gain * age / (1 + used)
    elif haste is Haste.WAITED_FOR:
        worth_it = gain >= gain.max(initial=0.0) / 2
        score = np.where(worth_it, 1 + gain * np.sqrt(age) / (1 + used), gain)
    else:
        score = gain
    chosen: list[int] = segments[np.argsort(-score, kind="stable")].tolist()
    return chosen


assert BLOCK_SIZE_BYTES == 1 << BLOCK_SHIFT

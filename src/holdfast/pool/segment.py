"""The segment: a file of fixed size, the unit in which the log is cut, recycled and freed.

    block 0              segment header
    blocks 1..           commits, one after the other
    ...                  summary: the entries of all commits again, so that one read tells what a sealed segment holds
    last block           footer

Header, 4096 bytes, little endian:

    offset  size  field
    0       8     magic "HFSEGMNT"
    8       8     check: XXH3-64 of bytes 16..4095, seed SEGMENT_SEED
    16      8     pool tag
    24      8     epoch in which the segment was opened
    32      8     ordinal: how many segments were opened before it; its log positions start at ordinal * segment blocks
    40      8     durable position when it was opened
    48      4     segment id
    52      4     blocks of a segment

Footer, 4096 bytes:

    0       8     magic "HFSEGEND"
    8       8     check, seed FOOTER_SEED
    16      8     pool tag
    24      8     epoch in which it was sealed
    32      8     ordinal
    40      4     segment id
    44      4     entry count of the summary; 0 if there is none
    48      4     block offset at which the summary starts
    52      4     block offset behind the last commit
    56      8     XXH3-64 of the summary's entries, seed FOOTER_SEED

In the summary each commit is a KIND_COMMIT entry followed by the commit's own entries; each KIND_COMMIT, KIND_DATA,
KIND_MAP and KIND_META entry stands for the next block of the segment, from block 1 on. A segment with more entries than
`summary_entries_max` (a flood of tiny trims) is sealed without a summary; then its commit headers are read one by one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import numpy as np
from xxhash import xxh3_64_intdigest

from holdfast.pool.block import ENTRY_DTYPE, ENTRY_SIZE_BYTES, EntryArray
from holdfast.pool.commit import COMMIT_ENTRIES_MAX, check_sealed_block, seal_block
from holdfast.units import BLOCK_SIZE_BYTES

SEGMENT_MAGIC = int.from_bytes(b"HFSEGMNT", "little")
SEGMENT_SEED = 0xBE5466CF34E90C6C
FOOTER_MAGIC = int.from_bytes(b"HFSEGEND", "little")
FOOTER_SEED = 0xC0AC29B7C97C50DD

FIRST_COMMIT_OFFSET = 1

_HEADER = struct.Struct("<QQQQII")
_FOOTER = struct.Struct("<QQQIIIIQ")


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    tag: int
    epoch: int
    ordinal: int
    durable_position: int
    segment_id: int
    segment_blocks: int


@dataclass(frozen=True, slots=True)
class SegmentFooter:
    tag: int
    epoch: int
    ordinal: int
    segment_id: int
    entry_count: int
    summary_offset: int
    commits_end: int
    summary_check: int


def summary_entries_max(segment_blocks: int) -> int:
    """A summary takes at most a 16th of its segment: twice what the smallest useful commits need."""
    return segment_blocks // 16 * (BLOCK_SIZE_BYTES // ENTRY_SIZE_BYTES)


def summary_blocks(entry_count: int) -> int:
    return -(-entry_count * ENTRY_SIZE_BYTES // BLOCK_SIZE_BYTES)


def commits_limit(segment_blocks: int, entry_count: int) -> int:
    """Block offset of a segment that commits may not pass, with so many entries in its summary already and another
    commit to come: behind it are summary and footer. Where less than two blocks are left before it, it is sealed."""
    return segment_blocks - 1 - summary_blocks(entry_count + 1 + COMMIT_ENTRIES_MAX)


def encode_segment_header(block: memoryview, header: SegmentHeader) -> None:
    block[:] = bytes(BLOCK_SIZE_BYTES)
    _HEADER.pack_into(
        block,
        16,
        header.tag,
        header.epoch,
        header.ordinal,
        header.durable_position,
        header.segment_id,
        header.segment_blocks,
    )
    seal_block(block, SEGMENT_MAGIC, SEGMENT_SEED)


def decode_segment_header(block: memoryview | bytes) -> SegmentHeader | None:
    if check_sealed_block(block, SEGMENT_MAGIC, SEGMENT_SEED) is None:
        return None
    return SegmentHeader(*_HEADER.unpack_from(block, 16))


def encode_segment_footer(block: memoryview, footer: SegmentFooter) -> None:
    block[:] = bytes(BLOCK_SIZE_BYTES)
    _FOOTER.pack_into(
        block,
        16,
        footer.tag,
        footer.epoch,
        footer.ordinal,
        footer.segment_id,
        footer.entry_count,
        footer.summary_offset,
        footer.commits_end,
        footer.summary_check,
    )
    seal_block(block, FOOTER_MAGIC, FOOTER_SEED)


def without_summary(footer: SegmentFooter, segment_blocks: int) -> SegmentFooter:
    """The footer of the same segment, saying that it has no summary."""
    return replace(footer, entry_count=0, summary_offset=segment_blocks - 1, summary_check=summary_check(b""))


def decode_segment_footer(block: memoryview | bytes, segment_blocks: int) -> SegmentFooter | None:
    """The footer, or None where magic, check or its offsets do not hold."""
    if check_sealed_block(block, FOOTER_MAGIC, FOOTER_SEED) is None:
        return None
    footer = SegmentFooter(*_FOOTER.unpack_from(block, 16))
    end = footer.summary_offset + summary_blocks(footer.entry_count)
    if not FIRST_COMMIT_OFFSET <= footer.commits_end <= footer.summary_offset <= end < segment_blocks:
        return None
    return footer


def summary_check(entries: bytes | bytearray | memoryview) -> int:
    return xxh3_64_intdigest(entries, FOOTER_SEED)


def decode_summary(blocks: memoryview | bytes, footer: SegmentFooter) -> EntryArray | None:
    """The summary's entries out of the blocks that start at `footer.summary_offset`, or None if its check fails."""
    size = footer.entry_count * ENTRY_SIZE_BYTES
    if len(blocks) < size or summary_check(memoryview(blocks)[:size]) != footer.summary_check:
        return None
    return np.frombuffer(blocks, ENTRY_DTYPE, footer.entry_count).copy()

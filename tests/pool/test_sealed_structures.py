"""Commit header, segment header, footer and summary, superblock: what comes back is what was put in, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from holdfast.errors import CorruptionError, RequestError
from holdfast.pool.block import ENTRY_DTYPE
from holdfast.pool.commit import (
    COMMIT_ENTRIES_AT,
    COMMIT_ENTRIES_MAX,
    COMMIT_MAGIC,
    COMMIT_SEED,
    decode_commit_header,
    mend_single_byte,
    seal_block,
    seal_commit_header,
)
from holdfast.pool.format import choose_segment_size, new_superblock
from holdfast.pool.segment import (
    SegmentFooter,
    SegmentHeader,
    decode_segment_footer,
    decode_segment_header,
    decode_summary,
    encode_segment_footer,
    encode_segment_header,
    summary_check,
)
from holdfast.pool.superblock import (
    SUPERBLOCK_MAGIC,
    SUPERBLOCK_SEED,
    Superblock,
    decode_superblock,
    encode_superblock,
    newest_superblock,
)
from holdfast.units import BLOCK_SIZE_BYTES, GIB, MIB

SUPERBLOCK = Superblock(
    uuid=bytes(range(16)),
    sequence=8,
    epoch=5 << 32 | 17,
    clean=False,
    replay_position=12345,
    created_ns=1,
    segment_blocks=256,
    capacity_segments=64,
    replay_segment=3,
    next_volume_id=4,
    volume_table_bytes=640,
    space_table_bytes=1024,
    index_entries=(1 << 60 | 5, 6),
)
FOOTER = SegmentFooter(
    tag=1, epoch=2, ordinal=3, segment_id=4, entry_count=10, summary_offset=200, commits_end=190, summary_check=5
)


def sealed_commit(entry_count: int = 3) -> bytes:
    block = memoryview(bytearray(b"\xff" * BLOCK_SIZE_BYTES))
    entries = np.zeros(entry_count, ENTRY_DTYPE)
    entries["owner"] = np.arange(entry_count)
    block[COMMIT_ENTRIES_AT : COMMIT_ENTRIES_AT + entries.nbytes] = entries.tobytes()
    seal_commit_header(block, tag=1, epoch=2, position=3, durable_position=4, entry_count=entry_count, block_count=1)
    return bytes(block)


def superblock_bytes(superblock: Superblock = SUPERBLOCK) -> bytes:
    block = memoryview(bytearray(BLOCK_SIZE_BYTES))
    encode_superblock(block, superblock)
    return bytes(block)


def header_bytes() -> bytes:
    block = memoryview(bytearray(BLOCK_SIZE_BYTES))
    encode_segment_header(block, SegmentHeader(1, 2, 3, 4, 5, 256))
    return bytes(block)


def footer_bytes(footer: SegmentFooter = FOOTER) -> bytes:
    block = memoryview(bytearray(BLOCK_SIZE_BYTES))
    encode_segment_footer(block, footer)
    return bytes(block)


@pytest.mark.parametrize("count", [1, 3, COMMIT_ENTRIES_MAX])
def test_a_commit_header_comes_back_with_its_entries(count: int) -> None:
    header = decode_commit_header(sealed_commit(count))
    assert header is not None
    assert (header.tag, header.epoch, header.position, header.durable_position) == (1, 2, 3, 4)
    assert (header.entry_count, header.block_count) == (count, 1)
    assert header.entries["owner"].tolist() == list(range(count))


def test_a_superblock_a_segment_header_and_a_footer_come_back() -> None:
    assert decode_superblock(superblock_bytes()) == SUPERBLOCK
    assert decode_segment_header(header_bytes()) == SegmentHeader(1, 2, 3, 4, 5, 256)
    assert decode_segment_footer(footer_bytes(), 256) == FOOTER


@pytest.mark.parametrize(
    ("make", "decode"),
    [
        (sealed_commit, decode_commit_header),
        (superblock_bytes, decode_superblock),
        (header_bytes, decode_segment_header),
        (footer_bytes, lambda raw: decode_segment_footer(raw, 256)),
    ],
)
def test_a_changed_byte_anywhere_is_noticed(make: Callable[[], bytes], decode: Callable[[bytes], object]) -> None:
    raw = make()
    for at in [*range(0, 128, 5), 4000, 4095]:
        damaged = bytearray(raw)
        damaged[at] ^= 0x40
        assert decode(bytes(damaged)) is None, at
    assert decode(raw[:-1]) is None


@pytest.mark.parametrize("at", [0, 9, 20, 70, 4095])
def test_one_changed_byte_is_mended(at: int) -> None:
    raw = sealed_commit()
    damaged = bytearray(raw)
    damaged[at] ^= 0x40
    assert mend_single_byte(bytes(damaged), COMMIT_MAGIC, COMMIT_SEED) == raw


def test_two_changed_bytes_are_not_mended() -> None:
    damaged = bytearray(sealed_commit())
    damaged[100] ^= 1
    damaged[200] ^= 1
    assert mend_single_byte(bytes(damaged), COMMIT_MAGIC, COMMIT_SEED) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"commits_end": 0},
        {"commits_end": 201},
        {"summary_offset": 255, "commits_end": 200},
        {"entry_count": 1 << 31},
    ],
)
def test_a_footer_whose_offsets_contradict_each_other_is_none(wrong: dict[str, int]) -> None:
    assert decode_segment_footer(footer_bytes(replace(FOOTER, **wrong)), 256) is None


def test_a_summary_is_checked_and_may_be_cut_short_by_a_torn_write() -> None:
    entries = np.zeros(10, ENTRY_DTYPE)
    entries["owner"] = 7
    footer = replace(FOOTER, summary_check=summary_check(entries.tobytes()))
    decoded = decode_summary(entries.tobytes().ljust(BLOCK_SIZE_BYTES, b"\0"), footer)
    assert decoded is not None
    assert decoded["owner"].tolist() == [7] * 10
    assert decode_summary(bytes(BLOCK_SIZE_BYTES), footer) is None
    assert decode_summary(entries.tobytes()[:100], footer) is None


def test_a_commit_that_claims_more_blocks_than_entries_is_none() -> None:
    block = memoryview(bytearray(sealed_commit(3)))
    block[52:56] = (4).to_bytes(4, "little")
    seal_block(block, COMMIT_MAGIC, COMMIT_SEED)
    assert decode_commit_header(bytes(block)) is None


def test_the_superblock_with_the_higher_sequence_counts() -> None:
    older, newer = superblock_bytes(), superblock_bytes(replace(SUPERBLOCK, sequence=9))
    assert newest_superblock([older, newer])[0].sequence == 9
    assert newest_superblock([newer, older])[0].sequence == 9
    assert newest_superblock([older, bytes(BLOCK_SIZE_BYTES)]) == (SUPERBLOCK, [])


def test_a_superblock_slot_with_one_damaged_byte_still_counts_and_is_reported() -> None:
    newer = bytearray(superblock_bytes(replace(SUPERBLOCK, sequence=9)))
    newer[50] ^= 1
    superblock, findings = newest_superblock([superblock_bytes(), bytes(newer)])
    assert superblock.sequence == 9
    assert findings == ["superblock slot 1 is damaged"]


def test_a_torn_superblock_leaves_the_other_one() -> None:
    torn = superblock_bytes(replace(SUPERBLOCK, sequence=9))[:512].ljust(BLOCK_SIZE_BYTES, b"\x11")
    superblock, findings = newest_superblock([superblock_bytes(), torn])
    assert superblock == SUPERBLOCK
    assert len(findings) == 1


def test_no_superblock_at_all_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(CorruptionError, match="backup"):
        newest_superblock([b"\x11" * BLOCK_SIZE_BYTES] * 2)


def test_a_superblock_of_another_version_says_which() -> None:
    block = memoryview(bytearray(superblock_bytes()))
    block[16:20] = (99).to_bytes(4, "little")
    seal_block(block, SUPERBLOCK_MAGIC, SUPERBLOCK_SEED)
    with pytest.raises(CorruptionError, match="version 99"):
        decode_superblock(bytes(block))


def test_a_footer_without_a_summary_is_a_footer() -> None:
    footer = replace(FOOTER, entry_count=0, summary_offset=255, commits_end=254)
    assert decode_segment_footer(footer_bytes(footer), 256) == footer


@pytest.mark.parametrize(
    ("segment", "capacity"), [(3 * MIB, GIB), (MIB // 2, GIB), (2 * GIB, 64 * GIB), (MIB, 15 * MIB)]
)
def test_a_pool_of_impossible_sizes_is_refused(segment: int, capacity: int) -> None:
    with pytest.raises(RequestError):
        new_superblock(uuid=bytes(16), segment_size_bytes=segment, capacity_bytes=capacity, created_ns=0)


def test_a_small_pool_and_a_small_ring_get_small_segments() -> None:
    assert choose_segment_size(64 * GIB, 64 * MIB) == 32 * MIB
    assert choose_segment_size(256 * MIB, 64 * MIB) == 4 * MIB
    assert choose_segment_size(64 * GIB, 8 * MIB) == 8 * MIB

"""Owner words, checks and map entries."""

from __future__ import annotations

import pytest

from holdfast.pool.block import (
    ADDRESS_MASK,
    KIND_DATA,
    KIND_MAP,
    KIND_META,
    block_check,
    block_matches,
    data_checks,
    data_owner,
    first_mismatch,
    hole_check,
    make_map_entry,
    page_owner,
)

BLOCK = bytes(range(256)) * 16


def entry_of(block: bytes, owner: int, kind: int = KIND_DATA) -> int:
    return make_map_entry(77, block_check(block, owner, kind))


def test_an_entry_holds_the_address_and_matches_its_block() -> None:
    owner = data_owner(3, 9)
    entry = entry_of(BLOCK, owner)
    assert entry & ADDRESS_MASK == 77
    assert block_matches(BLOCK, owner, KIND_DATA, entry)


@pytest.mark.parametrize("at", [0, 1, 2048, 4095])
def test_a_flipped_bit_anywhere_does_not_match(at: int) -> None:
    owner = data_owner(3, 9)
    damaged = bytearray(BLOCK)
    damaged[at] ^= 1
    assert not block_matches(damaged, owner, KIND_DATA, entry_of(BLOCK, owner))


def test_good_bytes_of_another_block_or_another_kind_do_not_match() -> None:
    entry = entry_of(BLOCK, data_owner(3, 9))
    assert not block_matches(BLOCK, data_owner(3, 10), KIND_DATA, entry)
    assert not block_matches(BLOCK, data_owner(3, 9), KIND_META, entry)
    assert not block_matches(BLOCK, page_owner(3, 1, 9), KIND_MAP, entry)


def test_data_checks_out_in_whichever_map_it_is_a_page_of_the_map_only_in_its_own() -> None:
    assert block_matches(BLOCK, data_owner(4, 9), KIND_DATA, entry_of(BLOCK, data_owner(3, 9)))
    entry = make_map_entry(77, block_check(BLOCK, page_owner(3, 1, 9), KIND_MAP))
    assert not block_matches(BLOCK, page_owner(4, 1, 9), KIND_MAP, entry)


def test_the_checks_of_a_run_are_those_of_its_blocks() -> None:
    view = memoryview(BLOCK * 3)
    owner = data_owner(1, 100)
    assert data_checks(view, owner) == [block_check(BLOCK, owner + i, KIND_DATA) for i in range(3)]


def test_the_first_mismatch_passes_over_holes() -> None:
    owner = data_owner(1, 100)
    entries = [0, entry_of(BLOCK, owner + 1), 0, entry_of(BLOCK, owner + 3)]
    blocks = bytearray(BLOCK * 4)
    assert first_mismatch(memoryview(blocks), 100, entries) == -1
    blocks[3 * 4096] ^= 1
    assert first_mismatch(memoryview(blocks), 100, entries) == 3


def test_the_check_of_a_hole_covers_its_owner_and_its_count() -> None:
    assert len({hole_check(1, 4), hole_check(2, 4), hole_check(1, 5)}) == 3

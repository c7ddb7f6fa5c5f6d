"""Where zeroes are found in data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.cli.zeros import ZERO_RUN_BYTES_MIN, split_zeros

BLOCK = 4096


def test_data_stays_in_one_piece() -> None:
    assert list(split_zeros(memoryview(b"x" * (8 * BLOCK)))) == [(0, 8 * BLOCK, False)]


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 64 * BLOCK + 3])
def test_nothing_but_zeroes_is_one_run_however_short(size: int) -> None:
    assert list(split_zeros(memoryview(bytes(size)))) == [(0, size, True)]


def test_an_empty_view_has_no_parts() -> None:
    assert list(split_zeros(memoryview(b""))) == []


def test_a_run_between_data_is_cut_out() -> None:
    view = memoryview(b"x" + bytes(BLOCK - 1) + bytes(ZERO_RUN_BYTES_MIN) + b"x")
    end = BLOCK + ZERO_RUN_BYTES_MIN
    assert list(split_zeros(view)) == [(0, BLOCK, False), (BLOCK, end, True), (end, end + 1, False)]


def test_a_run_too_short_to_be_worth_a_cut_is_data() -> None:
    view = memoryview(b"x" * BLOCK + bytes(ZERO_RUN_BYTES_MIN - BLOCK) + b"x" * BLOCK)
    assert list(split_zeros(view)) == [(0, len(view), False)]


def test_a_block_that_only_begins_with_zeroes_is_data() -> None:
    view = memoryview((bytes(BLOCK - 1) + b"x") * 8)
    assert list(split_zeros(view)) == [(0, len(view), False)]


@given(
    blocks=st.lists(st.sampled_from([b"\0" * BLOCK, b"\0" * (BLOCK - 1) + b"x", b"x" * BLOCK]), max_size=24),
    tail=st.sampled_from([b"", b"\0", b"x", b"\0" * 4095, b"\0" * 4094 + b"x"]),
)
def test_the_parts_are_complete_in_order_aligned_and_true(blocks: list[bytes], tail: bytes) -> None:
    data = b"".join(blocks) + tail
    expected_begin = 0
    previous: bool | None = None
    for begin, end, zero in split_zeros(memoryview(data)):
        assert begin == expected_begin < end
        assert begin % BLOCK == 0
        assert not zero or not any(data[begin:end])
        assert zero or previous is not False, "two pieces of data in a row would be two requests"
        expected_begin, previous = end, zero
    assert expected_begin == len(data)

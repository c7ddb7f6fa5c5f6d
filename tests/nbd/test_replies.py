"""Replies byte for byte, as the protocol's document draws them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.nbd import replies

COOKIE = 0x0102030405060708
COOKIE_HEX = "0102030405060708"


def encoded(encode: Callable[..., int], *arguments: Any) -> str:
    """What was written, in hexadecimal, at an odd place of a buffer that is left alone otherwise."""
    out = bytearray(b"\xee" * 9000)
    end = encode(memoryview(out), 5, COOKIE, *arguments)
    assert set(out[:5]) == {0xEE}
    assert set(out[end:]) == {0xEE}
    return out[5:end].hex()


def test_success_is_a_simple_reply() -> None:
    assert encoded(replies.done) == "67446698" + "00000000" + COOKIE_HEX


def test_a_simple_read_begins_like_success() -> None:
    assert encoded(replies.read_header_simple) == encoded(replies.done)


def test_a_simple_error_carries_the_error_of_the_protocol() -> None:
    assert encoded(replies.error, errno.EDQUOT) == "67446698" + "0000001c" + COOKIE_HEX


def test_a_data_chunk_counts_its_offset_into_its_length() -> None:
    assert encoded(replies.data_chunk, 0x1000, 512, False) == (
        "668e33ef" + "0000" + "0001" + COOKIE_HEX + "00000208" + "0000000000001000"
    )


def test_the_last_data_chunk_says_done() -> None:
    assert encoded(replies.data_chunk, 0, 1, True)[8:16] == "00010001"


def test_a_hole_chunk() -> None:
    assert encoded(replies.hole_chunk, 0x2000, 0xFFFFF000, True) == (
        "668e33ef" + "0001" + "0002" + COOKIE_HEX + "0000000c" + "0000000000002000" + "fffff000"
    )
    assert encoded(replies.hole_chunk, 0, 1, False)[8:16] == "00000002"


def test_a_none_chunk_is_always_the_last() -> None:
    assert encoded(replies.none_chunk) == "668e33ef" + "0001" + "0000" + COOKIE_HEX + "00000000"


def test_an_error_chunk_carries_its_message() -> None:
    assert encoded(replies.error_chunk, errno.EROFS, b"no") == (
        "668e33ef" + "0001" + "8001" + COOKIE_HEX + "00000008" + "00000001" + "0002" + b"no".hex()
    )
    assert encoded(replies.error_chunk, errno.EIO) == (
        "668e33ef" + "0001" + "8001" + COOKIE_HEX + "00000006" + "00000005" + "0000"
    )


def test_an_error_chunk_need_not_be_the_last() -> None:
    assert encoded(replies.error_chunk, errno.EIO, b"", False)[8:16] == "00008001"


def test_an_error_with_an_offset_has_the_offset_behind_the_message() -> None:
    assert encoded(replies.error_offset_chunk, errno.EIO, 0x3000, b"bad") == (
        "668e33ef" + "0001" + "8002" + COOKIE_HEX + "00000011" + "00000005" + "0003" + b"bad".hex() + "0000000000003000"
    )
    assert encoded(replies.error_offset_chunk, errno.EIO, 0, b"", False)[8:16] == "00008002"


def test_block_status_lists_the_extents_of_base_allocation() -> None:
    assert encoded(replies.block_status_chunk, [(4096, 0), (8192, 3)]) == (
        "668e33ef" + "0001" + "0005" + COOKIE_HEX + "00000014" + "00000001" + "0000100000000000" + "0000200000000003"
    )
    assert encoded(replies.block_status_chunk, [(1, 0)], False)[8:16] == "00000005"


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (encoded(replies.done), replies.SIMPLE_REPLY_BYTES),
        (encoded(replies.none_chunk), replies.CHUNK_HEADER_BYTES),
        (encoded(replies.data_chunk, 0, 1, True), replies.DATA_CHUNK_BYTES),
        (encoded(replies.hole_chunk, 0, 1, True), replies.HOLE_CHUNK_BYTES),
        (encoded(replies.error_chunk, 5), replies.ERROR_CHUNK_BYTES),
        (encoded(replies.error_offset_chunk, 5, 0), replies.ERROR_OFFSET_CHUNK_BYTES),
        (encoded(replies.block_status_chunk, [(1, 0)]), replies.BLOCK_STATUS_CHUNK_BYTES + replies.EXTENT_BYTES),
    ],
)
def test_the_announced_sizes_are_the_sizes(written: str, size: int) -> None:
    assert len(written) == 2 * size


def test_the_prebuilt_structs_write_what_the_functions_write() -> None:
    assert replies.SIMPLE.pack(replies.SIMPLE_DONE, COOKIE).hex() == encoded(replies.done)
    assert replies.DATA_CHUNK.pack(replies.DATA_FINAL, COOKIE, 8 + 512, 0).hex() == encoded(
        replies.data_chunk, 0, 512, True
    )


@pytest.mark.parametrize("encode", [replies.data_chunk, replies.hole_chunk])
def test_empty_content_is_a_mistake_of_ours(encode: Callable[..., int]) -> None:
    with pytest.raises(AssertionError):
        encoded(encode, 0, 0, True)


@pytest.mark.parametrize("extents", [[], [(0, 0)], [(4096, 0), (0, 3)]])
def test_empty_extents_are_a_mistake_of_ours(extents: list[tuple[int, int]]) -> None:
    with pytest.raises(AssertionError):
        encoded(replies.block_status_chunk, extents)

"""The pool's own tables as bytes."""

from __future__ import annotations

import dataclasses

import pytest

from holdfast.errors import CorruptionError
from holdfast.pool.tables import (
    GroupLimits,
    GroupRow,
    VolumeRow,
    decode_volume_table,
    encode_volume_table,
    table_block_count,
    table_blocks,
)


def row(name: str, *, removing: bool = False) -> VolumeRow:
    return VolumeRow(
        volume_id=7,
        name=name,
        size_bytes=1 << 40,
        root=1 << 63 | 5,
        root_level=3,
        mapped_blocks=99,
        created_ns=123,
        removing=removing,
    )


def test_volumes_come_back_with_names_of_any_script_and_length() -> None:
    rows = [row("disk0"), row("диск", removing=True), row("x" * 255), row("")]
    assert decode_volume_table(encode_volume_table(rows)) == (rows, [])


def test_policies_losses_and_groups_come_back() -> None:
    volume = dataclasses.replace(
        row("disk0"), group_id=65535, on_full=1, on_error=1, read_only=2, loss_epoch=65535, loss_open=True
    )
    limits = {"memory_bytes": 1 << 40, "dirty_bytes": 5, "space_bytes": 6, "dirty_min_bytes": 7, "map_min_bytes": 8}
    groups = [GroupRow(9, "tenant", GroupLimits(**limits, uid=1000, cgroup="/a/" + "b" * 189)), GroupRow(1, "x" * 64)]
    assert decode_volume_table(encode_volume_table([volume], groups)) == ([volume], groups)


def test_a_table_that_is_cut_off_is_an_error() -> None:
    with pytest.raises(CorruptionError, match="320"):
        decode_volume_table(encode_volume_table([row("disk0")])[:-1])


def test_a_name_that_is_no_text_is_an_error() -> None:
    raw = bytearray(encode_volume_table([row("disk0")]))
    raw[46] = 0xFF
    with pytest.raises(CorruptionError):
        decode_volume_table(bytes(raw))


def test_a_table_is_cut_into_whole_blocks() -> None:
    raw = bytes(range(256)) * 17
    blocks = list(table_blocks(raw))
    assert len(blocks) == table_block_count(len(raw)) == 2
    assert b"".join(blocks).rstrip(b"\0")[:10] == raw[:10]
    assert all(len(block) == 4096 for block in blocks)
    assert not list(table_blocks(b""))

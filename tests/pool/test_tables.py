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
    table_bytes_max,
)


def row(name: str, volume_id: int = 7) -> VolumeRow:
    return VolumeRow(
        volume_id=volume_id,
        name=name,
        size_bytes=1 << 40,
        root=1 << 63 | 5,
        root_level=3,
        mapped_blocks=99,
        created_ns=123,
    )


def test_volumes_come_back_with_names_of_any_script_and_length() -> None:
    rows = [row("disk0", 1), row("диск", 2), row("x" * 255, 3), row("", 4)]
    assert decode_volume_table(encode_volume_table(rows)) == (rows, [])


def test_policies_losses_and_groups_come_back() -> None:
    volume = dataclasses.replace(
        row("disk0"), group_id=65535, on_full=1, on_error=1, read_only=2, loss_epoch=65535, loss_open=True
    )
    limits = {"memory_bytes": 1 << 40, "dirty_bytes": 5, "space_bytes": 6, "dirty_min_bytes": 7, "map_min_bytes": 8}
    groups = [GroupRow(9, "tenant", GroupLimits(**limits, uid=1000, cgroup="/a/" + "b" * 189)), GroupRow(1, "x" * 64)]
    assert decode_volume_table(encode_volume_table([volume], groups)) == ([volume], groups)


def test_nodes_of_the_version_tree_come_back() -> None:
    volume = dataclasses.replace(row("v"), volume_id=1)
    snapshot = dataclasses.replace(
        row("s" * 64), volume_id=2, role=1, basis_id=1, parent_id=1, reach_blocks=5, protected=True, group_id=3
    )
    clone = dataclasses.replace(row("x" * 255), volume_id=3, basis_id=2, ground_id=2, origin_id=2, protected=True)
    hidden = dataclasses.replace(row("h"), volume_id=4, role=2, basis_id=3, ground_id=2)
    rows = [volume, snapshot, clone, hidden]
    raw = encode_volume_table(rows)
    assert decode_volume_table(raw) == (rows, [])
    assert len(raw) == 2 * 320 + 3 * 160 <= table_bytes_max(rows, [])


def test_what_is_left_of_a_volume_with_a_long_name_keeps_the_beginning_of_it() -> None:
    removed = dataclasses.replace(row("ж" * 127), role=2)
    assert decode_volume_table(encode_volume_table([removed])) == ([dataclasses.replace(removed, name="ж" * 32)], [])


def test_a_table_that_is_cut_off_is_an_error() -> None:
    with pytest.raises(CorruptionError, match="cut off"):
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

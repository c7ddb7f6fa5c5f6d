"""The pool's own tables as blocks of the log: the volume table, the space table and the index that finds them.

A table is a byte string cut into 4096-byte blocks (KIND_META; the last one filled with zeroes). The owner word of a
table block carries the table's number in place of a volume id and the block's index in place of an lba.

A row of the volume table is 320 bytes, little endian:

    offset  size  field
    0       4     volume id
    4       4     flags: bit 0 = being removed
    8       8     size, bytes
    16      8     root: map entry of the root page; 0 = nothing is mapped
    24      8     mapped blocks: data blocks that the map refers to
    32      8     wall clock of creation, ns since 1970
    40      4     level of the root page
    44      2     length of the name, bytes
    46      256   name, UTF-8
    302     8     quota: how many bytes may be mapped; 0 = as many as there are
    310     4     seconds that a write waits in a full pool before it is answered ENOSPC; 0 = it does not wait
    314     6     zero
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.errors import CorruptionError
from holdfast.units import BLOCK_SIZE_BYTES

# A pool cannot be opened without its tables, so each block of them is stored twice and a damaged one costs nothing.
TABLE_COPIES = 2

TABLE_INDEX = 1
TABLE_VOLUMES = 2
TABLE_SPACE = 3
TABLE_NAMES = {TABLE_INDEX: "index", TABLE_VOLUMES: "volume table", TABLE_SPACE: "space table"}

FLAG_REMOVING = 1
NAME_BYTES_MAX = 255

_ROW = struct.Struct("<IIQQQQIH256sQI6x")
ROW_SIZE_BYTES = _ROW.size
assert ROW_SIZE_BYTES == 320


@dataclass(frozen=True, slots=True)
class VolumeRow:
    volume_id: int
    name: str
    size_bytes: int
    root: int
    root_level: int
    mapped_blocks: int
    created_ns: int
    removing: bool
    quota_bytes: int = 0
    on_full_wait_s: int = 0


def encode_volume_table(rows: Iterable[VolumeRow]) -> bytes:
    return b"".join(
        _ROW.pack(
            row.volume_id,
            FLAG_REMOVING if row.removing else 0,
            row.size_bytes,
            row.root,
            row.mapped_blocks,
            row.created_ns,
            row.root_level,
            len(row.name.encode()),
            row.name.encode(),
            row.quota_bytes,
            row.on_full_wait_s,
        )
        for row in rows
    )


def decode_volume_table(raw: bytes) -> list[VolumeRow]:
    """Raises CorruptionError for bytes that are no volume table."""
    if len(raw) % ROW_SIZE_BYTES:
        raise CorruptionError(f"the volume table is {len(raw)} bytes long, not a multiple of {ROW_SIZE_BYTES}")
    rows = []
    for volume_id, flags, size, root, mapped, created, level, name_length, name, quota, wait in _ROW.iter_unpack(raw):
        try:
            text = name[:name_length].decode()
        except UnicodeDecodeError as error:
            raise CorruptionError(f"the name of volume {volume_id} in the volume table is not text") from error
        rows.append(
            VolumeRow(
                volume_id=volume_id,
                name=text,
                size_bytes=size,
                root=root,
                root_level=level,
                mapped_blocks=mapped,
                created_ns=created,
                removing=bool(flags & FLAG_REMOVING),
                quota_bytes=quota,
                on_full_wait_s=wait,
            )
        )
    return rows


def table_block_count(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_SIZE_BYTES)


def table_blocks(raw: bytes) -> Iterable[bytes]:
    """The blocks of a table, the last one filled up with zeroes."""
    for at in range(0, len(raw), BLOCK_SIZE_BYTES):
        yield raw[at : at + BLOCK_SIZE_BYTES].ljust(BLOCK_SIZE_BYTES, b"\0")

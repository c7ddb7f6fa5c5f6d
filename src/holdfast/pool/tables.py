"""The pool's own tables as blocks of the log: the volume table, the space table and the index that finds them.

A table is a byte string cut into 4096-byte blocks (KIND_META; the last one filled with zeroes). The owner word of a
table block carries the table's number in place of a volume id and the block's index in place of an lba.

A row of the volume table is 320 bytes, little endian:

    offset  size  field
    0       4     volume id
    4       4     flags: bit 2 = a loss is not acknowledged, bit 3 = read-only since it was full,
                  bit 4 = read-only since its write-back failed, bit 8 = it was made smaller, and the map may
                  still refer to blocks behind its end, bit 9 = all of it is provisioned
    8       8     size, bytes
    16      8     root: map entry of the root page; 0 = nothing is mapped
    24      8     mapped blocks: data blocks that the map refers to
    32      8     wall clock of creation, ns since 1970
    40      4     level of the root page
    44      2     length of the name, bytes
    46      256   name, UTF-8
    302     8     quota: how many bytes may be mapped; 0 = as many as there are
    310     4     seconds that a write waits in a full pool before it is answered ENOSPC; 0 = it does not wait
    314     2     group that the volume is in; 0 = the default group
    316     1     on full: 0 = wait as above, then ENOSPC; 1 = become read-only
    317     1     on error: 0 = go on while write-back is retried; 1 = become read-only
    318     2     loss epoch: how often accepted data of the volume was found to be lost for good

A row with bit 5 of the flags is a node of the version tree (volume/versions.py), 160 bytes long: a snapshot, or what is
left of a removed one or of a removed volume. With bit 6 it is no node of its own, but says where the volume of that id,
has its place in the tree: of its fields only those marked with + count.

    offset  size  field
    0       4     volume id
    4       4     flags: bit 5; bit 0 = removed; bit 6; bit 7 = protected from being removed (+);
                  bit 10 = shared blocks may be fewer (+)
    8       4   + basis: id of the node where a block is looked for that this one has no entry for; 0 = none
    12      4   + ground: id of the node where GROUND_MARK leads; 0 = none
    16      4     parent: id of the volume that it is a snapshot of; 0 = none any more
    20      4   + origin: id of the snapshot that it was cloned from; 0 = none
    24      8     size, bytes
    32      8     root
    40      8     mapped blocks
    48      8     wall clock of creation, ns since 1970
    56      8   + reach: blocks at and behind this one are not looked for in the basis; 0 = all are
    64      4     level of the root page
    68      2     group
    70      2     length of the name, bytes
    72      64    name, UTF-8, without its volume's
    136     16    identity of a snapshot: of what it holds, in whatever pool (volume/snapshots.py); 0 of other nodes
    152     8   + shared blocks: of the mapped ones, those that snapshots before it see as well (volume/sharing.py)

A row with bit 1 of the flags is a group of volumes:

    offset  size  field
    0       4     group id
    4       4     flags: bit 1
    8       8     limit of memory of all kinds, bytes; 0 = none, here and below
    16      8     limit of dirty data, bytes
    24      8     limit of mapped space, bytes
    32      8     dirty data that it is sure of, bytes
    40      8     map pages that it is sure of, bytes
    48      4     uid of the peers that it pays for; 2^32 - 1 = none
    52      2     length of the name, bytes
    54      2     length of the control group's path, bytes
    56      64    name, UTF-8
    120     192   control group of the peers that it pays for, UTF-8
    312     8     zero
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from holdfast.errors import CorruptionError
from holdfast.units import BLOCK_SIZE_BYTES

# A pool cannot be opened without its tables, so each block of them is stored twice and a damaged one costs nothing.
TABLE_COPIES = 2

TABLE_INDEX = 1
TABLE_VOLUMES = 2
TABLE_SPACE = 3
TABLE_NAMES = {TABLE_INDEX: "index", TABLE_VOLUMES: "volume table", TABLE_SPACE: "space table"}

FLAG_REMOVING = 1
FLAG_GROUP = 2
FLAG_LOSS = 4
FLAG_NODE = 32
FLAG_PLACE = 64
FLAG_PROTECTED = 128
FLAG_CUTTING = 256
FLAG_PROVISIONED = 512
FLAG_SHARING_UNSURE = 1024
READ_ONLY_SHIFT = 3
READ_ONLY_MASK = 3
NAME_BYTES_MAX = 255
GROUP_NAME_BYTES_MAX = 64
CGROUP_BYTES_MAX = 192
SNAPSHOT_NAME_BYTES_MAX = 64
VOLUME, SNAPSHOT, HIDDEN = range(3)  # roles of nodes: `volume.Role`
NO_UID = (1 << 32) - 1
IDENTITY_BYTES = 16
NO_IDENTITY = bytes(IDENTITY_BYTES)

_ROW = struct.Struct("<IIQQQQIH256sQIHBBH")
_GROUP_ROW = struct.Struct("<IIQQQQQIHH64s192s8x")
_NODE_ROW = struct.Struct("<IIIIIIQQQQQIHH64s16sQ")
_ROOT_AT, _NODE_ROOT_AT = 16, 32
ROW_SIZE_BYTES = _ROW.size
NODE_ROW_SIZE_BYTES = _NODE_ROW.size
assert ROW_SIZE_BYTES == _GROUP_ROW.size == 320
assert NODE_ROW_SIZE_BYTES == 160


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """`role`: as in `volume.Role`; 0 is a volume. Of other nodes no policies and losses are stored."""

    volume_id: int
    name: str
    size_bytes: int
    root: int
    root_level: int
    mapped_blocks: int
    created_ns: int
    quota_bytes: int = 0
    on_full_wait_s: int = 0
    group_id: int = 0
    on_full: int = 0
    on_error: int = 0
    read_only: int = 0
    loss_epoch: int = 0
    loss_open: bool = False
    role: int = 0
    basis_id: int = 0
    ground_id: int = 0
    parent_id: int = 0
    origin_id: int = 0
    reach_blocks: int = 0
    protected: bool = False
    cutting: bool = False
    identity: bytes = NO_IDENTITY
    provisioned: bool = False
    shared_blocks: int = 0
    sharing_unsure: bool = False


def row_bytes_max(role: int) -> int:
    """What a volume or another node takes of the volume table at most."""
    return NODE_ROW_SIZE_BYTES if role else ROW_SIZE_BYTES + NODE_ROW_SIZE_BYTES


def table_bytes_max(rows: Iterable[VolumeRow], groups: Sequence[GroupRow]) -> int:
    """What the volume table with these rows takes at most."""
    return sum(row_bytes_max(row.role) for row in rows) + len(groups) * ROW_SIZE_BYTES


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """Bytes; 0: no limit, or nothing that the group is sure of.

    memory_bytes    of all kinds together
    dirty_bytes     of the ring
    space_bytes     that its volumes may map together
    dirty_min_bytes, map_min_bytes    of the ring and of map pages that nobody else can have
    uid             peers on Unix sockets with this uid are charged here; NO_UID: none
    cgroup          likewise peers whose control group is this, or below it; "": none
    """

    memory_bytes: int = 0
    dirty_bytes: int = 0
    space_bytes: int = 0
    dirty_min_bytes: int = 0
    map_min_bytes: int = 0
    uid: int = NO_UID
    cgroup: str = ""

    def same_minimums(self, other: GroupLimits) -> bool:
        return (self.dirty_min_bytes, self.map_min_bytes) == (other.dirty_min_bytes, other.map_min_bytes)


@dataclass(frozen=True, slots=True)
class GroupRow:
    group_id: int
    name: str
    limits: GroupLimits = GroupLimits()


def encode_volume_table(rows: Iterable[VolumeRow], groups: Iterable[GroupRow] = ()) -> bytes:
    return b"".join([*map(encode_group, groups), *map(encode_row, rows)])


def encode_row(row: VolumeRow) -> bytes:
    """What the volume table has of a volume or another node."""
    if row.role:
        return _encode_node(row)
    if _has_place(row):
        return _encode_volume(row) + _encode_node(row)
    return _encode_volume(row)


def root_place(*, is_node: bool) -> int:
    """Where the root is in what `encode_row` gives for a volume, or another node."""
    return _NODE_ROOT_AT if is_node else _ROOT_AT


def _has_place(row: VolumeRow) -> bool:
    """True for a volume of which a place in the version tree is to be stored."""
    placed = row.basis_id or row.ground_id or row.origin_id or row.reach_blocks
    return bool(placed or row.protected or row.shared_blocks or row.sharing_unsure)


def _encode_volume(row: VolumeRow) -> bytes:
    flags = FLAG_LOSS * row.loss_open | row.read_only << READ_ONLY_SHIFT
    flags |= FLAG_CUTTING * row.cutting | FLAG_PROVISIONED * row.provisioned
    name = row.name.encode()
    return _ROW.pack(
        row.volume_id,
        flags,
        row.size_bytes,
        row.root,
        row.mapped_blocks,
        row.created_ns,
        row.root_level,
        len(name),
        name,
        row.quota_bytes,
        row.on_full_wait_s,
        row.group_id,
        row.on_full,
        row.on_error,
        row.loss_epoch,
    )


def _encode_node(row: VolumeRow) -> bytes:
    return encode_node(
        row.role,
        row.name,
        row.identity,
        row.shared_blocks,
        FLAG_PROTECTED * row.protected | FLAG_CUTTING * row.cutting | FLAG_SHARING_UNSURE * row.sharing_unsure,
        row.volume_id,
        row.basis_id,
        row.ground_id,
        row.parent_id,
        row.origin_id,
        row.size_bytes,
        row.root,
        row.mapped_blocks,
        row.created_ns,
        row.reach_blocks,
        row.root_level,
        row.group_id,
    )


def encode_node(
    role: int, name: str, identity: bytes, shared_blocks: int, flags: int, volume_id: int, *numbers: int
) -> bytes:
    """The row of a node, without a `VolumeRow`: of ten thousand of them that would be most of a checkpoint. `numbers`:
    as `_encode_node` has them."""
    flags |= FLAG_NODE
    if role == HIDDEN:
        flags |= FLAG_REMOVING
    elif not role:
        flags |= FLAG_PLACE
        name = ""
    raw = name.encode()
    if len(raw) > SNAPSHOT_NAME_BYTES_MAX:
        # That of a volume can be longer: what is left of a removed one is not found by it any more.
        raw = raw[:SNAPSHOT_NAME_BYTES_MAX].decode(errors="ignore").encode()
    return _NODE_ROW.pack(volume_id, flags, *numbers, len(raw), raw, identity, shared_blocks)


def encode_group(row: GroupRow) -> bytes:
    limits = row.limits
    name, cgroup = row.name.encode(), limits.cgroup.encode()
    return _GROUP_ROW.pack(
        row.group_id,
        FLAG_GROUP,
        limits.memory_bytes,
        limits.dirty_bytes,
        limits.space_bytes,
        limits.dirty_min_bytes,
        limits.map_min_bytes,
        limits.uid,
        len(name),
        len(cgroup),
        name,
        cgroup,
    )


def decode_volume_table(raw: bytes) -> tuple[list[VolumeRow], list[GroupRow]]:
    """Raises CorruptionError for bytes that are no volume table."""
    rows: dict[int, VolumeRow] = {}
    groups = []
    at = 0
    while at < len(raw):
        flags = int.from_bytes(raw[at + 4 : at + 8], "little")
        size = NODE_ROW_SIZE_BYTES if flags & FLAG_NODE else ROW_SIZE_BYTES
        if at + size > len(raw):
            raise CorruptionError(f"the volume table is {len(raw)} bytes long: its last row is cut off")
        if flags & FLAG_GROUP:
            groups.append(_decode_group(raw, at))
        else:
            row = _decode_node(raw, at, rows) if flags & FLAG_NODE else _decode_volume(raw, at)
            rows[row.volume_id] = row
        at += size
    return list(rows.values()), groups


def _decode_node(raw: bytes, at: int, rows: dict[int, VolumeRow]) -> VolumeRow:
    (
        volume_id, flags, basis, ground, parent, origin, size, root, mapped, created, reach, level, group, name_length,
        name, identity, shared,
    ) = _NODE_ROW.unpack_from(raw, at)  # fmt: skip
    if flags & FLAG_PLACE:
        if volume_id not in rows:
            raise CorruptionError(f"the volume table has a place in the version tree for {volume_id}, but no volume")
        return replace(
            rows[volume_id],
            basis_id=basis,
            ground_id=ground,
            origin_id=origin,
            reach_blocks=reach,
            protected=bool(flags & FLAG_PROTECTED),
            shared_blocks=shared,
            sharing_unsure=bool(flags & FLAG_SHARING_UNSURE),
        )
    return VolumeRow(
        volume_id=volume_id,
        name=_text(name[:name_length], f"the name of snapshot {volume_id}"),
        size_bytes=size,
        root=root,
        root_level=level,
        mapped_blocks=mapped,
        created_ns=created,
        group_id=group,
        role=HIDDEN if flags & FLAG_REMOVING else SNAPSHOT,
        basis_id=basis,
        ground_id=ground,
        parent_id=parent,
        origin_id=origin,
        reach_blocks=reach,
        protected=bool(flags & FLAG_PROTECTED),
        cutting=bool(flags & FLAG_CUTTING),
        identity=identity,
        shared_blocks=shared,
        sharing_unsure=bool(flags & FLAG_SHARING_UNSURE),
    )


def _decode_volume(raw: bytes, at: int) -> VolumeRow:
    (
        volume_id, flags, size, root, mapped, created, level, name_length, name, quota, wait, group, on_full, on_error,
        loss_epoch,
    ) = _ROW.unpack_from(raw, at)  # fmt: skip
    return VolumeRow(
        volume_id=volume_id,
        name=_text(name[:name_length], f"the name of volume {volume_id}"),
        size_bytes=size,
        root=root,
        root_level=level,
        mapped_blocks=mapped,
        created_ns=created,
        quota_bytes=quota,
        on_full_wait_s=wait,
        group_id=group,
        on_full=on_full,
        on_error=on_error,
        read_only=flags >> READ_ONLY_SHIFT & READ_ONLY_MASK,
        loss_epoch=loss_epoch,
        loss_open=bool(flags & FLAG_LOSS),
        cutting=bool(flags & FLAG_CUTTING),
        provisioned=bool(flags & FLAG_PROVISIONED),
    )


def _decode_group(raw: bytes, at: int) -> GroupRow:
    group_id, _flags, memory, dirty, space, dirty_min, map_min, uid, name_length, cgroup_length, name, cgroup = (
        _GROUP_ROW.unpack_from(raw, at)
    )
    limits = GroupLimits(
        memory_bytes=memory,
        dirty_bytes=dirty,
        space_bytes=space,
        dirty_min_bytes=dirty_min,
        map_min_bytes=map_min,
        uid=uid,
        cgroup=_text(cgroup[:cgroup_length], f"the control group of group {group_id}"),
    )
    return GroupRow(group_id, _text(name[:name_length], f"the name of group {group_id}"), limits)


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptionError(f"{what} in the volume table is not text") from error


def table_block_count(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_SIZE_BYTES)


def table_blocks(raw: bytes | bytearray) -> Iterable[bytes | bytearray]:
    """The blocks of a table, the last one filled up with zeroes."""
    for at in range(0, len(raw), BLOCK_SIZE_BYTES):
        yield raw[at : at + BLOCK_SIZE_BYTES].ljust(BLOCK_SIZE_BYTES, b"\0")

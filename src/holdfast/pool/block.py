"""What a block of the log is, who owns it, and how a changed byte in it is found.

Every block that the log stores has an **owner word**, 64 bits that say what the block is for:

    bits 63..40  volume id (for KIND_META: the table, `TABLE_*`)
    bits 39..36  level of a map page (KIND_MAP; 0 is a leaf), else 0
    bits 35..0   the lba (KIND_DATA), the index of the page on its level (KIND_MAP), of the block in its table
                 (KIND_META)

and a **check**, 32 bits of XXH3-64 over the 4096 bytes, seeded with the kind and the owner word; for KIND_DATA with the
lba alone.  So a check fails when the bytes changed, and as well when they are good bytes of another place: a
misdirected write, or a flipped bit in the entry that names the owner.  The volume is left out for data because a block
goes as it is from the map of its volume into that of a snapshot; the map entry that leads to it says whose it is.

A **map entry** is what a page of the map holds for a block, 64 bits:

    bits 63..36  the low 28 bits of the check
    bits 35..0   the block address (256 TiB of pool at most)

0 is a hole: address 0 is a segment header and never data.

An **entry** of a commit header or of a segment summary is 16 bytes: owner u64, check u32, meta u32 (little endian); the
low 8 bits of meta are the kind, the upper 24 a count whose meaning depends on the kind:

    KIND_DATA    a block of a volume; count 0
    KIND_MAP     a page of a volume's map; count 0
    KIND_META    a block of one of the pool's own tables; count 0
    KIND_HOLE    `count` blocks of a volume from the owner's lba on became a hole; no block is stored for it
    KIND_COMMIT  only in summaries: a commit header of `count` entries stood here; the owner is its log position

Sources: XXH3 as in the xxHash project's doc/xxhash_spec.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from holdfast.units import BLOCK_SIZE_BYTES

KIND_DATA = 1
KIND_MAP = 2
KIND_META = 3
KIND_HOLE = 4
KIND_COMMIT = 5
STORED_KINDS = (KIND_DATA, KIND_MAP, KIND_META)  # those whose entry has a block in the log

VOLUME_SHIFT = 40
LEVEL_SHIFT = 36
LBA_MASK = (1 << LEVEL_SHIFT) - 1
VOLUME_ID_MAX = (1 << 24) - 1

ADDRESS_BITS = 36
ADDRESS_MASK = (1 << ADDRESS_BITS) - 1
CHECK_MASK = (1 << 28) - 1
HOLE = 0

HOLE_COUNT_MAX = (1 << 24) - 1

ENTRY_DTYPE = np.dtype([("owner", "<u8"), ("check", "<u4"), ("meta", "<u4")])
ENTRY_SIZE_BYTES = ENTRY_DTYPE.itemsize

EntryArray = npt.NDArray[np.void]
WordArray = npt.NDArray[np.uint64]

# Kinds differ in bits that owner words use for the volume id, by constants without structure (digits of pi), so that an
# entry whose kind byte was changed does not check out either.
SEED_DATA = 0x243F6A8885A308D3
SEED_MAP = 0x13198A2E03707344
SEED_META = 0xA4093822299F31D0
SEED_HOLE = 0x082EFA98EC4E6C89
_SEED_BY_KIND = {KIND_DATA: SEED_DATA, KIND_MAP: SEED_MAP, KIND_META: SEED_META}

# Map entries without a block, in the maps of snapshots and clones, where 0 means: see the basis (volume/versions.py).
HOLE_MARK = 1 << ADDRESS_BITS  # a hole, whatever the basis has
GROUND_MARK = 2 << ADDRESS_BITS  # as in the ground, whatever the basis has

ZERO_BLOCK = bytes(BLOCK_SIZE_BYTES)


def data_owner(volume_id: int, lba: int) -> int:
    return volume_id << VOLUME_SHIFT | lba


def page_owner(volume_id: int, level: int, index: int) -> int:
    return volume_id << VOLUME_SHIFT | level << LEVEL_SHIFT | index


def page_place(owner: int) -> tuple[int, int]:
    """Level and index of the map page with this owner word."""
    return owner >> LEVEL_SHIFT & 15, owner & LBA_MASK


def check_seed(owner: int, kind: int) -> int:
    """What the check of a stored block is seeded with."""
    return (owner & LBA_MASK if kind == KIND_DATA else owner) ^ _SEED_BY_KIND[kind]


def block_check(block: bytes | bytearray | memoryview, owner: int, kind: int) -> int:
    """The 32-bit check of a stored block."""
    return xxh3_64_intdigest(block, check_seed(owner, kind)) & 0xFFFFFFFF


def hole_check(owner: int, meta: int) -> int:
    """The check of a KIND_HOLE entry, which has no block: over its own words."""
    return xxh3_64_intdigest(owner.to_bytes(8, "little") + meta.to_bytes(4, "little"), SEED_HOLE) & 0xFFFFFFFF


def block_matches(block: bytes | bytearray | memoryview, owner: int, kind: int, map_entry: int) -> bool:
    """True if the block read at the entry's address is the one that the entry was made for."""
    return (xxh3_64_intdigest(block, check_seed(owner, kind)) & CHECK_MASK) == map_entry >> ADDRESS_BITS


def make_map_entry(address: int, check: int) -> int:
    return (check & CHECK_MASK) << ADDRESS_BITS | address


def data_checks(view: memoryview, owner: int) -> list[int]:
    """The checks of consecutive data blocks of one volume: of `view`, whose first block belongs to `owner`."""
    lba = owner & LBA_MASK
    digest = xxh3_64_intdigest
    size = BLOCK_SIZE_BYTES
    return [
        digest(view[at : at + size], (lba + index) ^ SEED_DATA) & 0xFFFFFFFF
        for index, at in enumerate(range(0, len(view), size))
    ]


def is_given_up(map_entry: int) -> bool:
    """True for the entry of a block that is known to be lost: its check is all ones, which one good block in
    2^28 has as well: for that one, damage would be no news."""
    return map_entry >> ADDRESS_BITS == CHECK_MASK


def first_mismatch(view: memoryview, lba: int, map_entries: list[int]) -> int:
    """Index of the first data block in `view`, which begins with block `lba`, that its map entry does not match, or -1.
    Hole entries are passed over."""
    digest = xxh3_64_intdigest
    size = BLOCK_SIZE_BYTES
    at = 0
    for index, entry in enumerate(map_entries):
        if entry and digest(view[at : at + size], (lba + index) ^ SEED_DATA) & CHECK_MASK != entry >> ADDRESS_BITS:
            return index
        at += size
    return -1

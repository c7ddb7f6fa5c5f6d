"""The superblock: where recovery starts. Two slots in one file, written in turn, each whole in itself.

Slot `sequence % 2` holds the superblock of that sequence number; slots lie 64 KiB apart, so that no sector, page or
stripe of the disk below holds both. The valid slot with the higher sequence number counts. When a pool is opened both
slots are written with the new epoch, so either slot leads to the present: a segment is reused only once *both* no
longer need it.

Slot, 4096 bytes, little endian:

    offset  size  field
    0       8     magic "HOLDFAST"
    8       8     check: XXH3-64 of bytes 16..4095, seed SUPERBLOCK_SEED
    16      4     format version
    20      4     flags: bit 0 = clean, the log ends at the replay position
    24      16    pool UUID
    40      8     sequence
    48      8     epoch
    56      8     replay position: commits at and behind it are not in the tables yet
    64      8     wall clock of the pool's creation, ns since 1970
    72      4     blocks of a segment
    76      4     capacity, in segments
    80      4     segment that holds the replay position
    84      4     next volume id
    88      4     length of the volume table, bytes
    92      4     length of the space table, bytes
    96      4     number of index words
    100     4     zero
    104     3992  index words: map entries (KIND_META, TABLE_INDEX) of the index blocks. The index blocks, taken
                  together, are an array of map entries: of the blocks of the volume table, then of those of the space
                  table, then all of these again for the second copies. The index words, too, come twice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from holdfast.errors import CorruptionError
from holdfast.pool.commit import check_sealed_block, mend_single_byte, seal_block
from holdfast.units import BLOCK_SIZE_BYTES

SUPERBLOCK_MAGIC = int.from_bytes(b"HOLDFAST", "little")
SUPERBLOCK_SEED = 0x3F84D5B5B5470917
# 3: snapshots and clones; the check of a data block leaves its volume out. Pools of versions 1 and 2, from before the
# first release, are not read.
FORMAT_VERSION = 3
SLOT_OFFSETS = (0, 1 << 16)
SUPERBLOCK_FILE_BYTES = 2 << 16

FLAG_CLEAN = 1

_FIELDS = struct.Struct("<II16sQQQQIIIIIIII")
_FIELDS_AT = 16
_INDEX_AT = 104
INDEX_WORDS_MAX = (BLOCK_SIZE_BYTES - _INDEX_AT) // 8


@dataclass(frozen=True, slots=True)
class Superblock:
    uuid: bytes
    sequence: int
    epoch: int
    clean: bool
    replay_position: int
    created_ns: int
    segment_blocks: int
    capacity_segments: int
    replay_segment: int
    next_volume_id: int
    volume_table_bytes: int
    space_table_bytes: int
    index_entries: tuple[int, ...]

    @property
    def tag(self) -> int:
        """What the pool's other structures carry of its identity: the first 8 bytes of the UUID."""
        return int.from_bytes(self.uuid[:8], "little")

    @property
    def slot_offset(self) -> int:
        return SLOT_OFFSETS[self.sequence % 2]


def encode_superblock(block: memoryview, superblock: Superblock) -> None:
    """Write into a 4096-byte block."""
    assert len(superblock.index_entries) <= INDEX_WORDS_MAX
    block[:] = bytes(BLOCK_SIZE_BYTES)
    _FIELDS.pack_into(
        block,
        _FIELDS_AT,
        FORMAT_VERSION,
        FLAG_CLEAN if superblock.clean else 0,
        superblock.uuid,
        superblock.sequence,
        superblock.epoch,
        superblock.replay_position,
        superblock.created_ns,
        superblock.segment_blocks,
        superblock.capacity_segments,
        superblock.replay_segment,
        superblock.next_volume_id,
        superblock.volume_table_bytes,
        superblock.space_table_bytes,
        len(superblock.index_entries),
        0,
    )
    struct.pack_into(f"<{len(superblock.index_entries)}Q", block, _INDEX_AT, *superblock.index_entries)
    seal_block(block, SUPERBLOCK_MAGIC, SUPERBLOCK_SEED)


def decode_superblock(block: memoryview | bytes) -> Superblock | None:
    """The superblock in a slot; None if the slot is damaged or was never written. CorruptionError: a valid one that
    this version cannot read."""
    if check_sealed_block(block, SUPERBLOCK_MAGIC, SUPERBLOCK_SEED) is None:
        return None
    (
        version,
        flags,
        uuid,
        sequence,
        epoch,
        replay_position,
        created_ns,
        segment_blocks,
        capacity_segments,
        replay_segment,
        next_volume_id,
        volume_table_bytes,
        space_table_bytes,
        index_count,
        _,
    ) = _FIELDS.unpack_from(block, _FIELDS_AT)
    if version != FORMAT_VERSION:
        raise CorruptionError(
            f"the pool has format version {version}, this holdfast reads {FORMAT_VERSION}; "
            "use the holdfast that made it"
        )
    if index_count > INDEX_WORDS_MAX or segment_blocks < 64 or capacity_segments < 1:
        return None
    return Superblock(
        uuid=uuid,
        sequence=sequence,
        epoch=epoch,
        clean=bool(flags & FLAG_CLEAN),
        replay_position=replay_position,
        created_ns=created_ns,
        segment_blocks=segment_blocks,
        capacity_segments=capacity_segments,
        replay_segment=replay_segment,
        next_volume_id=next_volume_id,
        volume_table_bytes=volume_table_bytes,
        space_table_bytes=space_table_bytes,
        index_entries=struct.unpack_from(f"<{index_count}Q", block, _INDEX_AT),
    )


def newest_superblock(slots: list[bytes]) -> tuple[Superblock, list[str]]:
    """The superblock that counts, out of the raw contents of both slots, and a finding for each damaged slot.

    A slot with one changed byte is mended, so that the newest state is not lost to it. Raises CorruptionError if
    neither slot can be used.
    """
    candidates, findings = _usable(slots)
    if not candidates:
        raise CorruptionError(
            "no valid superblock: both slots are damaged; restore the file `superblock` from a backup"
        )
    return max(candidates, key=lambda candidate: candidate.sequence), findings


def is_alone(slots: list[bytes]) -> bool:
    """True if no slot leads to another checkpoint than the one that counts: what only the one before it needed, nobody
    does. So it is after a checkpoint that was written to both, and also where one of the slots is lost."""
    candidates, _ = _usable(slots)
    return len({replace(candidate, sequence=0) for candidate in candidates}) == 1


def _usable(slots: list[bytes]) -> tuple[list[Superblock], list[str]]:
    findings: list[str] = []
    candidates: list[Superblock] = []
    for number, raw in enumerate(slots):
        if not any(raw):
            continue  # never written: a pool whose creation was cut short between the two writes
        superblock = decode_superblock(raw)
        if superblock is None:
            findings.append(f"superblock slot {number} is damaged")
            mended = mend_single_byte(raw, SUPERBLOCK_MAGIC, SUPERBLOCK_SEED)
            superblock = None if mended is None else decode_superblock(mended)
        if superblock is not None:
            candidates.append(superblock)
    return candidates, findings

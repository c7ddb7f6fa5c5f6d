"""Making a pool: two superblocks that say that there is nothing yet."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.errors import DiskError, RequestError
from holdfast.pool.superblock import SLOT_OFFSETS, Superblock, encode_superblock
from holdfast.runtime.ports import SUPERBLOCK, WRITE, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB, format_size
from holdfast.work.task import Work

SEGMENT_SIZE_BYTES_MIN = 1 * MIB
SEGMENT_SIZE_BYTES_DEFAULT = 32 * MIB
SEGMENT_SIZE_BYTES_MAX = 1024 * MIB
# Metadata and what is held back for it need this many; a pool with fewer would be all reserve.
SEGMENTS_MIN = 16


def choose_segment_size(capacity_bytes: int, ring_bytes: int) -> int:
    """A power of two: 32 MiB, less in a small pool (so that it has 64 of them) or with a small ring."""
    size = SEGMENT_SIZE_BYTES_DEFAULT
    while size > SEGMENT_SIZE_BYTES_MIN and (size * 64 > capacity_bytes or size > ring_bytes):
        size //= 2
    return size


def new_superblock(*, uuid: bytes, segment_size_bytes: int, capacity_bytes: int, created_ns: int) -> Superblock:
    """The first superblock of a pool. Raises RequestError if sizes do not fit."""
    if segment_size_bytes & (segment_size_bytes - 1) or not (
        SEGMENT_SIZE_BYTES_MIN <= segment_size_bytes <= SEGMENT_SIZE_BYTES_MAX
    ):
        raise RequestError(
            f"a segment's size is a power of two between 1M and 1G, not {format_size(segment_size_bytes)}"
        )
    capacity_segments = capacity_bytes // segment_size_bytes
    if capacity_segments < SEGMENTS_MIN:
        raise RequestError(
            f"a capacity of {format_size(capacity_bytes)} is too small; "
            f"{format_size(SEGMENTS_MIN * segment_size_bytes)} is the least"
        )
    return Superblock(
        uuid=uuid,
        sequence=1,
        epoch=0,
        clean=True,
        replay_position=0,
        created_ns=created_ns,
        segment_blocks=segment_size_bytes >> BLOCK_SHIFT,
        capacity_segments=capacity_segments,
        replay_segment=0,
        next_volume_id=1,
        volume_table_bytes=0,
        space_table_bytes=0,
        index_entries=(),
    )


def write_new_pool(superblock: Superblock, allocate: Callable[[int], memoryview]) -> Work:
    """Write the superblock into both slots (work that yields I/O). Raises DiskError."""
    block = allocate(BLOCK_SIZE_BYTES)
    encode_superblock(block, superblock)
    for offset in SLOT_OFFSETS:
        io = yield Io(WRITE, SUPERBLOCK, offset, block, durable=True)
        if io.result < 0:
            raise DiskError(f"the superblock cannot be written: errno {-io.result}", -io.result)

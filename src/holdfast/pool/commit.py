"""The commit: one header block, then the blocks that its entries list.

A commit is what recovery takes or leaves as a whole.  Its header is the reverse map of its blocks.

Header, 4096 bytes, little endian:

    offset  size  field
    0       8     magic "HFCOMMIT"
    8       8     check: XXH3-64 of bytes 16..4095, seed COMMIT_SEED
    16      8     pool tag: the first 8 bytes of the pool's UUID
    24      8     epoch: another one each time the pool is opened; the lower half of it is random
    32      8     position: of this header in the log
    40      8     durable position: everything below it was on stable storage when this header was sealed
    48      4     entry count, 1..252
    52      4     block count: stored blocks that follow
    56      8     zero
    64      4032  252 entries of 16 bytes (`block.ENTRY_DTYPE`), the unused ones zero

A header whose check fails because of a single changed byte is mended in memory (`mend_single_byte`): the check is
strong enough that exactly one candidate fits, and a lost header would cost 252 blocks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_64_intdigest

from holdfast.pool.block import ENTRY_DTYPE, ENTRY_SIZE_BYTES, EntryArray
from holdfast.units import BLOCK_SIZE_BYTES

COMMIT_MAGIC = int.from_bytes(b"HFCOMMIT", "little")
COMMIT_SEED = 0x452821E638D01377
COMMIT_ENTRIES_AT = 64
COMMIT_ENTRIES_MAX = (BLOCK_SIZE_BYTES - COMMIT_ENTRIES_AT) // ENTRY_SIZE_BYTES

_BODY = struct.Struct("<QQQQIIQ")
_BODY_AT = 16
_FRAME = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class CommitHeader:
    tag: int
    epoch: int
    position: int
    durable_position: int
    entry_count: int
    block_count: int
    check: int
    entries: EntryArray


def seal_commit_header(
    block: memoryview,
    *,
    tag: int,
    epoch: int,
    position: int,
    durable_position: int,
    entry_count: int,
    block_count: int,
) -> int:
    """Complete in place a header block whose entries are written already; returns its check."""
    assert 0 < entry_count <= COMMIT_ENTRIES_MAX
    end = COMMIT_ENTRIES_AT + entry_count * ENTRY_SIZE_BYTES
    if end < BLOCK_SIZE_BYTES:
        block[end:] = bytes(BLOCK_SIZE_BYTES - end)
    _BODY.pack_into(block, _BODY_AT, tag, epoch, position, durable_position, entry_count, block_count, 0)
    return seal_block(block, COMMIT_MAGIC, COMMIT_SEED)


def decode_commit_header(block: memoryview | bytes) -> CommitHeader | None:
    """The header in `block`, or None if its magic, check or counts are wrong. Keeps no reference to `block`."""
    check = check_sealed_block(block, COMMIT_MAGIC, COMMIT_SEED)
    if check is None:
        return None
    tag, epoch, position, durable_position, entry_count, block_count, _ = _BODY.unpack_from(block, _BODY_AT)
    if not 0 < entry_count <= COMMIT_ENTRIES_MAX or block_count > entry_count:
        return None
    entries = np.frombuffer(block, ENTRY_DTYPE, entry_count, COMMIT_ENTRIES_AT).copy()
    return CommitHeader(tag, epoch, position, durable_position, entry_count, block_count, check, entries)


def seal_block(block: memoryview, magic: int, seed: int) -> int:
    """Write magic and check into the first 16 bytes of a 4096-byte structure; returns the check."""
    check = xxh3_64_intdigest(block[_BODY_AT:BLOCK_SIZE_BYTES], seed)
    _FRAME.pack_into(block, 0, magic, check)
    return check


def check_sealed_block(block: memoryview | bytes, magic: int, seed: int) -> int | None:
    """The check of a sealed 4096-byte structure, or None if magic or check do not hold."""
    if len(block) != BLOCK_SIZE_BYTES:
        return None
    found_magic, check = _FRAME.unpack_from(block, 0)
    if found_magic != magic:
        return None
    return int(check) if xxh3_64_intdigest(memoryview(block)[_BODY_AT:], seed) == check else None


def mend_single_byte(block: memoryview | bytes, magic: int, seed: int) -> bytes | None:
    """The sealed structure that `block` was before one of its bytes changed, or None if more than that is wrong.

    Tries every single-byte change, a million digests: about half a second, for the rare case that it is needed.
    """
    found_magic, check = _FRAME.unpack_from(block, 0)
    candidate = bytearray(block)
    _FRAME.pack_into(candidate, 0, magic, check)
    body = memoryview(candidate)[_BODY_AT:]
    digest = xxh3_64_intdigest(body, seed)
    if _differing_bytes(found_magic, magic) + _differing_bytes(digest, check) <= 1:
        _FRAME.pack_into(candidate, 0, magic, digest)  # the changed byte was in the magic or in the check itself
        return bytes(candidate)
    if found_magic != magic:
        return None
    for index in range(len(body)):
        was = body[index]
        for value in range(256):
            body[index] = value
            if xxh3_64_intdigest(body, seed) == check:
                return bytes(candidate)
        body[index] = was
    return None


def _differing_bytes(left: int, right: int) -> int:
    return sum(byte != 0 for byte in (left ^ right).to_bytes(8, "little"))

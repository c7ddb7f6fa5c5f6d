"""A fuzzer for what is stored: `python tests/fuzz/fuzz_decoders.py --seconds 10 --seed 1`.

It damages valid structures, seals some of them again (so that the check holds and the contents do not), and pools:

 1. A decoder gives a structure, or nothing, or a HoldfastError. No other exception, and no hang.
 2. A ring in any state is written out, or refused with a HoldfastError.
 3. A pool whose files are damaged after a flush opens or is refused; what it then gives back is what was written, or an
    error. Never another byte, and never an older one (promise 6).

Every case has a generator of its own, seeded by the seed and the number of the case, so that a failure is replayed
alone with `--only`.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from holdfast.errors import HoldfastError
from holdfast.nbd.protocol import CMD_FLUSH, CMD_TRIM, CMD_WRITE
from holdfast.pool.block import ENTRY_DTYPE
from holdfast.pool.commit import COMMIT_ENTRIES_AT, COMMIT_MAGIC, COMMIT_SEED, decode_commit_header, seal_block
from holdfast.pool.segment import (
    FOOTER_MAGIC,
    FOOTER_SEED,
    SEGMENT_MAGIC,
    SEGMENT_SEED,
    SegmentFooter,
    SegmentHeader,
    decode_segment_footer,
    decode_segment_header,
    decode_summary,
    encode_segment_footer,
    encode_segment_header,
)
from holdfast.pool.space import SpaceTable
from holdfast.pool.superblock import SUPERBLOCK_MAGIC, SUPERBLOCK_SEED, Superblock, decode_superblock, encode_superblock
from holdfast.pool.tables import VolumeRow, decode_volume_table, encode_volume_table
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.ports import SUPERBLOCK
from holdfast.sim.disk import SECTOR
from holdfast.sim.world import World, WorldConfig
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from holdfast.work.task import run_to_end
from holdfast.writeback.ring import Ring
from holdfast.writeback.ring_recovery import ring_belongs, write_out_ring

if __name__ == "__main__":  # then only this file's own directory is on the path
    sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.engine.helpers import ask, connect, create
from tests.fuzz.driver import Fuzzer

VOLUME_BLOCKS = 2000
WORLD = WorldConfig(segments=24, pages=64, ring_blocks=256)
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def damage(rng: Random, raw: bytes) -> bytes:
    """Some bytes changed, a stretch filled with one byte or with another stretch, or all of it noise."""
    block = bytearray(raw)
    kind = rng.randrange(8)
    if not block:
        return b""
    if kind == 0:
        return rng.randbytes(len(block))
    for _ in range(rng.choice([1, 1, 2, 5, 40])):
        at = rng.randrange(len(block)) if rng.random() < 0.5 else rng.randrange(min(len(block), 128))
        if kind == 1:
            length = rng.randrange(1, 600)
            block[at : at + length] = bytes([rng.choice(INTERESTING)]) * len(block[at : at + length])
        else:
            block[at] = rng.choice(INTERESTING) if rng.random() < 0.5 else block[at] ^ 1 << rng.randrange(8)
    return bytes(block)


def damaged_block(rng: Random, raw: bytes, magic: int, seed: int) -> bytes:
    block = bytearray(damage(rng, raw).ljust(BLOCK_SIZE_BYTES, b"\0"))
    if rng.random() < 0.5:
        seal_block(memoryview(block), magic, seed)
    return bytes(block)


# --- Structures -------------------------------------------------------------------------------------------------------


def check_superblock(rng: Random) -> None:
    block = memoryview(bytearray(BLOCK_SIZE_BYTES))
    encode_superblock(
        block,
        Superblock(
            uuid=rng.randbytes(16),
            sequence=rng.getrandbits(20),
            epoch=rng.getrandbits(64),
            clean=False,
            replay_position=rng.getrandbits(40),
            created_ns=1,
            segment_blocks=256,
            capacity_segments=64,
            replay_segment=3,
            next_volume_id=4,
            volume_table_bytes=640,
            space_table_bytes=1024,
            index_entries=(5, 6),
        ),
    )
    decode_superblock(damaged_block(rng, bytes(block), SUPERBLOCK_MAGIC, SUPERBLOCK_SEED))


def check_commit(rng: Random) -> None:
    raw = bytearray(rng.randbytes(BLOCK_SIZE_BYTES))
    raw[:COMMIT_ENTRIES_AT] = bytes(48) + (3).to_bytes(4, "little") + (2).to_bytes(4, "little") + bytes(8)
    header = decode_commit_header(damaged_block(rng, bytes(raw), COMMIT_MAGIC, COMMIT_SEED))
    if header is not None:
        assert header.block_count <= header.entry_count == len(header.entries)


def check_segment(rng: Random) -> None:
    block = memoryview(bytearray(BLOCK_SIZE_BYTES))
    encode_segment_header(block, SegmentHeader(1, 2, 3, 4, 5, 256))
    decode_segment_header(damaged_block(rng, bytes(block), SEGMENT_MAGIC, SEGMENT_SEED))
    encode_segment_footer(block, SegmentFooter(1, 2, 3, 4, rng.randrange(2000), rng.randrange(256), 190, 7))
    footer = decode_segment_footer(damaged_block(rng, bytes(block), FOOTER_MAGIC, FOOTER_SEED), 256)
    if footer is not None:
        decode_summary(rng.randbytes(rng.randrange(3 * BLOCK_SIZE_BYTES)), footer)
        assert footer.commits_end <= footer.summary_offset < 256


def check_tables(rng: Random) -> None:
    rows = [
        VolumeRow(
            volume_id=number,
            name=f"disk{number}",
            size_bytes=rng.getrandbits(40),
            root=rng.getrandbits(64),
            root_level=2,
            mapped_blocks=3,
            created_ns=4,
        )
        for number in range(rng.randrange(4))
    ]
    raw = damage(rng, encode_volume_table(rows))
    decode_volume_table(raw[: rng.choice([len(raw), rng.randrange(len(raw) + 1)])])
    SpaceTable(64, 8, reserve_segments=2).decode(damage(rng, bytes(64 * 16)), range(rng.randrange(64)))


# --- The ring and the pool --------------------------------------------------------------------------------------------


@cache
def stored_pool(variant: int) -> tuple[World, dict[int, bytes], bytes]:
    """A pool after a power failure, the contents of its blocks, and the ring that was lost with the power."""
    rng = Random(f"pool {variant}")
    world = World(f"pool {variant}", WORLD)
    world.open()
    create(world, "disk0", VOLUME_BLOCKS * BLOCK_SIZE_BYTES)
    client = connect(world, "disk0")
    contents: dict[int, bytes] = {}
    for stamp in range(1, 40 + 20 * variant):
        lba, count = rng.randrange(VOLUME_BLOCKS - 40), rng.randrange(1, 40)
        if rng.random() < 0.2:
            ask(world, client, CMD_TRIM, lba * BLOCK_SIZE_BYTES, count * BLOCK_SIZE_BYTES)
            contents.update(dict.fromkeys(range(lba, lba + count), bytes(BLOCK_SIZE_BYTES)))
        else:
            block = stamp.to_bytes(8, "big") * 512
            ask(world, client, CMD_WRITE, lba * BLOCK_SIZE_BYTES, payload=block * count)
            contents.update(dict.fromkeys(range(lba, lba + count), block))
        if rng.random() < 0.3:
            ask(world, client, CMD_FLUSH)
        if rng.random() < 0.05:
            world.run(world.engine.checkpoint())
    (ring,) = map(bytes, world.rings.rings.values())
    ask(world, client, CMD_FLUSH)
    # A damaged commit can be told from a torn one only while a later one says that it was durable. More of those than a
    # case damages:
    for _ in range(6):
        ask(world, client, CMD_WRITE, (VOLUME_BLOCKS - 1) * BLOCK_SIZE_BYTES, payload=bytes(BLOCK_SIZE_BYTES))
        ask(world, client, CMD_FLUSH)
    world.settle()
    world.power_fails()
    return world, contents, ring


def copy_of(world: World) -> World:
    """Another world over copies of the same files."""
    copied = World("copy", WORLD)
    for number, file in world.disk.files.items():
        target = copied.disk.files[number] = type(file)(file.now.size)
        target.now[:] = file.stable
        target.stable[:] = file.stable
    return copied


def check_ring(rng: Random) -> None:
    original, _contents, stored = stored_pool(rng.randrange(3))
    world = copy_of(original)
    memory = aligned_buffer(len(stored))
    memory[:] = stored
    ring = Ring(memory, segment_blocks=256)
    identity = ring.identity()
    assert identity is not None
    header = damage(rng, bytes(ring.view[:8192]))
    ring.view[:8192] = header
    ring_belongs(ring, tag=identity.tag, epoch=identity.epoch, boot=identity.boot)
    try:
        run_to_end(write_out_ring(ring, tag=identity.tag, epoch=identity.epoch, note=lambda text: None), world.disk.run)
    except HoldfastError:
        return


def check_pool(rng: Random) -> None:
    original, contents, _ring = stored_pool(rng.randrange(3))
    world = copy_of(original)
    used = [number for number, file in world.disk.files.items() if number != SUPERBLOCK and file.now.any()]
    for _ in range(rng.choice([1, 1, 2, 4])):
        file = world.disk.files[SUPERBLOCK if rng.random() < 0.1 else rng.choice(used)]
        content = file.now.reshape(-1)
        written = np.flatnonzero(file.now.any(axis=1))
        if not len(written):
            continue  # the damage before this one took all that there was
        sector = int(rng.choice(written.tolist()))
        length = rng.choice([1, 1, 1, SECTOR, BLOCK_SIZE_BYTES])
        at = sector * SECTOR + (rng.randrange(SECTOR) if length == 1 else 0)
        if length == 1:
            content[at] ^= 1 << rng.randrange(8)
        else:
            at -= at % length
            content[at : at + length] = rng.choice([0, 255, rng.randrange(256)])
    try:
        world.open()
        volume = world.engine.find("disk0")
    except HoldfastError:
        return
    for lba, expected in contents.items():
        into = bytearray(BLOCK_SIZE_BYTES)
        try:
            world.run(world.engine.reader.read(volume, lba * BLOCK_SIZE_BYTES, memoryview(into)))
        except HoldfastError:
            continue
        assert into == expected, f"block {lba}: {into[:8].hex()} in place of {expected[:8].hex()}"


FUZZER = Fuzzer(
    "tests/fuzz/fuzz_decoders.py",
    "Fuzz the decoders of what is stored.",
    (
        check_superblock,
        check_commit,
        check_segment,
        check_tables,
        check_superblock,
        check_segment,
        check_ring,
        check_pool,  # in every eighth case only: it takes fifty times as long as a structure
    ),
    answers=(HoldfastError,),
)

assert VOLUME_BLOCKS * BLOCK_SIZE_BYTES < 64 * MIB
assert ENTRY_DTYPE.itemsize == 16

if __name__ == "__main__":
    sys.exit(FUZZER.main())

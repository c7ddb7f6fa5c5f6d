"""Byte ranges in and out of a volume."""

from __future__ import annotations

from errno import ENOMEM

import pytest

from holdfast.sim.accounts import check_accounts
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from holdfast.volume.read import ReadError
from holdfast.volume.volume import Volume

BLOCK = BLOCK_SIZE_BYTES
LEAF = 2 * MIB


def write(world: World, volume: Volume, offset: int, payload: bytes) -> None:
    world.run(world.engine.long_writer.write(volume, offset, memoryview(payload)))


def read(world: World, volume: Volume, offset: int, length: int) -> bytes:
    into = memoryview(bytearray(length))
    world.run(world.engine.reader.read(volume, offset, into))
    return bytes(into)


def pattern(length: int, salt: int = 0) -> bytes:
    return b"".join((salt + at).to_bytes(4, "big") for at in range(length // 4 + 1))[:length]


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, BLOCK),
        (1, 1),
        (BLOCK - 1, 2),
        (LEAF - BLOCK, 2 * BLOCK),
        (LEAF - 7, 14),
        (5, 3 * LEAF),
        (512 * LEAF - 9, 99),
    ],
)
def test_what_is_written_is_read_and_its_surroundings_are_zeroes(
    world: World, volume: Volume, offset: int, length: int
) -> None:
    payload = pattern(length)
    write(world, volume, offset, payload)
    before = min(offset, 100)
    assert read(world, volume, offset - before, before + length + 100) == bytes(before) + payload + bytes(100)
    world.close()
    world.open()
    assert read(world, world.engine.find("disk0"), offset, length) == payload


def test_partial_writes_to_one_block_do_not_undo_each_other(world: World, volume: Volume) -> None:
    write(world, volume, 0, bytes([255]) * BLOCK)
    world.close()
    world.open()
    world.disk.character.cached = 0.0
    volume = world.engine.find("disk0")
    for part in range(16):
        world.spawn(world.engine.long_writer.write(volume, part * 200, memoryview(bytes([part]) * 100)))
    world.settle()
    expected = bytearray([255]) * BLOCK
    for part in range(16):
        expected[part * 200 : part * 200 + 100] = bytes([part]) * 100
    assert read(world, volume, 0, BLOCK) == expected


def test_a_read_that_waits_while_the_block_changes_gives_one_or_the_other(world: World, volume: Volume) -> None:
    write(world, volume, 0, bytes([1]) * BLOCK)
    world.close()
    world.open()
    world.disk.character.cached = 0.0
    volume = world.engine.find("disk0")
    into = memoryview(bytearray(BLOCK))
    read(world, volume, BLOCK, 1)
    outcome = world.spawn(world.engine.reader.read(volume, 0, into))
    assert not outcome
    write(world, volume, 0, bytes([2]) * BLOCK)
    world.settle()
    assert bytes(into) in (bytes([1]) * BLOCK, bytes([2]) * BLOCK)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 100), (100, 100), (100, BLOCK), (0, BLOCK), (4000, 9000), (BLOCK - 1, 1), (7, 2 * LEAF)]
)
@pytest.mark.parametrize("allocate", [False, True])
def test_zeroes_cover_their_range_and_nothing_else(
    world: World, volume: Volume, offset: int, length: int, allocate: bool
) -> None:
    size = 2 * LEAF + 3 * BLOCK
    expected = bytearray(pattern(size, 9))
    write(world, volume, 0, bytes(expected))
    world.run(world.engine.long_writer.zero(volume, offset, length, allocate=allocate))
    expected[offset : offset + length] = bytes(length)
    assert read(world, volume, 0, size) == expected
    check_accounts(world)


def test_zeroes_that_are_allocated_are_mapped_and_others_are_not(world: World, volume: Volume) -> None:
    world.run(world.engine.long_writer.zero(volume, 0, 10 * BLOCK, allocate=True))
    assert volume.mapped_blocks == 10
    world.run(world.engine.long_writer.zero(volume, 0, 5 * BLOCK, allocate=False))
    assert volume.mapped_blocks == 5


def test_a_trim_lets_go_of_whole_blocks_only(world: World, volume: Volume) -> None:
    write(world, volume, 0, bytes([1]) * (3 * BLOCK))
    world.run(world.engine.long_writer.trim(volume, 100, 2 * BLOCK))
    assert read(world, volume, 0, 3 * BLOCK) == bytes([1]) * BLOCK + bytes(BLOCK) + bytes([1]) * BLOCK
    world.run(world.engine.long_writer.trim(volume, 100, 100))
    assert volume.mapped_blocks == 2


def test_trimming_nothing_costs_nothing(world: World, volume: Volume) -> None:
    position = world.engine.log.position
    world.run(world.engine.long_writer.trim(volume, 0, volume.size_bytes))
    assert world.engine.log.position == position


def test_block_status_tells_holes_from_data_across_leaves(world: World, volume: Volume) -> None:
    write(world, volume, LEAF - BLOCK, bytes([1]) * (2 * BLOCK))
    write(world, volume, 600 * LEAF + 10, b"x")
    extents = world.run(world.engine.reader.extents(volume, 0, volume.size_bytes))
    assert extents == [
        (LEAF - BLOCK, True),
        (2 * BLOCK, False),
        (600 * LEAF - LEAF - BLOCK, True),
        (BLOCK, False),
        (volume.size_bytes - 600 * LEAF - BLOCK, True),
    ]
    assert world.run(world.engine.reader.extents(volume, LEAF - 100, 150)) == [(150, False)]
    assert world.run(world.engine.reader.extents(volume, LEAF + BLOCK - 1, 2)) == [(1, False), (1, True)]


def test_a_damaged_block_is_an_error_that_names_it_and_its_neighbours_are_not(world: World, volume: Volume) -> None:
    write(world, volume, 0, pattern(8 * BLOCK))
    world.close()
    world.open()
    volume = world.engine.find("disk0")
    slot = world.run(world.engine.table.page(volume, 0, 0, create=False))
    address = world.engine.cache.words[slot << 9 | 3] & (1 << 36) - 1
    world.disk.files[address >> 8].now.reshape(-1)[((address & 255) << 12) + 77] ^= 1
    with pytest.raises(ReadError) as caught:
        read(world, volume, 0, 8 * BLOCK)
    assert caught.value.offset == 3 * BLOCK
    assert list(volume.damaged) == [3]
    assert read(world, volume, 0, 3 * BLOCK) == pattern(8 * BLOCK)[: 3 * BLOCK]
    assert read(world, volume, 4 * BLOCK, BLOCK) == pattern(8 * BLOCK)[4 * BLOCK : 5 * BLOCK]
    write(world, volume, 3 * BLOCK, bytes([5]) * BLOCK)
    assert read(world, volume, 3 * BLOCK, BLOCK) == bytes([5]) * BLOCK


def test_a_disk_that_cannot_read_is_told_with_its_errno_and_holds_nothing_back(world: World, volume: Volume) -> None:
    write(world, volume, 0, pattern(8 * BLOCK))
    world.close()
    world.open()
    volume = world.engine.find("disk0")
    world.run(world.engine.table.page(volume, 0, 0, create=False))
    world.disk.character.cached = 0.0
    world.faults.turn_on("read", "ENOMEM", 1.0)
    with pytest.raises(ReadError) as caught:
        read(world, volume, 0, BLOCK)
    assert caught.value.errno == ENOMEM
    assert not volume.damaged, "what cannot be read now may be whole"
    world.faults.calm()
    check_accounts(world)

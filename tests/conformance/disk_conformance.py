"""The contract of the `Disk` and `RingMemory` ports, as tests that every implementation inherits.

A test class derives from `DiskConformance` or `RingConformance` and gives it the fixture that makes a world: the real
one makes a directory, the simulated one a seeded disk.  What only one of them can show (a full filesystem, a power
failure) is tested beside it, not here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

import numpy as np
import pytest

from holdfast.runtime.ports import PREPARE, READ, REMOVE, SUPERBLOCK, SYNC, WRITE, Disk, Io, RingMemory
from holdfast.units import BLOCK_SIZE_BYTES

SEGMENT_BYTES = 64 * BLOCK_SIZE_BYTES


class DiskWorld(Protocol):
    """A disk with the loop that calls its completions."""

    disk: Disk

    def buffer(self, size_bytes: int) -> memoryview:
        """Writable memory that direct I/O accepts."""
        ...

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until `condition` holds."""
        ...

    def reopen(self) -> None:
        """Replace `disk` by another one over the same storage, as after a restart of the process."""
        ...


def complete(world: DiskWorld, *operations: Io) -> list[int]:
    """Start them all, run the loop until all are done, and return their results in the order given."""
    finished: list[Io] = []
    for io in operations:
        io.done = finished.append
        world.disk.start(io)
    world.run_until(lambda: len(finished) == len(operations))
    return [io.result for io in operations]


def blocks(world: DiskWorld, *values: int) -> memoryview:
    """A buffer with one block for each value, filled with it."""
    view = world.buffer(len(values) * BLOCK_SIZE_BYTES)
    view[:] = b"".join(bytes([value]) * BLOCK_SIZE_BYTES for value in values)
    return view


def read_back(world: DiskWorld, file: int, offset: int, length: int) -> bytes:
    view = world.buffer(length)
    assert complete(world, Io(READ, file, offset, view)) == [0]
    return bytes(view)


class DiskConformance:
    @pytest.fixture
    def world(self) -> DiskWorld:
        raise NotImplementedError("the deriving class makes the world")

    @pytest.fixture
    def prepared(self, world: DiskWorld) -> DiskWorld:
        """A world with segments 0 and 1."""
        assert complete(world, *(Io(PREPARE, file, length=SEGMENT_BYTES) for file in (0, 1))) == [0, 0]
        return world

    # Files.

    def test_a_new_disk_has_no_files(self, world: DiskWorld) -> None:
        assert world.disk.segments() == []
        assert not world.disk.exists(SUPERBLOCK)
        assert not world.disk.exists(0)

    def test_a_prepared_segment_is_there_and_reads_as_zeroes(self, prepared: DiskWorld) -> None:
        assert prepared.disk.exists(0)
        assert read_back(prepared, 0, 0, SEGMENT_BYTES) == bytes(SEGMENT_BYTES)

    def test_segments_are_listed_in_ascending_order(self, world: DiskWorld) -> None:
        complete(world, *(Io(PREPARE, file, length=SEGMENT_BYTES) for file in (300, 2, 17)))
        assert world.disk.segments() == [2, 17, 300]

    def test_the_superblock_is_no_segment(self, world: DiskWorld) -> None:
        complete(world, Io(WRITE, SUPERBLOCK, 0, blocks(world, 1), durable=True))
        assert world.disk.segments() == []

    def test_preparing_a_segment_again_keeps_what_is_in_it(self, prepared: DiskWorld) -> None:
        complete(prepared, Io(WRITE, 0, 0, blocks(prepared, 7), durable=True))
        assert complete(prepared, Io(PREPARE, 0, length=SEGMENT_BYTES)) == [0]
        assert read_back(prepared, 0, 0, BLOCK_SIZE_BYTES) == bytes(blocks(prepared, 7))

    def test_a_removed_segment_is_gone_and_can_be_made_again(self, prepared: DiskWorld) -> None:
        complete(prepared, Io(WRITE, 0, 0, blocks(prepared, 7), durable=True))
        read_back(prepared, 0, 0, BLOCK_SIZE_BYTES)
        assert complete(prepared, Io(REMOVE, 0)) == [0]
        assert prepared.disk.segments() == [1]
        assert not prepared.disk.exists(0)
        view = prepared.buffer(BLOCK_SIZE_BYTES)
        assert not prepared.disk.read_now(0, 0, view)
        assert complete(prepared, Io(READ, 0, 0, view)) == [-errno.ENOENT]
        assert complete(prepared, Io(PREPARE, 0, length=SEGMENT_BYTES)) == [0]
        assert read_back(prepared, 0, 0, SEGMENT_BYTES) == bytes(SEGMENT_BYTES)

    def test_removing_what_is_not_there_is_no_error(self, prepared: DiskWorld) -> None:
        assert complete(prepared, Io(REMOVE, 9)) == [0]
        assert prepared.disk.segments() == [0, 1]

    def test_the_superblock_file_is_made_by_the_first_write(self, world: DiskWorld) -> None:
        assert complete(world, Io(WRITE, SUPERBLOCK, 0, blocks(world, 9), durable=True)) == [0]
        assert world.disk.exists(SUPERBLOCK)
        assert read_back(world, SUPERBLOCK, 0, BLOCK_SIZE_BYTES) == bytes(blocks(world, 9))

    def test_files_and_their_contents_are_found_by_the_next_owner(self, prepared: DiskWorld) -> None:
        complete(prepared, Io(WRITE, 1, BLOCK_SIZE_BYTES, blocks(prepared, 3), durable=True))
        prepared.reopen()
        assert prepared.disk.segments() == [0, 1]
        assert read_back(prepared, 1, BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES) == bytes(blocks(prepared, 3))

    # Reading and writing.

    def test_what_was_written_is_read_back(self, prepared: DiskWorld) -> None:
        assert complete(prepared, Io(WRITE, 0, 2 * BLOCK_SIZE_BYTES, blocks(prepared, 1, 2, 3))) == [0]
        assert read_back(prepared, 0, 2 * BLOCK_SIZE_BYTES, 3 * BLOCK_SIZE_BYTES) == bytes(blocks(prepared, 1, 2, 3))

    def test_a_write_changes_nothing_beside_it(self, prepared: DiskWorld) -> None:
        complete(prepared, Io(WRITE, 0, BLOCK_SIZE_BYTES, blocks(prepared, 5)))
        assert read_back(prepared, 0, 0, BLOCK_SIZE_BYTES) == bytes(BLOCK_SIZE_BYTES)
        assert read_back(prepared, 0, 2 * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES) == bytes(BLOCK_SIZE_BYTES)
        assert read_back(prepared, 1, BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES) == bytes(BLOCK_SIZE_BYTES)

    def test_a_read_takes_any_offset_length_and_memory(self, prepared: DiskWorld) -> None:
        complete(prepared, Io(WRITE, 0, 0, blocks(prepared, 1, 2)))
        view = memoryview(bytearray(11))[1:]
        assert complete(prepared, Io(READ, 0, BLOCK_SIZE_BYTES - 4, view)) == [0]
        assert bytes(view) == b"\1\1\1\1\2\2\2\2\2\2"

    def test_many_operations_at_once_all_complete(self, prepared: DiskWorld) -> None:
        writes = [Io(WRITE, 0, n * BLOCK_SIZE_BYTES, blocks(prepared, n), durable=n % 2 == 0) for n in range(64)]
        assert complete(prepared, *writes) == [0] * 64
        expected = b"".join(bytes([n]) * BLOCK_SIZE_BYTES for n in range(64))
        assert read_back(prepared, 0, 0, SEGMENT_BYTES) == expected

    def test_a_sync_after_writes_succeeds(self, prepared: DiskWorld) -> None:
        complete(prepared, Io(WRITE, 0, 0, blocks(prepared, 1)))
        assert complete(prepared, Io(SYNC, 0)) == [0]

    def test_a_read_beyond_the_end_is_an_error(self, prepared: DiskWorld) -> None:
        view = prepared.buffer(2 * BLOCK_SIZE_BYTES)
        assert complete(prepared, Io(READ, 0, SEGMENT_BYTES - BLOCK_SIZE_BYTES, view)) == [-errno.EIO]

    @pytest.mark.parametrize("op", [READ, WRITE, SYNC])
    def test_a_segment_that_does_not_exist_is_an_error(self, world: DiskWorld, op: int) -> None:
        assert complete(world, Io(op, 5, 0, blocks(world, 1))) == [-errno.ENOENT]
        assert not world.disk.exists(5)

    # Completion.

    def test_done_is_called_later_and_not_inside_start(self, prepared: DiskWorld) -> None:
        finished: list[Io] = []
        prepared.disk.start(Io(READ, 0, 0, prepared.buffer(16), done=finished.append))
        assert finished == []
        prepared.run_until(lambda: bool(finished))

    def test_done_may_start_the_next_operation(self, prepared: DiskWorld) -> None:
        finished: list[Io] = []
        write = Io(WRITE, 0, 0, blocks(prepared, 8))
        sync = Io(SYNC, 0, done=finished.append)
        write.done = lambda io: prepared.disk.start(sync)
        prepared.disk.start(write)
        prepared.run_until(lambda: finished == [sync])

    def test_an_operation_without_done_is_carried_out(self, prepared: DiskWorld) -> None:
        prepared.disk.start(Io(PREPARE, 9, length=SEGMENT_BYTES))
        complete(prepared, Io(PREPARE, 10, length=SEGMENT_BYTES))
        prepared.run_until(lambda: prepared.disk.exists(9))

    # At once.

    def test_run_performs_the_operation_before_it_returns(self, world: DiskWorld) -> None:
        assert world.disk.run(Io(PREPARE, 4, length=SEGMENT_BYTES)) == 0
        assert world.disk.run(Io(WRITE, 4, 0, blocks(world, 6), durable=True)) == 0
        assert world.disk.run(Io(SYNC, 4)) == 0
        view = world.buffer(BLOCK_SIZE_BYTES)
        assert world.disk.run(Io(READ, 4, 0, view)) == 0
        assert view == blocks(world, 6)

    def test_run_returns_the_error_and_sets_it(self, world: DiskWorld) -> None:
        io = Io(READ, 4, 0, world.buffer(16))
        assert world.disk.run(io) == -errno.ENOENT
        assert io.result == -errno.ENOENT

    # Without waiting.

    def test_read_now_is_right_whenever_it_answers(self, prepared: DiskWorld) -> None:
        complete(prepared, Io(WRITE, 0, 0, blocks(prepared, 4)))
        read_back(prepared, 0, 0, BLOCK_SIZE_BYTES)
        view = prepared.buffer(BLOCK_SIZE_BYTES)
        if prepared.disk.read_now(0, 0, view):
            assert view == blocks(prepared, 4)

    def test_read_now_does_not_answer_with_what_was_there_before_a_write(self, prepared: DiskWorld) -> None:
        read_back(prepared, 0, 0, BLOCK_SIZE_BYTES)
        complete(prepared, Io(WRITE, 0, 0, blocks(prepared, 4)))
        view = prepared.buffer(BLOCK_SIZE_BYTES)
        if prepared.disk.read_now(0, 0, view):
            assert view == blocks(prepared, 4)

    def test_read_now_of_a_range_beyond_the_end_is_false(self, prepared: DiskWorld) -> None:
        read_back(prepared, 0, 0, SEGMENT_BYTES)
        assert not prepared.disk.read_now(0, SEGMENT_BYTES - 8, prepared.buffer(16))

    def test_read_now_of_a_missing_segment_is_false(self, world: DiskWorld) -> None:
        assert not world.disk.read_now(5, 0, world.buffer(16))

    @pytest.mark.parametrize(("file", "offset"), [(0, 0), (0, 100 * SEGMENT_BYTES), (77, 0)])
    def test_a_hint_never_fails(self, prepared: DiskWorld, file: int, offset: int) -> None:
        prepared.disk.will_read(file, offset, BLOCK_SIZE_BYTES)
        prepared.disk.drop_cached(file, offset, BLOCK_SIZE_BYTES)

    def test_what_is_dropped_from_the_cache_is_still_on_the_disk(self, prepared: DiskWorld) -> None:
        complete(prepared, Io(WRITE, 0, 0, blocks(prepared, 4), durable=True))
        prepared.disk.drop_cached(0, 0, SEGMENT_BYTES)
        assert read_back(prepared, 0, 0, BLOCK_SIZE_BYTES) == bytes(blocks(prepared, 4))


OpenRing = Callable[[int], RingMemory]


class RingConformance:
    @pytest.fixture
    def open_ring(self) -> OpenRing:
        """Opens the one ring of this world, as a process that starts would; the argument is its size if it is new."""
        raise NotImplementedError("the deriving class makes the world")

    def test_a_new_ring_is_zeroed_writable_and_not_found(self, open_ring: OpenRing) -> None:
        ring = open_ring(SEGMENT_BYTES)
        assert not ring.found
        assert ring.view == bytes(SEGMENT_BYTES)
        assert not ring.view.readonly

    def test_the_next_owner_finds_what_the_last_one_left(self, open_ring: OpenRing) -> None:
        open_ring(SEGMENT_BYTES).view[100:105] = b"dirty"
        ring = open_ring(SEGMENT_BYTES)
        assert ring.found
        assert bytes(ring.view[100:105]) == b"dirty"

    def test_a_ring_that_is_found_keeps_its_size(self, open_ring: OpenRing) -> None:
        open_ring(SEGMENT_BYTES)
        assert len(open_ring(2 * SEGMENT_BYTES).view) == SEGMENT_BYTES

    def test_a_discarded_ring_is_not_found_again(self, open_ring: OpenRing) -> None:
        ring = open_ring(SEGMENT_BYTES)
        ring.view[0:1] = b"x"
        ring.discard()
        again = open_ring(SEGMENT_BYTES)
        assert not again.found
        assert again.view[0] == 0

    def test_a_ring_may_be_discarded_twice_and_closed(self, open_ring: OpenRing) -> None:
        ring = open_ring(SEGMENT_BYTES)
        ring.discard()
        ring.discard()
        ring.close()

    def test_a_ring_that_was_let_go_of_is_there_for_the_next_owner(self, open_ring: OpenRing) -> None:
        ring = open_ring(SEGMENT_BYTES)
        ring.view[-5:] = b"dirty"
        ring.close()
        again = open_ring(SEGMENT_BYTES)
        assert again.found
        assert bytes(again.view[-5:]) == b"dirty"

    def test_its_memory_begins_at_a_page(self, open_ring: OpenRing) -> None:
        assert np.frombuffer(open_ring(SEGMENT_BYTES).view, np.uint8).ctypes.data % 4096 == 0

    def test_it_has_a_name_for_people_which_stays(self, open_ring: OpenRing) -> None:
        path = open_ring(SEGMENT_BYTES).path
        assert path
        assert open_ring(SEGMENT_BYTES).path == path

"""What the cleaner writes is a segment like any other, full to the last block that it can hold."""

from __future__ import annotations

import pytest

from holdfast.pool.block import KIND_DATA, block_check, data_owner
from holdfast.pool.cold_segment import COLD, ColdSegment, age_ordinal, cold_blocks_max, is_cold
from holdfast.pool.victim import StoredBlocks, stored_blocks
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.ports import PREPARE, Io
from holdfast.scrub.segment_check import SegmentChecker
from holdfast.units import BLOCK_SIZE_BYTES
from holdfast.work.task import Work, run_to_end
from tests.engine.hand_disk import HandDisk

TAG, EPOCH, ORDINAL = 0x1234, 7 << 32, COLD | 17


def contents(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK_SIZE_BYTES // 8)


def written(disk: HandDisk, cold: ColdSegment, count: int) -> Work:
    for number in range(count):
        if cold.is_full_of_unwritten:
            yield from cold.write()
        owner = data_owner(3, 9000 - number)
        cold.add(contents(number), owner, block_check(contents(number), owner, KIND_DATA))
    yield from cold.finish()


def made(segment_blocks: int, buffer_blocks: int, count: int | None = None) -> tuple[HandDisk, ColdSegment]:
    disk = HandDisk()
    disk.run(Io(PREPARE, 5, length=segment_blocks * BLOCK_SIZE_BYTES))
    buffer = aligned_buffer(buffer_blocks * BLOCK_SIZE_BYTES)
    cold = ColdSegment(5, ORDINAL, tag=TAG, epoch=EPOCH, segment_blocks=segment_blocks, buffer=buffer)
    count = cold_blocks_max(segment_blocks) if count is None else count
    run_to_end(written(disk, cold, count), disk.run)
    return disk, cold


@pytest.mark.parametrize("segment_blocks", [64, 256, 1024, 4096])
def test_it_holds_as_many_blocks_as_it_is_said_to_be_worth(segment_blocks: int) -> None:
    disk, cold = made(segment_blocks, segment_blocks)
    assert cold.blocks == cold_blocks_max(segment_blocks)
    assert not cold.has_room()
    checker = SegmentChecker(tag=TAG, segment_shift=segment_blocks.bit_length() - 1)
    report = run_to_end(checker.check(5, ORDINAL, None), disk.run)
    assert report.findings == []
    assert report.blocks_checked == cold.blocks
    assert not report.damaged.any()


@pytest.mark.parametrize("count", [1, 7, 8, 60, 300])
def test_in_pieces_it_is_the_same(count: int) -> None:
    disk, _ = made(512, 16, count)
    checker = SegmentChecker(tag=TAG, segment_shift=9)
    report = run_to_end(checker.check(5, ORDINAL, None), disk.run)
    assert report.findings == []
    assert report.blocks_checked == count


@pytest.mark.parametrize("summary", [True, False])
def test_what_it_holds_is_found_again(summary: bool) -> None:
    disk, _ = made(512, 64, 300)
    # Where the buffer is smaller than the summary, the headers of the commits tell the same.
    buffer = aligned_buffer((16 if summary else 1) * BLOCK_SIZE_BYTES)
    found: StoredBlocks = run_to_end(stored_blocks(5, ORDINAL, tag=TAG, segment_blocks=512, buffer=buffer), disk.run)
    assert found.owner.tolist() == [data_owner(3, 9000 - number) for number in range(300)]
    assert set(found.kind.tolist()) == {KIND_DATA}
    raw = disk.files[5].now.tobytes()
    for number, offset in enumerate(found.block.tolist()):
        assert raw[offset * BLOCK_SIZE_BYTES :][:BLOCK_SIZE_BYTES] == contents(number)


def test_its_ordinal_is_none_of_the_logs_and_tells_the_age() -> None:
    assert is_cold(ORDINAL)
    assert not is_cold(ORDINAL & COLD - 1)
    assert age_ordinal(ORDINAL) == age_ordinal(17) == 17
    assert (COLD | COLD - 1) << 18 < 1 << 64, "log positions are 64 bits"

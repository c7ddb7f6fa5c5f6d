"""The ring's records: what is published is found, whatever a death in the middle of a store leaves."""

from __future__ import annotations

import pytest

from holdfast.errors import CorruptionError
from holdfast.pool.commit import decode_commit_header
from holdfast.runtime.buffers import aligned_buffer
from holdfast.units import BLOCK_SIZE_BYTES
from holdfast.work.task import run_to_end
from holdfast.writeback.ring import RING_HEADER_BYTES, Ring
from holdfast.writeback.ring_recovery import ring_belongs, write_out_ring
from tests.writeback.conftest import EPOCH, SEGMENT_BLOCKS, TAG, Rig

PLACES = ((1024, 1280), (2048, 2304))


def again(rig: Rig) -> Ring:
    """The same memory, as the next process sees it."""
    return Ring(rig.ring.view, segment_blocks=SEGMENT_BLOCKS)


def publish(ring: Ring, head: int) -> None:
    ring.publish(head_position=head, durable_position=0, commit_position=0, entry_count=0)


def head_of(ring: Ring, epoch: int = EPOCH) -> int | None:
    publication = ring.publication(epoch)
    return None if publication is None else publication.head_position


def test_the_newest_publication_counts(rig: Rig) -> None:
    assert head_of(again(rig)) is None
    for head in range(300, 307):
        publish(rig.ring, head)
        assert head_of(again(rig)) == head


@pytest.mark.parametrize("stored_bytes", [0, 1, 8, 9, 31, 55])
@pytest.mark.parametrize("copy", [0, 1])
def test_a_publication_that_was_cut_short_leaves_the_one_before(rig: Rig, stored_bytes: int, copy: int) -> None:
    publish(rig.ring, 300)
    publish(rig.ring, 301)
    before = bytes(rig.ring.view[:8192])
    publish(rig.ring, 302)
    after = bytes(rig.ring.view[:8192])
    at = PLACES[3 & 1][copy]
    rig.ring.view[:8192] = before
    for whole in PLACES[3 & 1][:copy]:
        rig.ring.view[whole : whole + 56] = after[whole : whole + 56]
    rig.ring.view[at : at + stored_bytes] = after[at : at + stored_bytes]
    whole_by_chance = rig.ring.view[at : at + 56] == after[at : at + 56]
    assert head_of(again(rig)) == (302 if copy or whole_by_chance else 301)


def test_a_flipped_byte_in_one_copy_costs_nothing(rig: Rig) -> None:
    publish(rig.ring, 300)
    rig.ring.set_window(1, 5)
    for at in (0, 20, 1024, 1030, 2048, 2060, 4096 + 16, 4096 + 24):
        rig.ring.view[at] ^= 1
    ring = again(rig)
    assert head_of(ring) == 300
    assert ring.identity() is not None
    assert ring.window(1) == 5


def test_a_window_row_is_known_by_its_ordinal_and_its_check(rig: Rig) -> None:
    rig.ring.set_window(1, 5)
    rig.ring.set_window(129, 6)
    assert rig.ring.window(1) is None
    assert rig.ring.window(129) == 6
    for copy in (4096, 6144):
        rig.ring.view[copy + 16 + 8] ^= 1
    assert rig.ring.window(129) is None


def test_a_ring_of_another_pool_epoch_boot_or_size_is_not_ours(rig: Rig) -> None:
    ring = again(rig)
    assert ring_belongs(ring, tag=TAG, epoch=EPOCH, boot=1)
    assert not ring_belongs(ring, tag=TAG + 1, epoch=EPOCH, boot=1)
    assert not ring_belongs(ring, tag=TAG, epoch=EPOCH + 1, boot=1)
    assert not ring_belongs(ring, tag=TAG, epoch=EPOCH, boot=2)
    smaller = Ring(rig.ring.view[: -BLOCK_SIZE_BYTES * 8], segment_blocks=SEGMENT_BLOCKS)
    assert not ring_belongs(smaller, tag=TAG, epoch=EPOCH, boot=1)


def test_a_ring_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        Ring(memoryview(bytearray(8192 + 255 * BLOCK_SIZE_BYTES)), segment_blocks=SEGMENT_BLOCKS)


def write_out(rig: Rig, notes: list[str] | None = None) -> int:
    note = notes.append if notes is not None else lambda text: None
    return int(run_to_end(write_out_ring(again(rig), tag=TAG, epoch=EPOCH, note=note), rig.disk.run))


def test_what_was_published_is_written_out_and_the_open_commit_sealed(rig: Rig) -> None:
    rig.append(5, value=9)
    rig.log.publish()
    rig.append(3, value=8)  # acknowledged to nobody
    end = write_out(rig)
    assert end == (1 << 8) + 1 + 1 + 5
    header = decode_commit_header(rig.stored((1 << 8) + 1))
    assert header is not None
    assert header.entry_count == header.block_count == 5
    assert rig.stored(end - 1) == bytes([9]) * BLOCK_SIZE_BYTES


def test_a_commit_that_was_opened_and_has_no_entry_is_left_out(rig: Rig) -> None:
    assert rig.log.make_room().name == "YES"
    rig.log.publish()
    assert write_out(rig) == (1 << 8) + 1


def test_nothing_published_is_nothing_to_write(rig: Rig) -> None:
    notes: list[str] = []
    assert write_out(rig, notes) == 0
    assert notes


def test_writing_out_twice_does_no_harm(rig: Rig) -> None:
    rig.append(300, value=3)
    rig.log.publish()
    end = write_out(rig)
    assert write_out(rig) == end
    assert rig.stored(end - 1) == bytes([3]) * BLOCK_SIZE_BYTES


def test_a_damaged_entry_of_the_open_commit_is_mended(rig: Rig) -> None:
    rig.append(2, value=3)
    rig.log.publish()
    rig.ring.slots[(257 % rig.ring.blocks) * BLOCK_SIZE_BYTES + 64 + 3] ^= 0x10
    notes: list[str] = []
    write_out(rig, notes)
    assert "damaged byte" in notes[0]
    header = decode_commit_header(rig.stored(257))
    assert header is not None
    assert header.entries["owner"].tolist() == [0, 1]


def test_a_window_that_is_lost_is_an_error_and_no_guess(rig: Rig) -> None:
    rig.append(2)
    rig.log.publish()
    rig.ring.view[4096:8192] = bytes(4096)
    with pytest.raises(CorruptionError, match="window"):
        write_out(rig)


def test_a_ring_that_cannot_say_whose_it_is_is_not_taken_for_an_empty_one() -> None:
    """It may hold writes that were acknowledged: going on without it must be a person's decision."""
    ring = Ring(aligned_buffer(RING_HEADER_BYTES + 512 * BLOCK_SIZE_BYTES), segment_blocks=256)
    assert not ring_belongs(ring, tag=1, epoch=2, boot=3), "a new file holds nothing"
    ring.format(tag=1, epoch=2, boot=3)
    ring.publish(head_position=300, durable_position=256, commit_position=0, entry_count=0)
    assert ring_belongs(ring, tag=1, epoch=2, boot=3)
    assert not ring_belongs(ring, tag=1, epoch=2, boot=4), "the machine was started anew since"
    ring.view[:1024] = bytes(1024)
    with pytest.raises(CorruptionError, match="header of the ring is damaged"):
        ring_belongs(ring, tag=1, epoch=2, boot=3)


def test_a_ring_without_a_whole_publication_is_not_taken_for_an_empty_one() -> None:
    ring = Ring(aligned_buffer(RING_HEADER_BYTES + 512 * BLOCK_SIZE_BYTES), segment_blocks=256)
    ring.format(tag=1, epoch=2, boot=3)
    ring.publish(head_position=300, durable_position=256, commit_position=0, entry_count=0)
    for at in (1024, 1280, 2048, 2304):
        ring.view[at] ^= 1
    with pytest.raises(CorruptionError, match="no publication"):
        run_to_end(write_out_ring(ring, tag=1, epoch=2, note=lambda _text: None), lambda _io: 0)

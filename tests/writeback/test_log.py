"""The log's head: commits, segments, the ring's limits."""

from __future__ import annotations

import numpy as np

from holdfast.memory.group import Group, Kind
from holdfast.pool.block import ADDRESS_MASK, ENTRY_DTYPE, KIND_COMMIT, KIND_DATA, KIND_META, SEED_DATA, SEED_META
from holdfast.pool.commit import COMMIT_ENTRIES_MAX, decode_commit_header
from holdfast.pool.segment import decode_segment_footer, decode_segment_header, decode_summary
from holdfast.pool.space import Privilege
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from holdfast.writeback.log import FIRST_BLOCKS, Room
from tests.writeback.conftest import EPOCH, RESERVE_BLOCKS, SEGMENT_BLOCKS, TAG, Rig

BLOCK = BLOCK_SIZE_BYTES


def test_a_block_is_found_in_the_ring_by_its_address(rig: Rig) -> None:
    assert rig.log.make_room() is Room.YES
    entry = rig.log.append(b"\x07" * BLOCK, 5, SEED_DATA, KIND_DATA)
    at = rig.log.slot_of(entry & ADDRESS_MASK)
    assert rig.log.slots[at : at + BLOCK] == b"\x07" * BLOCK
    assert rig.log.slot_of(999 << 8) == -1


def test_a_run_is_appended_as_its_blocks_one_by_one_would_be() -> None:
    single, run = Rig(), Rig()
    payload = b"".join(bytes([value]) * BLOCK for value in range(1, 9))
    assert single.log.make_room() is run.log.make_room() is Room.YES
    entries = [single.log.append(payload[i * BLOCK : (i + 1) * BLOCK], 40 + i, SEED_DATA, KIND_DATA) for i in range(8)]
    assert run.log.append_run(memoryview(payload), 40).tolist() == entries
    single.log.seal_commit()
    run.log.seal_commit()
    assert bytes(single.log.slots) == bytes(run.log.slots)


def test_a_sealed_commit_lists_its_blocks_and_says_what_was_durable(rig: Rig) -> None:
    rig.append(3, lba=10)
    rig.log.seal_commit()
    header = decode_commit_header(rig.ring.slot(257))
    assert header is not None
    assert (header.tag, header.epoch, header.position) == (TAG, EPOCH, 257)
    assert header.durable_position == rig.log.durable
    assert header.entries["owner"].tolist() == [10, 11, 12]
    assert rig.space.live[rig.log.segment] == 3


def test_sealing_without_entries_does_nothing(rig: Rig) -> None:
    rig.log.seal_commit()
    assert rig.log.make_room() is Room.YES
    sealed = rig.log.sealed
    rig.log.seal_commit()
    assert rig.log.sealed == sealed


def test_a_commit_takes_252_entries_and_then_another_begins() -> None:
    rig = Rig(blocks=1024)
    for _ in range(COMMIT_ENTRIES_MAX + 1):
        if not rig.log.room:
            assert rig.log.make_room() is Room.YES
        rig.log.append_hole(1, 1)
    assert rig.log.open_entries == 1
    assert rig.log.sealed == rig.log.position - 1


def test_a_full_segment_gets_a_summary_and_a_footer() -> None:
    rig = Rig(blocks=1024)
    assert rig.append(400) is Room.YES
    header = decode_segment_header(rig.ring.slot(256))
    footer = decode_segment_footer(rig.ring.slot(511), SEGMENT_BLOCKS)
    assert header is not None
    assert footer is not None
    assert header.ordinal == footer.ordinal == 1
    assert footer.epoch == EPOCH
    summary = b"".join(bytes(rig.ring.slot(256 + at)) for at in range(footer.summary_offset, 255))
    entries = decode_summary(summary, footer)
    assert entries is not None
    stored = int(np.count_nonzero((entries["meta"] & 0xFF) == KIND_DATA))
    commits = int(np.count_nonzero((entries["meta"] & 0xFF) == KIND_COMMIT))
    assert stored + commits == footer.commits_end - 1
    assert rig.log.ordinal == 2
    assert ENTRY_DTYPE.itemsize * footer.entry_count <= len(summary)


def test_clients_leave_the_rings_reserve_to_metadata() -> None:
    rig = Rig(blocks=256)
    assert rig.append(500) is Room.RING_FULL
    assert rig.ring.blocks - (rig.log.position - rig.log.durable) == RESERVE_BLOCKS
    assert rig.log.make_room(Privilege.CHECKPOINT) is Room.YES


def test_a_group_at_its_limit_of_all_kinds_gets_a_few_blocks_while_it_has_none() -> None:
    """It may have used its memory for copies of just the writes that wait for room in the ring."""
    rig = Rig(blocks=256)
    red = Group("red", rig.groups, number=2)
    red.limit_bytes = MIB
    red.charge(Kind.CONNECTIONS, 2 * MIB)
    rig.log.bill(red)
    assert rig.append(100) is Room.GROUP_FULL
    assert FIRST_BLOCKS - 3 <= rig.log.position - rig.log.start <= FIRST_BLOCKS + 2, "with headers, for once"
    assert rig.log.make_room() is Room.GROUP_FULL, "it has some now"
    rig.flush()
    rig.settle()
    assert rig.log.make_room() is Room.YES, "they are durable, and it has none again"
    red.limits[Kind.RING] = 0
    rig.log.room = 0
    assert rig.log.make_room() is Room.GROUP_FULL, "a limit of dirty data is one"


def test_no_slot_is_used_again_before_it_is_durable() -> None:
    rig = Rig(blocks=256)
    for value in range(1, 40):
        while rig.append(50, value=value) is Room.RING_FULL:
            assert rig.log.position - rig.log.durable <= rig.ring.blocks
            rig.flush()
            rig.settle()
    assert rig.answers
    assert not any(rig.answers)


def test_a_pool_without_segments_for_clients_has_some_for_metadata() -> None:
    rig = Rig(blocks=1024, segments=3)
    while True:
        room = rig.append(100)
        if room is Room.NO_SPACE:
            break
        rig.flush()
        rig.settle()
    assert rig.space.available_segments == 2
    assert rig.log.make_room(Privilege.CHECKPOINT) is Room.YES


def test_a_segment_opened_for_metadata_is_not_filled_by_clients() -> None:
    rig = Rig(blocks=1024, segments=3)
    while rig.append(100) is not Room.NO_SPACE:
        rig.flush()
        rig.settle()
    assert rig.log.make_room(Privilege.CHECKPOINT) is Room.YES
    rig.log.append(bytes(BLOCK_SIZE_BYTES), 0, SEED_META, KIND_META)
    rig.log.room = 0
    assert rig.log.make_room() is Room.NO_SPACE
    assert rig.log.make_room(Privilege.CHECKPOINT) is Room.YES


def test_a_segment_that_is_being_prepared_is_worth_waiting_for() -> None:
    rig = Rig()
    rig.space.free.clear()
    rig.space.preparing.update({1, 2, 3, 4})
    assert rig.append() is Room.NO_SEGMENT

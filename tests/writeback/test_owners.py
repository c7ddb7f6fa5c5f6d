"""Whose blocks a stretch of the log holds."""

from __future__ import annotations

from holdfast.pool.block import KIND_DATA, SEED_DATA, data_owner
from holdfast.units import BLOCK_SIZE_BYTES
from holdfast.writeback.log import Room
from holdfast.writeback.owners import OwnedBlocks, owned_blocks
from tests.writeback.conftest import Rig


def put(rig: Rig, volume_id: int, lba: int, count: int = 1) -> None:
    for index in range(count):
        if not rig.log.room:
            assert rig.log.make_room() is Room.YES
        rig.log.append(bytes(BLOCK_SIZE_BYTES), data_owner(volume_id, lba + index), SEED_DATA, KIND_DATA)


def test_each_volume_is_named_with_its_range(rig: Rig) -> None:
    put(rig, 3, 100, 5)
    put(rig, 1, 7)
    put(rig, 3, 50)
    rig.log.seal_commit()
    found = owned_blocks(rig.log, rig.log.durable, rig.log.sealed)
    assert found == [OwnedBlocks(1, 1, 7, 8), OwnedBlocks(3, 6, 50, 105)]
    assert found[1].describe("disk0") == "disk0 (6 blocks in 220K from offset 204800 on)"


def test_a_stretch_that_begins_within_a_commit_has_what_that_holds() -> None:
    rig = Rig(blocks=1024)
    put(rig, 2, 0, 400)
    rig.log.seal_commit()
    everything = owned_blocks(rig.log, rig.log.start, rig.log.sealed)
    assert everything == [OwnedBlocks(2, 400, 0, 400)]
    within = owned_blocks(rig.log, rig.log.start + 40, rig.log.sealed)
    assert within == everything, "the whole commit counts: it is written as one"
    assert owned_blocks(rig.log, rig.log.sealed - 3, rig.log.sealed)[0].end == 400


def test_holes_count_with_their_blocks(rig: Rig) -> None:
    assert rig.log.make_room() is Room.YES
    rig.log.append_hole(data_owner(9, 1000), 64)
    rig.log.seal_commit()
    assert owned_blocks(rig.log, rig.log.durable, rig.log.sealed) == [OwnedBlocks(9, 64, 1000, 1064)]


def test_nothing_of_a_volume_is_nothing(rig: Rig) -> None:
    assert owned_blocks(rig.log, rig.log.durable, rig.log.sealed) == []

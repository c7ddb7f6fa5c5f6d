"""Snapshots and clones while the cleaner moves what they hold, in a small pool that is always nearly full."""

from __future__ import annotations

from random import Random

import pytest

from holdfast.errors import NoSpaceError
from holdfast.sim.accounts import check_accounts
from holdfast.units import BLOCK_SIZE_BYTES
from holdfast.work.task import Work
from tests.engine.helpers import block, create, new_world
from tests.engine.versions import clone, read, remove, roll_back, snapshot, write

BLOCK = BLOCK_SIZE_BYTES
BLOCKS = 500


@pytest.mark.parametrize("crash", [False, True])
def test_what_snapshots_hold_is_cleaned_and_stays_what_it_was(crash: bool) -> None:
    world = new_world(f"snapshots {crash}", segments=40, segment_blocks=64)
    create(world, "disk0", BLOCKS * BLOCK)
    rng = Random(3)
    now = {lba: lba for lba in range(BLOCKS)}
    for lba, value in now.items():
        write(world, "disk0", lba, block(value))
    seen: dict[str, dict[int, int]] = {}
    for number in range(30):
        name = f"disk0@s{number}"
        snapshot(world, name)
        seen[name] = dict(now)
        for _ in range(160):
            lba = rng.randrange(BLOCKS)
            value = rng.randrange(1 << 40)
            try:
                write(world, "disk0", lba, block(value))
            except NoSpaceError:
                break  # snapshots keep what is overwritten, so this needs space
            now[lba] = value
        while len(seen) > 5:
            gone = rng.choice(list(seen))
            del seen[gone]
            remove(world, gone)
            world.settle()
        if crash and number % 4 == 3:
            world.server_dies()
            world.open()
            world.settle()
    assert world.engine.cleaner.counts.copied_blocks or crash
    clone(world, next(iter(seen)), "clone")
    seen["clone"] = dict(seen[next(iter(seen))])
    seen["disk0"] = now
    for name, content in seen.items():
        for lba, value in content.items():
            assert read(world, name, lba) == block(value), (name, lba)
    check_accounts(world)


def test_what_a_removed_volume_left_to_a_snapshot_is_found_there() -> None:
    """A rollback makes a new volume; what the old one was goes to the snapshots taken after the one rolled back to."""
    world = new_world("left behind", segments=40, segment_blocks=64)
    create(world, "disk0", BLOCKS * BLOCK)
    for lba in range(BLOCKS):
        write(world, "disk0", lba, block(lba))
    snapshot(world, "disk0@old")
    for lba in range(0, BLOCKS, 2):
        write(world, "disk0", lba, block(1000 + lba))
    snapshot(world, "disk0@new")
    roll_back(world, "disk0@old")
    world.settle()
    rng = Random(5)
    now = {lba: lba for lba in range(BLOCKS)}
    for _ in range(3000):
        lba, value = rng.randrange(BLOCKS), rng.randrange(1 << 40)
        write(world, "disk0", lba, block(value))
        now[lba] = value
    for lba in range(BLOCKS):
        assert read(world, "disk0", lba) == block(now[lba])
        assert read(world, "disk0@old", lba) == block(lba)
        assert read(world, "disk0@new", lba) == block(lba if lba % 2 else 1000 + lba)
    copier = world.engine.cleaner.copier
    assert copier.counts.copied_blocks
    assert not any(live > 60 for live in world.engine.space.live)
    check_accounts(world)


def test_what_a_node_had_is_found_between_its_emptying_and_the_checkpoint_that_forgets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has no place in the tree any more, so nobody is behind it; the cleaner took segments for of no use then, and
    never looked at them again (seed 2102 of the simulator)."""
    world = new_world("emptied")
    volume = create(world, "disk0", BLOCKS * BLOCK)
    for lba in range(4):
        write(world, "disk0", lba, block(lba))
    snapshot(world, "disk0@a")
    write(world, "disk0", 0, block(100))
    snapshot(world, "disk0@b")
    removal = world.engine.volumes.removal
    holders = world.engine.cleaner.copier.finder.holders
    found: list[list[str]] = []
    checkpoint = removal._checkpoint

    def looked() -> Work:
        if volume in removal._emptied:
            assert volume.volume_id in world.engine.volumes.by_id
            found.append([node.name for node in holders.of(volume.volume_id)])
        return checkpoint()

    monkeypatch.setattr(removal, "_checkpoint", looked)
    roll_back(world, "disk0@a")
    world.settle()
    assert found
    assert all(names == ["disk0@b", "disk0@a", "disk0"] for names in found), found
    assert read(world, "disk0@b", 3) == block(3)
    check_accounts(world)

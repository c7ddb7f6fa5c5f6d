"""Volumes with snapshots and clones become larger and smaller: these stay what they were."""

from __future__ import annotations

import logging

import pytest

from holdfast.errors import RequestError, RetryError
from holdfast.runtime.ports import READ
from holdfast.sim.accounts import check_accounts
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, GIB, MIB
from holdfast.volume.resize import Resized
from tests.engine.helpers import HoldingWorld, create, new_world
from tests.engine.test_version_stories import Story
from tests.engine.versions import BLOCKS, call, clone, of, read, remove, roll_back, snapshot, trim, write

BLOCK = BLOCK_SIZE_BYTES
SIZE = 8 * MIB
SMALL = 3 * BLOCK
LARGE = 5 * GIB


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


@pytest.fixture
def world() -> HoldingWorld:
    return new_world("sizes")


def resize(world: World, name: str, size_bytes: int) -> Resized:
    done: Resized = call(world, lambda answer: world.engine.resize_volume(name, size_bytes, answer, force=True))
    return done


def die(world: World, *, power: bool = False) -> None:
    if power:
        world.power_fails()
    else:
        world.server_dies()
    world.open()


@pytest.mark.parametrize("death", [False, True])
def test_a_snapshot_keeps_what_is_cut_off_its_volume(world: HoldingWorld, death: bool) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) * 10)
    write(world, "v", 600, of(2) * 10)
    snapshot(world, "v@s")
    resize(world, "v", SMALL)
    if death:
        die(world)
    world.settle()
    assert read(world, "v@s", 0, 11) == of(1) * 10 + of(0)
    assert read(world, "v@s", 600, 10) == of(2) * 10
    check_accounts(world)
    resize(world, "v", LARGE)
    assert read(world, "v", 0, 11) == of(1) * 3 + of(0) * 8
    assert read(world, "v", 600, 10) == of(0) * 10
    write(world, "v", 5, of(3) * 600)
    assert read(world, "v@s", 0, 11) == of(1) * 10 + of(0)
    assert read(world, "v@s", 598, 14) == of(0) * 2 + of(2) * 10 + of(0) * 2
    check_accounts(world)
    remove(world, "v", snapshots=True)
    world.settle()
    check_accounts(world)


@pytest.mark.parametrize("death", [False, True])
def test_a_clone_does_not_see_its_ground_again_behind_the_end_that_it_had(world: HoldingWorld, death: bool) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) * 10)
    snapshot(world, "v@s")
    clone(world, "v@s", "c")
    write(world, "c", 8, of(4))
    snapshot(world, "c@t")
    cut = resize(world, "c", SMALL)
    assert cut.cut_data_bytes == 7 * BLOCK, "what it has from its ground is data, too"
    if death:
        die(world)
    world.settle()
    resize(world, "c", LARGE)
    assert read(world, "c", 0, 12) == of(1) * 3 + of(0) * 9
    assert read(world, "c@t", 0, 12) == of(1) * 8 + of(4) + of(1) + of(0) * 2
    assert read(world, "v@s", 0, 12) == of(1) * 10 + of(0) * 2
    write(world, "c", 9, of(6))
    write(world, "c", 700_000, of(7))
    assert read(world, "c", 8, 3) == of(0) + of(6) + of(0)
    assert read(world, "c", 700_000, 1) == of(7)
    assert read(world, "c@t", 8, 3) == of(4) + of(1) + of(0)
    check_accounts(world)


def test_the_tail_of_a_last_block_that_comes_from_the_ground_is_cleared(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 0, of(1) * 3)
    snapshot(world, "v@s")
    clone(world, "v@s", "c")
    for name in ("v", "c"):
        resize(world, name, BLOCK + 100)
        world.settle()
        resize(world, name, SIZE)
        assert read(world, name, 0, 3) == of(1) + bytes([1]) * 100 + bytes(BLOCK - 100) + of(0)
    assert read(world, "v@s", 0, 3) == of(1) * 3
    check_accounts(world)


def test_a_volume_that_outgrew_its_snapshots_is_trimmed_rolled_back_and_removed(world: HoldingWorld) -> None:
    create(world, "v", MIB)
    write(world, "v", 0, of(1) * 4)
    snapshot(world, "v@s")
    resize(world, "v", LARGE)
    write(world, "v", 2, of(2) * 4)
    write(world, "v", 1_000_000, of(3) * 4)
    snapshot(world, "v@t")
    trim(world, "v", 0, LARGE // BLOCK)
    assert read(world, "v@s", 0, 5) == of(1) * 4 + of(0)
    assert read(world, "v@t", 1_000_000, 5) == of(3) * 4 + of(0)
    check_accounts(world)
    roll_back(world, "v@s")
    assert world.engine.find("v").size_bytes == MIB
    assert read(world, "v", 0, 5) == of(1) * 4 + of(0)
    world.settle()
    check_accounts(world)
    resize(world, "v", LARGE)
    assert read(world, "v", 1_000_000, 1) == of(0)
    write(world, "v", 1_000_001, of(8))
    remove(world, "v@t")
    world.settle()
    assert read(world, "v", 1_000_000, 2) == of(0) + of(8)
    check_accounts(world)
    remove(world, "v", snapshots=True)
    world.settle()
    check_accounts(world)


def test_a_snapshot_has_the_size_that_it_has(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    snapshot(world, "v@s")
    with pytest.raises(RequestError, match="snapshot"):
        resize(world, "v@s", LARGE)


def test_no_snapshot_is_taken_before_what_was_cut_off_is_gone(world: HoldingWorld) -> None:
    create(world, "v", SIZE)
    write(world, "v", 600, of(2) * 10)
    snapshot(world, "v@s")
    world.close()
    world.open()
    world.disk.character.cached = 0.0
    world.holding.holds = lambda io: io.op == READ
    outcome = world.wait_for(lambda answer: world.engine.resize_volume("v", BLOCK, answer, force=True))
    world.let_happen()
    while not outcome:
        world.holding.release_one()
        world.let_happen()
    volume = world.engine.find("v")
    if volume.cutting:
        with pytest.raises(RetryError):
            snapshot(world, "v@t")
        with pytest.raises(RetryError):
            clone(world, "v", "c")
    world.holding.release()
    world.settle()
    snapshot(world, "v@t")
    assert read(world, "v@s", 600, 10) == of(2) * 10
    check_accounts(world)


class Resizing(Story):
    """As a `Story`, with sizes that change."""

    def step(self) -> None:
        if self.rng.random() > 0.12:
            super().step()
            return
        name = self.rng.choice(self.volumes())
        blocks = self.rng.choice([1, 300, 511, 512, 600, BLOCKS, BLOCKS, BLOCKS * 40])
        resize(self.world, name, blocks * BLOCK)
        self.contents[name] = [
            number if lba < blocks else 0 for number, lba in zip(self.contents[name], self.lbas, strict=True)
        ]
        if self.rng.random() < 0.2:
            die(self.world)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_done_and_however_large_each_is_what_it_was(seed: int) -> None:
    story = Resizing(seed)
    for _ in range(120):
        try:
            story.step()
        except RetryError:
            story.world.settle()
    story.check()
    story.world.close()
    story.world.open()
    story.check()

"""Thousands of snapshots, long chains of clones, and commands that follow one another as fast as they are answered."""

from __future__ import annotations

import logging
from random import Random

import pytest

from holdfast.sim.accounts import check_accounts
from holdfast.units import MIB
from tests.engine.helpers import create, new_world
from tests.engine.test_snapshots import clone, of, read, remove, write


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


@pytest.mark.parametrize(
    ("count", "config"),
    [
        (100, {"segments": 16, "segment_blocks": 1024, "pages": 128}),
        pytest.param(200, {"segments": 64, "segment_blocks": 256, "pages": 256}, marks=pytest.mark.slow),
    ],
)
def test_a_chain_of_clones_is_removed_in_any_order_in_a_small_pool(count: int, config: dict[str, int]) -> None:
    """The checkpoints of commands leave little more than a page in a segment: they wait for the cleaner before they
    have used up what checkpoints need. Each volume is removed as soon as the command before is answered, in whatever
    state what went before is then."""
    world = new_world("chain", ring_blocks=2048, **config)
    create(world, "c0", 64 * MIB)
    write(world, "c0", 0, of(1) + of(2))
    for number in range(1, count):
        clone(world, f"c{number - 1}", f"c{number}")
        write(world, f"c{number}", number, of(number + 2))
    assert read(world, f"c{count - 1}", 0, count) == of(1) + b"".join(of(number + 2) for number in range(1, count))
    order = list(range(count))
    Random(1).shuffle(order)
    for number in order:
        remove(world, f"c{number}")
    world.settle()
    assert not world.engine.volumes.by_id
    check_accounts(world)

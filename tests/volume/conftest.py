"""An engine in its small world, with one volume: the rooms of a volume need all of those below them."""

from __future__ import annotations

import logging

import pytest

from holdfast.units import MIB
from holdfast.volume.volume import Volume
from tests.engine.world import World


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


@pytest.fixture
def world() -> World:
    world = World("volume", pages=64)
    world.open()
    return world


@pytest.fixture
def volume(world: World) -> Volume:
    return world.create("disk0", 3000 * MIB)

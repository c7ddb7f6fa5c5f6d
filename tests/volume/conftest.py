"""An engine in its small world, with one volume: the rooms of a volume need all of those below them."""

from __future__ import annotations

import logging

import pytest

from holdfast.sim.world import World
from holdfast.units import MIB
from holdfast.volume.volume import Volume
from tests.engine.helpers import create, new_world


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


@pytest.fixture
def world() -> World:
    return new_world("volume", pages=64)


@pytest.fixture
def volume(world: World) -> Volume:
    return create(world, "disk0", 3000 * MIB)

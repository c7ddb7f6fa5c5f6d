"""Pools that are full, in which only the cleaner makes room."""

from __future__ import annotations

import logging
from random import Random

import pytest

from holdfast.nbd.protocol import CMD_READ, CMD_WRITE
from holdfast.sim.client import SimClient
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from tests.engine.helpers import HoldingWorld, ask, block, connect, create, new_world

BLOCK = BLOCK_SIZE_BYTES


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


class FullPool:
    """A world, a client, and what each block of its volume should hold."""

    def __init__(self, seed: int | str = "cleaning", **config: int) -> None:
        self.rng = Random(seed)
        self.world: HoldingWorld = new_world(seed, **{"segments": 40, "segment_blocks": 64, **config})
        create(self.world, "disk0", 400 * MIB)
        self.client: SimClient = connect(self.world, "disk0")
        self.holds: dict[int, int] = {}
        self.versions = 0
        while self.write(len(self.holds)) == 0:
            pass

    def write(self, lba: int) -> int:
        """Write one block; the errno that was answered."""
        self.versions += 1
        answer = ask(self.world, self.client, CMD_WRITE, lba * BLOCK, payload=block(self.versions))
        if answer.errno == 0:
            self.holds[lba] = self.versions
        return answer.errno

    def overwrite(self, count: int) -> None:
        for _ in range(count):
            assert self.write(self.rng.randrange(len(self.holds))) == 0

    def check(self) -> None:
        for lba, version in self.holds.items():
            answer = ask(self.world, self.client, CMD_READ, lba * BLOCK, BLOCK)
            assert (answer.errno, bytes(answer.data)) == (0, block(version)), lba

    def come_back(self) -> None:
        """The next life of the server."""
        self.world.open()
        self.client = connect(self.world, "disk0")

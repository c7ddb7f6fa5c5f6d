"""What tests of the whole engine say in a word: a world with a client, a request and its answer, a disk that waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from holdfast.nbd.protocol import CMD_WRITE
from holdfast.sim.client import Answer, SimClient
from holdfast.sim.prng import stream
from holdfast.sim.world import World, WorldConfig
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from holdfast.volume.volume import Volume
from tests.engine.hand_disk import HoldingDisk

# Enough for hundreds of operations of the simulated disk, one after the other.
A_WHILE_NS = 100_000_000


class HoldingWorld(World):
    """A world whose disk can keep operations back."""

    def __init__(self, seed: int | str, config: WorldConfig | None = None) -> None:
        super().__init__(seed, config)
        self.holding = HoldingDisk(self.loop, stream(seed, "disk"), self.faults, self.fate, self.trace)
        self.holding.character = self.config.disk
        self.disk = self.holding

    def let_happen(self) -> None:
        """Let everything happen that does so by itself while the disk keeps back what it holds. No tick comes in this
        while, which would help out whoever was forgotten."""
        self.loop.turn_again()  # what a test began outside of the loop goes on in its next turn, not at its next event
        self.stop_ticks()
        self.go_on(A_WHILE_NS, lambda: False)
        self.loop.before_sleep.remove(self._turn)
        self.heartbeat.start()
        self.loop.before_sleep.insert(0, self.loop.before_sleep.pop())

    def stop_ticks(self) -> None:
        """From now on, until the next life of the server, the engine has its turns alone."""
        self.heartbeat.stop()
        self.loop.before_sleep.insert(0, self._turn)

    def _turn(self) -> None:
        if self.engine.turn():
            self.loop.turn_again()


def new_world(seed: int | str, **config: Any) -> HoldingWorld:
    """A world with a new, empty pool that can be served. `config`: fields of `WorldConfig`."""
    world = HoldingWorld(seed, replace(WorldConfig(), **config))
    world.open()
    return world


def create(world: World, name: str, size_bytes: int) -> Volume:
    volume = world.create(name, size_bytes)
    assert isinstance(volume, Volume), volume
    return volume


def connect(world: World, name: str) -> SimClient:
    """A client that has shaken hands."""
    client = world.connect(name)
    world.settle(lambda: client.ready)
    return client


def ask(
    world: World,
    client: SimClient,
    command: int,
    offset: int = 0,
    length: int = 0,
    payload: bytes = b"",
    flags: int = 0,
) -> Answer:
    """Send a request and wait for the answer."""
    answer = client.send(command, offset, length, payload, flags)
    world.settle(lambda: answer.ready)
    return answer


def leave(world: World, client: SimClient) -> None:
    """The client goes away without a word, and the server notices."""
    client.hang_up(reset=True)
    world.settle(lambda: client.connection.closed)


def block(value: int) -> bytes:
    return value.to_bytes(8, "big") * (BLOCK_SIZE_BYTES // 8)


def fill(world: World, client: SimClient, at: int = 0) -> int:
    """Write from `at` on until the pool says that it is full; returns where that was. Each quarter of a MiB says where
    it is."""
    while ask(world, client, CMD_WRITE, at, payload=at.to_bytes(8, "big") * (MIB // 32)).errno == 0:
        at += MIB // 4
    return at

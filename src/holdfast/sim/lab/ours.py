"""Holdfast, as the scenarios use it: the engine in the simulated world, its disks open over NBD."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.errors import HoldfastError
from holdfast.memory.group import Kind
from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.sim.client import Answer, SimClient
from holdfast.sim.lab.actor import Wait
from holdfast.sim.lab.scenario import Policy
from holdfast.sim.lab.stack import Stack, WatchedTrace
from holdfast.sim.loop import SimLoop
from holdfast.sim.world import World, WorldConfig
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES


class Ours(Stack):
    policy: Policy = "holdfast"

    def __init__(self, seed: int, config: WorldConfig, write: Callable[[str], None] | None) -> None:
        trace = WatchedTrace(write)
        self.world = World(seed, config, trace)
        super().__init__(self.world.clock, trace)
        self._offered = 0
        self._reader: SimClient | None = None
        self._open()

    def _open(self) -> None:
        self.world.open()
        self.loop.before_sleep.append(self._measure)

    @property
    def loop(self) -> SimLoop:
        return self.world.loop

    def create(self, disk: str, size_bytes: int) -> None:
        made = self.world.create(disk, size_bytes)
        if isinstance(made, HoldfastError):
            raise made

    def begin_counting(self) -> None:
        """Everything is set up."""
        self.world.settle()
        self._offered = self.world.faults.offered["write"]
        self.journal.begin()

    # ---- Stack

    def connect(self, who: str, disk: str) -> Wait:
        def begin(answered: Callable[[NbdClient], object]) -> None:
            client = self.world.connect(disk)

            def woke() -> None:
                if client.ready:
                    client.on_wake = lambda: None
                    answered(NbdClient(client))

            client.on_wake = woke

        return begin

    def fail_writes(self, kind: str, rate: float) -> None:
        self.world.faults.calm()
        if rate:
            self.world.faults.turn_on("write", kind, rate)

    def lose_power(self) -> None:
        self.world.power_fails()
        self._open()

    def read_back(self, disk: str, first: int, count: int) -> bytes | None:
        world = self.world
        if self._reader is None or self._reader.volume != disk or self._reader.gone:
            reader = self._reader = world.connect(disk)
            world.settle(lambda: reader.ready)
        answers: list[Answer] = []
        self._reader.send(CMD_READ, first << BLOCK_SHIFT, count << BLOCK_SHIFT, heard=answers.append)
        world.settle(lambda: bool(answers))
        return None if answers[0].errno else bytes(answers[0].data)

    def attempts(self) -> tuple[int, int]:
        faults = self.world.faults
        failed = sum(times for (point, _), times in faults.struck.items() if point == "write")
        return faults.offered["write"] - self._offered, failed

    @property
    def memory_limit_bytes(self) -> int:
        """What is set aside at start, for good."""
        plan = self.world.plan
        return plan.ring_bytes + plan.page_bytes + plan.read_buffer_bytes + plan.connection_bytes

    # ---- memory

    def _measure(self) -> None:
        """After each turn: what of the memory set aside is in use."""
        engine = self.world.engine
        self.journal.memory_is(
            engine.flusher.dirty_blocks * BLOCK_SIZE_BYTES
            + len(engine.cache.slot_of) * BLOCK_SIZE_BYTES
            + engine.accounts.root.usage[Kind.READ_BUFFERS]
            + engine.accounts.root.usage[Kind.CONNECTIONS]
        )


class NbdClient:
    """`DiskClient` over a simulated connection."""

    def __init__(self, client: SimClient) -> None:
        self._client = client

    def write(self, first: int, data: bytes) -> Wait:
        return self._ask(CMD_WRITE, first, payload=data)

    def read(self, first: int, count: int) -> Wait:
        return self._ask(CMD_READ, first, count)

    def flush(self) -> Wait:
        return self._ask(CMD_FLUSH)

    def trim(self, first: int, count: int) -> Wait:
        return self._ask(CMD_TRIM, first, count)

    def leave(self) -> None:
        self._client.disconnect()

    def _ask(self, command: int, first: int = 0, count: int = 0, payload: bytes = b"") -> Wait:
        def begin(answered: Callable[[int], object]) -> None:
            def heard(answer: Answer) -> None:
                answered(answer.errno)

            self._client.send(command, first << BLOCK_SHIFT, count << BLOCK_SHIFT, payload, heard=heard)

        return begin

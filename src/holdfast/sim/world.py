"""A whole world from one seed: clock, disk, shared memory, connections; the server in it; its deaths.

The server is the real one from `bring_up` to `Connection`, over simulated ports. Nothing moves by itself: `turn` lets
one turn of the server's loop happen, `settle` goes on until nobody waits for anything. A wait that does not end within
bounded simulated time is an AssertionError that names who waits for what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from holdfast.engine import Engine
from holdfast.engine_parts import EngineOptions
from holdfast.errors import HoldfastError
from holdfast.memory.group import KIND_NAMES, Kind
from holdfast.memory.plan import MemoryPlan
from holdfast.pool.format import new_superblock
from holdfast.pool.superblock import Superblock
from holdfast.serving.bring_up import Surroundings, bring_up
from holdfast.serving.clients import Clients
from holdfast.serving.heartbeat import Heartbeat
from holdfast.sim.client import SimClient
from holdfast.sim.disk import DiskCharacter, SimDisk
from holdfast.sim.fate import Fate
from holdfast.sim.faults import Faults
from holdfast.sim.loop import SimClock, SimLoop
from holdfast.sim.network import SimSocket
from holdfast.sim.prng import SeededPrng, stream
from holdfast.sim.ring import RingShelf
from holdfast.sim.trace import Trace
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB
from holdfast.volume.patience import Patience
from holdfast.volume.volume import Volume
from holdfast.volume.write import Obstacle
from holdfast.work.task import Work

# How long anything may take once nothing fails any more, in simulated time.
PATIENCE_NS = 120_000_000_000
TURNS_MAX = 2_000_000


@dataclass(slots=True)
class WorldConfig:
    """`ring_blocks` and `pages` are the memory that the engine gets; `segments` the capacity.

    segment_blocks: 256 at least in a real pool; with fewer, segments are sealed, emptied and reused more often
    """

    segments: int = 64
    segment_blocks: int = 256
    preallocate: bool = False
    ring_blocks: int = 512
    pages: int = 128
    pages_per_turn: int = 64
    read_buffer_bytes: int = 2 * MIB
    connection_bytes: int = MIB
    state_bytes: int = MIB
    disk: DiskCharacter = field(default_factory=DiskCharacter)
    room_bytes: int = 208 * KIB  # of a connection, in each direction
    portions: float = 0.1
    wake_ns: int = 20_000
    uids: tuple[int | None, ...] = (None,)  # whose the clients are
    batch_ns: int = 20_000


class World:
    def __init__(self, seed: int | str, config: WorldConfig | None = None, trace: Trace | None = None) -> None:
        self.config = config or WorldConfig()
        self.trace = trace or Trace()
        self.rng = stream(seed, "world")
        self.clock = SimClock()
        self.fate = Fate()
        self.faults = Faults(stream(seed, "faults"))
        self._loop_rng = stream(seed, "loop")
        self._network_rng = stream(seed, "network")
        self.loop = SimLoop(self.clock, self._loop_rng, batch_ns=self.config.batch_ns)
        self.disk = SimDisk(self.loop, stream(seed, "disk"), self.faults, self.fate, self.trace)
        self.disk.character = self.config.disk
        self.rings = RingShelf(_buffer)
        self.plan = MemoryPlan(
            budget_bytes=0,
            ring_bytes=self.config.ring_blocks * BLOCK_SIZE_BYTES,
            page_bytes=self.config.pages * BLOCK_SIZE_BYTES,
            read_buffer_bytes=self.config.read_buffer_bytes,
            connection_bytes=self.config.connection_bytes,
            state_bytes=self.config.state_bytes,
        )
        self.boot = 1
        self.life = 0  # how many servers there were before this one
        self.engine: Engine
        self.server: Clients
        self.clients: list[SimClient] = []
        self.failures: list[HoldfastError] = []
        self.rightly_refused = 0  # requests that were told that there is no space, when there was none
        self._awaited = 0  # calls back that are still to come
        self._next_fd = 3
        self._scratch: dict[int, list[memoryview]] = {}

    # ---- life

    def open(self) -> None:
        """Bring the pool up and wait until it can be served. Raises what that raises."""
        self.begin_open()
        self.finish_open()

    def finish_open(self) -> None:
        self.settle()
        if self.failures:
            raise self.failures.pop()

    def begin_open(self) -> None:
        self.note("server", "starts")
        self.loop = self.disk.loop = SimLoop(self.clock, self._loop_rng, batch_ns=self.config.batch_ns)
        around = Surroundings(
            disk=self.disk,
            clock=self.clock,
            prng=SeededPrng(self.rng),
            ring=self.rings.open,
            boot_tag=self.boot,
            allocate=_buffer,
            name="simulated",
        )
        brought_up = bring_up(
            around,
            EngineOptions(
                self.plan,
                pages_per_turn=self.config.pages_per_turn,
                preallocate=self.config.preallocate,
                refuses=self._refuses,
                verify=True,
            ),
            new=self._new_superblock,
        )
        self.engine = brought_up.engine
        self._watch_refusals()
        self.heartbeat = Heartbeat(self.loop, self.engine)
        self.heartbeat.start()
        given = {size: list(views) for size, views in self._scratch.items()}
        self.server = Clients(
            self.engine,
            self.loop,
            clock=self.clock,
            allocate=lambda size: self._scratch_buffer(size, given),
        )
        self.loop.before_sleep.append(self.server.answer)
        self.wait_for(lambda done: self.engine.open(brought_up.known_end, done), self.failures)

    def _watch_refusals(self) -> None:
        """Count the refusals for want of space that are right at their moment: later the space may have come free."""
        engine, overcome = self.engine, self.engine.long_writer.overcome

        def watched(obstacle: int, volume: Volume, lba: int, patience: Patience | None = None) -> Work:
            space = engine.space
            spent = space.is_full or not space.cleaning_helps or not space.available_segments
            self.rightly_refused += spent and obstacle == Obstacle.NO_SPACE
            return overcome(obstacle, volume, lba, patience)

        setattr(engine.long_writer, "overcome", watched)  # noqa: B010 (a method may not be assigned to, says mypy)

    def _new_superblock(self) -> Superblock:
        made = new_superblock(
            uuid=self.rng.randbytes(16),
            segment_size_bytes=MIB,
            capacity_bytes=self.config.segments * MIB,
            created_ns=self.clock.wall_ns(),
        )
        return replace(made, segment_blocks=self.config.segment_blocks)

    def close(self) -> None:
        """A clean end: afterwards only the disk is left."""
        self.note("server", "stops")
        drained: list[bool] = []
        self.server.drain(lambda: drained.append(True))
        self.settle(lambda: bool(drained))
        self.wait_for(self.engine.close, self.failures)
        self.settle()
        if self.failures:
            raise self.failures.pop()
        self.rings.rings.clear()
        self._forget()

    def server_dies(self) -> None:
        """kill -9: the ring stays as it is at this moment, and the disk does what it likes with what is in flight."""
        self.note("world", "kill -9")
        self._end_life()
        self.rings.server_dies()
        self.disk.server_dies()

    def power_fails(self) -> None:
        self.note("world", "power off")
        self._end_life()
        self.rings.power_fails()
        self.boot += 1
        self.disk.power_fails()

    def _end_life(self) -> None:
        self.fate.spare()
        for client in self.clients:
            client.last_words()
        self._forget()

    def _forget(self) -> None:
        self.clients.clear()
        self._awaited = 0
        self.life += 1
        self.failures.clear()

    # ---- time

    def turn(self) -> None:
        self.loop.turn()

    def settle(self, until: Callable[[], bool] | None = None) -> None:
        """Go on until nobody waits for anything, or `until` holds. Raises AssertionError if that does not come."""
        until = until or self.quiet
        give_up_ns = self.clock.at_ns + PATIENCE_NS
        for _ in range(TURNS_MAX):
            self.loop.turn()
            if until():
                return
            if self.clock.at_ns > give_up_ns:
                break
            if self.clock.at_ns > give_up_ns - PATIENCE_NS // 2:
                self._everybody_reads()  # nobody leaves his replies for ever
        raise AssertionError(f"a hang: {self.who_waits()}")

    def go_on(self, duration_ns: int, until: Callable[[], bool]) -> bool:
        """Go on for so long in simulated time, or until something holds; returns whether it does."""
        end_ns = self.clock.at_ns + duration_ns
        while not until():
            if self.clock.at_ns > end_ns:
                return False
            self.loop.turn()
        return True

    def _everybody_reads(self) -> None:
        for client in self.clients:
            if not client.reading:
                client.read_again()

    def quiet(self) -> bool:
        return (
            not self._awaited
            and not len(self.engine.scheduler.tasks)
            and not self.disk.busy
            and self.engine.flusher.idle
            and not any(client.connection.closed ^ client.gone for client in self.clients)
            and not any(client.waiting or not client.ready for client in self.clients if not client.gone)
        )

    def who_waits(self) -> str:
        tasks = [
            f"{task.name}: {getattr(task.waits_for, 'name', task.waits_for)}" for task in self.engine.scheduler.tasks
        ]
        clients = [
            f"{client.volume}: {len(client.waiting)} requests"
            + ("" if client.connection.session is None else f", backlog {len(client.connection.session.backlog)}")
            for client in self.clients
            if client.waiting and not client.gone
        ]
        flusher = self.engine.flusher
        cycles = self.engine.waits.picture().cycles()
        return (
            f"cycles {cycles}, tasks {tasks}, clients {clients}, space {self.engine.space.counts()}, "
            f"disk {'busy' if self.disk.busy else 'idle'}, flusher {'idle' if flusher.idle else 'at work'}, "
            f"durable {flusher.durable}, sealed {self.engine.log.sealed}, position {self.engine.log.position}"
        )

    def note(self, who: str, what: str, detail: object = "") -> None:
        self.trace.note(self.clock.at_ns, who, what, detail)

    # ---- calls

    def wait_for(
        self, begin: Callable[[Callable[[Any], None]], object], failures: list[HoldfastError] | None = None
    ) -> list[Any]:
        """Begin something that calls back; the list holds what it was called back with. `settle` waits for it."""
        outcome: list[Any] = []
        life = self.life

        def answered(value: Any) -> None:
            outcome.append(value)
            self._awaited -= life == self.life
            if failures is not None and isinstance(value, HoldfastError):
                failures.append(value)

        self._awaited += 1
        begin(answered)
        self.loop.turn_again()  # what began outside of a turn is looked at before time jumps ahead
        return outcome

    def spawn(self, work: Work, name: str = "test") -> list[Any]:
        """Run a generator of the engine (of its writer or reader, say) as a task; the list gets its outcome."""
        return self.wait_for(lambda done: self.engine.scheduler.spawn(caught(work), name, done))

    def run(self, work: Work) -> Any:
        """Run a generator of the engine to its end; raises the HoldfastError that it ends with."""
        outcome = self.spawn(work)
        self.settle(lambda: bool(outcome))
        if isinstance(outcome[0], HoldfastError):
            raise outcome[0]
        return outcome[0]

    def create(self, name: str, size_bytes: int) -> Volume | HoldfastError:
        self.note("operator", "create", name)
        outcome = self.wait_for(lambda answer: self.engine.create_volume(name, size_bytes, answer))
        self.settle(lambda: bool(outcome))
        assert isinstance(outcome[0], Volume | HoldfastError)
        return outcome[0]

    def remove(self, name: str) -> HoldfastError | None:
        self.note("operator", "remove", name)
        outcome = self.wait_for(lambda answer: self.engine.remove_volume(name, answer))
        self.settle(lambda: bool(outcome))
        assert outcome[0] is None or isinstance(outcome[0], HoldfastError)
        return outcome[0]

    # ---- clients

    def connect(self, volume: str, *, structured: bool = True, wake_ns: int | None = None) -> SimClient:
        """A client that comes in; it is `ready` some turns later."""
        rng = self._network_rng
        mean_ns = wake_ns or self.config.wake_ns
        socket = SimSocket(self._next_fd, rng, room_bytes=self.config.room_bytes, portions=self.config.portions)
        self._next_fd += 1
        client_of: list[SimClient] = []

        def sent() -> None:
            if not socket.closed:
                self.note("server", "sends", len(socket.to_client))
            if client_of:
                client_of[0].sent()
            self.fate.effect()

        socket.on_sent = sent
        client = SimClient(
            self.loop,
            self.server,
            socket,
            volume,
            structured=structured,
            wake_ns=lambda: int(2 * mean_ns * rng.random()),
            uid=rng.choice(self.config.uids),
        )
        client_of.append(client)

        def vanishes() -> bool:
            if not self.faults.strike("send"):
                return False
            self.note(volume, "vanishes")
            client.hang_up(reset=False)
            client.on_vanish()
            return True

        socket.vanishes = vanishes
        self.clients.append(client)
        return client

    # ---- memory

    def _refuses(self, kind: Kind, _count_bytes: int) -> str:
        return self.faults.strike(KIND_NAMES[kind])

    def _scratch_buffer(self, size_bytes: int, given: dict[int, list[memoryview]]) -> memoryview:
        """Buffers that every life of the server fills anew are not made anew."""
        left = given.get(size_bytes)
        if left:
            return left.pop(0)
        view = _buffer(size_bytes)
        self._scratch.setdefault(size_bytes, []).append(view)
        return view


def _buffer(size_bytes: int) -> memoryview:
    """A page-aligned buffer like those of the real server, off the heap, which gives memory again faster."""
    memory = np.zeros(size_bytes + BLOCK_SIZE_BYTES, np.uint8)
    start = -memory.ctypes.data % BLOCK_SIZE_BYTES
    return memory[start : start + size_bytes].data


def caught(work: Work) -> Work:
    """The same work, which returns the HoldfastError that it would raise."""
    try:
        return (yield from work)
    except HoldfastError as error:
        return error

"""A small deterministic world around the engine: disk, clock, ring, clients, server deaths and power failures.

Everything that happens comes from one seeded generator, so a seed is a run. Nothing moves by itself: a test makes
requests, and `step` lets one thing happen (an operation of the disk completes, a turn of the engine, a tick). `settle`
does so until nobody waits for anything, and fails if that does not come: a hang is an AssertionError that names who
waits for what.

The order in which a pool is opened, and that of the calls at the end of a turn, are those of `served_pool.py`,
`server.py` and `connection.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from holdfast.engine import Engine, EngineOptions
from holdfast.errors import HoldfastError
from holdfast.memory.plan import MemoryPlan
from holdfast.nbd.client import DATA, DONE, ERROR, HOLE, STATUS, Reply, ReplyReader, ServerTerms
from holdfast.nbd.negotiated import Export, Negotiated
from holdfast.nbd.protocol import CMD_READ, CMD_WRITE
from holdfast.nbd.transmission import WRITE_PIECE, Request
from holdfast.pool.format import new_superblock, write_new_pool
from holdfast.pool.opening import read_superblock_slots
from holdfast.pool.superblock import newest_superblock
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.ports import SUPERBLOCK
from holdfast.serving.session import READ_PIECE_BYTES, Session
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB
from holdfast.volume.volume import Volume
from holdfast.work.task import Work, run_to_end
from holdfast.writeback.ring import RING_HEADER_BYTES, Ring
from holdfast.writeback.ring_recovery import ring_belongs, write_out_ring
from tests.engine.disk import Crashed, SeededDisk

TICK_NS = 250_000_000
PIECE_BYTES_MIN = 64 * KIB
REPLY_BUFFER_BYTES = 1 * MIB
STEPS_MAX = 200_000
IDLE_TICKS_MAX = 200  # 50 s without an event: whoever still waits then waits for ever


class SteppedClock:
    """The `Clock` port: it moves when it is told to."""

    def __init__(self) -> None:
        self.at_ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.at_ns

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.at_ns


@dataclass(slots=True)
class Answer:
    """What a client was told. `ready` turns True with the final part of the reply."""

    ready: bool = False
    errno: int = 0
    data: bytearray = field(default_factory=bytearray)
    covered: int = 0
    extents: list[tuple[int, int]] = field(default_factory=list)


class World:
    """`ring_blocks` and `pages` are the memory that the engine gets; `segments` the capacity, of 1 MiB each."""

    def __init__(self, seed: int | str, *, segments: int = 64, ring_blocks: int = 512, pages: int = 128) -> None:
        self.rng = Random(f"world {seed}")
        self.disk = SeededDisk(self.rng)
        self.clock = SteppedClock()
        self.segments = segments
        self.ring_bytes = RING_HEADER_BYTES + ring_blocks * BLOCK_SIZE_BYTES
        self.plan = MemoryPlan(
            budget_bytes=0,
            ring_bytes=ring_blocks * BLOCK_SIZE_BYTES,
            page_bytes=pages * BLOCK_SIZE_BYTES,
            read_buffer_bytes=2 * MIB,
            connection_bytes=MIB,
        )
        self.ring: memoryview | None = None
        self.boot = 1
        self.life = 0  # how many engines there were before this one
        self.clients: list[Client] = []
        self.with_answers: list[Client] = []
        self.released = False
        self.out = memoryview(bytearray(REPLY_BUFFER_BYTES))
        self.piece = memoryview(bytearray(READ_PIECE_BYTES))
        self.failures: list[HoldfastError] = []
        self.engine: Engine
        self.pages = pages
        self.awaited = 0  # calls back that are still to come

    # ---- life

    def open(self) -> None:
        """Bring the pool up, as `ServedPool` does, and wait until it can be served. Raises what opening raises."""
        self.begin_open()
        self.settle()
        if self.failures:
            raise self.failures.pop()

    def begin_open(self) -> None:
        disk = self.disk
        if not disk.exists(SUPERBLOCK):
            made = new_superblock(
                uuid=self.rng.randbytes(16),
                segment_size_bytes=MIB,
                capacity_bytes=self.segments * MIB,
                created_ns=self.clock.wall_ns(),
            )
            run_to_end(write_new_pool(made, aligned_buffer), disk.run)
        superblock, _findings = newest_superblock(run_to_end(read_superblock_slots(), disk.run))
        epoch = (superblock.epoch >> 32) + 1 << 32 | self.rng.getrandbits(32)
        known_end = 0
        if self.ring is not None:
            old = Ring(self.ring, segment_blocks=superblock.segment_blocks)
            if ring_belongs(old, tag=superblock.tag, epoch=superblock.epoch, boot=self.boot):
                work = write_out_ring(old, tag=superblock.tag, epoch=superblock.epoch, note=lambda _text: None)
                known_end = int(run_to_end(work, disk.run))
        self.ring = aligned_buffer(self.ring_bytes)
        ring = Ring(self.ring, segment_blocks=superblock.segment_blocks)
        ring.format(tag=superblock.tag, epoch=epoch, boot=self.boot)
        self.engine = Engine(
            superblock,
            ring,
            epoch=epoch,
            disk=disk,
            clock=self.clock,
            allocate=aligned_buffer,
            options=EngineOptions(self.plan),
        )
        self.engine.on_released = self._note_released
        self.wait_for(lambda done: self.engine.open(known_end, done), self.failures)

    def close(self) -> None:
        """A clean end: afterwards only the disk is left."""
        for client in list(self.clients):
            client.close()
        self.wait_for(self.engine.close, self.failures)
        self.settle()
        if self.failures:
            raise self.failures.pop()
        self.ring = None
        self._forget()

    def server_dies(self) -> None:
        """kill -9: the ring stays as it is at this moment, and the disk does what it likes with what is in flight."""
        if self.ring is not None:
            kept = aligned_buffer(self.ring_bytes)
            kept[:] = self.ring  # a copy: whatever the abandoned engine's generators still do must not reach it
            self.ring = kept
        self.disk.server_dies()
        self._forget()

    def power_fails(self) -> None:
        self.ring = None
        self.boot += 1
        self.disk.power_fails()
        self._forget()

    def _forget(self) -> None:
        self.clients.clear()
        self.with_answers.clear()
        self.awaited = 0
        self.life += 1
        self.failures.clear()
        self.released = False

    def _note_released(self) -> None:
        self.released = True

    # ---- time

    def turn(self) -> bool:
        """One turn of the server: of the engine, and then what `Server._answer` does. True: there is more to do."""
        again = self.engine.turn()
        while self.with_answers or self.released:
            if self.released:
                self.released = False
                for client in list(self.clients):
                    if client.session.stalled:
                        client.resume()
            waiting, self.with_answers = self.with_answers, []
            for client in waiting:
                client.send_answers()
            again = self.engine.turn()
        return again

    def tick(self) -> None:
        self.clock.at_ns += TICK_NS
        self.engine.tick()

    def step(self) -> None:
        """Let something happen."""
        dice = self.rng.random()
        if self.disk.in_flight and dice < 0.7:
            self.disk.complete_one()
        elif dice < 0.97:
            self.turn()
        else:
            self.tick()

    def settle(self, until: Callable[[], bool] | None = None) -> None:
        """Go on until nobody waits for anything, or `until` holds. Raises AssertionError if that does not come."""
        quiet = self.quiet
        until = until or quiet
        idle_ticks = 0
        for _ in range(STEPS_MAX):
            if self.turn():
                continue
            if until is not quiet and until():
                return
            if self.disk.in_flight:
                self.disk.complete_one()
                idle_ticks = 0
            elif quiet():
                return
            elif any(client.session.blocked for client in self.clients):
                for client in self.clients:
                    client.read_again()  # every client reads its replies some time
            else:
                self.tick()
                idle_ticks += 1
                assert idle_ticks < IDLE_TICKS_MAX, f"a hang: {self.who_waits()}"
        raise AssertionError(f"no end: {self.who_waits()}")

    def quiet(self) -> bool:
        return (
            not len(self.engine.scheduler.tasks)
            and self.engine.flusher.idle
            and not any(client.waiting for client in self.clients)
            and not self.awaited
        )

    def who_waits(self) -> str:
        tasks = [
            f"{task.name}: {getattr(task.waits_for, 'name', task.waits_for)}" for task in self.engine.scheduler.tasks
        ]
        sessions = [
            f"{client.session.volume.name}: {len(client.waiting)} requests, backlog {len(client.session.backlog)}"
            for client in self.clients
            if client.waiting
        ]
        return f"tasks {tasks}, clients {sessions}, space {self.engine.space.counts()}"

    # ---- requests

    def wait_for(
        self, begin: Callable[[Callable[[Any], None]], object], failures: list[Any] | None = None
    ) -> list[Any]:
        """Begin something that calls back; the list holds what it was called back with. `settle` waits for it."""
        outcome: list[Any] = []

        life = self.life

        def answered(value: Any) -> None:
            outcome.append(value)
            self.awaited -= life == self.life
            if failures is not None and isinstance(value, HoldfastError):
                failures.append(value)

        self.awaited += 1
        begin(answered)
        return outcome

    def spawn(self, work: Work, name: str = "test") -> list[Any]:
        """Run a generator of the engine (of its writer or reader, say) as a task; the list gets its outcome."""
        return self.wait_for(lambda done: self.engine.scheduler.spawn(_caught(work), name, done))

    def run(self, work: Work) -> Any:
        """Run a generator of the engine to its end; raises the HoldfastError that it ends with."""
        outcome = self.spawn(work)
        self.settle(lambda: bool(outcome))
        if isinstance(outcome[0], HoldfastError):
            raise outcome[0]
        return outcome[0]

    def create(self, name: str, size_bytes: int) -> Volume:
        outcome = self.wait_for(lambda answer: self.engine.create_volume(name, size_bytes, answer))
        self.settle()
        assert isinstance(outcome[0], Volume), outcome[0]
        return outcome[0]

    def remove(self, name: str) -> None:
        outcome = self.wait_for(lambda answer: self.engine.remove_volume(name, answer))
        self.settle()
        assert outcome == [None], outcome

    def connect(self, name: str, *, structured: bool = True) -> Client:
        client = Client(self, self.engine.find(name), structured=structured)
        self.clients.append(client)
        return client


def _caught(work: Work) -> Work:
    try:
        return (yield from work)
    except HoldfastError as error:
        return error


class Client:
    """What `Connection` and the client behind it are to a session, without the socket."""

    def __init__(self, world: World, volume: Volume, *, structured: bool) -> None:
        self.world = world
        self.waiting: dict[int, tuple[Answer, int]] = {}  # cookie -> answer, offset
        self._unsubmitted: deque[Request] = deque()
        self._cookie = 0
        self._unread = bytearray()  # replies that the client has not taken yet
        export = Export(volume.name, volume.size_bytes)
        self._replies = ReplyReader(ServerTerms(volume.size_bytes, 0, structured, 1 if structured else None))
        self.session = Session(
            world.engine,
            volume,
            Negotiated(export, structured, structured),
            world.out,
            world.piece,
            transmit=self._transmit,
            answered=self._answered,
            resume=lambda: self._answered(self.session),
        )

    # ---- the client

    def send(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes = b"",
        flags: int = 0,
        *,
        answer: Answer | None = None,
    ) -> Answer:
        """Send a request; the answer gets ready some steps later. `answer` is one that was made already: whoever holds
        it hears of what was answered in the step in which the server died."""
        self._cookie += 1
        answer = answer or Answer()
        self.waiting[self._cookie] = answer, offset
        if command == CMD_READ:
            answer.data = bytearray(length)
            self._replies.expect_read(self._cookie, offset, length)
        self._unsubmitted.extend(self._requests(command, flags, self._cookie, offset, payload, len(payload) or length))
        self._submit()
        return answer

    def ask(self, command: int, offset: int = 0, length: int = 0, payload: bytes = b"", flags: int = 0) -> Answer:
        """Send a request and wait for the answer."""
        answer = self.send(command, offset, length, payload, flags)
        self.world.settle()
        assert answer.ready, self.world.who_waits()
        return answer

    def stop_reading(self) -> None:
        """Leave the replies in the socket, from now on."""
        self.session.blocked = True

    def read_again(self) -> None:
        self.session.blocked = False
        self._take(b"")
        self.session.output_room.wake()
        self._answered(self.session)

    def close(self) -> None:
        self.session.close()
        self.waiting.clear()
        self.world.clients.remove(self)

    # ---- the connection

    def _requests(
        self, command: int, flags: int, cookie: int, offset: int, payload: bytes, length: int
    ) -> list[Request]:
        """The request, or the pieces in which a long WRITE arrives."""
        rng = self.world.rng
        pieces: list[Request] = []
        view = memoryview(payload)
        if command == CMD_WRITE:
            while len(view) > PIECE_BYTES_MIN and rng.random() < 0.5:
                cut = (offset + rng.randrange(PIECE_BYTES_MIN // 2, len(view)) & -BLOCK_SIZE_BYTES) - offset
                pieces.append((WRITE_PIECE, flags, cookie, offset, cut, view[:cut]))
                offset, view = offset + cut, view[cut:]
            length = len(view)
        return [*pieces, (command, flags, cookie, offset, length, view)]

    def _submit(self) -> None:
        session = self.session
        while self._unsubmitted and not session.stalled and not session.blocked:
            batch: list[Request] = []
            room = REPLY_BUFFER_BYTES
            while self._unsubmitted and len(batch) < 16:
                request = self._unsubmitted[0]
                room -= 64 + (request[4] if request[0] == CMD_READ else 0)
                if room < 0 and batch:
                    break
                batch.append(self._unsubmitted.popleft())
            received = bytearray(b"".join(request[5] for request in batch))
            at = 0
            arrived: list[Request] = []
            for command, flags, cookie, offset, length, payload in batch:
                arrived.append((command, flags, cookie, offset, length, memoryview(received)[at : at + len(payload)]))
                at += len(payload)
            session.submit(arrived)
            self._transmit()
            received[:] = b"\xaa" * len(received)  # the next receive overwrites the buffer

    def _answered(self, _session: Session) -> None:
        if self not in self.world.with_answers:
            self.world.with_answers.append(self)

    def send_answers(self) -> None:
        if not self.session.closed:
            self._transmit()
            self.resume()

    def resume(self) -> None:
        self.session.work_off()
        self._transmit()
        self._submit()

    def _transmit(self) -> None:
        session = self.session
        if session.closed:
            return
        sent = bytes(session.out[: session.at]) + bytes(session.later)
        session.at = 0
        session.later = bytearray()
        if session.direct is not None:
            sent += session.direct
        self._take(sent)

    def _take(self, sent: bytes) -> None:
        self._unread += sent
        self.world.disk.trace.update(sent)
        if self.session.blocked:
            return
        events: list[Reply] = []
        buffer = memoryview(bytes(self._unread))
        used = self._replies.parse(buffer, 0, len(buffer), events)
        del self._unread[:used]
        for event in events:
            self._heard(event)

    def _heard(self, event: Reply) -> None:
        answer, offset = self.waiting[event.cookie]
        if event.kind == DATA:
            at = event.offset - offset
            answer.data[at : at + event.length] = event.payload
            answer.covered += event.length
        elif event.kind == HOLE:
            at = event.offset - offset
            answer.data[at : at + event.length] = bytes(event.length)
            answer.covered += event.length
        elif event.kind == STATUS:
            answer.extents += event.extents
        elif event.kind == ERROR:
            answer.errno = event.errno
        else:
            assert event.kind == DONE
        if event.final:
            answer.ready = True
            del self.waiting[event.cookie]


__all__ = ["Answer", "Client", "Crashed", "SeededDisk", "World"]

"""Clients that send whatever comes to their mind, each answer held to the model.

Requests go to a few regions of each volume, so that they meet; a change keeps off blocks that another change is under
way for, or, with `Swarm.overlap`, does not. What was refused may have been made in part: such blocks are contested and
read back as soon as nothing is under way for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import EINVAL, EIO, ENOMEM, ENOSPC, ENOTSUP, EOVERFLOW, EPERM, ESHUTDOWN

from holdfast.errors import HoldfastError
from holdfast.nbd.protocol import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_FLAG_DF,
    CMD_FLAG_FAST_ZERO,
    CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE,
    CMD_FLAG_REQ_ONE,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
)
from holdfast.sim.client import Answer, SimClient
from holdfast.sim.model import ZERO, Key, Model, Version
from holdfast.sim.prng import stream
from holdfast.sim.swarm import Swarm
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB
from holdfast.volume.volume import Volume

Judge = Callable[[Answer], None]
VOLUMES_MAX = 5
# Those that the protocol lets a server answer; 0 is success.
_NBD_ERRNOS = (0, EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN)


class Workload:
    def __init__(self, seed: int | str, swarm: Swarm, world: World, model: Model) -> None:
        self.swarm = swarm
        self.world = world
        self.model = model
        self.rng = stream(seed, "workload")
        self.volumes: dict[str, int] = {}  # sure to exist -> size
        self.unsure: dict[str, int] = {}  # being created or removed
        self.gone: dict[str, None] = {}
        self.flushed = -1  # everything acknowledged before this moment is durable
        self.operations = 0  # requests sent
        self.left = 0  # requests that may still be sent now
        self.era = 0  # counts changes of the faults that are on
        self._stamp = 0
        self._places = [self.rng.random() for _ in range(swarm.places)]
        self._created = 0
        self._methods: dict[str, Callable[[SimClient], None]] = {
            "write": self._write, "read": self._read, "trim": self._trim_somewhere, "zero": self._zero,
            "flush": self._flush, "status": self._status, "cache": self._cache, "nonsense": self._nonsense,
            "hang_up": self._hang_up,
            "stop_reading": self._stop_reading, "say_goodbye": self._say_goodbye, "checkpoint": self._checkpoint,
            "create": self._create, "remove": self.remove,
        }  # fmt: skip
        self._actions = list(swarm.actions)
        self._weights = list(swarm.actions.values())
        self._clearing: dict[int, tuple[str, int, int]] = {}  # trims and zeroings under way: volume, first, last block
        self._partial: dict[Key, _Part] = {}  # blocks that are being changed in part
        self._changes_of: dict[SimClient, dict[int, dict[Key, Version]]] = {}
        self._ghosts: list[tuple[SimClient, dict[int, dict[Key, Version]]]] = []  # the same of clients that hung up
        self._settling: dict[Key, None] = {}  # contested blocks that are being read
        self._endangered: dict[SimClient, None] = {}  # have asked for something while something failed
        self._excused = False  # the answer that is being judged may be an error

    # ---- clients

    def connect(self, name: str) -> None:
        rng = self.rng
        client = self.world.connect(
            name, structured=rng.random() < 0.8, wake_ns=self.swarm.world.wake_ns * rng.choice([1, 1, 1, 20])
        )
        self._changes_of[client] = {}
        client.on_wake = lambda: self._refill(client)
        client.on_vanish = lambda: self._vanished(client)

    def connect_all(self) -> None:
        """As many clients as there should be, spread over the volumes; each volume has one at least."""
        names = list(self.volumes)
        taken = {client.volume for client in self.world.clients if not client.gone}
        missing = self.swarm.clients - sum(not client.gone for client in self.world.clients)
        wanted = [name for name in names if name not in taken]
        wanted += [self.rng.choice(names) for _ in range(max(0, missing - len(wanted))) if names]
        for name in wanted:
            self.connect(name)

    def _refill(self, client: SimClient) -> None:
        """A client woke up: it sends what comes to its mind."""
        if client.gone:
            self._lost(client)
            return
        if not client.ready:
            return
        self.exorcise()
        self._settle_contested(client)
        tries = 2 * self.swarm.depth
        while self.left > 0 and tries and len(client.waiting) < self.swarm.depth and not client.gone:
            tries -= 1
            self._act(client, self.rng.choices(self._actions, self._weights)[0])
        if self.left > 0 and not client.waiting:
            client.poke()

    def _act(self, client: SimClient, action: str) -> None:
        self._methods[action](client)

    def _lost(self, client: SimClient) -> None:
        """The server hung up on a client. It may, where a reading fails in the middle of its answer."""
        excused = self._tolerant() or client in self._endangered
        assert not client.waiting or excused, f"the server hung up on a client of {client.volume}"
        self._give_up(client)

    def _vanished(self, client: SimClient) -> None:
        self._give_up(client)
        self.world.loop.call_later(self.rng.randrange(10_000_000), self.connect_all)

    def _give_up(self, client: SimClient) -> None:
        self._endangered.pop(client, None)
        self._ghosts.append((client, self._changes_of.pop(client, {})))

    def exorcise(self) -> None:
        """What a client that hung up had under way is settled once the server has done with it."""
        if not self._ghosts:
            return
        if any(task.cancelled for task in self.world.engine.scheduler.tasks):
            return
        kept = []
        for client, changes in self._ghosts:
            if not client.connection.closed:
                kept.append((client, changes))
                continue
            for number, begun in changes.items():
                self._over(number)
                if client.volume in self.volumes:
                    self.model.doubt(begun)
        self._ghosts = kept

    def _settle_contested(self, client: SimClient) -> None:
        """Read what is contested and rests."""
        model = self.model
        if not model.contested:
            return
        for key in [key for key in model.contested if key[0] == client.volume and key not in self._settling]:
            if model.is_open(key) or self._is_being_cleared(*key):
                continue
            self._settling[key] = None

            def judge(answer: Answer, key: Key = key) -> None:
                if answer.errno and self.swarm.damage:
                    return  # it may be damaged for good: nobody looks at it again
                self._settling.pop(key, None)
                if answer.errno:
                    assert self._tolerant(), f"reading {key}: errno {answer.errno}"
                elif key in model.contested and not model.is_open(key):
                    model.settle(key, bytes(answer.data))

            offset = key[1] << BLOCK_SHIFT
            length = min(BLOCK_SIZE_BYTES, client.size_bytes - offset)
            if length < BLOCK_SIZE_BYTES:
                self._settling.pop(key)
                continue
            self._send(client, judge, CMD_READ, offset, BLOCK_SIZE_BYTES)

    # ---- requests

    def _send(
        self,
        client: SimClient,
        judge: Judge,
        command: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes = b"",
        flags: int = 0,
    ) -> None:
        self.operations += 1
        self.left -= 1
        self.world.note(client.volume, _NAMES[command], (offset, length or len(payload), flags))
        era, failing = self.era, self.world.faults.failing()
        if failing:
            self._endangered[client] = None

        def heard(answer: Answer) -> None:
            self._excused = failing or era != self.era
            if not self._excused:
                self._endangered.pop(client, None)
            self.world.note(client.volume, "answer", (_NAMES[command], offset, length or len(payload), answer.errno))
            assert answer.errno in _NBD_ERRNOS, f"the protocol has no errno {answer.errno}"
            judge(answer)
            self._excused = False

        client.send(command, offset, length, payload, flags, heard=heard)

    def _tolerant(self) -> bool:
        """True if an errno may be answered: something fails now, or did when the request was sent."""
        return self._excused or self.world.faults.failing() or self.swarm.damage

    def _range(self, client: SimClient, length_max: int = 0) -> tuple[int, int]:
        """Somewhere in the regions of a volume, with sizes and alignments of all sorts."""
        rng, size, swarm = self.rng, client.size_bytes, self.swarm
        length_max = min(length_max or swarm.length_max, size)
        dice = rng.random()
        if dice < 0.6 - swarm.large / 2:
            length = BLOCK_SIZE_BYTES
        elif dice < 1 - swarm.large:
            length = rng.randrange(1, 5) * BLOCK_SIZE_BYTES
        else:
            length = rng.randrange(1, length_max + 1)
        length = min(length, length_max)
        region = rng.choice((0, 0, 2 * MIB - 16 * BLOCK_SIZE_BYTES, size // 2 & -MIB, max(0, size - 64 * 4096)))
        if self._places and rng.random() < 0.7:
            region = int(rng.choice(self._places) * size) & -BLOCK_SIZE_BYTES
            spread = 8
        else:
            spread = swarm.region_blocks
        offset = min(region + rng.randrange(spread) * BLOCK_SIZE_BYTES, size - length)
        if rng.random() < swarm.unaligned:
            offset += rng.randrange(BLOCK_SIZE_BYTES)
            length = rng.randrange(1, length + 1)
            return min(offset, size - length), length
        offset &= -BLOCK_SIZE_BYTES
        length = max(BLOCK_SIZE_BYTES, length & -BLOCK_SIZE_BYTES)
        return offset, min(length, size - offset)

    def _write(self, client: SimClient) -> None:
        offset, length = self._range(client)
        self._stamp += 1
        payload = (self._stamp.to_bytes(8, "big") * (length // 8 + 1))[:length]
        self._change(client, CMD_WRITE, offset, length, payload, payload)

    def _zero(self, client: SimClient) -> None:
        offset, length = self._range(client)
        flags = self.rng.choice([0, CMD_FLAG_NO_HOLE, CMD_FLAG_FAST_ZERO, CMD_FLAG_FAST_ZERO | CMD_FLAG_NO_HOLE])
        if flags == CMD_FLAG_FAST_ZERO | CMD_FLAG_NO_HOLE:

            def judge(answer: Answer) -> None:
                assert answer.errno == ENOTSUP, answer.errno

            self._send(client, judge, CMD_WRITE_ZEROES, offset, length, flags=flags)
            return
        self._change(client, CMD_WRITE_ZEROES, offset, length, bytes(length), flags=flags)

    def trim_everything(self) -> None:
        """Trim a volume from its beginning to its end, or as far as a request reaches: while nothing else is going on,
        for later some block or other is always being changed."""
        ready = [client for client in self.world.clients if client.ready and not client.gone]
        if ready and "trim" in self.swarm.actions:
            client = self.rng.choice(ready)
            self._trim(client, 0, min(client.size_bytes, 0xFFFFF000))

    def _trim_somewhere(self, client: SimClient) -> None:
        self._trim(client, *self._range(client, 16 * MIB))

    def _trim(self, client: SimClient, offset: int, length: int) -> None:
        first, last = -(-offset // BLOCK_SIZE_BYTES), (offset + length) // BLOCK_SIZE_BYTES
        inside = [key for key in self.model.blocks if key[0] == client.volume and first <= key[1] < last]
        if any(key in self.model.contested or self.model.is_open(key) for key in inside):
            return
        self._change_blocks(client, CMD_TRIM, offset, length, dict.fromkeys(inside, ZERO), clears=(first, last))

    def _change(
        self, client: SimClient, command: int, offset: int, length: int, content: bytes, payload: bytes = b"",
        flags: int = 0,
    ) -> None:  # fmt: skip
        """A WRITE or WRITE_ZEROES of `content`."""
        name, model = client.volume, self.model
        first, last = offset >> BLOCK_SHIFT, -(-(offset + length) // BLOCK_SIZE_BYTES)
        overlap = self.rng.random() < self.swarm.overlap
        for lba in range(first, last):
            key = name, lba
            if key in model.contested or self._is_being_cleared(name, lba):
                return
            whole = offset <= lba << BLOCK_SHIFT and (lba + 1) << BLOCK_SHIFT <= offset + length
            if model.is_open(key) and not (overlap and whole):
                return
        changes = self._patched(name, offset, content)
        partial = {
            key: (max(0, offset - (key[1] << BLOCK_SHIFT)), content[max(0, (key[1] << BLOCK_SHIFT) - offset) :])
            for key in ((name, first), (name, last - 1))
            if not self._covers(offset, length, key[1])
        }
        self._change_blocks(client, command, offset, length, changes, payload, flags, partial=partial)

    @staticmethod
    def _covers(offset: int, length: int, lba: int) -> bool:
        return offset <= lba << BLOCK_SHIFT and (lba + 1) << BLOCK_SHIFT <= offset + length

    def _is_being_cleared(self, name: str, lba: int) -> bool:
        return any(name == other and first <= lba < last for other, first, last in self._clearing.values())

    def _patched(self, name: str, offset: int, payload: bytes) -> dict[Key, bytes]:
        """The blocks as a write of `payload` leaves them."""
        changes = {}
        first, start = divmod(offset, BLOCK_SIZE_BYTES)
        for lba in range(first, -(-(offset + len(payload)) // BLOCK_SIZE_BYTES)):
            at = (lba << BLOCK_SHIFT) - offset
            part = payload[max(at, 0) : at + BLOCK_SIZE_BYTES]
            if len(part) < BLOCK_SIZE_BYTES:
                begin = start if at < 0 else 0
                old = self.model.latest((name, lba))
                part = old[:begin] + part + old[begin + len(part) :]
            changes[name, lba] = part
        return changes

    def _change_blocks(
        self,
        client: SimClient,
        command: int,
        offset: int,
        length: int,
        changes: Mapping[Key, bytes],
        payload: bytes = b"",
        flags: int = 0,
        *,
        partial: Mapping[Key, tuple[int, bytes]] | None = None,
        clears: tuple[int, int] | None = None,
    ) -> None:
        if self.rng.random() < 0.1:
            flags |= CMD_FLAG_FUA
        met = {key: self._partial[key] for key in changes if key in self._partial}
        begun = self.model.begin(changes, {key: part.over(changes[key]) for key, part in met.items()})
        number = self._stamp = self._stamp + 1
        changes_of = self._changes_of[client]
        changes_of[number] = begun
        if clears is not None:
            self._clearing[number] = (client.volume, *clears)
        for key, (start, data) in (partial or {}).items():
            self._partial[key] = _Part(number, start, data[: BLOCK_SIZE_BYTES - start], begun[key])

        was_low, checkpoints = self._is_low(), self._checkpoints()

        def judge(answer: Answer) -> None:
            del changes_of[number]
            self._over(number)
            if client.volume not in self.volumes:
                return
            if answer.errno == 0:
                self.model.end(begun)
                for part in met.values():
                    part.version.beaten = True  # all of the block was written: what the part was put into is gone
                if flags & CMD_FLAG_FUA:
                    self.model.must_survive_change(begun)
            else:
                full = answer.errno == ENOSPC and (was_low or self._is_low() or checkpoints != self._checkpoints())
                assert full or self._tolerant(), f"{_NAMES[command]}: errno {answer.errno}"
                self.model.doubt(begun)

        self._send(client, judge, command, offset, 0 if payload else length, payload, flags)

    def _is_low(self) -> bool:
        """True if clients can be out of space now."""
        space = self.world.engine.space
        return space.available_segments <= space.reserve_segments

    def _checkpoints(self) -> int:
        """How many there were: with each, space that was short may have come free."""
        return self.world.engine.checkpointer.written

    def _over(self, number: int) -> None:
        """A change is not under way any more."""
        self._clearing.pop(number, None)
        for key in [key for key, its in self._partial.items() if its.number == number]:
            del self._partial[key]

    def _read(self, client: SimClient) -> None:
        offset, length = self._range(client, max(self.swarm.length_max, 2 * MIB if self.rng.random() < 0.05 else 0))
        if self.swarm.unaligned and client.size_bytes > 4 * MIB and self.rng.random() < 0.05:
            # So long that it is read in pieces, which meet within the blocks that most changes go to.
            middle = client.size_bytes // 2 & -MIB
            offset = max(0, middle - self.rng.choice([1, 2]) * MIB + self.rng.randrange(BLOCK_SIZE_BYTES * 8))
            length = 2 * MIB
        since = self.model.tick()

        def judge(answer: Answer) -> None:
            if answer.errno:
                assert self._tolerant(), f"a read: errno {answer.errno}"
                return
            assert answer.covered == length
            self._check_read(client.volume, offset, bytes(answer.data), since)

        self._send(client, judge, CMD_READ, offset, length, flags=self.rng.choice([0, 0, CMD_FLAG_DF])
                   if client.structured else 0)  # fmt: skip

    def _check_read(self, name: str, offset: int, data: bytes, since: int) -> None:
        if name not in self.volumes:
            return
        lba, start = divmod(offset, BLOCK_SIZE_BYTES)
        at = 0
        while at < len(data):
            count = min(BLOCK_SIZE_BYTES - start, len(data) - at)
            got = data[at : at + count]
            versions = [content[start : start + count] for content in self.model.may_read((name, lba), since)]
            assert got in versions, (
                f"a wrong read of {name, lba} since {since}: {self.model.describe((name, lba), got)}"
            )
            at, lba, start = at + count, lba + 1, 0

    def _flush(self, client: SimClient) -> None:
        moment = self.model.tick()

        def judge(answer: Answer) -> None:
            if answer.errno == 0:
                self.flushed = max(self.flushed, moment)
                self.model.must_survive(moment)
            else:
                assert self._tolerant(), f"a flush: errno {answer.errno}"

        self._send(client, judge, CMD_FLUSH)

    def _status(self, client: SimClient) -> None:
        if not client.structured:
            return
        offset, length = self._range(client, 2 * MIB)
        since = self.model.tick()
        flags = self.rng.choice([0, CMD_FLAG_REQ_ONE])

        def judge(answer: Answer) -> None:
            if answer.errno:
                assert self._tolerant(), f"a block status: errno {answer.errno}"
                return
            at = offset
            assert answer.extents
            assert len(answer.extents) == 1 or not flags
            for size, state in answer.extents:
                assert at < offset + length
                if state:
                    assert at + size <= offset + length
                    self._check_read(client.volume, at, bytes(size), since)
                at += size

        self._send(client, judge, CMD_BLOCK_STATUS, offset, length, flags=flags)

    def _cache(self, client: SimClient) -> None:
        offset, length = self._range(client, 2 * MIB)

        def judge(answer: Answer) -> None:
            assert not answer.errno or self._tolerant(), f"a prefetch: errno {answer.errno}"

        self._send(client, judge, CMD_CACHE, offset, length)

    def _nonsense(self, client: SimClient) -> None:
        """What must be refused, and leave everything else alone."""
        command, offset, length, wanted = self.rng.choice([
            (CMD_READ, client.size_bytes, 1, EINVAL), (CMD_TRIM, client.size_bytes - 1, 2, EINVAL),
            (CMD_WRITE_ZEROES, client.size_bytes, 4096, ENOSPC), (99, 0, 0, EINVAL),
        ])  # fmt: skip

        def judge(answer: Answer) -> None:
            assert answer.errno == wanted, answer.errno

        self._send(client, judge, command, offset, length)

    # ---- what else clients do

    def _stop_reading(self, client: SimClient) -> None:
        client.stop_reading()
        self.world.loop.call_later(self.rng.randrange(1_000_000_000), client.read_again)

    def _hang_up(self, client: SimClient) -> None:
        """Go away with requests under way: each of their blocks is as before or as after."""
        self.world.note(client.volume, "hangs up")
        client.hang_up(reset=self.rng.random() < 0.5)
        self._give_up(client)
        self.world.loop.call_later(self.rng.randrange(10_000_000), self.connect_all)

    def _say_goodbye(self, client: SimClient) -> None:
        if not client.waiting:
            self._hang_up(client)

    def _checkpoint(self, _client: SimClient) -> None:
        self.world.spawn(self.world.engine.checkpoint())

    # ---- volumes

    def create(self) -> str:
        """Begin to make a volume."""
        self._created += 1
        name, size = f"disk{self._created}", self.rng.choice(self.swarm.sizes)
        self.unsure[name] = size

        def answered(outcome: Volume | HoldfastError | None) -> None:
            del self.unsure[name]
            if isinstance(outcome, Volume):
                self.volumes[name] = size
                self.connect_all()
            else:
                assert outcome is not None
                assert outcome.errno == ENOSPC or self._tolerant(), outcome

        self.world.note("operator", "create", name)
        self.world.wait_for(lambda answer: self.world.engine.create_volume(name, size, _both(answered, answer)))
        return name

    def _create(self, _client: SimClient) -> None:
        if len(self.volumes) + len(self.unsure) < VOLUMES_MAX:
            self.create()

    def remove(self, client: SimClient) -> None:
        """Remove the client's volume, from under all of its clients."""
        name = client.volume
        if len(self.volumes) < 2 or name not in self.volumes:
            return
        self.unsure[name] = self.volumes.pop(name)
        for other in self.world.clients:
            if other.volume == name and not other.gone:
                other.hang_up(reset=True)
                self._give_up(other)
        self.world.note("operator", "remove", name)
        self.world.wait_for(lambda answer: self._try_to_remove(name, answer))

    def _try_to_remove(self, name: str, answer: Callable[[object], None]) -> None:
        engine = self.world.engine
        if engine.by_name[name].connections:
            self.world.loop.call_later(1_000_000, lambda: self._try_to_remove(name, answer))
            return

        def answered(outcome: object) -> None:
            assert outcome is None, outcome
            del self.unsure[name]
            self.forget(name)

        engine.remove_volume(name, _both(answered, answer))

    def forget(self, name: str) -> None:
        self.gone[name] = None
        self.model.forget_volume(name)
        for key in [key for key in self._settling if key[0] == name]:
            del self._settling[key]

    def new_life(self) -> None:
        """The server died: nothing is under way any more."""
        self.left = 0
        self._clearing.clear()
        self._ghosts.clear()
        self._changes_of.clear()
        self._endangered.clear()
        self._settling.clear()
        self._partial.clear()


@dataclass(frozen=True, slots=True)
class _Part:
    """A change of a part of a block that is under way: by which request, where in the block, and the version that it
    makes of what the block held when it was sent."""

    number: int
    start: int
    data: bytes
    version: Version

    def over(self, content: bytes) -> bytes:
        return content[: self.start] + self.data + content[self.start + len(self.data) :]


def _both(first: Callable[..., None], second: Callable[..., None]) -> Callable[..., None]:
    def call(outcome: object) -> None:
        first(outcome)
        second(outcome)

    return call


_NAMES = {
    CMD_READ: "read", CMD_WRITE: "write", CMD_FLUSH: "flush", CMD_TRIM: "trim", CMD_CACHE: "cache",
    CMD_WRITE_ZEROES: "zero", CMD_BLOCK_STATUS: "status", 99: "nonsense",
}  # fmt: skip

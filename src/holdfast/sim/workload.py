"""Clients that send whatever comes to their mind, each answer held to the model.

Requests go to a few regions of each volume, so that they meet. What is made of changes is in `changes.py`; here is who
sends what, and how reads are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from errno import EINVAL, EIO, ENOMEM, ENOSPC, ENOTSUP, EOVERFLOW, EPERM, ESHUTDOWN

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
from holdfast.sim.changes import Changes, Part
from holdfast.sim.client import Answer, SimClient
from holdfast.sim.faults import FLIP
from holdfast.sim.history import History
from holdfast.sim.model import ZERO, Key, Model
from holdfast.sim.operator import Operator
from holdfast.sim.prng import stream
from holdfast.sim.sizes import Sizes
from holdfast.sim.swarm import Swarm
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB

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
        self.operator = Operator(
            world, self.rng, swarm.sizes,
            tolerant=self._tolerant, made=self.connect_all, left=self._give_up, forgotten=self._forgotten,
            thick=stream(seed, "thick"),
        )  # fmt: skip
        self.history = History(world, model, self.operator, self.rng, excuse=self._excuse, connect_all=self.connect_all)
        self.changes = Changes(world, model, self.operator.volumes, self._tolerant)
        self.changes.becoming_another = self.history.rolling
        self.sizes = Sizes(
            world, stream(seed, "sizes"), self.operator, self.changes, model,
            tolerant=self._tolerant, pool_share=swarm.pool_resizes,
            left=self._give_up, done=self.connect_all,
        )  # fmt: skip
        self.operator.is_busy = self.sizes.busy.__contains__
        self.flushed = -1  # everything acknowledged before this moment is durable
        self.operations = 0  # requests sent
        self.left = 0  # requests that may still be sent now
        self.era = 0  # counts changes of the faults that are on
        self._places = [self.rng.random() for _ in range(swarm.places)]
        self._methods: dict[str, Callable[[SimClient], None]] = {
            "write": self._write, "read": self._read, "trim": self._trim_somewhere, "zero": self._zero,
            "flush": self._flush, "status": self._status, "cache": self._cache, "nonsense": self._nonsense,
            "hang_up": self._hang_up,
            "stop_reading": self._stop_reading, "say_goodbye": self._say_goodbye, "checkpoint": self._checkpoint,
            "create": self._create, "remove": self._remove, "snapshot": self._snapshot, "clone": self._clone,
            "look": lambda _client: self.history.reads.look(), "compare": lambda _client: self.history.reads.compare(),
            "remove_snapshot": lambda _client: self.history.remove(),
            "roll_back": lambda _client: self.history.roll_back(),
            "promote": lambda _client: self.history.promote(),  # in runs of `filling.py` alone
        }  # fmt: skip
        self._actions = list(swarm.actions)
        self._weights = list(swarm.actions.values())
        self._endangered: dict[SimClient, None] = {}  # have asked for something while something failed
        self._excused = False  # the answer that is being judged may be an error

    def only(self, actions: Mapping[str, int]) -> None:
        """From now on clients do these, each with its weight."""
        self._actions, self._weights = list(actions), list(actions.values())

    # ---- clients

    def connect(self, name: str) -> None:
        rng = self.rng
        client = self.world.connect(
            name, structured=rng.random() < 0.8, wake_ns=self.swarm.world.wake_ns * rng.choice([1, 1, 1, 20])
        )
        self.changes.connected(client)
        client.on_wake = lambda: self._refill(client)
        client.on_vanish = lambda: self._vanished(client)

    def connect_all(self) -> None:
        """As many clients as there should be, spread over the volumes; each volume has one at least."""
        names = [name for name in self.operator.volumes if name not in self.sizes.busy]
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
        self.changes.exorcise()
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
        self.changes.left(client)

    def _settle_contested(self, client: SimClient) -> None:
        """Read what is contested and rests."""
        for key in self.changes.take_unsettled(client):

            def judge(answer: Answer, key: Key = key) -> None:
                if answer.errno and self.swarm.damage:
                    return  # it may be damaged for good: nobody looks at it again
                self.changes.settle(key, answer)

            self._send(client, judge, CMD_READ, key[1] << BLOCK_SHIFT, BLOCK_SIZE_BYTES)

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
        return self._excused or self.world.faults.failing() or self.swarm.damage or self._is_lost()

    def _excuse(self) -> Callable[[], bool]:
        """Whether what begins now may end with an errno, to be asked when it has."""
        era, failing = self.era, self.world.faults.failing()
        misread = any(kind == FLIP for _point, kind, _rate in self.swarm.faults)
        return lambda: failing or misread or era != self.era or self._tolerant()

    def _is_lost(self) -> bool:
        """True while a volume says that accepted data is lost: a misreading was taken for that, while faults struck."""
        misread = any(kind == FLIP for _point, kind, _rate in self.swarm.faults)
        return misread and any(volume.loss_open for volume in self.world.engine.volumes.by_id.values())

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
        payload = (self.changes.next_number().to_bytes(8, "big") * (length // 8 + 1))[:length]
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
            self.trim(client, 0, min(client.size_bytes, 0xFFFFF000))

    def _trim_somewhere(self, client: SimClient) -> None:
        self.trim(client, *self._range(client, 16 * MIB))

    def trim(self, client: SimClient, offset: int, length: int) -> None:
        first, last = -(-offset // BLOCK_SIZE_BYTES), (offset + length) // BLOCK_SIZE_BYTES
        inside = self.changes.cleared_by(client.volume, first, last)
        if inside is None:
            return
        self._change_blocks(client, CMD_TRIM, offset, length, dict.fromkeys(inside, ZERO), clears=(first, last))

    def _change(
        self, client: SimClient, command: int, offset: int, length: int, content: bytes, payload: bytes = b"",
        flags: int = 0,
    ) -> None:  # fmt: skip
        """A WRITE or WRITE_ZEROES of `content`."""
        name, changes = client.volume, self.changes
        overlap = self.rng.random() < self.swarm.overlap
        if changes.may_begin(name, offset, length, overlap=overlap):
            blocks, parts = changes.patched(name, offset, content), changes.parts(name, offset, content)
            self._change_blocks(client, command, offset, length, blocks, payload, flags, parts=parts)

    def _change_blocks(
        self,
        client: SimClient,
        command: int,
        offset: int,
        length: int,
        blocks: Mapping[Key, bytes],
        payload: bytes = b"",
        flags: int = 0,
        *,
        parts: Mapping[Key, Part] | None = None,
        clears: tuple[int, int] | None = None,
    ) -> None:
        if self.rng.random() < 0.1:
            flags |= CMD_FLAG_FUA
        change = self.changes.begin(client, blocks, parts or {}, clears)

        def judge(answer: Answer) -> None:
            self.changes.judge(change, _NAMES[command], answer.errno, fua=bool(flags & CMD_FLAG_FUA))

        self._send(client, judge, command, offset, 0 if payload else length, payload, flags)

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
        if name not in self.operator.volumes:
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

    def _create(self, _client: SimClient) -> None:
        if len(self.operator.volumes) + len(self.operator.unsure) < VOLUMES_MAX:
            self.operator.create()

    def _remove(self, client: SimClient) -> None:
        self.remove(client.volume)

    def remove(self, name: str) -> None:
        """Remove a volume, unless it is the last one or somebody needs it."""
        if self.history.is_free(name) and len(self.operator.volumes) > 1 and name in self.operator.volumes:
            self.history.forget_volume(name)
            self.operator.remove(name)

    def _snapshot(self, client: SimClient) -> None:
        self.history.take(client.volume)

    def _clone(self, _client: SimClient) -> None:
        if len(self.operator.volumes) + len(self.operator.unsure) < VOLUMES_MAX:
            self.history.clone()

    def _forgotten(self, name: str) -> None:
        self.changes.forget_volume(name)

    # ---- the server's life

    def new_life(self) -> None:
        """The server died: nothing is under way any more."""
        self.left = 0
        self.changes.new_life()
        self._endangered.clear()


_NAMES = {
    CMD_READ: "read", CMD_WRITE: "write", CMD_FLUSH: "flush", CMD_TRIM: "trim", CMD_CACHE: "cache",
    CMD_WRITE_ZEROES: "zero", CMD_BLOCK_STATUS: "status", 99: "nonsense",
}  # fmt: skip

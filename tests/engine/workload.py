"""A seeded workload over a `World`, held to the `Model` at every answer and after every crash.

No two changes of a block are under way at a time, so the model knows what a block holds; reads go where they like. What
was refused is read back at once: it may have happened in part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import ENOSPC, ENOTSUP
from random import Random

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
from holdfast.serving.session import READ_PIECE_BYTES
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB
from tests.engine.accounting import check_accounts, check_nothing_held, mapped_lbas
from tests.engine.disk import Crashed
from tests.engine.model import NEVER, ZERO, Key, Model, Version
from tests.engine.world import Answer, Client, World

LENGTH_MAX = 300 * BLOCK_SIZE_BYTES
NBD_ENOSPC, NBD_ENOTSUP = ENOSPC, ENOTSUP


@dataclass(slots=True)
class Request:
    answer: Answer
    client: Client
    finish: Callable[[Answer], None]
    keys: frozenset[Key] = frozenset()  # blocks that it changes


class Workload:
    def __init__(
        self,
        seed: int | str,
        *,
        segments: int | None = None,
        sizes: list[int] | None = None,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        rng = self.rng = Random(f"workload {seed}")
        self.world = World(
            seed,
            segments=segments or rng.choice([24, 64, 64]),
            ring_blocks=rng.choice([256, 512, 1024]),
            pages=rng.choice([64, 128, 256]),
        )
        self.model = Model()
        self.flushed = -1  # everything acknowledged before this moment is durable
        self.power_failed = False
        self.dead = False
        self.under_way: list[Request] = []
        self.under_way_max = rng.choice([1, 4, 24])
        self.volumes: dict[str, int] = {}  # sure to exist -> size
        self.unsure: dict[str, int] = {}  # being created or removed
        self.gone: set[str] = set()
        self.clients: dict[str, Client] = {}
        self.stamp = 0
        self.created = 0
        self.failing = False  # write-back errors are to be expected
        self.full = 0  # requests that were answered with ENOSPC
        self.counts = {"requests": 0, "crashes": 0}
        self.sizes = sizes or [1 * MIB + 1234, 8 * MIB, 60 * MIB, 700 * MIB]
        chosen = {
            "write": 40, "read": 20, "trim": 4, "zero": 6, "flush": 6, "status": 3, "cache": 1, "checkpoint": 1,
            "stop_reading": 1, "disconnect": 1, "settle": 2, "steps": 15, **(weights or {}),
        }  # fmt: skip
        self.actions = list(chosen)
        self.weights = list(chosen.values())
        self.world.open()
        for _ in range(rng.choice([1, 1, 2, 3])):
            self.create()
        self.settle()

    # ---- driving

    def run(self, actions: int) -> None:
        """Do that many things, whatever comes of them."""
        for _ in range(actions):
            self.act()
            self.hear()

    def act(self) -> None:
        action = self.rng.choices(self.actions, self.weights)[0]
        if action == "steps":
            for _ in range(self.rng.randrange(12)):
                self.world.step()
        elif self.failing and action in ("settle", "disconnect"):
            self.world.tick()  # with a disk that fails there is no end to wait for
        elif action == "settle":
            self.settle()
        elif len(self.under_way) >= self.under_way_max:
            self.world.step()
        elif action == "checkpoint":
            self.world.spawn(self.world.engine.checkpoint())
        else:
            getattr(self, action)(self.rng.choice(list(self.volumes)))

    def settle(self) -> None:
        for client in self.clients.values():
            if client.session.blocked:
                client.read_again()
        self.world.settle()
        self.hear()
        if self.under_way:
            self.settle()

    def hear(self) -> None:
        """Look at the answers that came."""
        ready = [request for request in self.under_way if request.answer.ready]
        if ready:
            self.under_way = [request for request in self.under_way if not request.answer.ready]
            for request in ready:
                request.finish(request.answer)

    def client(self, name: str) -> Client:
        if name not in self.clients:
            self.clients[name] = self.world.connect(name, structured=self.rng.random() < 0.8)
        return self.clients[name]

    # ---- requests

    def range(self, name: str, length_max: int = LENGTH_MAX) -> tuple[int, int]:
        """Somewhere in a volume: mostly a few leaves, with sizes and alignments of all sorts."""
        rng, size = self.rng, self.volumes[name]
        length = rng.choice([BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES, rng.randrange(1, 3 * BLOCK_SIZE_BYTES), 16 * KIB,
                             rng.randrange(1, 300 * KIB), rng.randrange(1, length_max)])  # fmt: skip
        length = min(length, size)
        leaf = rng.choice([0, 1, rng.randrange(1 + size // (2 * MIB))]) * 2 * MIB
        offset = min(leaf + rng.choice([0, rng.randrange(2 * MIB)]), size - length)
        if rng.random() < 0.7:
            offset &= -BLOCK_SIZE_BYTES
            length = max(BLOCK_SIZE_BYTES, length & -BLOCK_SIZE_BYTES)
            length = min(length, size - offset)
        return offset, max(1, length)

    def write(self, name: str) -> None:
        offset, length = self.range(name)
        self.stamp += 1
        payload = (self.stamp.to_bytes(8, "big") * (length // 8 + 1))[:length]
        self._change(name, CMD_WRITE, offset, length, self._patched(name, offset, payload), payload)

    def zero(self, name: str) -> None:
        offset, length = self.range(name)
        flags = self.rng.choice([0, CMD_FLAG_NO_HOLE, CMD_FLAG_FAST_ZERO, CMD_FLAG_FAST_ZERO | CMD_FLAG_NO_HOLE])
        changes = self._patched(name, offset, bytes(length))
        self._change(name, CMD_WRITE_ZEROES, offset, length, changes, flags=flags)

    def trim(self, name: str) -> None:
        if self.rng.random() < 0.1:
            self.trim_all(name)
        else:
            self._trim(name, *self.range(name, min(self.volumes[name], 16 * MIB)))

    def trim_all(self, name: str) -> None:
        self._trim(name, 0, self.volumes[name])

    def _trim(self, name: str, offset: int, length: int) -> None:
        first, last = -(-offset // BLOCK_SIZE_BYTES), (offset + length) // BLOCK_SIZE_BYTES
        inside = [key for key in self.model.blocks if key[0] == name and first <= key[1] < last]
        self._change(name, CMD_TRIM, offset, length, dict.fromkeys(inside, ZERO), reserve=(first, last))

    def _patched(self, name: str, offset: int, payload: bytes) -> dict[Key, bytes]:
        """The blocks as a write of `payload` leaves them."""
        changes = {}
        first, start = divmod(offset, BLOCK_SIZE_BYTES)
        for lba in range(first, -(-(offset + len(payload)) // BLOCK_SIZE_BYTES)):
            at = lba * BLOCK_SIZE_BYTES - offset
            part = payload[max(at, 0) : at + BLOCK_SIZE_BYTES]
            if len(part) < BLOCK_SIZE_BYTES:
                begin = start if at < 0 else 0
                old = self.model.latest((name, lba))
                part = old[:begin] + part + old[begin + len(part) :]
            changes[name, lba] = part
        return changes

    def _change(
        self,
        name: str,
        command: int,
        offset: int,
        length: int,
        changes: dict[Key, bytes],
        payload: bytes = b"",
        flags: int = 0,
        reserve: tuple[int, int] | None = None,
    ) -> None:
        keys = frozenset(changes)
        busy = frozenset().union(*(request.keys for request in self.under_way))
        # A trim must also keep off blocks that the model does not know yet: they are being written for the first time.
        first, last = reserve or (0, 0)
        if keys & busy or any(key[0] == name and first <= key[1] < last for key in busy):
            self.world.step()
            return
        if self.rng.random() < 0.1:
            flags |= CMD_FLAG_FUA
        refused = flags & CMD_FLAG_FAST_ZERO and flags & CMD_FLAG_NO_HOLE
        begun = {} if refused else self.model.begin(changes)
        keys = frozenset(begun)

        def finish(answer: Answer) -> None:
            if answer.errno == 0:
                assert not refused
                self.model.end(begun)
                if flags & CMD_FLAG_FUA:
                    self.model.must_survive_change(begun)
            elif refused:
                assert answer.errno == NBD_ENOTSUP
            else:
                assert self.failing or answer.errno == NBD_ENOSPC, answer.errno
                self.full += answer.errno == NBD_ENOSPC
                self._find_out(begun)

        self._send(name, finish, command, offset, length, payload, flags, keys)

    def _find_out(self, begun: Mapping[Key, Version]) -> None:
        """A change failed or nobody heard of its end: what became of each block?"""
        if self.dead:
            return  # that is found out when it has been recovered
        for key, version in begun.items():
            content = self._content(key)
            chain = self.model.chain(key)
            index = next(index for index, other in enumerate(chain) if other is version)
            if version.content != content:
                assert content == chain[index - 1].content, self.model.describe(key, content)
                self.model.cancel(key, version)

    def read(self, name: str) -> None:
        offset, length = self.range(name, 2 * MIB)
        since = self.model.tick()

        def finish(answer: Answer) -> None:
            assert answer.errno == 0, answer.errno
            assert answer.covered == length
            self._check_read(name, offset, bytes(answer.data), since)

        flags = self.rng.choice([0, 0, CMD_FLAG_DF])
        self._send(name, finish, CMD_READ, offset, length, flags=flags)

    def _check_read(self, name: str, offset: int, data: bytes, since: int) -> None:
        lba, start = divmod(offset, BLOCK_SIZE_BYTES)
        at = 0
        while at < len(data):
            count = min(BLOCK_SIZE_BYTES - start, len(data) - at)
            allowed = self.model.may_read((name, lba), since)
            got = data[at : at + count]
            versions = [content[start : start + count] for content in allowed]
            if got not in versions:
                # A long read comes in pieces, and one that is not aligned has its seams within blocks.
                torn = offset % BLOCK_SIZE_BYTES and len(data) > READ_PIECE_BYTES
                mixed = torn and all(any(got[i] == version[i] for version in versions) for i in range(count))
                assert mixed, f"a wrong read: {self.model.describe((name, lba), got)}"
            at, lba, start = at + count, lba + 1, 0

    def flush(self, name: str) -> None:
        moment = self.model.tick()

        def finish(answer: Answer) -> None:
            if answer.errno == 0:
                self.flushed = max(self.flushed, moment)
                self.model.must_survive(moment)
            else:
                assert self.failing

        self._send(name, finish, CMD_FLUSH)

    def status(self, name: str) -> None:
        offset, length = self.range(name, 2 * MIB)
        if not self.client(name).session.structured:
            return
        since = self.model.tick()
        flags = self.rng.choice([0, CMD_FLAG_REQ_ONE])

        def finish(answer: Answer) -> None:
            at = offset
            assert answer.errno == 0
            assert answer.extents
            assert len(answer.extents) == 1 or not flags
            for size, state in answer.extents:
                assert at < offset + length
                if state:
                    assert at + size <= offset + length
                    self._check_read(name, at, bytes(size), since)
                at += size

        self._send(name, finish, CMD_BLOCK_STATUS, offset, length, flags=flags)

    def cache(self, name: str) -> None:
        offset, length = self.range(name)
        self._send(name, lambda _answer: None, CMD_CACHE, offset, length)

    def _send(
        self,
        name: str,
        finish: Callable[[Answer], None],
        command: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes = b"",
        flags: int = 0,
        keys: frozenset[Key] = frozenset(),
    ) -> None:
        self.counts["requests"] += 1
        client = self.client(name)
        answer = Answer()
        self.under_way.append(Request(answer, client, finish, keys))
        client.send(command, offset, length, payload, flags, answer=answer)

    # ---- clients and volumes

    def stop_reading(self, name: str) -> None:
        client = self.client(name)
        if client.session.blocked:
            client.read_again()
        else:
            client.stop_reading()

    def disconnect(self, name: str) -> None:
        """The client goes away with requests under way: each block is as before or as after."""
        if name not in self.clients:
            return
        client = self.clients.pop(name)
        lost = [request for request in self.under_way if request.client is client]
        self.under_way = [request for request in self.under_way if request.client is not client]
        client.close()
        self.settle()
        for request in lost:
            if request.keys:
                begun = {key: self.model.blocks[key][-1] for key in request.keys if self._is_open(key)}
                self._find_out(begun)

    def _is_open(self, key: Key) -> bool:
        return self.model.blocks[key][-1].ended == NEVER and len(self.model.blocks[key]) > 1

    def create(self, _name: str = "") -> None:
        self.created += 1
        name, size = f"disk{self.created}", self.rng.choice(self.sizes)
        self.unsure[name] = size
        self.world.create(name, size)
        self.volumes[name] = self.unsure.pop(name)

    def remove(self, name: str) -> None:
        if len(self.volumes) < 2:
            return
        self.disconnect(name)
        self.unsure[name] = self.volumes.pop(name)
        outcome = self.world.wait_for(lambda answer: self.world.engine.remove_volume(name, answer))
        while not outcome:
            self.world.turn()
            if self.world.disk.in_flight:
                self.world.disk.complete_one()
            else:
                self.world.tick()
        assert outcome == [None]
        del self.unsure[name]
        self._forget(name)

    def _forget(self, name: str) -> None:
        self.gone.add(name)
        self.model.blocks = {key: chain for key, chain in self.model.blocks.items() if key[0] != name}

    # ---- crashes

    def reopen(self) -> None:
        """A clean end and a new start: nothing is lost, flushed or not."""
        for client in self.clients.values():
            assert not client.waiting
        self.clients.clear()
        self.world.close()
        self.world.open()
        self.flushed = self.model.tick()
        self.model.must_survive(self.flushed)
        self.check_quiet()

    def crash(self, *, power: bool) -> None:
        """Let the server die or the power fail at some effect from now on; recover, which may be cut short as well; and
        check."""
        self.counts["crashes"] += 1
        world = self.world
        if self.rng.random() < 0.6:
            world.disk.effects_left = self.rng.randrange(60)
            try:
                self.run(self.rng.randrange(60))
            except Crashed:
                pass
        self._die(power=power)
        while True:
            if self.rng.random() < 0.3:
                world.disk.effects_left = self.rng.randrange(30)
            try:
                world.open()
                world.disk.effects_left = -1
                break
            except Crashed:
                self._die(power=self.rng.random() < 0.5)
        self.check_recovered()

    def _die(self, *, power: bool) -> None:
        self.dead = True
        self.hear()
        self.power_failed |= power
        if power:
            self.world.power_fails()
        else:
            self.world.server_dies()
        self.under_way.clear()
        self.clients.clear()
        self.dead = False

    def check_recovered(self) -> None:
        """Promises 1, 2, 3 and 6 after a recovery, and then the accounts."""
        engine = self.world.engine
        for name in self.volumes:
            assert name in engine.by_name, f"volume {name} is gone"
            assert not engine.by_name[name].removing
        for name in self.gone:
            assert name not in engine.by_name or engine.by_name[name].removing, f"volume {name} came back"
        for name, size in self.unsure.items():
            volume = engine.by_name.get(name)
            if volume is not None and not volume.removing:
                self.volumes[name] = size
            else:
                self._forget(name)
        self.unsure.clear()
        found = {key: self._content(key) for key in sorted(self.model.blocks)}
        since = self.flushed
        if not self.power_failed:
            since = self.model.acknowledged
            self.model.must_survive(since)
        self.model.check_recovered(found, max(since, -1))
        self.model.recovered(found)
        self.flushed = self.model.tick()
        self.power_failed = False
        self.check_quiet()

    def _content(self, key: Key) -> bytes:
        into = bytearray(BLOCK_SIZE_BYTES)
        volume = self.world.engine.by_name[key[0]]
        if not self.world.engine.reader.read_block(volume, key[1], memoryview(into)):
            self.world.run(self.world.engine.reader.read(volume, key[1] * BLOCK_SIZE_BYTES, memoryview(into)))
        return bytes(into)

    def check_quiet(self) -> None:
        """With nothing under way: all blocks hold what they should, and the accounts are right."""
        self.settle()
        check_nothing_held(self.world)
        for key in self.model.blocks:
            assert self._content(key) == self.model.latest(key), self.model.describe(key, self._content(key))
        check_accounts(self.world)
        for name in self.volumes:
            for lba in mapped_lbas(self.world, self.world.engine.find(name)):
                assert (name, lba) in self.model.blocks, f"block {lba} of {name} is mapped, and nobody wrote it"

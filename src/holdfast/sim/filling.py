"""Runs that fill a pool until it says ENOSPC, let go of some of it, and fill it again.

A run of this kind goes through cycles. Several volumes are written to, with snapshots taken meanwhile, until a write
was told that there is no space. Then whatever clients and operators may do is done in the full pool. Then some of it is
let go of: by trims, by removing snapshots or a volume, by a volume's smaller size. Any of the three may end with the
death of the server, with or without the power, and may be cut short by it.

A cycle counts (`Outcome.cycles`) once a pool that was full has room again, and everything in it was looked at:
contents, and the accounts held against a recount.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from holdfast.sim.client import SimClient
from holdfast.sim.fate import Crashed
from holdfast.sim.faults import DAMAGE, FLIP, VANISH
from holdfast.sim.prng import stream
from holdfast.sim.run import Run
from holdfast.sim.swarm import Swarm, draw_swarm
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB

CYCLES = 10
SIZES = [8 * MIB, 60 * MIB, 700 * MIB]
FILL = {"write": 80, "zero": 4, "read": 5, "flush": 2, "checkpoint": 1}
BATCH_REQUESTS = 16
BATCHES_MAX = 200
# Letting go is over when no more than this part of what the pool may hold is used.
ROOM = 0.75


def draw_filling(seed: int | str, operations: int) -> Swarm:
    """A swarm of a pool that is small, and of clients that write a lot. `operations`: requests in full pools."""
    rng = stream(seed, "filling")
    swarm = draw_swarm(seed, operations)
    swarm.world = replace(
        swarm.world, segments=rng.choice([20, 20, 22, 26]), segment_blocks=64, uids=(None,), wake_ns=50_000
    )
    swarm.phases = CYCLES
    swarm.volumes = rng.choice([2, 3, 3])
    swarm.clients = rng.choice([3, 4])
    swarm.depth = rng.choice([4, 16])
    swarm.sizes = rng.sample(SIZES, 2)
    swarm.large, swarm.length_max = rng.choice([0.1, 0.3]), rng.choice([8, 16, 48]) * BLOCK_SIZE_BYTES
    swarm.region_blocks, swarm.places = rng.choice([120, 200]), rng.choice([0, 0, 0, 20])
    swarm.crash, swarm.power = rng.choice([0.2, 0.5]), rng.choice([0.3, 0.7, 1.0])
    swarm.storm, swarm.damage, swarm.tenants, swarm.resizes = False, False, 0, 0
    swarm.faults = [fault for fault in swarm.faults if fault[1] not in (*DAMAGE, FLIP, VANISH)]
    swarm.faulty = rng.choice([0.0, 0.0, 0.3]) if swarm.faults else 0.0
    swarm.actions = {**swarm.actions, "trim": 3, "snapshot": 3, "remove_snapshot": 1, "clone": 3, "promote": 3}
    for action in ("hang_up", "say_goodbye", "stop_reading", "remove", "create"):
        swarm.actions.pop(action, None)
    return swarm


class FillingRun(Run):
    def __init__(
        self,
        seed: int | str,
        operations: int,
        *,
        swarm: Swarm | None = None,
        write: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(seed, operations, swarm=swarm or draw_filling(seed, operations), write=write)

    def _course(self) -> None:
        for _ in range(self.swarm.phases):
            self._have_volumes()
            self._fill()
            self._be_full()
            self._let_go()
            self.outcome.cycles += 1

    @property
    def _used(self) -> float:
        """How much of what the pool may hold is used."""
        space = self.world.engine.space
        return space.used_blocks / space.usable_blocks

    # ---- the three parts of a cycle

    def _have_volumes(self) -> None:
        """As many as there should be, none of them small: what a cycle before has left is not always that."""
        work = self.work
        for _ in range(self.swarm.volumes - len(work.operator.volumes)):
            work.operator.create()
            self.world.settle()
        for name, size in list(work.operator.volumes.items()):
            if size < min(SIZES):
                work.sizes.resize(name, self.rng.choice(self.swarm.sizes))
        self.world.settle()

    def _fill(self) -> None:
        """Write until somebody was told that there is no space, and there is none."""
        swarm, snapshots = self.swarm, self.rng.choice([0, 0, 4])
        self.work.only(FILL | ({"snapshot": snapshots} if snapshots else {}))
        before = swarm.large, swarm.length_max, swarm.depth
        # Of what is under way in the end much is refused: no more than a few at a time.
        swarm.large, swarm.length_max, swarm.depth = 0.9, 64 * BLOCK_SIZE_BYTES, 2
        self._write_until_full()
        swarm.large, swarm.length_max, swarm.depth = before

    def _write_until_full(self) -> None:
        refused = self.world.rightly_refused
        for _ in range(BATCHES_MAX):
            if not self._part(BATCH_REQUESTS, self.swarm.crash / 10):
                refused = self.world.rightly_refused
            if self.world.rightly_refused > refused and self._used >= 1:
                return
        raise AssertionError(f"the pool does not become full: {self.world.who_waits()}")

    def _be_full(self) -> None:
        """Requests of all kinds, in a full pool."""
        self.work.only(self.swarm.actions)
        if self.rng.random() < self.swarm.cold:
            self._forget_pages()
        if self._part(max(1, self.swarm.operations // self.swarm.phases), self.swarm.crash):
            self._look_at_everything()
            if self.rng.random() < self.swarm.reopen:
                self.reopen()

    def _let_go(self) -> None:
        """In one way, or in several, until there is room again."""
        ways = [self._trim_all, self._trim_here_and_there, self._remove_snapshots, self._remove_volume, self._shrink]
        self.rng.shuffle(ways)
        for way in [*ways, self._remove_all]:
            self.work.only(FILL)
            self.work.connect_all()
            self.world.settle()
            if way != self._remove_all and self.rng.random() < self.swarm.crash:
                self.world.fate.left = self.rng.randrange(self.swarm.crash_effects)
            try:
                self.world.note("world", "lets go", way.__name__)
                way()
                self.world.settle()
            except Crashed:
                self.crash(power=self.rng.random() < self.swarm.power)
            self.world.fate.spare()
            self._look_at_everything()
            if self._used <= ROOM:
                return
        raise AssertionError(f"there is no way out of a full pool: {self._used:.2f} of it are used")

    # ---- what they are made of

    def _part(self, operations: int, crash: float) -> bool:
        """So many requests, perhaps with faults, perhaps with a death in the middle. False: there was one."""
        rng, swarm = self.rng, self.swarm
        self.work.connect_all()
        if rng.random() < swarm.faulty and not self._stuck:
            self._set_faults(swarm.faults)
        dies = rng.random() < crash
        if dies:
            self.world.fate.left = rng.randrange(swarm.crash_effects)
        try:
            self.send(operations)
        except Crashed:
            dies = True
        if dies:
            self.crash(power=rng.random() < swarm.power)
        self._set_faults([])
        return not dies

    def _look_at_everything(self) -> None:
        self.calm()
        self.inspection.check_quiet()

    def _clients(self) -> list[SimClient]:
        """One of each volume."""
        ready = {client.volume: client for client in self.world.clients if client.ready and not client.gone}
        return list(ready.values())

    # ---- ways to let go

    def _trim_all(self) -> None:
        for client in self._clients():
            self.work.trim(client, 0, min(client.size_bytes, 0xFFFFF000))

    def _trim_here_and_there(self) -> None:
        """Blocks here and there: what is dead lies among what is live."""
        for client in self._clients():
            written = sorted(lba for name, lba in self.model.blocks if name == client.volume)
            at = 0
            while at < len(written):
                first, count = written[at], self.rng.randrange(1, 9)
                room = client.size_bytes // BLOCK_SIZE_BYTES - first
                if room > 0:
                    self.work.trim(client, first * BLOCK_SIZE_BYTES, min(count, room) * BLOCK_SIZE_BYTES)
                at += count + self.rng.randrange(6)

    def _remove_snapshots(self) -> None:
        for _ in range(len(self.work.history.records)):
            self.work.history.remove()

    def _remove_volume(self) -> None:
        clients = self._clients()
        if clients:
            self.work.remove(self.rng.choice(clients).volume)

    def _shrink(self) -> None:
        names = list(self.work.operator.volumes)
        self.work.sizes.resize(self.rng.choice(names), self.rng.choice([4 * KIB, MIB + 1234]))

    def _remove_all(self) -> None:
        """All but one new volume: with it goes whatever clones keep of what they were made from."""
        self._remove_snapshots()
        self._trim_all()
        self.world.settle()
        others = list(self.work.operator.volumes)
        self.work.operator.create()
        self.world.settle()
        for name in others:
            self.work.remove(name)

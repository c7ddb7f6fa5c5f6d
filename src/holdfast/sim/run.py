"""One run: a world of its own, phases of requests, faults and deaths, and at the end everything looked at.

A run raises AssertionError as soon as a promise is broken. What it was and how it went is in its `Outcome`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EIO
from functools import partial

from holdfast.errors import CorruptionError, DiskError, HoldfastError, NoSpaceError
from holdfast.nbd.protocol import CMD_FLUSH
from holdfast.sim.client import Answer, SimClient
from holdfast.sim.fate import Crashed
from holdfast.sim.faults import FLIP
from holdfast.sim.inspection import Inspection
from holdfast.sim.model import Model
from holdfast.sim.prng import stream
from holdfast.sim.swarm import Swarm, draw_swarm
from holdfast.sim.tenants import Tenants
from holdfast.sim.trace import Trace
from holdfast.sim.workload import Workload
from holdfast.sim.world import World

# Simulated time without a request being sent, after which a phase with faults ends as it is.
STUCK_NS = 3_000_000_000
# A run goes on until it has sent as many requests as it should; while something fails, phases may end early.
PHASES_FACTOR_MAX = 6
CALM_NS_MAX = 60_000_000_000
ACKNOWLEDGEMENTS_MAX = 100  # a volume's FLUSH fails for one loss at a time


@dataclass(slots=True)
class Outcome:
    seed: int | str
    failure: str = ""
    operations: int = 0
    crashes: int = 0
    power_failures: int = 0
    effects: int = 0
    simulated_ns: int = 0
    trace: str = ""
    cycles: int = 0  # of filling a pool and letting go
    struck: Counter[tuple[str, str]] = field(default_factory=Counter)


class Run:
    def __init__(
        self,
        seed: int | str,
        operations: int,
        *,
        swarm: Swarm | None = None,
        write: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.swarm = swarm or draw_swarm(seed, operations)
        self.rng = stream(seed, "run")
        self.world = World(seed, self.swarm.world, Trace(write))
        self.model = Model()
        self.work = Workload(seed, self.swarm, self.world, self.model)
        self.inspection = Inspection(self.world, self.model, self.work)
        self.tenants = Tenants(self.world, stream(seed, "tenants"))
        self.outcome = Outcome(seed)
        self._power_failed = False
        self._stuck = False  # the last phase ended before its time
        self._opening = False

    # ---- a run

    def run(self) -> Outcome:
        """Do all of it. Raises AssertionError where a promise is broken."""
        world, work = self.world, self.work
        try:
            self._make_pool()
            for _ in range(self.swarm.volumes):
                work.operator.create()
                world.settle()
            self._course()
            self._end()
        finally:
            outcome = self.outcome
            outcome.operations = work.operations
            outcome.effects = world.fate.effects
            outcome.simulated_ns = world.clock.at_ns
            outcome.trace = world.trace.value()
            outcome.struck = world.faults.struck
        return self.outcome

    def _course(self) -> None:
        """What is between the making of the pool and the last look at it."""
        swarm, work = self.swarm, self.work
        for _ in range(PHASES_FACTOR_MAX * (swarm.phases + 4 * swarm.storm)):
            self._phase()
            if work.operations >= swarm.operations:
                break
        while work.operations < swarm.operations:
            self._send_in_peace()

    def _make_pool(self) -> None:
        """A new pool; its making may be cut short."""
        if self.rng.random() < 0.2:
            self.world.fate.left = self.rng.randrange(20)
        try:
            self.world.open()
            self.world.fate.spare()
        except Crashed:
            self.crash(power=self.rng.random() < 0.5)

    def _send_in_peace(self) -> None:
        """The requests that are still missing, while nothing fails and nobody dies."""
        self._set_faults([])
        self.work.connect_all()
        self.send(self.swarm.operations - self.work.operations)
        self.calm()

    def _phase(self) -> None:
        """Requests, perhaps with faults, perhaps with a death at the end."""
        rng, swarm, work = self.rng, self.swarm, self.work
        work.connect_all()
        trims = rng.random() < 0.2
        if trims:
            self.world.settle()
        # Where nothing got through, the next phase is one in which nothing fails.
        if (rng.random() < swarm.faulty or swarm.damage) and not self._stuck:
            self._set_faults(swarm.faults)
        full = max(1, swarm.operations // swarm.phases)
        if swarm.storm and work.operations < swarm.operations // 4:
            full = rng.randrange(1, 20)
        operations = min(full, swarm.operations - work.operations)
        # After a death a damaged medium leaves nothing to go on from: that comes at the end.
        crash = (swarm.storm or rng.random() < swarm.crash) and not swarm.damage and 2 * operations > full
        if rng.random() < swarm.cold:
            self._forget_pages()
        if trims:
            work.trim_everything()
        for _ in range(swarm.tenants):
            self.tenants.stir()
        for _ in range(swarm.resizes):
            self.work.sizes.stir()
        if crash:
            self.send(rng.randrange(operations))
            if rng.random() < swarm.busy_crash:
                self.world.spawn(self.world.engine.checkpoint())
            self.world.fate.left = rng.randrange(swarm.crash_effects)
        try:
            self.send(operations if not crash else operations // 4 + 1)
        except Crashed:
            crash = True
        if crash:
            self.crash(power=rng.random() < swarm.power)
            return
        self.calm()
        self.inspection.check_quiet()
        if rng.random() < swarm.reopen and not swarm.damage:
            self.reopen()

    def send(self, operations: int) -> None:
        """Let the clients send so many requests, or as many as get through while something fails."""
        work, world = self.work, self.world
        work.left = operations
        for client in world.clients:
            client.poke()
        before, since_ns = operations, world.clock.at_ns
        self._stuck = False
        while work.left > 0:
            world.turn()
            self.tenants.watch()
            if work.left != before:
                before, since_ns = work.left, world.clock.at_ns
            elif world.clock.at_ns - since_ns > STUCK_NS:
                if world.faults.failing() or not any(not client.gone for client in world.clients):
                    self._stuck = True
                    break
                assert world.clock.at_ns - since_ns < CALM_NS_MAX, f"a hang: {world.who_waits()}"
        work.left = 0

    def calm(self) -> None:
        """Nothing fails any more: everything must be answered within bounded time, and a FLUSH be heard."""
        self._set_faults([])
        work, world = self.work, self.world
        world.settle()
        work.connect_all()
        world.settle()
        for name in list(work.operator.volumes):
            client = next(client for client in world.clients if client.volume == name and not client.gone)
            if not client.reading:
                client.read_again()
            moment = self.model.tick()
            lost = world.engine.by_name[name].loss_open
            heard = self._flush(client)
            assert heard[0].errno or not lost, f"a FLUSH of {name} succeeds though accepted data is lost"
            for _ in range(ACKNOWLEDGEMENTS_MAX):
                volume = world.engine.by_name[name]
                if not (heard[0].errno == EIO and self._may_lose and volume.loss_open):
                    break
                # The medium has lost something for good, and FLUSH says so until somebody has heard it.
                world.wait_for(partial(world.engine.volumes.acknowledge_loss, name, volume.loss_epoch))
                world.settle()
                moment = self.model.tick()
                heard = self._flush(client)
            assert heard[0].errno == 0, f"a flush when nothing fails: errno {heard[0].errno}"
            work.flushed = max(work.flushed, moment)
            self.model.must_survive(moment)
        world.settle()

    @property
    def _may_lose(self) -> bool:
        """True where a block can be damaged for good, or be misread so often that it is taken for that."""
        return self.swarm.damage or any(kind == FLIP for _point, kind, _rate in self.swarm.faults)

    def _flush(self, client: SimClient) -> list[Answer]:
        heard: list[Answer] = []
        client.send(CMD_FLUSH, heard=heard.append)
        self.world.settle(partial(bool, heard))
        return heard

    def _forget_pages(self) -> None:
        """Drop every page of the maps that can be read again: looking at everything has brought all of them in."""
        cache = self.world.engine.cache
        for _ in range(8):  # levels of a map, leaves first
            for slot in list(cache.slot_of.values()):
                if not cache.stamp[slot] and not cache.children[slot]:
                    cache.forget(slot)

    def _set_faults(self, faults: list[tuple[str, str, float]]) -> None:
        self.world.faults.calm()
        for point, kind, rate in faults:
            self.world.faults.turn_on(point, kind, rate)
        self.work.era += 1

    # ---- deaths

    def crash(self, *, power: bool) -> bool:
        """The server dies, or the power fails; recovery may be cut short as well. False: the medium is damaged, and
        the pool says so; there is nothing more to try."""
        rng, world = self.rng, self.world
        self._die(power=power)
        self._opening = True
        while True:
            if rng.random() < 0.3:
                world.fate.left = rng.randrange(30)
            try:
                world.begin_open()
                if world.faults.failing() and not world.go_on(STUCK_NS, world.quiet):
                    self._set_faults([])  # it tries for as long as something fails
                world.finish_open()
                world.fate.spare()
                break
            except Crashed:
                self._die(power=rng.random() < 0.5)
            except CorruptionError as error:
                assert self.swarm.damage, f"the pool does not open: {error}"
                world.note("server", "refuses", error)
                return False
            except (DiskError, NoSpaceError) as error:
                assert world.faults.failing(), f"the pool does not open: {error}"
                self._die(power=False)
                self._set_faults([])
        self._opening = False
        self._set_faults([])
        if self.swarm.damage:
            self.inspection.check_damaged()
            return False
        self.inspection.check_recovered(power_failed=self._power_failed)
        self.tenants.check()
        self.work.sizes.check()
        self._power_failed = False
        return True

    def _die(self, *, power: bool) -> None:
        self.outcome.crashes += 1
        self.outcome.power_failures += power
        self._power_failed |= power
        if power:
            self.world.power_fails()
        else:
            self.world.server_dies()
        self.work.new_life()
        if self.rng.random() < self.swarm.slot_loss and not self._opening:
            self.world.disk.lose_slot()

    def reopen(self) -> None:
        """A clean end and a new start: nothing is lost, flushed or not."""
        self.close()
        try:
            self.world.open()
        except HoldfastError as error:
            raise AssertionError(f"the pool does not open after a clean end: {error}") from error
        self.tenants.check()
        self.work.sizes.check()
        self.inspection.check_quiet()

    def close(self) -> None:
        self.world.close()
        self.work.new_life()
        self.work.flushed = self.model.tick()
        self.model.must_survive(self.work.flushed)

    def _end(self) -> None:
        self.calm()
        self.inspection.check_quiet()
        if self.swarm.damage:
            self.crash(power=self.rng.random() < self.swarm.power)
            return
        self.close()
        self.inspection.check_files()


def run_seed(seed: int | str, operations: int, *, write: Callable[[str], None] | None = None) -> Outcome:
    """Run one seed; a broken promise is in the outcome's `failure`."""
    run = Run(seed, operations, write=write)
    try:
        run.run()
    except AssertionError as error:
        run.outcome.failure = str(error) or "an assertion without a message"
    return run.outcome

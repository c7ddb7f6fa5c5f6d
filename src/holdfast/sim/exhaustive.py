"""Every point in turn: a fixed course of events in which the N-th call fails, or the N-th effect is the last one, for
every N.

The random runs find what nobody thought of; these loops leave out nothing of what they do cover, the way SQLite tests
that it survives running out of memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from holdfast.errors import CorruptionError, HoldfastError
from holdfast.sim.disk import DiskCharacter
from holdfast.sim.fate import Crashed
from holdfast.sim.faults import DAMAGE, POINTS
from holdfast.sim.run import Run
from holdfast.sim.swarm import Swarm
from holdfast.sim.world import WorldConfig
from holdfast.units import BLOCK_SIZE_BYTES, MIB

SEED = "every"
CHANGES_OF_GROUPS = 8
OPERATIONS = 80
SEGMENTS = 20
SEGMENTS_LESS = 16


@dataclass(frozen=True, slots=True)
class Case:
    """One run: the `number`-th call at `point` fails by `kind`, or (`point` "power" or "kill") the effect is the
    last."""

    point: str
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.point} {self.kind} {self.number}"


def fixed_swarm(*, damage: bool = False) -> Swarm:
    """Little of everything, and the same for all loops: some commands of each kind, at few places, small memory."""
    return Swarm(
        world=WorldConfig(
            segments=SEGMENTS,
            preallocate=not damage,
            ring_blocks=256,
            pages=64,
            disk=DiskCharacter(cached=0.5, workers=2),
        ),
        operations=OPERATIONS,
        actions={"write": 30, "read": 12, "trim": 3, "zero": 4, "flush": 6, "status": 2, "cache": 2, "checkpoint": 1},
        volumes=2,
        clients=3,
        depth=8,
        sizes=[8 * MIB, 3 * MIB + 1000],
        places=6,
        region_blocks=24,
        length_max=300 * BLOCK_SIZE_BYTES,
        large=0.1,
        unaligned=0.2,
        overlap=0.1,
        phases=1,
        crash=0.0,
        power=0.0,
        reopen=0.0,
        crash_effects=1,
        busy_crash=0.0,
        cold=0.0,
        storm=False,
        slot_loss=0.0,
        faulty=0.0,
        damage=damage,
    )


class FixedRun(Run):
    """The course: open, two volumes, groups for them, requests, a volume goes, the pool becomes smaller, more requests,
    a clean end and a new start, the end."""

    def __init__(self, case: Case | None, write: Callable[[str], None] | None = None, *, damage: bool = False) -> None:
        damage = damage or (case is not None and case.kind in DAMAGE)
        super().__init__(SEED, OPERATIONS, swarm=fixed_swarm(damage=damage), write=write)
        self.case = case
        self.offered: Counter[str] = Counter()  # how often there was something that could fail, before the end
        self.effects = 0
        self._over = False
        if case is not None and case.point in ("power", "kill"):
            self.world.fate.left = case.number
        elif case is not None:
            self.world.faults.countdown = case.point, case.kind, case.number

    def run_course(self) -> None:
        """Raises AssertionError where a promise is broken."""
        world = self.world
        steps = [world.open, self._create_two, self._divide, self._send_half, self._remove_one, self._make_smaller]
        for step in [*steps, self._send_half]:
            self._attempt(step)
        if not self.swarm.damage:
            self._attempt(self._restart)
            self._attempt(self._send_half)  # what is read now comes from the disk
        self.offered = Counter(world.faults.offered)
        self.effects = world.fate.effects
        if not self._over:
            # What has not happened by now will not happen: the end is looked at in peace.
            world.fate.spare()
            self._end()

    def _create_two(self) -> None:
        self.work.operator.create()
        self.work.operator.create()
        self.world.settle()

    def _divide(self) -> None:
        for _ in range(CHANGES_OF_GROUPS):
            self.tenants.stir()
            self.world.settle()

    def _send_half(self) -> None:
        self.work.connect_all()
        self.send(OPERATIONS // 2)

    def _remove_one(self) -> None:
        client = next((client for client in self.world.clients if client.ready), None)
        if client is not None:
            self.work.operator.remove(client.volume)
            self.work.operator.create()
            self.world.settle()

    def _make_smaller(self) -> None:
        if self.swarm.damage:
            return  # the segment files that are read once more are few enough
        self.work.sizes.resize_pool(SEGMENTS_LESS)
        self.world.settle()

    def _restart(self) -> None:
        self.world.settle()
        self.work.changes.exorcise()
        self.close()
        self.world.open()
        self.tenants.check()

    def _attempt(self, step: Callable[[], object]) -> None:
        if self._over:
            return
        try:
            step()
        except Crashed:
            assert self.case is not None
            self._over = not self.crash(power=self.case.point == "power")
        except CorruptionError as error:
            assert self.swarm.damage, f"the pool does not open: {error}"
            self._over = True
        except HoldfastError as error:
            # It could not be opened or closed, since something failed: once it does not any more, it must be.
            assert self.case is not None, error
            self.world.faults.calm()
            self._over = not self.crash(power=False)


def cases() -> Iterator[Case]:
    """All there are for the fixed course, found out by running it once with nothing going wrong."""
    dry, dry_damage = FixedRun(None), FixedRun(None, damage=True)
    dry.run_course()
    dry_damage.run_course()
    for point, kinds in POINTS.items():
        for kind in kinds:
            for number in range((dry_damage if kind in DAMAGE else dry).offered[point]):
                yield Case(point, kind, number)
    for number in range(dry.effects):
        yield Case("power", "off", number)
        yield Case("kill", "-9", number)


def run_case(case: Case, write: Callable[[str], None] | None = None) -> str:
    """The broken promise, or "" if all were kept. A case that never comes about is broken, too."""
    run = FixedRun(case, write)
    try:
        run.run_course()
        died = case.point in ("power", "kill")
        struck = run.outcome.crashes if died else run.world.faults.struck[case.point, case.kind]
        assert struck, "nothing struck: there is no such call or effect"
    except AssertionError as error:
        return str(error) or "an assertion without a message"
    except Exception as error:  # the engine's own mistakes are failures like any other
        return f"{type(error).__name__}: {error}"
    return ""

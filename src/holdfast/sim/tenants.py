"""What an operator does with groups while clients are at work: makes, changes and removes them, moves volumes; and that
what he was told is durable is there after deaths."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from holdfast.errors import HoldfastError
from holdfast.sim.world import World
from holdfast.units import KIB, MIB
from holdfast.volume.groups import DEFAULT_GROUP, GroupLimits, TenantGroup
from holdfast.volume.settings import VolumeSettings

NAMES = ("red", "green", "blue")
UIDS = (1000, 1001)


class Tenants:
    """`known`: what was answered; `unsure`: names of groups that something is under way with."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        self.known: dict[str, GroupLimits] = {}
        self.unsure: dict[str, None] = {}

    def stir(self) -> None:
        """Begin one change of the groups, or of which one a volume is in."""
        name = self.rng.choice(NAMES)
        if name in self.unsure:
            return
        if name not in self.known:
            self._create(name)
        else:
            self.rng.choice([self._change, self._change, self._move, self._move, self._move, self._remove])(name)

    def _draw(self) -> GroupLimits:
        rng = self.rng
        return GroupLimits(
            memory_bytes=rng.choice([0, 0, MIB]),
            dirty_bytes=rng.choice([0, 256 * KIB, 512 * KIB]),
            dirty_min_bytes=rng.choice([0, 0, 64 * KIB]),
            map_min_bytes=rng.choice([0, 0, 32 * KIB]),
            uid=rng.choice([*UIDS, (1 << 32) - 1]),
        )

    def _create(self, name: str) -> None:
        limits = self._draw()
        self._begin(name, "create", lambda answer: self.world.engine.groups.create(name, limits, answer), limits)

    def _change(self, name: str) -> None:
        limits = self._draw()
        self._begin(name, "change", lambda answer: self.world.engine.groups.change(name, limits, answer), limits)

    def _remove(self, name: str) -> None:
        self._begin(name, "remove", lambda answer: self.world.engine.groups.remove(name, answer), None)

    def _move(self, name: str) -> None:
        engine = self.world.engine
        volumes = [volume for volume in engine.by_name.values() if not volume.removing]
        if not volumes:
            return
        volume = self.rng.choice(volumes)
        group = engine.groups.find(self.rng.choice([name, name, DEFAULT_GROUP]))
        self.world.note("operator", "move", (volume.name, group.name))
        self.world.wait_for(lambda answer: engine.change_volume(volume.name, answer, VolumeSettings(group=group)))

    def _begin(
        self,
        name: str,
        what: str,
        begin: Callable[[Callable[[TenantGroup | HoldfastError | None], None]], object],
        limits: GroupLimits | None,
    ) -> None:
        self.unsure[name] = None

        def answered(outcome: TenantGroup | HoldfastError | None) -> None:
            del self.unsure[name]
            if isinstance(outcome, HoldfastError):
                return
            if limits is None:
                del self.known[name]
            else:
                self.known[name] = limits

        def both(answer: Callable[[object], None]) -> object:
            def told(outcome: TenantGroup | HoldfastError | None) -> None:
                answered(outcome)
                answer(outcome)

            return begin(told)

        self.world.note("operator", f"{what} group", name)
        self.world.wait_for(both)

    def check(self) -> None:
        """After a start: what was answered is there, and nothing else but what was under way at the end."""
        there = self.world.engine.groups.directory.by_name
        for name, limits in self.known.items():
            if name not in self.unsure:
                assert name in there, f"group {name} is gone"
                assert there[name].limits == limits, f"group {name}: {there[name].limits}, not {limits}"
        for name in there:
            assert name in self.known or name in self.unsure or name == DEFAULT_GROUP, f"group {name} is back"
        self.known = {name: group.limits for name, group in there.items() if name != DEFAULT_GROUP}
        self.unsure.clear()

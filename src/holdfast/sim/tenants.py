"""What an operator does with groups while clients are at work: makes, changes and removes them, moves volumes; that
what he was told is durable is there after deaths; and that no group has more of the ring than it may.

The host does its part: it is short of memory now and then."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.memory.group import Kind
from holdfast.memory.reclaim import Pressure
from holdfast.pool.tables import GroupLimits
from holdfast.sim.world import World
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB
from holdfast.volume.groups import DEFAULT_GROUP, TenantGroup
from holdfast.volume.settings import VolumeSettings
from holdfast.volume.volume import Volume

NAMES = ("red", "green", "blue")
UIDS = (1000, 1001)


class Tenants:
    """`known`: what was answered; `unsure`: names of groups that something is under way with."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        self.known: dict[str, GroupLimits] = {}
        self.unsure: dict[str, None] = {}
        self.members: dict[str, str] = {}  # volume -> the group that it was moved to, as was answered
        self._moving: dict[str, None] = {}  # volumes that are being moved
        self._above: dict[TenantGroup, None] = {}  # groups that used more when their limit was set

    def stir(self) -> None:
        """Begin one change of the groups, or of which one a volume is in; the host may change its mind."""
        if self.rng.random() < 0.3:
            self.world.engine.pressure(self.rng.choice([Pressure.NONE, Pressure.NONE, Pressure.SOME, Pressure.HIGH]))
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
        self._above[self.world.engine.groups.find(name)] = None
        self._begin(name, "change", lambda answer: self.world.engine.groups.change(name, limits, answer), limits)

    def _remove(self, name: str) -> None:
        self._begin(name, "remove", lambda answer: self.world.engine.groups.remove(name, answer), None)

    def _move(self, name: str) -> None:
        engine = self.world.engine
        volumes = [volume for volume in engine.volumes.heads() if not volume.removing]
        if not volumes:
            return
        volume = self.rng.choice(volumes)
        group = engine.groups.find(self.rng.choice([name, name, DEFAULT_GROUP]))
        self.world.note("operator", "move", (volume.name, group.name))
        if volume.name in self._moving:
            return
        self._moving[volume.name] = None

        def moved(outcome: Volume | HoldfastError | None) -> None:
            del self._moving[volume.name]
            if isinstance(outcome, Volume):
                self.members[volume.name] = group.name

        self._told(lambda answer: engine.change_volume(volume.name, answer, VolumeSettings(group=group)), moved)

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

        self.world.note("operator", f"{what} group", name)
        self._told(begin, answered)

    def _told(self, begin: Callable[[Callable[[Any], None]], object], heard: Callable[[Any], None]) -> None:
        """Begin something; `heard` gets the answer, unless the server dies first."""

        def both(answer: Callable[[object], None]) -> object:
            def told(outcome: object) -> None:
                heard(outcome)
                answer(outcome)

            return begin(told)

        self.world.wait_for(both)

    def watch(self) -> None:
        """After a turn: nobody has more than its share of the ring, but who had more when that was set; and what all
        have together is what is dirty."""
        engine = self.world.engine
        if not self.known:
            return
        engine.log.settle()
        payers = dict.fromkeys(engine.log.dirty.payers)
        dirty_bytes = (engine.log.dirty.settled - engine.log.durable) * BLOCK_SIZE_BYTES
        paid_bytes = sum(payer.usage[Kind.RING] for payer in payers)
        assert paid_bytes == dirty_bytes, f"{dirty_bytes} bytes are dirty, and {paid_bytes} paid for"
        for group in engine.groups.directory.by_id.values():
            limit_bytes = group.limits.dirty_bytes
            if not limit_bytes:
                continue
            used_bytes = group.memory.usage[Kind.RING]
            if used_bytes <= limit_bytes:
                self._above.pop(group, None)
            else:
                over_bytes = used_bytes - limit_bytes
                allowed = group in self._above or over_bytes <= engine.must_succeed.ring_blocks * BLOCK_SIZE_BYTES
                assert allowed, f"group {group.name}: {used_bytes} bytes of the ring, of {limit_bytes}"

    def check(self) -> None:
        """After a start: what was answered is there, and nothing else but what was under way at the end."""
        there = self.world.engine.groups.directory.by_name
        for name, limits in self.known.items():
            if name not in self.unsure:
                assert name in there, f"group {name} is gone"
                assert there[name].limits == limits, f"group {name}: {there[name].limits}, not {limits}"
        for name in there:
            assert name in self.known or name in self.unsure or name == DEFAULT_GROUP, f"group {name} is back"
        by_name = self.world.engine.by_name
        for volume, group in self.members.items():
            if volume in by_name and volume not in self._moving and not by_name[volume].removing:
                assert by_name[volume].group.name == group, f"{volume} is in {by_name[volume].group.name}, not {group}"
        self.known = {name: group.limits for name, group in there.items() if name != DEFAULT_GROUP}
        for name, node in by_name.items():
            assert node.parent is None or node.group is node.parent.group, f"{name} is not in the group of its volume"
        self.members = {volume.name: volume.group.name for volume in self.world.engine.volumes.heads()}
        self.unsure.clear()
        self._moving.clear()
        self._above.clear()

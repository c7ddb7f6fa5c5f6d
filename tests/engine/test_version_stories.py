"""Snapshots and clones in stories: whatever is done, in whatever order, each is what it was."""

from __future__ import annotations

import logging
from random import Random

import pytest

from holdfast.errors import RequestError
from holdfast.sim.accounts import check_accounts
from holdfast.volume.versions import is_for_one_clone
from tests.engine.helpers import create, new_world
from tests.engine.versions import (
    BLOCK,
    BLOCKS,
    SIZE,
    clone,
    promote,
    read,
    remove,
    roll_back,
    snapshot,
    trim,
    write,
)


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")


class Story:
    """Random changes of a pool, and what each volume and snapshot must hold: contents as tuples of a number a block."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.world = new_world(
            seed, pages=self.rng.choice([64, 128]), pages_per_turn=self.rng.choice([1, 64]), segments=128
        )
        self.contents: dict[str, list[int]] = {}
        self.lbas = sorted({*self.rng.sample(range(BLOCKS), 24), 0, 511, 512, BLOCKS - 1})
        self.next_number = 1
        create(self.world, "v0", SIZE)
        self.contents["v0"] = [0] * len(self.lbas)

    def volumes(self) -> list[str]:
        return [name for name in self.contents if "@" not in name]

    def snapshots(self) -> list[str]:
        return [name for name in self.contents if "@" in name]

    def lbas_of(self, name: str) -> list[int]:
        """Those that are inside of the volume."""
        end = self.world.engine.find(name).size_blocks
        return [lba for lba in self.lbas if lba < end]

    def new_name(self, prefix: str) -> str:
        self.next_number += 1
        return f"{prefix}{self.next_number}"

    def step(self) -> None:
        rng, world = self.rng, self.world
        action = rng.choices(
            [
                "write",
                "trim",
                "snapshot",
                "clone",
                "remove",
                "roll back",
                "promote",
                "checkpoint",
                "die",
                "look",
                "rest",
            ],
            [60, 10, 8, 4, 6, 2, 2, 3, 3, 5, 3],
        )[0]
        if action == "write":
            name, number = rng.choice(self.volumes()), rng.randrange(1, 1 << 20)
            lbas = self.lbas_of(name)
            first = rng.randrange(len(lbas))
            for index in range(first, min(len(lbas), first + rng.choice([1, 1, 4, 12]))):
                block = number.to_bytes(4, "little") * (BLOCK // 4)
                if world.engine.writer.write_block(world.engine.find(name), self.lbas[index], block):
                    write(world, name, self.lbas[index], block)  # something has to be waited for
                world.engine.turn()  # only then it would be acknowledged
                self.contents[name][index] = number
        elif action == "trim":
            name = rng.choice(self.volumes())
            start, stop = sorted(rng.choices(range(world.engine.find(name).size_blocks + 1), k=2))
            trim(world, name, start, stop - start)
            for index, lba in enumerate(self.lbas):
                if start <= lba < stop:
                    self.contents[name][index] = 0
        elif action == "snapshot":
            chosen = rng.sample(self.volumes(), min(len(self.volumes()), rng.choice([1, 1, 2])))
            label = self.new_name("s")
            snapshot(world, *(f"{name}@{label}" for name in chosen))
            for name in chosen:
                self.contents[f"{name}@{label}"] = list(self.contents[name])
        elif action == "clone" and len(self.volumes()) < 5:
            source, name = rng.choice(list(self.contents)), self.new_name("c")
            clone(world, source, name)
            self.contents[name] = list(self.contents[source])
        elif action == "remove":
            name = rng.choice(list(self.contents))
            if "@" in name or len(self.volumes()) > 1:
                remove(world, name, snapshots=True)
                for gone in [each for each in self.contents if each == name or each.startswith(f"{name}@")]:
                    del self.contents[gone]
        elif action == "roll back" and self.snapshots():
            name = rng.choice(self.snapshots())
            roll_back(world, name)
            self.contents[name.split("@")[0]] = list(self.contents[name])
        elif action == "promote":
            self.promote(rng.choice(self.volumes()))
        elif action == "checkpoint":
            world.run(world.engine.checkpoint())
        elif action == "die":
            self.die()
        elif action == "look":
            self.look(rng.choice(list(self.contents)))
        elif action == "rest":
            world.settle()

    def promote(self, name: str) -> None:
        before = set(self.world.engine.by_name)
        try:
            promote(self.world, name)
        except RequestError:
            return
        gone = before - set(self.world.engine.by_name)
        for former in gone:
            self.contents[f"{name}@{former.split('@')[1]}"] = self.contents.pop(former)

    def die(self) -> None:
        """All that was written must be there: the ring survives, or it was flushed before."""
        world = self.world
        if self.rng.random() < 0.5:
            world.server_dies()
        else:
            world.run(world.engine.checkpoint())
            world.power_fails()
        world.open()
        assert sorted(world.engine.by_name) == sorted(self.contents)

    def look(self, name: str) -> None:
        for index, lba in enumerate(self.lbas_of(name)):
            expected = self.contents[name][index].to_bytes(4, "little") * (BLOCK // 4)
            assert read(self.world, name, lba) == expected, (name, lba)

    def check(self) -> None:
        self.world.settle()
        for name in self.contents:
            self.look(name)
        check_accounts(self.world)
        nodes = self.world.engine.volumes.by_id.values()
        for node in nodes:
            if is_for_one_clone(node) and node.mapped_blocks:  # nobody needs it but snapshots of the clone, by marks
                (clone,) = [other for other in nodes if other.basis is node]
                assert clone.predecessor is not None


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_done_each_is_what_it_was(seed: int) -> None:
    story = Story(seed)
    for _ in range(120):
        story.step()
    story.check()
    story.world.close()
    story.world.open()
    story.check()

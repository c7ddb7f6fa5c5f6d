"""What the tests of snapshots and clones do to a world, in a word each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB
from holdfast.volume.volume import Volume

BLOCK = BLOCK_SIZE_BYTES
SIZE = 8 * MIB
BLOCKS = SIZE // BLOCK


def call(world: World, begin: Callable[[Callable[[Any], None]], object]) -> Any:
    """Do what calls back, and wait for that; raises the error that it calls back with."""
    outcome = world.wait_for(begin)
    world.settle(lambda: bool(outcome))
    if isinstance(outcome[0], HoldfastError):
        raise outcome[0]
    return outcome[0]


def snapshot(world: World, *names: str) -> list[Volume]:
    wanted = [tuple(name.split("@")) for name in names]
    taken: list[Volume] = call(world, lambda answer: world.engine.snapshots.take(wanted, answer))  # type: ignore[arg-type]
    return taken


def clone(world: World, source: str, name: str) -> Volume:
    made: Volume = call(world, lambda answer: world.engine.snapshots.clone(source, name, answer))
    return made


def remove(world: World, name: str, *, snapshots: bool = False) -> None:
    call(world, lambda answer: world.engine.remove_volume(name, answer, snapshots=snapshots))


def roll_back(world: World, name: str) -> None:
    call(world, lambda answer: world.engine.snapshots.roll_back(name, answer))


def promote(world: World, name: str) -> None:
    call(world, lambda answer: world.engine.snapshots.promote(name, answer))


def write(world: World, name: str, lba: int, content: bytes) -> None:
    world.run(world.engine.long_writer.write(world.engine.find(name), lba << BLOCK_SHIFT, memoryview(content)))


def trim(world: World, name: str, lba: int, count: int) -> None:
    world.run(world.engine.long_writer.trim(world.engine.find(name), lba << BLOCK_SHIFT, count << BLOCK_SHIFT))


def read(world: World, name: str, lba: int = 0, count: int = 1) -> bytes:
    into = memoryview(bytearray(count * BLOCK))
    world.run(world.engine.reader.read(world.engine.find(name), lba << BLOCK_SHIFT, into))
    return bytes(into)


def of(value: int) -> bytes:
    return bytes([value]) * BLOCK

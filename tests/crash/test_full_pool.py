"""A pool that is full, of a real server: filled by several volumes at once, then everything that must work in it.

A cycle: all volumes are written to until each was told ENOSPC. In that state blocks are overwritten, read and flushed,
a checkpoint is written, and the server is killed in the middle of it or stopped; what it answered is there when it
comes back, and the pool is as full as before. Then some of it is let go of, each cycle in another way: that works, the
server killed right after it or not, and as much can be written again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from random import Random

import numpy as np
import pytest

from holdfast.control.api import ChangeVolume, CreateVolume, PoolStatus, TakeSnapshots
from holdfast.control.client import ControlClient
from holdfast.control.space_api import ResizeVolume
from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from tests.crash.harness import Answer, Connection, Server, call, drain, progress, read_volume, serving
from tests.crash.oracle import CELL_BYTES, Change, VolumeOracle, pattern

SIZE_BYTES = 16 * MIB
NAMES = ("a", "b", "c")
OPTIONS = (
    *(word for name in NAMES for word in ("--volume", f"{name}=16M")),
    *("--capacity", "32M", "--segment-size", "1M", "--memory", "16M"),
)
DEPTH = 8
BLOCK = BLOCK_SIZE_BYTES
CELLS_PER_BLOCK = BLOCK // CELL_BYTES


@dataclass(slots=True)
class Disk:
    """A volume, and whoever writes to it. `refused`: it was told ENOSPC since it was asked to fill the pool."""

    name: str
    oracle: VolumeOracle
    connection: Connection
    under_way: dict[int, Change]
    refused: bool = False


class Cycles:
    def __init__(self, server: Server, random: Random) -> None:
        self.server = server
        self.random = random
        self.oracles = {name: VolumeOracle(number, SIZE_BYTES) for number, name in enumerate(NAMES, 1)}
        self.snapshots: dict[str, bytes] = {}
        self.disks: list[Disk] = []
        self.generation = 0
        self.number = 0

    # ---- the server

    def control(self) -> ControlClient:
        control = ControlClient.connect_if_served(self.server.pool)
        assert control is not None
        return control

    def status(self) -> PoolStatus:
        with self.control() as control:
            return control.status()

    def start(self) -> None:
        """Start it, and hold everything that it has against what it answered."""
        self.server.start()
        for name, oracle in self.oracles.items():
            found = read_volume(self.server.pool, name)
            oracle.check_acknowledged(found)
            oracle.adopt(found)
        for name, content in self.snapshots.items():
            assert read_volume(self.server.pool, name) == content, f"{name} is not what it was"
        self.connect()

    def connect(self) -> None:
        self.disks = [Disk(name, its, Connection(self.server.pool, name), {}) for name, its in self.oracles.items()]

    def disconnect(self, name: str = "") -> None:
        """All clients go, or those of one volume, and the server has noticed."""
        for disk in self.disks:
            if name in ("", disk.name):
                disk.connection.close()
                with self.control() as control:
                    while control.volume(disk.name).connections:
                        pass
        self.disks = [disk for disk in self.disks if name not in ("", disk.name)]

    def die(self) -> None:
        """kill -9, with whatever is under way."""
        self.server.kill()
        drain([disk.connection for disk in self.disks])
        self.take_answers()
        for disk in self.disks:
            disk.connection.close()

    def stop(self) -> None:
        self.settle()
        self.disconnect()
        self.server.stop()

    # ---- load

    def write(self, disk: Disk, first: int, count: int) -> bool:
        """Begin to write so many blocks, unless something there is under way or was refused."""
        offset, length = first * BLOCK, count * BLOCK
        if disk.oracle.busy[first * CELLS_PER_BLOCK : (first + count) * CELLS_PER_BLOCK].any():
            return False
        self.generation += 1
        data = pattern(disk.oracle.volume, offset, length, self.generation)
        change = disk.oracle.change(offset, data, fua=False, what=f"write of {length} at {offset}")
        cookie = disk.connection.submit(CMD_WRITE, offset=offset, length=length, payload=data)
        disk.under_way[cookie] = change
        return True

    def take_answers(self) -> None:
        """A change that was refused stays one that may have been made, in part."""
        for disk in self.disks:
            while disk.connection.answers:
                answer = disk.connection.answers.popleft()
                change = disk.under_way.pop(answer.cookie)
                if answer.errno == 0:
                    disk.oracle.changed(change)
                else:
                    assert answer.errno == ENOSPC, change.what
                    disk.refused = True

    def settle(self) -> None:
        while any(disk.under_way for disk in self.disks):
            self.progress()

    def progress(self) -> None:
        progress([disk.connection for disk in self.disks])
        assert not any(disk.connection.ended for disk in self.disks), "the server hung up"
        self.take_answers()

    def ask(self, disk: Disk, command: int, offset: int = 0, length: int = 0, payload: bytes = b"") -> Answer:
        assert not disk.under_way
        return call(disk.connection, command, offset=offset, length=length, payload=payload)

    def snapshots_of(self, disk: Disk) -> list[str]:
        return [name for name in self.snapshots if name.startswith(f"{disk.name}@")]

    def fullest(self) -> Disk:
        return max(self.disks, key=lambda disk: len(self.mapped(disk)))

    def mapped(self, disk: Disk) -> list[int]:
        """Blocks that hold what was written to them, and that nothing is under way for."""
        content = np.frombuffer(disk.oracle.content, np.uint64).reshape(SIZE_BYTES // BLOCK, -1)
        busy = disk.oracle.busy.reshape(SIZE_BYTES // BLOCK, -1)
        lbas: list[int] = np.flatnonzero(content.any(axis=1) & ~busy.any(axis=1)).tolist()
        return lbas

    # ---- a cycle

    def fill(self) -> None:
        """All volumes at once, until each was told that there is no space; those that have a snapshot by writing over
        what it keeps."""
        kept = {disk.name: self.mapped(disk) if self.snapshots_of(disk) else [] for disk in self.disks}
        for disk in self.disks:
            disk.refused = False
        while not all(disk.refused for disk in self.disks):
            for disk in self.disks:
                while not disk.refused and len(disk.under_way) < DEPTH:
                    if kept[disk.name]:
                        self.write(disk, self.random.choice(kept[disk.name]), 1)
                    else:
                        count = 1 << self.random.randrange(2 if self.snapshots else 7)
                        self.write(disk, self.random.randrange(SIZE_BYTES // BLOCK - count), count)
            self.progress()
        self.settle()

    def is_full(self) -> None:
        """A block more is refused."""
        disk = self.random.choice(self.disks)
        content = np.frombuffer(disk.oracle.content, np.uint64).reshape(SIZE_BYTES // BLOCK, -1)
        holes = np.flatnonzero(~content.any(axis=1))
        for lba in self.random.sample(holes.tolist(), 3):
            payload = pattern(disk.oracle.volume, lba * BLOCK, BLOCK, 1)
            assert self.ask(disk, CMD_WRITE, lba * BLOCK, BLOCK, payload).errno == ENOSPC

    def read(self) -> None:
        for disk in self.disks:
            for lba in self.random.sample(self.mapped(disk), 20):
                answer = self.ask(disk, CMD_READ, lba * BLOCK, BLOCK)
                assert (answer.errno, answer.data) == (0, disk.oracle.content[lba * BLOCK : (lba + 1) * BLOCK])

    def flush(self) -> None:
        for disk in self.disks:
            assert self.ask(disk, CMD_FLUSH).errno == 0

    def checkpoint(self) -> None:
        with self.control() as control:
            before = control.status().checkpoint.sequence
            control.change_volume(self.random.choice(NAMES), ChangeVolume(on_full_wait_s=0))
            assert control.status().checkpoint.sequence > before

    def overwrite(self, answers: int) -> None:
        """Blocks that are mapped and that no snapshot keeps: the cleaner makes room for them, however full it is."""
        free = [disk for disk in self.disks if not self.snapshots_of(disk)]
        for disk in free:
            disk.refused = False
        choices = {disk.name: self.mapped(disk) for disk in free}
        for _ in range(answers):
            disk = self.random.choice(free)
            while len(disk.under_way) >= DEPTH:
                self.progress()
            self.write(disk, self.random.choice(choices[disk.name]), 1)
        assert not any(disk.refused for disk in free), "a block that is mapped was refused"

    # ---- letting go

    def trim(self) -> None:
        disk = self.fullest()
        for lba in self.mapped(disk)[::2]:
            change = disk.oracle.change(lba * BLOCK, bytes(BLOCK), fua=False, what=f"trim of block {lba}")
            assert self.ask(disk, CMD_TRIM, lba * BLOCK, BLOCK).errno == 0
            disk.oracle.changed(change)

    def remove_snapshots(self) -> None:
        for name in self.random.sample(list(self.snapshots), len(self.snapshots)):
            with self.control() as control:
                control.remove_volume(name)
            del self.snapshots[name]

    def remove_volume(self) -> None:
        disk = self.fullest()
        self.disconnect(disk.name)
        with self.control() as control:
            control.remove_volume(disk.name)
            control.create_volume(CreateVolume(name=disk.name, size_bytes=SIZE_BYTES))
        disk.oracle.adopt(bytearray(SIZE_BYTES))

    def shrink(self) -> None:
        disk = self.fullest()
        self.disconnect(disk.name)
        with self.control() as control:
            control.resize_volume(disk.name, ResizeVolume(size_bytes=SIZE_BYTES // 4, force=True))
            control.resize_volume(disk.name, ResizeVolume(size_bytes=SIZE_BYTES))
        content = disk.oracle.content
        content[SIZE_BYTES // 4 :] = bytes(3 * SIZE_BYTES // 4)
        disk.oracle.adopt(bytearray(content))

    def let_go(self, how: Callable[[], None]) -> None:
        """In a way that frees at least a sixteenth of what the pool may hold, at once or in the background, until all
        of that is done: it would make room in the full pool of the next cycle."""
        before = self.status()
        how()
        if self.random.random() < 0.5:
            self.die()
            self.start()
        least_bytes = before.usable_bytes // 16
        while (status := self.status()).used_bytes > before.used_bytes - least_bytes or status.removed:
            pass  # pytest's time limit is ours
        if len(self.disks) < len(NAMES):
            for disk in self.disks:
                disk.connection.close()
            self.connect()

    def cycle(self, how: Callable[[], None]) -> None:
        self.number += 1
        if how == self.remove_snapshots:
            names = [f"{name}@{self.number}" for name in self.random.sample(NAMES, 2)]
            with self.control() as control:
                control.take_snapshots(TakeSnapshots(names=names))
            self.snapshots |= {name: bytes(self.oracles[name.partition("@")[0]].content) for name in names}
        written = self.generation
        self.fill()
        assert self.generation > written + 4 * DEPTH, "there was room again"
        tries: list[Callable[[], object]] = [
            self.is_full,
            self.read,
            self.flush,
            self.checkpoint,
            lambda: self.overwrite(300),
        ]
        self.random.shuffle(tries)
        for attempt in tries:
            attempt()
            self.settle()
        self.overwrite(self.random.randrange(200))
        if self.random.random() < 0.3:
            self.stop()
        else:
            self.die()
        self.start()
        self.is_full()
        self.let_go(how)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_full_pool_loses_nothing_and_has_a_way_out(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    with serving(tmp_path / "pool", *OPTIONS) as server:
        cycles = Cycles(server, random)
        cycles.start()
        ways = [cycles.trim, cycles.remove_volume, cycles.shrink]
        for how in [*random.sample(ways, 3), cycles.remove_snapshots, random.choice(ways)]:
            try:
                cycles.cycle(how)
            except AssertionError as error:
                where = f"seed {seed}, cycle {cycles.number}, {how.__name__}"
                raise AssertionError(f"{where}: {error}\n{server.log()[-2000:]}") from error
        cycles.fill()
        cycles.stop()
        assert "Traceback" not in server.log()
        checked = subprocess.run(
            [sys.executable, "-m", "holdfast.cli.main", "check", str(server.pool)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout + checked.stderr

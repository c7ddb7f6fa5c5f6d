"""Looking at everything: after a crash, when all is quiet, and at the end with the offline check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from holdfast.errors import HoldfastError
from holdfast.pool.opening import read_superblock_slots
from holdfast.pool.superblock import newest_superblock
from holdfast.scrub.pool_check import OverlayDisk, PoolChecker
from holdfast.sim.accounts import check_accounts, check_nothing_held, mapped_lbas
from holdfast.sim.faults import FLIP
from holdfast.sim.model import Key, Model
from holdfast.sim.workload import Workload
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.volume import Volume
from holdfast.work.task import run_to_end

_RUN_BLOCKS = 64


class Inspection:
    def __init__(self, world: World, model: Model, work: Workload) -> None:
        self.world = world
        self.model = model
        self.work = work

    # ---- contents

    def contents(self, keys: Iterable[Key], *, damaged: bool = False) -> dict[Key, bytes]:
        """What the volumes hold. With `damaged`, blocks that cannot be read are left out."""
        found: dict[Key, bytes] = {}
        character = self.world.disk.character
        self.world.disk.character = replace(character, cached=1.0)  # waiting has been tried enough by the clients
        try:
            self._look(keys, found, damaged=damaged)
        finally:
            self.world.disk.character = character
        return found

    def _look(self, keys: Iterable[Key], found: dict[Key, bytes], *, damaged: bool) -> None:
        for name, first, count in _runs(sorted(keys)):
            engine = self.world.engine
            volume = engine.by_name[name]
            offset = first << BLOCK_SHIFT
            into = memoryview(bytearray(count * BLOCK_SIZE_BYTES))  # what is beyond the end of the volume stays zero
            part = into[: max(0, volume.size_bytes - offset)]
            whole = len(part) == len(into)
            bad: set[int] = set()
            if part and not (whole and engine.reader.read_run(volume, first, into)):
                try:
                    self.world.run(engine.reader.read(volume, offset, part))
                except HoldfastError as error:
                    assert damaged, f"blocks from {first} on of {name}: {error}"
                    bad = self._read_one_by_one(volume, first, into)
            for index in range(count):
                if index not in bad:
                    found[name, first + index] = bytes(into[index << BLOCK_SHIFT : (index + 1) << BLOCK_SHIFT])

    def _read_one_by_one(self, volume: Volume, first: int, into: memoryview) -> set[int]:
        """Read what can be read; returns which blocks cannot."""
        bad = set()
        for index in range(len(into) >> BLOCK_SHIFT):
            offset = first + index << BLOCK_SHIFT
            at = index << BLOCK_SHIFT
            part = into[at : at + max(0, min(BLOCK_SIZE_BYTES, volume.size_bytes - offset))]
            try:
                self.world.run(self.world.engine.reader.read(volume, offset, part))
            except HoldfastError:
                bad.add(index)
        return bad

    # ---- after a crash

    def check_recovered(self, *, power_failed: bool) -> None:
        """Promises 1, 2, 3 and 6 after a recovery, and then the accounts."""
        model, work = self.model, self.work
        self._find_volumes()
        found = self.contents(model.blocks)
        since = work.flushed
        if not power_failed:
            since = model.acknowledged
            model.must_survive(since)
        model.check_recovered(found, max(since, -1))
        model.recovered(found)
        work.flushed = model.tick()
        self.check_quiet(found)

    def _find_volumes(self) -> None:
        operator, engine = self.work.operator, self.world.engine
        for name in operator.volumes:
            assert name in engine.by_name, f"volume {name} is gone"
            assert not engine.by_name[name].removing
        for name in operator.gone:
            assert name not in engine.by_name, f"volume {name} came back"
        for name, size in operator.unsure.items():
            volume = engine.by_name.get(name)
            if volume is not None and not volume.removing:
                operator.volumes[name] = size
            else:
                operator.forget(name)
        operator.unsure.clear()
        self.work.history.find()

    def check_damaged(self) -> None:
        """Promise 6 alone, for a medium that lies: no block reads as what it never held."""
        engine = self.world.engine
        keys = [key for key in self.model.blocks if key[0] in engine.by_name and not engine.by_name[key[0]].removing]
        self.model.check_damaged(self.contents(keys, damaged=True))

    # ---- when all is quiet

    def check_quiet(self, found: dict[Key, bytes] | None = None) -> None:
        """With nothing under way: all blocks hold what they should, and the accounts are right. `found`: what the
        blocks hold, where that is known."""
        model = self.model
        self.world.settle()
        self.work.changes.exorcise()
        check_nothing_held(self.world)
        if self.work.swarm.damage:
            self.check_damaged()
            return
        for key, content in (self.contents(model.blocks) if found is None else found).items():
            if key in model.contested:
                model.settle(key, content)
            assert content == model.latest(key), f"block {key}: {model.describe(key, content)}"
        check_accounts(self.world)
        for name in self.work.operator.volumes:
            volume = self.world.engine.find(name)
            for lba in mapped_lbas(self.world, volume):
                assert lba < volume.size_blocks, f"block {lba} of {name} is mapped, behind its end"
                assert (name, lba) in model.blocks, f"block {lba} of {name} is mapped, and nobody wrote it"
        self._check_snapshots()

    def _check_snapshots(self) -> None:
        """Each snapshot holds what it held when it was taken, and nothing else."""
        history = self.work.history
        for name, record in history.records.items():
            assert record.sure, f"snapshot {name} was never answered"
            misread = any(kind == FLIP for _point, kind, _rate in self.work.swarm.faults)
            found = self.contents([(name, lba) for lba in record.allowed], damaged=misread)
            for (_, lba), content in found.items():
                history.reads.found(name, lba, content)
            for lba in [] if misread else mapped_lbas(self.world, self.world.engine.find(name)):
                assert lba in record.allowed, f"block {lba} of {name} is mapped, and nobody wrote it"

    # ---- at the end

    def check_files(self) -> None:
        """The offline check of what a clean end left on the disk finds nothing."""
        disk = self.world.disk
        superblock, findings = newest_superblock(run_to_end(read_superblock_slots(), disk.run))
        report = PoolChecker(superblock, OverlayDisk(disk), 0, lambda _done, _total: None).run()
        assert not findings, findings
        assert not report.damage, report.damage


def _runs(keys: list[Key]) -> Iterable[tuple[str, int, int]]:
    """Consecutive blocks of one volume, a bounded number at a time: volume, first block, count."""
    at = 0
    while at < len(keys):
        name, first = keys[at]
        count = 1
        while at + count < len(keys) and count < _RUN_BLOCKS and keys[at + count] == (name, first + count):
            count += 1
        yield name, first, count
        at += count

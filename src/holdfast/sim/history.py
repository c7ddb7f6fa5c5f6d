"""Snapshots, clones and rollbacks while clients write: what each must hold, for ever (`sim/snapshot_reads.py`)."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOSPC
from random import Random

from holdfast.errors import HoldfastError, RetryError, ShortageError
from holdfast.sim.faults import REFUSE
from holdfast.sim.model import Model, Version
from holdfast.sim.operator import Operator, both
from holdfast.sim.snapshot_reads import Record, SnapshotReads, number_of
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT
from holdfast.volume.volume import Volume

SNAPSHOTS_MAX = 8


class History:
    """
    excuse: gives a function that says whether what was begun now may have ended with an errno
    connect_all: see to it that each volume has its clients
    """

    def __init__(
        self,
        world: World,
        model: Model,
        operator: Operator,
        rng: Random,
        *,
        excuse: Callable[[], Callable[[], bool]],
        connect_all: Callable[[], None],
    ) -> None:
        self.world = world
        self.model = model
        self.operator = operator
        self.records: dict[str, Record] = {}  # by the snapshot's name
        self.reads = SnapshotReads(world, self.records, rng, excuse=excuse)
        self._leaving: dict[str, Record] = {}  # being removed
        self._origins: dict[str, str] = {}  # clone -> the snapshot that it was made of, as long as it could be promoted
        self._promoting: dict[str, tuple[str, dict[str, Record]]] = {}  # clone -> from whom, and that one's snapshots
        self.rolling: dict[str, tuple[int, int, Record]] = {}  # volume -> its id and size before, and to what
        self._rng = rng
        self._excuse = excuse
        self._connect_all = connect_all
        self._number = 0

    # ---- taking and looking

    def take(self, volume: str) -> None:
        """Take a snapshot of a volume, and perhaps of another one at the same moment."""
        chosen = [volume]
        others = [name for name in self.operator.volumes if name != volume]
        if others and self._rng.random() < 0.3:
            chosen.append(self._rng.choice(others))
        if volume not in self.operator.volumes or len(self.records) + len(chosen) > SNAPSHOTS_MAX:
            return
        if any(map(self.operator.is_busy, chosen)):
            return  # what it is, and how large, is not known now
        self._number += 1
        label = f"s{self._number}"
        names = [f"{name}@{label}" for name in chosen]
        excused = self._excuse()

        def answered(outcome: list[Volume] | HoldfastError) -> None:
            for name in names:
                if isinstance(outcome, HoldfastError):
                    self.records.pop(name, None)
                elif name in self.records:
                    self.records[name].sure = True
            if isinstance(outcome, HoldfastError):
                self._must_be_excused(outcome, excused)

        self.world.note("operator", "snapshot", tuple(names))
        for each, name in zip(chosen, names, strict=True):
            self.records[name] = self._now(each)
        self.world.wait_for(
            lambda answer: self.world.engine.snapshots.take([(name, label) for name in chosen], both(answered, answer))
        )

    def _now(self, volume: str) -> Record:
        """What can be read of a volume at this moment."""
        moment = self.model.tick()
        size_bytes = self.operator.volumes[volume]
        lbas = [key[1] for key in self.model.blocks if key[0] == volume and key[1] << BLOCK_SHIFT < size_bytes]
        allowed = {lba: list(dict.fromkeys(self.model.may_read((volume, lba), moment))) for lba in lbas}
        return Record(allowed, size_bytes)

    def _must_be_excused(self, error: HoldfastError, excused: Callable[[], bool]) -> None:
        struck = self.world.faults.struck
        short = struck["state", REFUSE] + struck["staging", REFUSE] and isinstance(error, ShortageError)
        being_cut = isinstance(error, RetryError)  # a volume that was made smaller just now
        assert short or being_cut or error.errno == ENOSPC or excused(), error

    # ---- what comes of snapshots

    def clone(self) -> None:
        """Make a volume of a snapshot all of which is known."""
        name = self.reads.any()
        if name is not None and self.records[name].settled:
            record = self.records[name]
            clone = self.operator.clone(name, record.size_bytes)
            if clone not in self.operator.unsure and clone not in self.operator.volumes:
                return  # refused at once
            for lba, (content,) in record.allowed.items():
                self.model.blocks[clone, lba] = [Version(content, -1, -1)]
            self._origins[clone] = name

    def promote(self) -> None:
        """Let a clone take over the snapshot that it was made of, and the older ones."""
        able = [
            (clone, origin.partition("@")[0])
            for clone, origin in self._origins.items()
            if clone in self.operator.volumes and origin in self.records
        ]
        able = [(clone, former) for clone, former in able if self.is_free(clone) and self.is_free(former)]
        if not able:
            return
        clone, former = self._rng.choice(able)
        theirs = {name: its for name, its in self.records.items() if name.startswith(f"{former}@")}
        for name in theirs:
            del self.records[name]  # under which name they are found is not known until the answer
        self._promoting[clone] = former, theirs
        excused = self._excuse()

        def answered(outcome: Volume | HoldfastError) -> None:
            if isinstance(outcome, HoldfastError):
                self._must_be_excused(outcome, excused)
            self._settle_promotion(clone, done=not isinstance(outcome, HoldfastError))

        self.world.note("operator", "promote", clone)
        self.world.wait_for(lambda answer: self.world.engine.snapshots.promote(clone, both(answered, answer)))

    def _settle_promotion(self, clone: str, *, done: bool | None) -> None:
        """Each of the snapshots has one name, and the one that the clone was made of the right one. `done`: None if
        that is not known."""
        by_name = self.world.engine.by_name
        _, theirs = self._promoting.pop(clone)
        renamed = {name: f"{clone}@{name.partition('@')[2]}" for name in theirs}
        # A snapshot that does not move may be called like one that the clone has itself, or had until just now.
        own = self.records.keys() | self._leaving.keys()
        moved = {name: new for name, new in renamed.items() if new in by_name and new not in own}
        origin = self._origins[clone]
        assert done is None or (origin in moved) == done, f"{origin} is {'not ' * done}there under its former name"
        for name, record in theirs.items():
            assert (name in by_name) != (name in moved), f"snapshot {name} is gone, or there twice"
            # Of the older ones some may be based on another volume by now, after a rollback; newer ones never move.
            assert name not in moved or (origin in moved and number_of(name) <= number_of(origin)), name
            self.records[moved.get(name, name)] = record
        if origin in moved:
            del self._origins[clone]
        self._origins = {each: moved.get(its, its) for each, its in self._origins.items()}

    def _is_promoted(self, volume: str) -> bool:
        """True while a promotion concerns the volume."""
        return any(volume in (clone, former) for clone, (former, _) in self._promoting.items())

    def remove(self) -> None:
        """Remove a snapshot that nobody is reading."""
        name = self.reads.any()
        if name is None or self.records[name].readers:
            return
        self._leaving[name] = self.records.pop(name)

        def answered(outcome: HoldfastError | None) -> None:
            assert outcome is None, outcome
            self._leaving.pop(name, None)

        self.world.note("operator", "remove", name)
        self.world.wait_for(lambda answer: self.world.engine.remove_volume(name, both(answered, answer)))

    def roll_back(self) -> None:
        """Let a volume be what a snapshot of it is, all of which is known."""
        name = self.reads.any()
        if name is None or not self.records[name].settled:
            return
        volume = name.split("@")[0]
        if volume not in self.operator.volumes or self.operator.is_busy(volume) or self._is_promoted(volume):
            return
        node = self.world.engine.find(volume)
        self.rolling[volume] = node.volume_id, self.operator.volumes.pop(volume), self.records[name]
        self.operator.let_go(volume)
        self.world.note("operator", "roll back", name)
        self.world.wait_for(lambda answer: self._try_to_roll_back(name, volume, answer))

    def _try_to_roll_back(self, name: str, volume: str, answer: Callable[[object], None]) -> None:
        engine = self.world.engine
        if name not in self.records:  # removed meanwhile
            self.operator.volumes[volume] = self.rolling.pop(volume)[1]
            self._connect_all()
            answer(None)
            return
        if engine.by_name[volume].connections:
            self.world.loop.call_later(1_000_000, lambda: self._try_to_roll_back(name, volume, answer))
            return
        excused = self._excuse()

        def answered(outcome: Volume | HoldfastError | None) -> None:
            _, size, record = self.rolling.pop(volume)
            if isinstance(outcome, HoldfastError):
                self._must_be_excused(outcome, excused)
                self.operator.volumes[volume] = size
            else:
                self._rolled_back(volume, record)
            self._connect_all()

        engine.snapshots.roll_back(name, both(answered, answer))

    def _rolled_back(self, volume: str, record: Record) -> None:
        self.operator.forgotten(volume)
        self._origins.pop(volume, None)
        for lba, (content,) in record.allowed.items():
            self.model.blocks[volume, lba] = [Version(content, -1, -1)]
        self.operator.volumes[volume] = record.size_bytes

    def forget_volume(self, name: str) -> None:
        """A volume is being removed, and its snapshots with it."""
        for snapshot in [each for each in self.records if each.startswith(f"{name}@")]:
            self._leaving[snapshot] = self.records.pop(snapshot)

    def is_free(self, name: str) -> bool:
        """True if the volume may be removed: nobody reads a snapshot of it, or is about to change it."""
        mine = [record for each, record in self.records.items() if each.startswith(f"{name}@")]
        return (
            name not in self.rolling
            and not self._is_promoted(name)
            and not any(record.readers or not record.sure for record in mine)
        )

    # ---- after a death

    def find(self) -> None:
        """What had not been answered may be done or not: see which."""
        by_name = self.world.engine.by_name
        for clone in list(self._promoting):
            self._settle_promotion(clone, done=None)
        for name in list(self.records):
            record = self.records[name]
            record.readers = 0
            assert name in by_name or not record.sure, f"snapshot {name} is gone"
            record.sure = name in by_name
            if not record.sure:
                del self.records[name]
        for name, record in self._leaving.items():
            if name in by_name:
                record.readers = 0
                self.records[name] = record
        self._leaving.clear()
        for volume, (old_id, size, record) in self.rolling.items():
            if by_name[volume].volume_id == old_id:
                self.operator.volumes[volume] = size
            else:
                self._rolled_back(volume, record)
        self.rolling.clear()

"""The operator makes volumes and removes them, while others are written to."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOSPC
from random import Random

from holdfast.errors import HoldfastError, NoSpaceError, ShortageError
from holdfast.sim.client import SimClient
from holdfast.sim.faults import REFUSE
from holdfast.sim.world import World
from holdfast.volume.settings import VolumeSettings
from holdfast.volume.volume import Volume


class Operator:
    """
    sizes: of new volumes
    tolerant: whether an errno may be answered, as something fails
    made, left, forgotten: called when there is a new volume, when a client must go, and when a volume is no more
    """

    def __init__(
        self,
        world: World,
        rng: Random,
        sizes: list[int],
        *,
        tolerant: Callable[[], bool],
        made: Callable[[], None],
        left: Callable[[SimClient], None],
        forgotten: Callable[[str], None],
        thick: Random,
    ) -> None:
        """`thick`: of its own, because it was thought of later: in a fifth of the runs half of the volumes are
        provisioned."""
        self.world = world
        self.volumes: dict[str, int] = {}  # sure to exist -> size
        self.unsure: dict[str, int] = {}  # being created or removed
        self.gone: dict[str, None] = {}
        self.is_busy: Callable[[str], bool] = lambda _name: False  # somebody else changes the volume
        self._rng = rng
        self._sizes = sizes
        self._tolerant = tolerant
        self._made = made
        self._left = left
        self.forgotten = forgotten
        self._created = 0
        self._thick = thick
        self._thick_share = 0.5 if thick.random() < 0.2 else 0.0

    def create(self) -> str:
        """Begin to make a volume."""
        self._created += 1
        name, size = f"disk{self._created}", self._rng.choice(self._sizes)
        self._make(name, size, lambda answer: self._begin(name, size, self._settings(), answer))
        return name

    def _begin(self, name: str, size: int, settings: VolumeSettings, answer: Callable[..., None]) -> None:
        def answered(outcome: Volume | HoldfastError | None) -> None:
            if settings.provisioned and isinstance(outcome, NoSpaceError):
                self._begin(name, size, VolumeSettings(), answer)  # a thin one has more of a chance
            else:
                answer(outcome)

        self.world.engine.create_volume(name, size, answered, settings)

    def _settings(self) -> VolumeSettings:
        thick = bool(self._thick_share) and self._thick.random() < self._thick_share
        return VolumeSettings(provisioned=thick or None)

    def clone(self, snapshot: str, size: int) -> str:
        """Begin to make a volume of a snapshot."""
        self._created += 1
        name = f"clone{self._created}"
        settings = self._settings()
        self._make(name, size, lambda answer: self.world.engine.snapshots.clone(snapshot, name, answer, settings))
        return name

    def _make(self, name: str, size: int, begin: Callable[[Callable[..., None]], None]) -> None:
        self.unsure[name] = size

        def answered(outcome: Volume | HoldfastError | None) -> None:
            del self.unsure[name]
            if isinstance(outcome, Volume):
                self.volumes[name] = size
                self._made()
            else:
                assert outcome is not None
                struck = self.world.faults.struck
                short = struck["state", REFUSE] + struck["staging", REFUSE] and isinstance(outcome, ShortageError)
                assert short or outcome.errno == ENOSPC or self._tolerant(), outcome
                self.forgotten(name)

        self.world.note("operator", "create", name)
        self.world.wait_for(lambda answer: begin(both(answered, answer)))

    def remove(self, name: str) -> None:
        """Remove a volume from under all of its clients, unless it is the last one."""
        if len(self.volumes) < 2 or name not in self.volumes or self.is_busy(name):
            return
        self.unsure[name] = self.volumes.pop(name)
        self.let_go(name)
        self.world.note("operator", "remove", name)
        self.world.wait_for(lambda answer: self._try_to_remove(name, answer))

    def _try_to_remove(self, name: str, answer: Callable[[object], None]) -> None:
        engine = self.world.engine
        if engine.by_name[name].connections:
            self.world.loop.call_later(1_000_000, lambda: self._try_to_remove(name, answer))
            return

        def answered(outcome: object) -> None:
            assert outcome is None, outcome
            del self.unsure[name]
            self.forget(name)

        engine.remove_volume(name, both(answered, answer), snapshots=True)

    def let_go(self, name: str) -> None:
        """The clients of a volume have to go."""
        for client in self.world.clients:
            if client.volume == name and not client.gone:
                client.hang_up(reset=True)
                self._left(client)

    def forget(self, name: str) -> None:
        self.gone[name] = None
        self.forgotten(name)


def both(first: Callable[..., None], second: Callable[..., None]) -> Callable[..., None]:
    def call(outcome: object) -> None:
        first(outcome)
        second(outcome)

    return call

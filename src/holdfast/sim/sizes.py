"""The operator gives volumes and the pool other sizes while clients are at work.

A volume grows under its clients. It becomes smaller once they were sent away and nothing of theirs is under way; from
then until the answer, what lies behind the new end may be there or not, and after it reads as zeroes for ever, however
large the volume becomes again. After a death there is the old size or the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOSPC
from random import Random

from holdfast.errors import HoldfastError, RequestError, RetryError
from holdfast.sim.changes import Changes
from holdfast.sim.client import SimClient
from holdfast.sim.model import Key, Model
from holdfast.sim.operator import Operator
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, KIB, MIB
from holdfast.volume.resize import Resized

SIZES = [4 * KIB, 1 * MIB + 1234, 2 * MIB, 8 * MIB, 60 * MIB, 700 * MIB, 3 << 40]
POLL_NS = 1_000_000


class Sizes:
    """`busy`: volumes that are being resized, with the two sizes that they may have meanwhile. `segments`: the
    capacities that the pool may have."""

    def __init__(
        self,
        world: World,
        rng: Random,
        operator: Operator,
        changes: Changes,
        model: Model,
        *,
        tolerant: Callable[[], bool],
        pool_share: float,
        left: Callable[[SimClient], None],
        done: Callable[[], None],
    ) -> None:
        """`pool_share`: how many of the changes are of the pool; `left`: told of a client that must go; `done`: called
        when clients may come again"""
        self.world = world
        self.busy: dict[str, tuple[int, int]] = {}
        self.segments: tuple[int, ...] = (world.config.segments,)
        self._rng = rng
        self._operator = operator
        self._changes = changes
        self._model = model
        self._tolerant = tolerant
        self._pool_share = pool_share
        self._left = left
        self._done = done

    def stir(self) -> None:
        """Begin one change of a size."""
        if self._rng.random() < self._pool_share:
            if len(self.segments) == 1:
                before = self.segments[0]
                self.resize_pool(self._rng.choice([before + 8, before + 40, before * 3 // 4, before // 2, 24]))
            return
        names = [name for name in self._operator.volumes if name not in self.busy]
        if names:
            self.resize(self._rng.choice(names), self._rng.choice(SIZES))

    # ---- volumes

    def resize(self, name: str, size: int) -> None:
        """Begin to give a volume, which is not busy, another size."""
        self.busy[name] = (self._operator.volumes[name], size)
        self.world.note("operator", "resize", (name, size))
        if size < self._operator.volumes[name]:
            for client in self.world.clients:
                if client.volume == name and not client.gone:
                    client.hang_up(reset=True)
                    self._left(client)
        life = self.world.life
        self.world.wait_for(lambda answer: self._begin(name, size, life, answer))

    def _begin(self, name: str, size: int, life: int, answer: Callable[[object], None]) -> None:
        """Begin once nothing stands against it."""
        if life != self.world.life:
            return
        engine = self.world.engine
        smaller = size < self._operator.volumes[name]
        self._changes.exorcise()
        if smaller and (engine.by_name[name].connections or not self._changes.rests(name)):
            self.world.loop.call_later(POLL_NS, lambda: self._begin(name, size, life, answer))
            return
        if (name, size // BLOCK_SIZE_BYTES) in self._model.contested:
            # What would be left of the last block is not known, and nobody is there who could read it.
            size = size // BLOCK_SIZE_BYTES * BLOCK_SIZE_BYTES or BLOCK_SIZE_BYTES
            self.busy[name] = (self._operator.volumes[name], size)
        after = self._cut(name, size) if smaller else {}
        self._model.doubt(self._model.begin(after))

        def answered(outcome: Resized | HoldfastError) -> None:
            if isinstance(outcome, HoldfastError):
                thick = outcome.errno == ENOSPC and engine.by_name[name].provisioned
                assert thick or self._tolerant(), outcome
                size_now = engine.by_name[name].size_bytes
            else:
                size_now = size
                for key, content in after.items():
                    self._model.know(key, content)
            self._operator.volumes[name] = size_now
            del self.busy[name]
            self._done()
            answer(outcome)

        engine.resize_volume(name, size, answered, force=True)

    def _cut(self, name: str, size: int) -> dict[Key, bytes]:
        """What is left of the blocks at and behind a new end."""
        last, kept = divmod(size, BLOCK_SIZE_BYTES)
        blocks = {}
        for key in [key for key in self._model.blocks if key[0] == name and key[1] >= last]:
            content = self._model.latest(key)[: kept if key[1] == last else 0]
            blocks[key] = content.ljust(BLOCK_SIZE_BYTES, b"\0")
        return blocks

    # ---- the pool

    def resize_pool(self, wanted: int) -> None:
        """Give the pool so many segments. Nothing of the kind may be under way."""
        (before,) = self.segments
        self.segments = (before, wanted)
        self.world.note("operator", "capacity", wanted)
        segment_bytes = self.world.config.segment_blocks << BLOCK_SHIFT

        def answered(error: HoldfastError | None) -> None:
            refused = isinstance(error, RequestError | RetryError)
            assert error is None or refused or self._tolerant(), error
            self.segments = (wanted,) if error is None else (self.world.engine.space.capacity_segments,)
            assert self.segments[0] in (before, wanted)

        def both(answer: Callable[[object], None]) -> None:
            def told(error: HoldfastError | None) -> None:
                answered(error)
                answer(None)

            self.world.engine.resize_pool(wanted * segment_bytes, told)

        self.world.wait_for(both)

    # ---- after a start

    def check(self) -> None:
        """Everything has a size that it may have."""
        engine = self.world.engine
        for name, size in self._operator.volumes.items():
            found = engine.by_name[name].size_bytes
            assert found in self.busy.get(name, (size,)), f"{name} has {found} bytes, not {self.busy.get(name, size)}"
            self._operator.volumes[name] = found
        self.busy.clear()
        found = engine.space.capacity_segments
        assert found in self.segments, f"the pool has {found} segments, not {self.segments}"
        self.segments = (found,)

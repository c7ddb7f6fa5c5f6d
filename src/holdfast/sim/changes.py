"""Changes that clients have under way, and what is made of their answers.

A change keeps off blocks that another one is under way for, or, where two are to meet, covers them as a whole. What was
refused may have been made in part: such blocks are contested until they are read, at rest (`Model`). Of a client that
hung up nobody hears any more what became of its changes: they are in doubt once the server has done with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import ENOSPC

from holdfast.sim.client import Answer, SimClient
from holdfast.sim.model import Key, Model, Version
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES


@dataclass(frozen=True, slots=True)
class Part:
    """A change of a part of a block: where in the block, and with what."""

    start: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """A request that changes blocks, and is under way. `refusals`: how many there were when it was sent."""

    number: int
    volume: str
    begun: Mapping[Key, Version]
    met: tuple[_PartUnderWay, ...]  # changes of parts of its blocks that were under way before it
    siblings: dict[int, Change]  # those of its client, itself among them
    refusals: int


@dataclass(frozen=True, slots=True)
class _PartUnderWay:
    """By which request, and the version that it makes of what the block held when it was sent."""

    number: int
    part: Part
    version: Version

    def over(self, content: bytes) -> bytes:
        start, data = self.part.start, self.part.data
        return content[:start] + data + content[start + len(data) :]


class Changes:
    """`volumes`: those that are sure to exist; `tolerant`: whether an errno may be answered, as something fails."""

    def __init__(self, world: World, model: Model, volumes: Mapping[str, int], tolerant: Callable[[], bool]) -> None:
        self.world = world
        self.model = model
        self._volumes = volumes
        self.becoming_another: Mapping[str, object] = {}  # volumes that are rolled back just now, perhaps
        self._tolerant = tolerant
        self._number = 0
        self._clearing: dict[int, tuple[str, int, int]] = {}  # trims and zeroings under way: volume, first, last block
        self._parts: dict[Key, _PartUnderWay] = {}
        self._of: dict[SimClient, dict[int, Change]] = {}
        self._ghosts: list[tuple[SimClient, dict[int, Change]]] = []  # the same of clients that hung up
        self._settling: dict[Key, None] = {}  # contested blocks that are being read

    def next_number(self) -> int:
        """For a change, or for what is written: no two are alike."""
        self._number += 1
        return self._number

    # ---- clients come and go

    def connected(self, client: SimClient) -> None:
        self._of[client] = {}

    def left(self, client: SimClient) -> None:
        self._ghosts.append((client, self._of.pop(client, {})))

    def exorcise(self) -> None:
        """What a client that hung up had under way is settled once the server has done with it."""
        if not self._ghosts:
            return
        if any(task.cancelled for task in self.world.engine.scheduler.tasks):
            return
        kept = []
        for client, changes in self._ghosts:
            if not client.connection.closed or client.volume in self.becoming_another:
                kept.append((client, changes))
                continue
            for change in changes.values():
                self._over(change.number)
                if client.volume in self._volumes:
                    self.model.doubt(change.begun)
        self._ghosts = kept

    def rests(self, name: str) -> bool:
        """True if no change of the volume is under way, not even of a client that hung up."""
        if any(client.volume == name for client, _ in self._ghosts):
            return False
        return not any(key[0] == name and self.model.is_open(key) for key in self.model.blocks)

    def forget_volume(self, name: str) -> None:
        """What was under way for a volume that is no more, or that becomes another one, counts for nothing."""
        self.model.forget_volume(name)
        for _, changes in [ghost for ghost in self._ghosts if ghost[0].volume == name]:
            for change in changes.values():
                self._over(change.number)
        self._ghosts = [ghost for ghost in self._ghosts if ghost[0].volume != name]
        for key in [key for key in self._settling if key[0] == name]:
            del self._settling[key]

    def new_life(self) -> None:
        """The server died: nothing is under way any more."""
        self._clearing.clear()
        self._ghosts.clear()
        self._of.clear()
        self._settling.clear()
        self._parts.clear()

    # ---- may it begin?

    def cleared_by(self, name: str, first: int, last: int) -> list[Key] | None:
        """The blocks that a trim of `first` to `last` (excluded) changes; None if one of them is not at rest."""
        inside = [key for key in self.model.blocks if key[0] == name and first <= key[1] < last]
        if any(key in self.model.contested or self.model.is_open(key) for key in inside):
            return None
        return inside

    def may_begin(self, name: str, offset: int, length: int, *, overlap: bool) -> bool:
        """False if a write would meet a change that is under way. With `overlap` it may, in blocks that it covers."""
        model = self.model
        for lba in range(offset >> BLOCK_SHIFT, -(-(offset + length) // BLOCK_SIZE_BYTES)):
            key = name, lba
            if key in model.contested or self._is_being_cleared(name, lba):
                return False
            if model.is_open(key) and not (overlap and _covers(offset, length, lba)):
                return False
        return True

    def _is_being_cleared(self, name: str, lba: int) -> bool:
        return any(name == other and first <= lba < last for other, first, last in self._clearing.values())

    # ---- what it makes of blocks

    def patched(self, name: str, offset: int, payload: bytes) -> dict[Key, bytes]:
        """The blocks as a write of `payload` leaves them."""
        changes = {}
        first, start = divmod(offset, BLOCK_SIZE_BYTES)
        for lba in range(first, -(-(offset + len(payload)) // BLOCK_SIZE_BYTES)):
            at = (lba << BLOCK_SHIFT) - offset
            part = payload[max(at, 0) : at + BLOCK_SIZE_BYTES]
            if len(part) < BLOCK_SIZE_BYTES:
                begin = start if at < 0 else 0
                old = self.model.latest((name, lba))
                part = old[:begin] + part + old[begin + len(part) :]
            changes[name, lba] = part
        return changes

    @staticmethod
    def parts(name: str, offset: int, payload: bytes) -> dict[Key, Part]:
        """The blocks of which a write of `payload` changes a part."""
        first, last = offset >> BLOCK_SHIFT, -(-(offset + len(payload)) // BLOCK_SIZE_BYTES)
        parts = {}
        for lba in (first, last - 1):
            if not _covers(offset, len(payload), lba):
                start = max(0, offset - (lba << BLOCK_SHIFT))
                data = payload[max(0, (lba << BLOCK_SHIFT) - offset) :]
                parts[name, lba] = Part(start, data[: BLOCK_SIZE_BYTES - start])
        return parts

    # ---- under way

    def begin(
        self,
        client: SimClient,
        blocks: Mapping[Key, bytes],
        parts: Mapping[Key, Part],
        clears: tuple[int, int] | None = None,
    ) -> Change:
        """A change is about to be sent. `clears`: what it empties, holes and all: first block, last (excluded)."""
        met = {key: self._parts[key] for key in blocks if key in self._parts}
        begun = self.model.begin(blocks, {key: part.over(blocks[key]) for key, part in met.items()})
        number = self.next_number()
        siblings = self._of[client]
        change = siblings[number] = Change(
            number, client.volume, begun, tuple(met.values()), siblings, self.world.rightly_refused
        )
        if clears is not None:
            self._clearing[number] = (client.volume, *clears)
        for key, part in parts.items():
            self._parts[key] = _PartUnderWay(number, part, begun[key])
        return change

    def judge(self, change: Change, what: str, errno: int, *, fua: bool) -> None:
        """Its answer has come."""
        del change.siblings[change.number]
        self._over(change.number)
        if change.volume not in self._volumes:
            return
        if errno == 0:
            self.model.end(change.begun)
            for part in change.met:
                part.version.beaten = True  # all of the block was written: what the part was put into is gone
            if fua:
                self.model.must_survive_change(change.begun)
        else:
            full = errno == ENOSPC and change.refusals != self.world.rightly_refused
            volume = self.world.engine.by_name.get(change.volume)
            if volume is not None and volume.provisioned:
                full = False  # its space is held back
            assert full or self._tolerant(), f"{what}: errno {errno}"
            self.model.doubt(change.begun)

    def _over(self, number: int) -> None:
        """A change is not under way any more."""
        self._clearing.pop(number, None)
        for key in [key for key, its in self._parts.items() if its.number == number]:
            del self._parts[key]

    # ---- contested blocks

    def take_unsettled(self, client: SimClient) -> list[Key]:
        """Contested blocks of its volume that rest and that nobody reads: the client is to read them."""
        model = self.model
        if not model.contested:
            return []
        keys = [
            key
            for key in model.contested
            if key[0] == client.volume
            and key not in self._settling
            and not model.is_open(key)
            and not self._is_being_cleared(*key)
            and (key[1] + 1) << BLOCK_SHIFT <= client.size_bytes
        ]
        self._settling.update(dict.fromkeys(keys))
        return keys

    def settle(self, key: Key, answer: Answer) -> None:
        """A contested block has been read."""
        self._settling.pop(key, None)
        if answer.errno:
            assert self._tolerant(), f"reading {key}: errno {answer.errno}"
        elif key in self.model.contested and not self.model.is_open(key):
            self.model.settle(key, bytes(answer.data))


def _covers(offset: int, length: int, lba: int) -> bool:
    return offset <= lba << BLOCK_SHIFT and (lba + 1) << BLOCK_SHIFT <= offset + length

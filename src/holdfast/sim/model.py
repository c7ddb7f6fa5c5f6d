"""What the disks may hold, as a dictionary of blocks with the values allowed: the model that the engine is held to.

Time is counted in moments. A change of a block begins at one and ends (is acknowledged) at a later one; it takes effect
somewhere in between. `Version` k of a block is what a reader finds from the effect of change k to that of change k + 1.
So a recovered block that holds version k says: the moment to which the log was cut lies between the beginning of change
k and the end of change k + 1. Promise 3 holds if there is one moment of which all blocks say that.

A block is **contested** while the order of its last changes is not known: two were under way at once, or one failed and
may have been made all the same. Any of these versions may be found, until one that is read settles it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from holdfast.units import BLOCK_SIZE_BYTES

ZERO = bytes(BLOCK_SIZE_BYTES)
NEVER = 1 << 60

Key = tuple[str, int]  # volume, lba


@dataclass(slots=True)
class Version:
    content: bytes
    begun: int
    ended: int = NEVER
    safe: bool = False  # must survive a crash; what is older may be read by whoever began before, but not be recovered
    doubtful: bool = False  # was contested, and another version was found: perhaps it never was
    acknowledged: bool = False
    beaten: bool = False  # may have been there for a while, and cannot be what is left


class Model:
    def __init__(self) -> None:
        self.moment = 0
        self.blocks: dict[Key, list[Version]] = {}
        self.acknowledged = 0  # the last moment at which a change was acknowledged
        self.contested: dict[Key, None] = {}
        self._blurred: dict[Key, int] = {}  # are or were contested: their last version before that
        self._unsafe: dict[Key, None] = {}  # have a version that need not survive
        self._open: dict[Key, int] = {}  # how many changes of them are under way

    def tick(self) -> int:
        self.moment += 1
        return self.moment

    def chain(self, key: Key) -> list[Version]:
        chain = self.blocks.get(key)
        if chain is None:
            chain = self.blocks[key] = [Version(ZERO, -1, -1)]
        return chain

    def latest(self, key: Key) -> bytes:
        chain = self.blocks.get(key)
        return chain[-1].content if chain else ZERO

    def is_open(self, key: Key) -> bool:
        """True while a change of the block is under way."""
        return key in self._open

    # ---- changes

    def begin(self, changes: Mapping[Key, bytes], mixtures: Mapping[Key, bytes] | None = None) -> dict[Key, Version]:
        """Changes of whole blocks begin. `mixtures`: what a block becomes if a change of a part of it, which is under
        way, takes effect after this one."""
        moment = self.tick()
        begun = {}
        for key, content in changes.items():
            chain = self.chain(key)
            under_way = self._open.get(key, 0)
            self._open[key] = under_way + 1
            if under_way and key not in self.contested:
                self._contest(key, len(chain) - 1 - under_way)
            if mixtures and key in mixtures:
                chain.append(Version(mixtures[key], moment, moment))
            version = begun[key] = Version(content, moment)
            chain.append(version)
            self._unsafe[key] = None
        return begun

    def end(self, begun: Mapping[Key, Version]) -> None:
        moment = self.acknowledged = self.tick()
        for key, version in begun.items():
            version.ended = moment
            version.acknowledged = True
            self._close(key)

    def _close(self, key: Key) -> None:
        changes = self._open[key] - 1
        if changes:
            self._open[key] = changes
        else:
            del self._open[key]

    def doubt(self, begun: Mapping[Key, Version]) -> None:
        """The change was refused, or nobody heard of its end: it may have been made all the same."""
        moment = self.tick()
        for key, version in begun.items():
            version.ended = moment
            self._close(key)
            chain = self.blocks[key]
            if key not in self.contested:
                self._contest(key, chain.index(version) - 1)

    def _contest(self, key: Key, before: int) -> None:
        self.contested[key] = None
        self._blurred[key] = min(max(before, 0), self._blurred.get(key, NEVER))

    def settle(self, key: Key, content: bytes) -> None:
        """A contested block of which no change is under way was read: this it is from now on.

        It is nothing that had ended before an acknowledged change began."""
        chain = self.blocks[key]
        first = self._blurred[key]
        newest = max((version.begun for version in chain[first:] if version.acknowledged), default=-1)
        allowed = [
            at
            for at, version in enumerate(chain)
            if at >= first and version.content == content and version.ended >= newest and not version.beaten
        ]
        index = max(allowed, default=-1)
        assert index >= 0, f"block {key} holds what it may not hold: {self.describe(key, content)}"
        for other in chain[first + 1 :]:
            other.doubtful = True
        version = chain.pop(index)
        moment = self.tick()
        chain.append(Version(content, version.begun, moment, version.safe, acknowledged=version.acknowledged))
        del self.contested[key]

    # ---- what must be

    def must_survive(self, moment: int) -> None:
        """All changes that ended before `moment` are there to stay."""
        for key in list(self._unsafe):
            chain = self.blocks[key]
            if key in self.contested:
                # Which of them is left is not known; that nothing is that ended before them, is.
                for version in chain:
                    version.safe |= version.acknowledged and version.ended <= moment
                continue
            for index in range(len(chain) - 1, -1, -1):
                version = chain[index]
                # What was found not to be there in the end may have been for a while; that it was is not known.
                if version.ended <= moment and not version.doubtful:
                    version.safe = True
                    if index > self._blurred.get(key, -1):
                        # What is older can neither be read nor recovered any more, save by a read under way.
                        self._blurred.pop(key, None)
                    if index == len(chain) - 1:
                        del self._unsafe[key]
                    break

    def must_survive_change(self, begun: Mapping[Key, Version]) -> None:
        for version in begun.values():
            version.safe = True

    def may_read(self, key: Key, since: int) -> list[bytes]:
        """What a read that began at `since` and ends now may find: what was there then, or anything later."""
        chain = self.blocks.get(key)
        if chain is None:
            return [ZERO]
        first = 0
        for index in range(len(chain) - 1, -1, -1):
            if chain[index].ended < since and not chain[index].doubtful:
                first = index
                break
        if key in self.contested:
            first = min(first, self._blurred[key])
        return [version.content for version in chain[first:]]

    def check_recovered(self, found: Mapping[Key, bytes], since: int) -> None:
        """Raise AssertionError unless what was found is the state of one moment at or after `since`."""
        edges: dict[int, int] = {}
        spans_of: dict[Key, list[tuple[int, int]]] = {}
        certain = 0
        for key, content in found.items():
            if key in self._blurred:
                assert content in self._may_recover(key), f"block {key} after a crash: {self.describe(key, content)}"
                continue
            chain = self.blocks[key]
            if len(chain) == 1 and chain[0].begun <= since and chain[0].content == content:
                continue  # as it was before, at any moment
            certain += 1
            spans = spans_of[key] = list(_merged(self._spans(key, content, since)))
            assert spans, f"block {key} holds what it may not hold: {self.describe(key, content)}"
            for start, stop in spans:
                edges[start] = edges.get(start, 0) + 1
                edges[stop] = edges.get(stop, 0) - 1
        agreeing = 0
        for edge in sorted(edges):
            agreeing += edges[edge]
            if agreeing == certain:
                return
        assert not certain, "a mixture of moments: " + self._contradiction(found, spans_of)

    def check_damaged(self, found: Mapping[Key, bytes]) -> None:
        """The weaker promise where the medium lied: a block that can be read holds something that it once held."""
        for key, content in found.items():
            held = [version.content for version in self.blocks[key]]
            assert content in held, f"a wrong byte in block {key}: {self.describe(key, content)}"

    def _may_recover(self, key: Key) -> list[bytes]:
        """What a block whose last changes are not in a known order may be: nothing that had ended before a change began
        that must survive."""
        chain = self.blocks[key]
        first = max((index for index, version in enumerate(chain) if version.safe), default=0)
        floor = max((version.begun for version in chain if version.safe and version.acknowledged), default=-1)
        possible = chain[min(first, self._blurred[key]) :]
        return [version.content for version in possible if version.ended >= floor]

    def _spans(self, key: Key, content: bytes, since: int) -> Iterable[tuple[int, int]]:
        chain = self.blocks[key]
        first = 0
        for index in range(len(chain) - 1, -1, -1):
            if chain[index].safe:
                first = index
                break
        for index in range(first, len(chain)):
            version = chain[index]
            if version.content == content:
                stop = chain[index + 1].ended if index + 1 < len(chain) else NEVER
                if stop > max(version.begun, since):
                    yield max(version.begun, since), stop

    def _contradiction(self, found: Mapping[Key, bytes], spans_of: Mapping[Key, list[tuple[int, int]]]) -> str:
        newest = max(spans_of, key=lambda key: spans_of[key][0][0])
        oldest = min(spans_of, key=lambda key: spans_of[key][-1][1])
        return " and ".join(f"{key} ({spans_of[key]}) {self.describe(key, found[key])}" for key in (oldest, newest))

    def describe(self, key: Key, content: bytes) -> str:
        chain = [
            (version.content[:8].hex(), version.begun, version.ended, version.safe)
            for version in self.blocks.get(key, [])
        ]
        blurred = f", contested from version {self._blurred[key]} on" if key in self._blurred else ""
        return f"found {content[:8].hex()} among {chain}{blurred}"

    # ---- volumes and crashes

    def know(self, key: Key, content: bytes) -> None:
        """This is what the block holds, whatever it was before, and it will never be anything older."""
        self.blocks[key] = [Version(content, -1, -1)]
        for table in (self.contested, self._blurred, self._unsafe):
            table.pop(key, None)

    def forget_volume(self, name: str) -> None:
        for table in (self.blocks, self.contested, self._blurred, self._unsafe, self._open):
            for key in [key for key in table if key[0] == name]:
                del table[key]

    def recovered(self, found: Mapping[Key, bytes]) -> None:
        """Go on from what was found."""
        self.blocks = {key: [Version(content, -1, -1)] for key, content in found.items()}
        for table in (self.contested, self._blurred, self._unsafe, self._open):
            table.clear()


def _merged(spans: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    current: tuple[int, int] | None = None
    for start, stop in sorted(spans):
        if current is not None and start <= current[1]:
            current = (current[0], max(current[1], stop))
            continue
        if current is not None:
            yield current
        current = (start, stop)
    if current is not None:
        yield current

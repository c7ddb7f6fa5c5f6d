"""What the disks may hold, as a dictionary of blocks with the values allowed: the model that the engine is held to.

Time is counted in moments. A change of a block begins at one and ends (is acknowledged) at a later one; it takes effect
somewhere in between. `Version` k of a block is what a reader finds from the effect of change k to that of change k + 1.
So a recovered block that holds version k says: the moment to which the log was cut lies between the beginning of change
k and the end of change k + 1. Promise 3 holds if there is one moment of which all blocks say that.
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


class Model:
    def __init__(self) -> None:
        self.moment = 0
        self.blocks: dict[Key, list[Version]] = {}
        self.acknowledged = 0  # the last moment at which a change was acknowledged

    def tick(self) -> int:
        self.moment += 1
        return self.moment

    def chain(self, key: Key) -> list[Version]:
        return self.blocks.setdefault(key, [Version(ZERO, -1, -1)])

    def latest(self, key: Key) -> bytes:
        chain = self.blocks.get(key)
        return chain[-1].content if chain else ZERO

    def begin(self, changes: Mapping[Key, bytes]) -> dict[Key, Version]:
        moment = self.tick()
        begun = {key: Version(content, moment) for key, content in changes.items()}
        for key, version in begun.items():
            self.chain(key).append(version)
        return begun

    def end(self, begun: Mapping[Key, Version]) -> None:
        moment = self.acknowledged = self.tick()
        for version in begun.values():
            version.ended = moment

    def cancel(self, key: Key, version: Version) -> None:
        """The change was refused and did not happen."""
        self.blocks[key].remove(version)

    def must_survive(self, moment: int) -> None:
        """All changes that ended before `moment` are there to stay."""
        for chain in self.blocks.values():
            for version in reversed(chain):
                if version.ended <= moment:
                    version.safe = True
                    break

    def must_survive_change(self, begun: Mapping[Key, Version]) -> None:
        for version in begun.values():
            version.safe = True

    def may_read(self, key: Key, since: int) -> list[bytes]:
        """What a read that began at `since` and ends now may find: what was there then, or anything later."""
        chain = self.blocks.get(key)
        if chain is None:
            return [ZERO]
        first = max((index for index, version in enumerate(chain) if version.ended < since), default=0)
        return [version.content for version in chain[first:]]

    def check_recovered(self, found: Mapping[Key, bytes], since: int) -> None:
        """Raise AssertionError unless what was found is the state of one moment at or after `since`."""
        edges: dict[int, int] = {}
        spans_of: dict[Key, list[tuple[int, int]]] = {}
        for key, content in found.items():
            spans = spans_of[key] = list(_merged(self._spans(key, content, since)))
            assert spans, f"block {key} holds what it may not hold: {self.describe(key, content)}"
            for start, stop in spans:
                edges[start] = edges.get(start, 0) + 1
                edges[stop] = edges.get(stop, 0) - 1
        agreeing = 0
        for edge in sorted(edges):
            agreeing += edges[edge]
            if agreeing == len(found):
                return
        assert not found, "a mixture of moments: " + self._contradiction(found, spans_of)

    def _spans(self, key: Key, content: bytes, since: int) -> Iterable[tuple[int, int]]:
        chain = self.blocks[key]
        first = max((index for index, version in enumerate(chain) if version.safe), default=0)
        for index, version in enumerate(chain):
            if index >= first and version.content == content:
                stop = chain[index + 1].ended if index + 1 < len(chain) else NEVER
                if stop > max(version.begun, since):
                    yield max(version.begun, since), stop

    def _contradiction(self, found: Mapping[Key, bytes], spans_of: Mapping[Key, list[tuple[int, int]]]) -> str:
        newest = max(spans_of, key=lambda key: spans_of[key][0][0])
        oldest = min(spans_of, key=lambda key: spans_of[key][-1][1])
        return " and ".join(f"{key} ({spans_of[key]}) {self.describe(key, found[key])}" for key in (oldest, newest))

    def describe(self, key: Key, content: bytes) -> str:
        chain = [(version.content[:8].hex(), version.begun, version.ended) for version in self.blocks.get(key, [])]
        return f"found {content[:8].hex()} among {chain}"

    def recovered(self, found: Mapping[Key, bytes]) -> None:
        """Go on from what was found."""
        self.blocks = {key: [Version(content, -1, -1)] for key, content in found.items()}


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

"""Whose blocks a stretch of the log holds: for telling people which volumes a failure has met.

Read from the commit headers in the ring, so it costs nothing while nothing fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.pool.block import KIND_DATA, KIND_HOLE, LBA_MASK, VOLUME_SHIFT
from holdfast.pool.commit import COMMIT_ENTRIES_MAX, CommitHeader, decode_commit_header
from holdfast.pool.segment import FIRST_COMMIT_OFFSET
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, format_size
from holdfast.writeback.log import Log


@dataclass(frozen=True, slots=True)
class OwnedBlocks:
    """Blocks of one volume: how many, and the range [first, end) of the volume that they lie in."""

    volume_id: int
    count: int
    first: int
    end: int

    def describe(self, name: str) -> str:
        first, length = self.first << BLOCK_SHIFT, (self.end - self.first) << BLOCK_SHIFT
        return f"{name} ({self.count} blocks in {format_size(length)} from offset {first} on)"


def owned_blocks(log: Log, start: int, end: int) -> list[OwnedBlocks]:
    """What the sealed commits at log positions [start, end) hold of each volume, holes included, in the order of the
    volumes' ids. All of it must still be in the ring."""
    found: dict[int, OwnedBlocks] = {}
    position = _commit_around(log, start)
    while position < end:
        header = _header_at(log, position)
        if header is None:  # behind the last commit of a segment
            position = ((position >> log.shift) + 1 << log.shift) + FIRST_COMMIT_OFFSET
            continue
        kinds = header.entries["meta"] & 0xFF
        chosen = header.entries[(kinds == KIND_DATA) | (kinds == KIND_HOLE)]
        volumes = chosen["owner"] >> np.uint64(VOLUME_SHIFT)
        for volume_id in np.unique(volumes).tolist():
            mine = chosen[volumes == volume_id]
            lbas = mine["owner"] & np.uint64(LBA_MASK)
            lengths = np.where(mine["meta"] & 0xFF == KIND_HOLE, mine["meta"] >> 8, 1)
            known = found.get(volume_id)
            first, last = int(lbas.min()), int((lbas + lengths).max())
            count = int(lengths.sum())
            if known is not None:
                first, last, count = min(first, known.first), max(last, known.end), count + known.count
            found[volume_id] = OwnedBlocks(volume_id, count, first, last)
        position += 1 + header.block_count
    return [found[volume_id] for volume_id in sorted(found)]


def _commit_around(log: Log, position: int) -> int:
    """The position of the header of the commit that `position` lies in; `position` itself if there is none."""
    first = (position >> log.shift << log.shift) + FIRST_COMMIT_OFFSET
    position = max(position, first)
    lowest = max(position - COMMIT_ENTRIES_MAX, log.start, first)
    for candidate in range(position, lowest - 1, -1):
        header = _header_at(log, candidate)
        if header is not None and candidate + header.block_count >= position:
            return candidate
    return position


def _header_at(log: Log, position: int) -> CommitHeader | None:
    at = position % log.ring.blocks << BLOCK_SHIFT
    header = decode_commit_header(log.slots[at : at + BLOCK_SIZE_BYTES])
    if header is None or header.position != position or header.epoch != log.epoch:
        return None
    return header

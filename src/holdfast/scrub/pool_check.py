"""The offline check: every structure, every checksum, the maps against the reverse map, the space table against the
maps.

Nothing is written. What a server that died left in its ring is laid over the files in memory (`OverlayDisk`), so an
unclean pool is checked in the state that it will come up in; the maps are those of the last checkpoint, and the commits
behind it are verified block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from holdfast.pool.block import (
    ADDRESS_BITS,
    ADDRESS_MASK,
    CHECK_MASK,
    KIND_DATA,
    KIND_MAP,
    KIND_META,
    LBA_MASK,
    VOLUME_SHIFT,
    WordArray,
)
from holdfast.pool.opening import OpenedPool, Opener
from holdfast.pool.space import ABSENT, FREE, SEALED, SpaceTable
from holdfast.pool.superblock import Superblock
from holdfast.pool.tables import TABLE_NAMES
from holdfast.runtime.ports import READ, WRITE, Disk, Io
from holdfast.scrub.map_check import MapWalker
from holdfast.scrub.segment_check import Finding, SegmentChecker, SegmentReport
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.work.task import run_to_end

# Of the owner words of a block and of the map entry that leads to it, what has to be the same.
_OWNER_MASKS = {KIND_DATA: np.uint64(LBA_MASK), KIND_MAP: np.uint64((1 << 64) - 1)}

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class CheckReport:
    damage: list[Finding] = field(default_factory=list)
    blocks_checked: int = 0
    segments_checked: int = 0
    volumes_checked: int = 0
    seconds: float = 0.0


class OverlayDisk:
    """A disk whose writes stay in memory. Only what start-up and the check use of it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._written: dict[tuple[int, int], bytes] = {}

    def run(self, io: Io) -> int:
        if io.op == READ:
            self._disk.run(io)
            if io.result == 0 and io.view is not None:
                for at in range(0, io.length, BLOCK_SIZE_BYTES):
                    block = self._written.get((io.file, io.offset + at))
                    if block is not None:
                        io.view[at : at + BLOCK_SIZE_BYTES] = block
        elif io.op == WRITE and io.view is not None:
            for at in range(0, io.length, BLOCK_SIZE_BYTES):
                self._written[io.file, io.offset + at] = bytes(io.view[at : at + BLOCK_SIZE_BYTES])
        return io.result

    def segments(self) -> list[int]:
        return self._disk.segments()

    def drop_cached(self, file: int, offset: int, length: int) -> None:
        self._disk.drop_cached(file, offset, length)

    def exists(self, file: int) -> bool:
        return self._disk.exists(file)


class PoolChecker:
    """Checks one pool through an overlay. `known_end`: where its ring says that the log ends, or 0."""

    def __init__(self, superblock: Superblock, disk: OverlayDisk, known_end: int, progress: Progress) -> None:
        self.superblock = superblock
        self.disk = disk
        self.known_end = known_end
        self.progress = progress
        self.report = CheckReport()
        self.shift = superblock.segment_blocks.bit_length() - 1
        self.space = SpaceTable(superblock.capacity_segments, self.shift, reserve_segments=0)

    def run(self) -> CheckReport:
        """Check everything. Raises CorruptionError or DiskError where the pool cannot even be opened."""
        findings: list[str] = []
        opener = Opener(self.superblock, self.space, self.disk, findings)
        opened: OpenedPool = run_to_end(opener.read(self.known_end), self.disk.run)
        stored_live = self.space.live.copy()
        for text in findings:
            self._add("log", "behind the checkpoint", text)
        walker = MapWalker(self.shift)
        for row in opened.rows:
            mapped = run_to_end(walker.walk(row), self.disk.run)
            self.report.volumes_checked += 1
            if mapped != row.mapped_blocks and not walker.references.damaged_pages:
                self._add(
                    "volume table",
                    f"volume {row.name}",
                    f"it says {row.mapped_blocks} mapped blocks, the map has {mapped}",
                )
        self._check_segments(opened, walker, opener.refilled)
        self._check_space(opened, walker, stored_live)
        return self.report

    def _add(self, kind: str, where: str, what: str) -> None:
        self.report.damage.append(Finding(kind, where, what))

    # ---- segments, and what refers to them

    def _check_segments(self, opened: OpenedPool, walker: MapWalker, refilled: list[int]) -> None:
        references = walker.references
        names = {row.volume_id: row.name for row in opened.rows}
        for row, level, index, what in references.damaged_pages:
            first = index << 9 * (level + 1)
            self._add("map page", f"volume {row.name}, from block {first} on", f"level {level}: {what}")
        by_kind = {
            kind: _sorted_by_address(references.entries[kind], references.owners[kind])
            for kind in (KIND_DATA, KIND_MAP)
        }
        meta = np.sort(np.array(opened.meta_addresses, np.uint64))
        checker = SegmentChecker(tag=self.superblock.tag, segment_shift=self.shift)
        in_use = np.flatnonzero((self.space.state != ABSENT) & (self.space.state != FREE)).tolist()
        in_use = [segment for segment in in_use if segment not in refilled]
        torn = {footer.segment_id for footer in opened.torn_summaries}
        for number, segment in enumerate(in_use):
            stop = None if self.space.state[segment] >= SEALED else opened.end & (1 << self.shift) - 1
            ordinal = int(self.space.ordinal[segment])
            report = run_to_end(checker.check(segment, ordinal, stop, torn_summary=segment in torn), self.disk.run)
            self.report.damage += report.findings
            self.report.blocks_checked += report.blocks_checked
            self.report.segments_checked += 1
            used = np.zeros(1 << self.shift, np.bool_)
            for kind, (entries, owners) in by_kind.items():
                self._hold_against(
                    report, segment, kind, *_of_segment(entries, owners, segment, self.shift), used, names
                )
            for address in meta[(meta >> np.uint64(self.shift)) == segment].tolist():
                used[address & (1 << self.shift) - 1] = True
            self._report_damaged_blocks(report, segment, used, names)
            self.progress(number + 1, len(in_use))

    def _hold_against(
        self,
        report: SegmentReport,
        segment: int,
        kind: int,
        entries: WordArray,
        owners: WordArray,
        used: np.ndarray[tuple[int], np.dtype[np.bool_]],
        names: dict[int, str],
    ) -> None:
        """The references into a segment against its reverse map."""
        blocks = (entries & np.uint64((1 << self.shift) - 1)).astype(np.intp)
        twice = used[blocks]
        used[blocks] = True
        checks = (entries >> np.uint64(ADDRESS_BITS)).astype(np.uint64)
        wrong = (
            (report.kind[blocks] != kind)
            # A block of data stays as it is when a snapshot, or whoever was made from one, takes it over.
            | ((report.owner[blocks] ^ owners) & _OWNER_MASKS[kind] != 0)
            # All ones: given up, or poisoned. The block itself says what is wrong with it.
            | (((report.check[blocks] & np.uint32(CHECK_MASK)) != checks) & (checks != np.uint64(CHECK_MASK)))
            | twice
        )
        for index in np.flatnonzero(wrong).tolist():
            owner, block = int(owners[index]), int(blocks[index])
            what = "two places refer to it" if twice[index] else "the commit there says that it is something else"
            self._add(
                "map entry", _place(kind, owner, names), f"it refers to segment {segment:08x}, block {block}: {what}"
            )

    def _report_damaged_blocks(
        self,
        report: SegmentReport,
        segment: int,
        used: np.ndarray[tuple[int], np.dtype[np.bool_]],
        names: dict[int, str],
    ) -> None:
        for block in np.flatnonzero(report.damaged).tolist():
            kind, owner = int(report.kind[block]), int(report.owner[block])
            state = "" if used[block] else "; nothing refers to it at the last checkpoint"
            self._add(
                "block",
                f"segment {segment:08x}, block {block}",
                f"{_place(kind, owner, names)} does not check out{state}",
            )

    # ---- space

    def _check_space(
        self, opened: OpenedPool, walker: MapWalker, stored_live: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> None:
        """The live counts of the last checkpoint against a recount. Damaged maps cannot be counted."""
        if walker.references.damaged_pages:
            return
        counted = np.zeros(len(stored_live), np.int64)
        for arrays in walker.references.entries.values():
            for entries in arrays:
                np.add.at(counted, ((entries & np.uint64(ADDRESS_MASK)) >> np.uint64(self.shift)).astype(np.intp), 1)
        for address in opened.meta_addresses:
            counted[address >> self.shift] += 1
        for segment in np.flatnonzero(counted != stored_live).tolist():
            self._add(
                "space table",
                f"segment {segment:08x}",
                f"it says {stored_live[segment]} live blocks, the maps refer to {counted[segment]}",
            )


def _place(kind: int, owner: int, names: dict[int, str]) -> str:
    """What an owner word stands for, in words."""
    if kind == KIND_META:
        return f"block {owner & LBA_MASK} of the {TABLE_NAMES.get(owner >> VOLUME_SHIFT, 'unknown table')}"
    volume = names.get(owner >> VOLUME_SHIFT, f"number {owner >> VOLUME_SHIFT} (removed)")
    if kind == KIND_MAP:
        return f"volume {volume}, map page {owner & LBA_MASK} of level {owner >> 36 & 15}"
    return f"volume {volume}, block {owner & LBA_MASK} (byte {(owner & LBA_MASK) << BLOCK_SHIFT})"


def _sorted_by_address(entries: list[WordArray], owners: list[WordArray]) -> tuple[WordArray, WordArray]:
    if not entries:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    all_entries, all_owners = np.concatenate(entries), np.concatenate(owners)
    order = np.argsort(all_entries & np.uint64(ADDRESS_MASK), kind="stable")
    return all_entries[order], all_owners[order]


def _of_segment(entries: WordArray, owners: WordArray, segment: int, shift: int) -> tuple[WordArray, WordArray]:
    addresses = entries & np.uint64(ADDRESS_MASK)
    first, last = np.searchsorted(addresses, [segment << shift, (segment + 1) << shift])
    return entries[first:last], owners[first:last]

"""One segment, verified from its header to its footer: every structure, every stored block against its entry.

What it finds on the way is the segment's part of the reverse map: for each stored block who owns it and what its check
is. The map of the volumes is held against that (`pool_check.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from holdfast.errors import DiskError
from holdfast.pool.block import KIND_COMMIT, KIND_HOLE, STORED_KINDS, EntryArray, block_check, hole_check
from holdfast.pool.commit import COMMIT_MAGIC, COMMIT_SEED, CommitHeader, decode_commit_header, mend_single_byte
from holdfast.pool.segment import (
    FIRST_COMMIT_OFFSET,
    SegmentFooter,
    decode_segment_footer,
    decode_segment_header,
    decode_summary,
    summary_blocks,
)
from holdfast.runtime.ports import READ, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB
from holdfast.work.task import Work


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be. `kind`: the structure; `where`: its place; `what`: what is wrong with
    it."""

    kind: str
    where: str
    what: str


@dataclass(slots=True)
class SegmentReport:
    """Arrays by block offset within the segment: `owner` and `check` are of stored blocks, `kind` is 0 for all
    others."""

    owner: npt.NDArray[np.uint64]
    check: npt.NDArray[np.uint32]
    kind: npt.NDArray[np.uint8]
    damaged: npt.NDArray[np.bool_]
    findings: list[Finding] = field(default_factory=list)
    blocks_checked: int = 0


class SegmentChecker:
    """Checks segments of one pool. The `stop` of a segment is the block behind its last commit."""

    def __init__(self, *, tag: int, segment_shift: int) -> None:
        self.tag = tag
        self.shift = segment_shift
        self.segment_blocks = 1 << segment_shift

    def check(self, segment: int, ordinal: int, stop: int | None, *, torn_summary: bool = False) -> Work:
        """Verify a segment (work that yields I/O); returns a `SegmentReport`.

        stop: None if the segment is sealed
        torn_summary: a crash tore its summary, which is no damage; the next server drops it
        """
        blocks = self.segment_blocks
        report = SegmentReport(
            np.zeros(blocks, np.uint64),
            np.zeros(blocks, np.uint32),
            np.zeros(blocks, np.uint8),
            np.zeros(blocks, np.bool_),
        )
        try:
            raw = yield from self._read_all(segment)
        except DiskError as error:
            report.findings.append(Finding("segment", f"segment {segment:08x}", str(error)))
            return report
        header = decode_segment_header(raw[:BLOCK_SIZE_BYTES])
        if header is None or header.tag != self.tag or header.segment_id != segment or header.ordinal != ordinal:
            self._note(report, "segment header", segment, 0, "it does not check out")
        footer, summary = None, None
        if stop is None:
            footer, summary = self._footer(report, raw, segment, ordinal, torn_summary=torn_summary)
            stop = footer.commits_end if footer is not None else blocks - 1
        self._walk(report, raw, segment, ordinal, stop, summary, sealed=footer is not None)
        return report

    def _read_all(self, segment: int) -> Work:
        view = memoryview(bytearray(self.segment_blocks << BLOCK_SHIFT))
        step = 4 * MIB
        for at in range(0, len(view), step):
            io = yield Io(READ, segment, at, view[at : at + step])
            if io.result < 0:
                raise DiskError(f"it cannot be read at byte {at}: errno {-io.result}", -io.result)
        return view

    def _note(self, report: SegmentReport, kind: str, segment: int, block: int, what: str) -> None:
        report.findings.append(Finding(kind, f"segment {segment:08x}, block {block}", what))

    def _footer(
        self, report: SegmentReport, raw: memoryview, segment: int, ordinal: int, *, torn_summary: bool
    ) -> tuple[SegmentFooter | None, EntryArray | None]:
        last = self.segment_blocks - 1
        footer = decode_segment_footer(raw[last << BLOCK_SHIFT :], self.segment_blocks)
        if footer is None or footer.tag != self.tag or footer.ordinal != ordinal or footer.segment_id != segment:
            self._note(report, "segment footer", segment, last, "it does not check out")
            return None, None
        if footer.entry_count == 0:
            return footer, None
        end = footer.summary_offset + summary_blocks(footer.entry_count)
        summary = decode_summary(raw[footer.summary_offset << BLOCK_SHIFT : end << BLOCK_SHIFT], footer)
        if summary is None and not torn_summary:
            self._note(report, "segment summary", segment, footer.summary_offset, "it does not check out")
        return footer, summary

    def _walk(
        self,
        report: SegmentReport,
        raw: memoryview,
        segment: int,
        ordinal: int,
        stop: int,
        summary: EntryArray | None,
        *,
        sealed: bool,
    ) -> None:
        """Go from commit to commit; what the summary says of the same commits is held against them."""
        block = FIRST_COMMIT_OFFSET
        at_entry = 0
        while block < stop:
            header = self._commit(report, raw, segment, ordinal, block)
            if header is None:
                listed = self._listed(summary, at_entry)
                if listed is None:
                    if sealed or stop < self.segment_blocks - 1:
                        self._note(report, "commit", segment, block, "what follows in this segment has no valid header")
                    return
                entries = listed
            else:
                entries = header.entries
                if summary is not None and not _same(entries, self._listed(summary, at_entry)):
                    self._note(report, "segment summary", segment, block, "it differs from the commit header here")
            at_entry += 1 + len(entries)
            block = self._check_blocks(report, raw, segment, block + 1, entries)

    def _commit(
        self, report: SegmentReport, raw: memoryview, segment: int, ordinal: int, block: int
    ) -> CommitHeader | None:
        part = raw[block << BLOCK_SHIFT : (block + 1) << BLOCK_SHIFT]
        header = decode_commit_header(part)
        if header is None and part[:4] == COMMIT_MAGIC.to_bytes(8, "little")[:4]:
            mended = mend_single_byte(part, COMMIT_MAGIC, COMMIT_SEED)
            header = None if mended is None else decode_commit_header(mended)
            self._note(report, "commit header", segment, block, "one byte is damaged" if header else "it is damaged")
        if header is None or header.tag != self.tag or header.position != ordinal << self.shift | block:
            return None
        return header

    def _listed(self, summary: EntryArray | None, at: int) -> EntryArray | None:
        """The entries of the commit that the summary lists at an index."""
        if summary is None or at >= len(summary) or int(summary["meta"][at]) & 0xFF != KIND_COMMIT:
            return None
        return summary[at + 1 : at + 1 + (int(summary["meta"][at]) >> 8)]

    def _check_blocks(
        self, report: SegmentReport, raw: memoryview, segment: int, block: int, entries: EntryArray
    ) -> int:
        for owner, check, meta in entries.tolist():
            kind = meta & 0xFF
            if kind in STORED_KINDS and block < self.segment_blocks:
                report.owner[block] = owner
                report.check[block] = check
                report.kind[block] = kind
                report.blocks_checked += 1
                data = raw[block << BLOCK_SHIFT : (block + 1) << BLOCK_SHIFT]
                if block_check(data, owner, kind) != check:
                    report.damaged[block] = True
                block += 1
            elif kind != KIND_HOLE or hole_check(owner, meta) != check:
                self._note(report, "commit entry", segment, block, f"an entry of kind {kind} does not check out")
        return block


def _same(left: EntryArray, right: EntryArray | None) -> bool:
    return right is not None and left.tobytes() == right.tobytes()

"""Finding the end of the log: which commits stand behind the newest checkpoint, and where the log stops.

The log goes on, segment by segment in the order of their ordinals, from the superblock's replay position. Only commits
of the superblock's epoch count: anything else is left over from a timeline that was given up.

An unusable commit is one of two things. Either the log ends there, because power failed while it was written: then all
of it was unacknowledged or at least unflushed, and it is cut off, with everything behind it (promise 3: a prefix). Or
it was whole once and is damaged: then cutting it off would silently lose flushed data. Every header carries the
position below which all was durable when it was sealed, so a header further on, of the same epoch, that says so is the
proof that it was whole. A damaged header is mended if one byte changed, else taken from the segment's summary; damaged
data blocks stay where they are, and read as errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np

from holdfast.errors import CorruptionError, DiskError
from holdfast.pool.block import (
    ENTRY_SIZE_BYTES,
    KIND_COMMIT,
    KIND_HOLE,
    STORED_KINDS,
    EntryArray,
    block_check,
    hole_check,
)
from holdfast.pool.commit import (
    COMMIT_MAGIC,
    COMMIT_SEED,
    CommitHeader,
    decode_commit_header,
    mend_single_byte,
)
from holdfast.pool.segment import (
    FIRST_COMMIT_OFFSET,
    FOOTER_MAGIC,
    FOOTER_SEED,
    SEGMENT_MAGIC,
    SEGMENT_SEED,
    SegmentFooter,
    SegmentHeader,
    commits_limit,
    decode_segment_footer,
    decode_segment_header,
    decode_summary,
    summary_blocks,
)
from holdfast.runtime.ports import READ, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB
from holdfast.work.task import Work

READ_AHEAD_BLOCKS = 32


@dataclass(frozen=True, slots=True)
class FoundCommit:
    """A commit behind the checkpoint. `address` is that of its first stored block."""

    position: int
    address: int
    block_count: int
    entries: EntryArray

    @property
    def end(self) -> int:
        return self.position + 1 + self.block_count


@dataclass(slots=True)
class LogTail:
    """What lies behind the checkpoint."""

    commits: list[FoundCommit] = field(default_factory=list)
    end: int = 0  # position at which the log goes on
    segment: int = -1  # the segment that holds `end`; -1 if the log goes on in a new segment
    summary: bytes | None = b""  # entries of that segment so far, from its first commit on; None: too many
    segments: dict[int, int] = field(default_factory=dict)  # ordinal -> id of every segment from the checkpoint on
    durable: int = 0  # everything below was once known to be on stable storage
    torn_summaries: list[SegmentFooter] = field(default_factory=list)  # footers whose summary does not check out
    findings: list[str] = field(default_factory=list)


class LogScanner:
    """Reads the log's segments. All methods are work of a task: they yield I/O.

    drop_cached: tells the disk that what it has cached of (segment, offset, length) is doubtful
    """

    def __init__(
        self, *, tag: int, epoch: int, segment_shift: int, drop_cached: Callable[[int, int, int], None]
    ) -> None:
        self.tag = tag
        self.epoch = epoch
        self.shift = segment_shift
        self.segment_blocks = 1 << segment_shift
        self.findings: list[str] = []
        self._drop_cached = drop_cached
        self._ahead = memoryview(b"")
        self._ahead_of = (-1, -1)

    def read(self, segment: int, block: int, count: int) -> Work:
        """`count` blocks of a segment, as a memoryview. Raises DiskError.

        Single blocks are read ahead: commit headers lie close together where flushes were frequent.
        """
        if count == 1:
            return (yield from self._read_single(segment, block))
        view = memoryview(bytearray(count << BLOCK_SHIFT))
        io = yield Io(READ, segment, block << BLOCK_SHIFT, view)
        if io.result < 0:
            raise DiskError(f"segment {segment:08x}, block {block}: cannot be read (errno {-io.result})", -io.result)
        return view

    def _read_single(self, segment: int, block: int) -> Work:
        start = block - block % READ_AHEAD_BLOCKS
        if self._ahead_of != (segment, start):
            self._ahead = yield from self.read(segment, start, min(READ_AHEAD_BLOCKS, self.segment_blocks - start))
            self._ahead_of = (segment, start)
        at = (block - start) << BLOCK_SHIFT
        return self._ahead[at : at + BLOCK_SIZE_BYTES]

    def _doubt(self, segment: int, block: int, count: int) -> None:
        """What was read of these blocks is not as it should be: the next reading is to come from the disk. Before the
        log is cut off, and what follows is given up for good, one wrong reading must not be all that speaks for it."""
        self._ahead_of = (-1, -1)
        self._drop_cached(segment, block << BLOCK_SHIFT, count << BLOCK_SHIFT)

    def segment_header(self, segment: int, *, mend: bool = False) -> Work:
        """The valid header of a segment file of this pool, or None."""
        raw = yield from self.read(segment, 0, 1)
        header = decode_segment_header(raw)
        if header is None and mend and any(raw):
            mended = mend_single_byte(raw, SEGMENT_MAGIC, SEGMENT_SEED)
            header = None if mended is None else decode_segment_header(mended)
            if header is not None:
                self.findings.append(f"segment {segment:08x}: its header had a damaged byte")
        if header is None or header.tag != self.tag or header.segment_id != segment:
            return None
        return header

    def commit_at(self, segment: int, ordinal: int, block: int, *, mend: bool = False) -> Work:
        """The header of the commit of this epoch at a block of a segment, or None."""
        if block >= self.segment_blocks - 1:
            return None
        raw = yield from self.read(segment, block, 1)
        header = decode_commit_header(raw)
        if header is None and mend:
            mended = mend_single_byte(raw, COMMIT_MAGIC, COMMIT_SEED)
            header = None if mended is None else decode_commit_header(mended)
            if header is not None:
                self.findings.append(f"segment {segment:08x}, block {block}: a commit header had a damaged byte")
        return header if self._is_ours(header, ordinal, block) else None

    def _is_ours(self, header: CommitHeader | None, ordinal: int, block: int) -> bool:
        return (
            header is not None
            and header.tag == self.tag
            and header.epoch == self.epoch
            and header.position == ordinal << self.shift | block
            and block + 1 + header.block_count < self.segment_blocks
        )

    def _is_footer_of(self, footer: SegmentFooter | None, ordinal: int) -> TypeGuard[SegmentFooter]:
        """True if the segment was sealed with this ordinal, and in this epoch: where the log was cut off and went on in
        the same segment, the footer that it had before that is still there, and lists commits that are not."""
        return (
            footer is not None and footer.tag == self.tag and footer.epoch == self.epoch and footer.ordinal == ordinal
        )

    def _mended_footer(self, segment: int) -> Work:
        """The footer of a segment, a changed byte in it put right, or None."""
        raw = yield from self.read(segment, self.segment_blocks - 1, 1)
        footer = decode_segment_footer(raw, self.segment_blocks)
        if footer is None:
            mended = mend_single_byte(raw, FOOTER_MAGIC, FOOTER_SEED)
            footer = None if mended is None else decode_segment_footer(mended, self.segment_blocks)
            if footer is not None:
                self.findings.append(f"segment {segment:08x}: its footer had a damaged byte")
        return footer

    def summary(self, segment: int, ordinal: int) -> Work:
        """All entries of a sealed segment with the block offset behind its last commit, or None where there is no
        usable summary."""
        raw = yield from self.read(segment, self.segment_blocks - 1, 1)
        footer = decode_segment_footer(raw, self.segment_blocks)
        if not self._is_footer_of(footer, ordinal) or footer.entry_count == 0:
            return None
        blocks = yield from self.read(segment, footer.summary_offset, summary_blocks(footer.entry_count))
        entries = decode_summary(blocks, footer)
        return None if entries is None else (entries, footer.commits_end)

    def commits_of_summary(self, segment: int, entries: EntryArray, from_position: int) -> list[FoundCommit]:
        """The commits at and behind `from_position` that a summary lists."""
        commits = []
        kinds = entries["meta"] & np.uint32(0xFF)
        starts = np.flatnonzero(kinds == KIND_COMMIT).tolist()
        stored = np.isin(kinds, STORED_KINDS)
        for start, stop in zip(starts, [*starts[1:], len(entries)], strict=True):
            position = int(entries["owner"][start])
            if position >= from_position:
                block_count = int(np.count_nonzero(stored[start:stop]))
                address = (segment << self.shift | position & self.segment_blocks - 1) + 1
                commits.append(FoundCommit(position, address, block_count, entries[start + 1 : stop]))
        return commits

    def find_tail(self, *, replay_position: int, candidates: dict[int, int], known_end: int) -> Work:
        """Walk the log from `replay_position`; returns a `LogTail`.

        `candidates` maps the ordinals of segments that may belong to it to their ids. `known_end` is a position below
        which everything is known to be durable (from a ring that survived), or 0.
        """
        tail = LogTail(durable=known_end, segments=candidates)
        position = replay_position
        while True:
            ordinal = position >> self.shift
            segment = candidates.get(ordinal, -1)
            if segment < 0:
                tail.end = ordinal << self.shift
                break
            block = position & self.segment_blocks - 1
            sealed = yield from self.summary(segment, ordinal)
            if sealed is not None:
                tail.commits += self.commits_of_summary(segment, sealed[0], position)
                position = ordinal + 1 << self.shift
                continue
            position = yield from self._walk(tail, segment, ordinal, max(block, FIRST_COMMIT_OFFSET))
            if position & self.segment_blocks - 1:
                tail.end = position
                tail.segment = segment
                break
        yield from self._gather_evidence(tail)
        yield from self._cut_torn_commits(tail)
        if tail.end < tail.durable:
            raise CorruptionError(
                f"the log ends at position {tail.end:#x}, but was durable up to {tail.durable:#x}: a segment file "
                "behind its end is damaged beyond mending or missing; restore it from a backup"
            )
        yield from self._rebuild_summary(tail)
        for footer in tail.torn_summaries:
            # Power failed while it was written, and nothing is lost: unless it was known to be durable.
            if footer.ordinal + 1 << self.shift <= tail.durable:
                self.findings.append(f"segment {footer.segment_id:08x}: its summary is damaged; its commits are whole")
        tail.findings = self.findings
        return tail

    def _walk(self, tail: LogTail, segment: int, ordinal: int, block: int) -> Work:
        """Collect commits of a segment without a summary; returns the position at which the walk stops."""
        while True:
            header = yield from self.commit_at(segment, ordinal, block)
            if header is None:
                self._doubt(segment, block, 1)
                header = yield from self.commit_at(segment, ordinal, block)
            if header is None:
                footer: SegmentFooter | None = yield from self._mended_footer(segment)
                if self._is_footer_of(footer, ordinal) and footer.commits_end == block:
                    if footer.entry_count:
                        tail.torn_summaries.append(footer)
                    return ordinal + 1 << self.shift  # sealed, without a summary that can be used
                proof = yield from self._durable_behind(tail, segment, ordinal, block)
                if proof <= (ordinal << self.shift | block):
                    return ordinal << self.shift | block
                tail.durable = max(tail.durable, proof)
                header = yield from self.commit_at(segment, ordinal, block, mend=True)
                if header is None and (yield from self._was_sealed(segment, ordinal, block)):
                    return ordinal + 1 << self.shift
                if header is None:
                    raise CorruptionError(
                        f"segment {segment:08x}, block {block}: the header of a commit that was durable is damaged "
                        "beyond mending; restore the segment file from a backup"
                    )
            tail.durable = max(tail.durable, header.durable_position)
            address = (segment << self.shift | block) + 1
            tail.commits.append(FoundCommit(header.position, address, header.block_count, header.entries))
            block += 1 + header.block_count

    def _durable_behind(self, tail: LogTail, segment: int, ordinal: int, block: int) -> Work:
        """The highest durable position that any header of this epoch behind `block` tells of; `tail.durable` at
        least."""
        best = tail.durable
        for later in sorted(tail.segments):
            if later > ordinal:
                header: SegmentHeader | None = yield from self.segment_header(tail.segments[later])
                if header is not None and header.epoch == self.epoch and header.ordinal == later:
                    best = max(best, header.durable_position)
                best = max(best, (yield from self._best_durable_in(tail.segments[later], later, FIRST_COMMIT_OFFSET)))
        return max(best, (yield from self._best_durable_in(segment, ordinal, block + 1)))

    def _best_durable_in(self, segment: int, ordinal: int, first: int) -> Work:
        """Scan the blocks of a segment from `first` on for commit headers of this epoch, in large reads."""
        best = 0
        step = MIB >> BLOCK_SHIFT
        magic = COMMIT_MAGIC.to_bytes(8, "little")
        for start in range(first, self.segment_blocks, step):
            count = min(step, self.segment_blocks - start)
            raw = yield from self.read(segment, start, count)
            for index in range(count):
                at = index << BLOCK_SHIFT
                if raw[at : at + 8] != magic:
                    continue
                header = decode_commit_header(raw[at : at + BLOCK_SIZE_BYTES])
                if header is not None and self._is_ours(header, ordinal, start + index):
                    best = max(best, header.durable_position)
        return best

    def _gather_evidence(self, tail: LogTail) -> Work:
        """Raise `tail.durable` to what the walked segments' own headers say."""
        for ordinal in sorted(tail.segments):
            header = yield from self.segment_header(tail.segments[ordinal])
            if header is not None and header.epoch == self.epoch:
                tail.durable = max(tail.durable, header.durable_position)
        for commit in reversed(tail.commits):  # those taken from summaries; the newest header tells the most
            ordinal, block = commit.position >> self.shift, commit.position & self.segment_blocks - 1
            header_of_last = yield from self.commit_at(tail.segments[ordinal], ordinal, block)
            if header_of_last is not None:
                tail.durable = max(tail.durable, header_of_last.durable_position)
                break

    def _cut_torn_commits(self, tail: LogTail) -> Work:
        """Verify the data of commits that are not known to have been durable; cut the log at the first that is not
        whole."""
        for number, commit in enumerate(tail.commits):
            if commit.end <= tail.durable:
                continue
            whole = yield from self._is_whole(commit)
            if not whole:
                self._doubt(commit.address >> self.shift, (commit.address & self.segment_blocks - 1) - 1,
                            1 + commit.block_count)  # fmt: skip
                whole = yield from self._is_whole(commit)
            if not whole:
                del tail.commits[number:]
                tail.end = commit.position
                tail.segment = tail.segments[commit.position >> self.shift]
                return

    def _is_whole(self, commit: FoundCommit) -> Work:
        segment = commit.address >> self.shift
        block = commit.address & self.segment_blocks - 1
        header = yield from self.commit_at(segment, commit.position >> self.shift, block - 1)
        if header is None:
            return False  # listed by a summary that reached the disk before its commit did
        raw = memoryview(b"")
        if commit.block_count:
            raw = yield from self.read(segment, block, commit.block_count)
        at = 0
        for owner, check, meta in commit.entries.tolist():
            kind = meta & 0xFF
            if kind in STORED_KINDS:
                if block_check(raw[at : at + BLOCK_SIZE_BYTES], owner, kind) != check:
                    return False
                at += BLOCK_SIZE_BYTES
            elif kind != KIND_HOLE or hole_check(owner, meta) != check:
                return False
        return True

    def _was_sealed(self, segment: int, ordinal: int, block: int) -> Work:
        """True if a segment without a footer has no commit from `block` on: the log went on in the next one, and power
        failed between the end of what is known to be durable, in the summary or before it, and the footer."""
        entries: bytes | None = yield from self._entries_before(segment, ordinal, block)
        if not entries:
            return False
        count = len(entries) // ENTRY_SIZE_BYTES
        if commits_limit(self.segment_blocks, count) - block < 2:
            return True
        summary_at = self.segment_blocks - 1 - summary_blocks(count)
        if block > summary_at:
            return False
        stored = yield from self.read(segment, summary_at, summary_blocks(count))
        return bytes(stored[: len(entries)]) == entries

    def _rebuild_summary(self, tail: LogTail) -> Work:
        """Collect the entries that the open segment holds already, for the summary that it will get when it is
        sealed; None if one is older than the checkpoint, and damaged: the segment goes without a summary."""
        if tail.segment >= 0:
            stop = tail.end & self.segment_blocks - 1
            tail.summary = yield from self._entries_before(tail.segment, tail.end >> self.shift, stop)

    def _entries_before(self, segment: int, ordinal: int, stop: int) -> Work:
        """What a summary says of the commits of a segment before block `stop`; None if a header there is damaged."""
        summary = bytearray()
        block = FIRST_COMMIT_OFFSET
        while block < stop:
            raw = yield from self.read(segment, block, 1)
            header = decode_commit_header(raw)
            if header is None:
                mended = mend_single_byte(raw, COMMIT_MAGIC, COMMIT_SEED)
                header = None if mended is None else decode_commit_header(mended)
            if header is None or header.position != ordinal << self.shift | block:
                return None
            commit = np.zeros(1, header.entries.dtype)
            commit["owner"] = header.position
            commit["check"] = header.check & 0xFFFFFFFF
            commit["meta"] = KIND_COMMIT | header.entry_count << 8
            summary += commit.tobytes() + header.entries.tobytes()
            block += 1 + header.block_count
        return bytes(summary)

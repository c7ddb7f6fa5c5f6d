"""Recovery: from a superblock to a pool that is as its log says (docs/recovery.md).

`read` brings back what the last checkpoint stored and finds the log's end; from then on segments may be prepared and
opened. `replay` brings the maps up to the log's end. A crash on the way loses nothing: the superblock slots stay as
they were until the first checkpoint of the new epoch, so the next recovery begins where this one did.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.pool.opening import Opener, SegmentFiles, drop_torn_summaries
from holdfast.pool.roll_forward import FoundCommit
from holdfast.pool.segment import SegmentFooter
from holdfast.volume.checkpoints import Checkpoints
from holdfast.volume.exchange import Exchange
from holdfast.volume.group_changes import Groups
from holdfast.volume.page_table import PageTable
from holdfast.volume.page_writer import PageWriter
from holdfast.volume.replay import Replayer
from holdfast.volume.volume import Volume
from holdfast.volume.volumes import Volumes
from holdfast.work.task import Work
from holdfast.writeback.flusher import Flusher

log_output = logging.getLogger("holdfast.engine")


class Recovery:
    """One recovery. Fields: I fixed when made, L loop thread."""

    def __init__(
        self,
        pages: PageWriter,
        table: PageTable,
        exchange: Exchange,
        flusher: Flusher,
        volumes: Volumes,
        groups: Groups,
        checkpoints: Checkpoints,
        disk: SegmentFiles,
        findings: list[str],
    ) -> None:
        """findings: gets a line for each damage that is found"""
        self._pages = pages  # I
        self._table = table  # I
        self._exchange = exchange  # I
        self._log = pages.log  # I
        self._flusher = flusher  # I
        self._volumes = volumes  # I
        self._groups = groups  # I
        self._checkpointer = checkpoints.checkpointer  # I
        self._disk = disk  # I
        self._findings = findings  # I
        self._commits: list[FoundCommit] = []  # L: to be replayed
        self._torn_summaries: list[SegmentFooter] = []  # L

    def read(self, known_end: int, *, alone: bool) -> Work:
        """Bring back tables and space, and set the log's head behind its end (a task's work). `known_end`: a log
        position up to which the log is known to reach; `alone`: as of `Opener`. Raises CorruptionError, DiskError,
        NoSpaceError."""
        opener = Opener(self._checkpointer.superblock, self._log.space, self._disk, self._findings, alone=alone)
        opened = yield from opener.read(known_end)
        self._groups.bring_back(opened.groups)
        directory = self._groups.directory
        nodes = [Volume(row, directory.by_id.get(row.group_id, directory.default)) for row in opened.rows]
        self._volumes.add(nodes, opened.rows)
        self._checkpointer.meta_addresses = opened.meta_addresses
        log, flusher = self._log, self._flusher
        if opened.segment >= 0:
            log.start_at(
                position=opened.end,
                segment=opened.segment,
                next_ordinal=opened.next_ordinal,
                summary=opened.summary,
            )
        else:
            log.start_empty(next_ordinal=opened.next_ordinal)
        flusher.durable = flusher.written = flusher.issued = log.durable
        self._commits, self._torn_summaries = opened.commits, opened.torn_summaries

    def replay(self, allocate: Callable[[int], memoryview]) -> Work:
        """Put what the log says into the maps (a task's work). Raises CorruptionError, DiskError, NoSpaceError."""
        replayer = Replayer(
            self._pages.cache,
            self._table,
            self._log.space,
            self._volumes.by_id,
            self._exchange,
            write_pages=self._write_pages,
            findings=self._findings,
        )
        yield from replayer.replay(self._commits)
        yield from drop_torn_summaries(self._torn_summaries, self._log.segment_blocks, allocate)
        if self._commits:
            log_output.info("replayed %d entries of %d commits", replayer.entries_applied, len(self._commits))

    def _write_pages(self) -> Work:
        """Clean all dirty pages by appending them, without a superblock: recovery in less memory than the log needs."""
        self._pages.begin(self._log.space.live.copy())
        yield from self._pages.write_all()
        self._log.seal_commit()

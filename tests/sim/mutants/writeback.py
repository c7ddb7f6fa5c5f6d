"""Bugs in the log, the ring and the flusher."""

from __future__ import annotations

from tests.sim.mutants.mutant import Mutant

RING_AND_LOG = [
    Mutant(
        "holes-not-published",
        "the ring is published when a block was appended, but not when a trim left only an entry",
        "P2",
        "holdfast.writeback.log",
        "            and self._entry_at == self._published_entry_at\n",
        "",
    ),
    Mutant(
        "open-commit-not-published",
        "the publication tells of sealed commits only: what the open one holds is acknowledged and not found again",
        "P2",
        "holdfast.writeback.log",
        "            commit_position=self._commit_position,\n            entry_count=self.open_entries,",
        "            commit_position=self._commit_position,\n            entry_count=0,",
    ),
    Mutant(
        "publication-mixed",
        "the head is published with the durable position, not with the end of the log",
        "P2",
        "holdfast.writeback.log",
        "            head_position=self.position,",
        "            head_position=self.sealed,",
    ),
    Mutant(
        "ring-read-behind-the-end",
        "off by one at the ring's wrap: a block whose slot was just used again is still looked for in it",
        "P6 (reads that fail)",
        "holdfast.writeback.log",
        "position < self.position - self.ring.blocks:",
        "position < self.position - self.ring.blocks - 1:",
    ),
    Mutant(
        "run-ignores-the-wrap",
        "a run of blocks is copied out of the ring as if the ring had no end",
        "P6",
        "holdfast.writeback.log",
        "        return min(count, (len(self.slots) - at) >> BLOCK_SHIFT)",
        "        return count",
    ),
    Mutant(
        "append-ignores-the-wrap",
        "a commit may run over the ring's last slot",
        "P2, P6",
        "holdfast.writeback.log",
        "room = min(entries_left, segment_left, ring_left, ring_bytes_left >> BLOCK_SHIFT)",
        "room = min(entries_left, segment_left, ring_left)",
    ),
    Mutant(
        "open-privilege-forgotten",
        "clients go on writing into the segment that was opened with the reserve for checkpoints",
        "P7, T5",
        "holdfast.writeback.log",
        "        self.privilege = least\n",
        "        self.privilege = Privilege.CLIENT\n",
    ),
]

FLUSHER = [
    Mutant(
        "flush-overlooks-the-open-commit",
        "FLUSH waits for what is sealed, and not for the commit that is still open",
        "P1",
        "holdfast.writeback.flusher",
        "        position = self.log.position if self.log.open_entries else self.log.sealed\n        if self.durable",
        "        position = self.log.sealed\n        if self.durable",
    ),
    Mutant(
        "flush-joins-the-running-round",
        "the end of a round answers every FLUSH that has come until then, also for writes that the round left out",
        "P1, W2",
        "holdfast.writeback.flusher",
        "        while waiters and waiters[0][0] <= position:",
        "        while waiters:",
    ),
    Mutant(
        "flush-overlooks-writes-in-flight",
        "a round begins its syncs when its writes have been started, not when they have completed",
        "P1",
        "holdfast.writeback.flusher",
        "        if self._round_end and not self._syncs_in_flight and self.written >= self._round_end:\n",
        "        if self._round_end and not self._syncs_in_flight and self.issued >= self._round_end:\n"
        "            self.written = self.issued\n",
    ),
    Mutant(
        "sync-covers-later-writes",
        "a write that completes while a sync runs counts as covered by it",
        "P1",
        "holdfast.writeback.flusher",
        "        if self._syncs_in_flight == 0 and not self._sync_failed:\n"
        "            self._advance(self._sync_target)",
        "        if self._syncs_in_flight == 0 and not self._sync_failed:\n"
        "            self._unsynced.clear()\n"
        "            self._advance(self.written)",
    ),
    Mutant(
        "durable-before-the-sync",
        "the durable position moves when the syncs are started, not when they are done",
        "P1",
        "holdfast.writeback.flusher",
        "        self._syncs_in_flight = len(segments)\n",
        "        self._syncs_in_flight = len(segments)\n        self._advance(self._sync_target)\n",
    ),
    Mutant(
        "one-segment-synced",
        "of the segments that a round touched only the newest is synced",
        "P1",
        "holdfast.writeback.flusher",
        "        segments = list(self._unsynced)\n",
        "        segments = list(self._unsynced)[-1:]\n",
    ),
    Mutant(
        "durable-write-covers-the-earlier-ones",
        "a durable write counts for the writes before it, which nobody synced",
        "P1",
        "holdfast.writeback.flusher",
        "                start == self.durable and end >= self._round_end > 0"
        " and not self._in_flight and not self._unsynced\n            )",
        "                end >= self._round_end > 0 and not self._in_flight\n"
        "            )\n"
        "            if durable:\n"
        "                self.durable = start\n"
        "                self._unsynced.clear()",
    ),
    Mutant(
        "failed-write-is-clean",
        "a write that failed is counted as written: its data is marked clean and never written again",
        "P4, W1",
        "holdfast.writeback.flusher",
        "            extent.errno = -io.result\n            self._fail(extent.errno)\n",
        "            self.failures += 1\n",
    ),
    Mutant(
        "failed-sync-is-forgotten",
        "after a failed sync only the sync is tried again, not the writes that it was to cover",
        "P4, W1",
        "holdfast.writeback.flusher",
        "            self.written = self.durable\n            self._unsynced.clear()\n",
        "            ends = self.durable, self.written\n"
        "            self._unsynced = {self._segment(at >> self.log.shift): None for at in ends}\n",
    ),
    Mutant(
        "error-cleared-by-its-first-reader",
        "a failed round tells the first FLUSH that waits, and success to all others",
        "P4, W2",
        "holdfast.writeback.flusher",
        "            waiter(self.last_errno)\n",
        "            waiter(self.last_errno)\n            self.last_errno = 0\n",
    ),
    Mutant(
        "write-back-not-tried-again",
        "after a failure the flusher waits for the next FLUSH, with the ring full of dirty data",
        "P4, P5, W1",
        "holdfast.writeback.flusher",
        "        self.pause_ns = 0\n        self.pump()\n",
        "        if self._waiters:\n            self.pause_ns = 0\n            self.pump()\n",
    ),
    Mutant(
        "slot-reused-when-written",
        "a write that completed frees its slots in the ring, though no sync has made it durable",
        "P2, P4",
        "holdfast.writeback.flusher",
        "            self.written = first.end\n",
        "            self.log.durable = self.written = first.end\n",
    ),
    Mutant(
        "write-across-the-wrap",
        "the flusher takes a run of blocks as if the ring had no end",
        "P1, P6",
        "holdfast.writeback.flusher",
        "log.segment_blocks - offset, ring.blocks - slot, WRITE_BLOCKS_MAX)",
        "log.segment_blocks - offset, WRITE_BLOCKS_MAX)",
    ),
    Mutant(
        "write-across-segments",
        "the flusher writes on behind the end of a segment, into a file that has no such blocks",
        "P4, P5",
        "holdfast.writeback.flusher",
        "log.sealed - start, log.segment_blocks - offset, ring.blocks",
        "log.sealed - start, ring.blocks",
    ),
]

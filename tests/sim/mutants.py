"""Planted bugs: realistic mistakes in the engine that the simulator must find, or it is not good enough.

Each is a change of one place of the source. It is found within `SEEDS` seeds from 0 on, of `OPERATIONS` requests each,
the `RARE` ones within `SEEDS_RARE`. The bounds are multiples of what was needed when the mutant was added, because
every change of the simulator or the engine draws other runs from the same seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = 120
SEEDS_RARE = 1000
OPERATIONS = 300


@dataclass(frozen=True, slots=True)
class Mutant:
    """`bug`: the mistake. `breaks`: the promise (P1..P8) or the row of ORIGINS.md that is not kept with it."""

    name: str
    bug: str
    breaks: str
    module: str
    old: str
    new: str


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
        "self.room = min(entries_left, segment_left, ring_left, ring_bytes_left >> BLOCK_SHIFT)",
        "self.room = min(entries_left, segment_left, ring_left)",
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

RECOVERY = [
    Mutant(
        "ring-written-out-without-sync",
        "what a dead server's ring held is written to the segment files and not synced before the ring is dropped",
        "P1, P2",
        "holdfast.writeback.ring_recovery",
        "    for segment in touched:\n",
        "    for segment in ():\n",
    ),
    Mutant(
        "ring-of-another-boot",
        "a ring is taken for this pool's without a look at its epoch",
        "P3, P6",
        "holdfast.writeback.ring_recovery",
        "        and identity.epoch == epoch\n",
        "",
    ),
    Mutant(
        "ring-written-out-short",
        "the block before the ring's head is left out",
        "P2",
        "holdfast.writeback.ring_recovery",
        "        block_count=publication.head_position - publication.commit_position - 1,",
        "        block_count=publication.head_position - publication.commit_position - 2,",
    ),
    Mutant(
        "data-of-commits-not-checked",
        "a commit counts as whole when its header is, whether its data reached the disk or not",
        "P3",
        "holdfast.pool.roll_forward",
        "                if block_check(raw[at : at + BLOCK_SIZE_BYTES], owner, kind) != check:",
        "                if not raw:",
    ),
    Mutant(
        "torn-commits-not-cut",
        "recovery cuts the log behind the first commit that is not whole, not before it",
        "P3, P6",
        "holdfast.pool.roll_forward",
        "                del tail.commits[number:]\n",
        "                del tail.commits[number + 1 :]\n",
    ),
    Mutant(
        "last-commit-not-replayed",
        "recovery leaves out the last commit that it found whole",
        "P1, P2",
        "holdfast.pool.opening",
        "        opened.commits = tail.commits\n",
        "        opened.commits = tail.commits[:-1]\n",
    ),
    Mutant(
        "old-commits-count",
        "recovery takes commits of an epoch that is over for the log's",
        "P3",
        "holdfast.pool.roll_forward",
        "            and header.epoch == self.epoch\n            and header.position ==",
        "            and header.position ==",
    ),
    Mutant(
        "old-summaries-count",
        "the footer that a segment had before the log was cut off in it is taken for a new one",
        "P1, P3",
        "holdfast.pool.roll_forward",
        "footer is not None and footer.tag == self.tag and footer.epoch == self.epoch and footer.ordinal == ordinal",
        "footer is not None and footer.tag == self.tag and footer.ordinal == ordinal",
    ),
    Mutant(
        "epoch-not-renewed",
        "a pool that is opened again goes on in the epoch of the run before",
        "P3",
        "holdfast.serving.bring_up",
        "    epoch = (superblock.epoch >> 32) + 1 << 32 | around.prng.below(1 << 32)",
        "    epoch = superblock.epoch or 1 << 32 | around.prng.below(1 << 32)",
    ),
    Mutant(
        "new-segments-not-found",
        "recovery looks for the log only in segments that were in use at the checkpoint",
        "P1",
        "holdfast.pool.opening",
        "        for segment in [*self.space.free, *dead]:",
        "        for segment in dead:",
    ),
    Mutant(
        "segments-of-the-log-not-claimed",
        "segments that were opened after the checkpoint stay on the free list",
        "P1, P6",
        "holdfast.pool.opening",
        "(space.state[segment] in (ABSENT, FREE) or space.ordinal[segment] != ordinal):",
        "space.state[segment] == ABSENT:",
    ),
    Mutant(
        "holes-not-replayed",
        "replay applies what was written and leaves out what was trimmed",
        "P3",
        "holdfast.volume.replay",
        "            if hole < len(owners):\n                yield from",
        "            if hole < 0:\n                yield from",
    ),
    Mutant(
        "replay-out-of-order",
        "of several writes of a block in one batch, replay takes the first",
        "P3",
        "holdfast.volume.replay",
        "        owners, first = np.unique(owners[::-1], return_index=True)\n        words = words[::-1][first]",
        "        owners, first = np.unique(owners, return_index=True)\n        words = words[first]",
    ),
]

CHECKPOINT_AND_SPACE = [
    Mutant(
        "superblock-slot-not-alternated",
        "every superblock goes into the same slot: one that is cut short leaves only the pool's first",
        "P1, P3",
        "holdfast.pool.superblock",
        "        return SLOT_OFFSETS[self.sequence % 2]",
        "        return SLOT_OFFSETS[0]",
    ),
    Mutant(
        "superblock-too-early",
        "the superblock is written before what it points at is durable",
        "P1, P3",
        "holdfast.pool.checkpoint",
        "        yield from self._until_durable()\n\n",
        "",
    ),
    Mutant(
        "replay-position-too-late",
        "the checkpoint's replay position is its end: what was written meanwhile is in no map and not replayed",
        "P1",
        "holdfast.pool.checkpoint",
        "        if clean:\n",
        "        if self.superblock.epoch:\n",
    ),
    Mutant(
        "freed-before-the-checkpoint",
        "a segment comes free at the beginning of the checkpoint that no longer needs it",
        "P1, P3",
        "holdfast.pool.checkpoint",
        "        rows, groups = self._rows(), self._groups()\n        self.pages.begin(live)",
        "        rows, groups = self._rows(), self._groups()\n"
        "        dead = np.flatnonzero(sealed & (live == 0)).tolist()\n"
        "        space.state[dead] = 1\n"
        "        space.free.extendleft(dead)\n"
        "        self.pages.begin(live)",
    ),
    Mutant(
        "no-dying",
        "a segment comes free with the first checkpoint that does not need it, while the other slot's still does",
        "P1, P3",
        "holdfast.pool.space",
        "        coming_free = np.flatnonzero(self.state == DYING).tolist()",
        "        self.state[(self.state == SEALED) & dead_at_checkpoint] = DYING\n"
        "        coming_free = np.flatnonzero(self.state == DYING).tolist()",
    ),
    Mutant(
        "both-copies-in-one-place",
        "the second copies of the tables are the first ones, named twice",
        "P6",
        "holdfast.pool.checkpoint",
        "            for _ in range(TABLE_COPIES):\n"
        "                index_words += yield from self._append_table(TABLE_INDEX, index)",
        "            index_words += yield from self._append_table(TABLE_INDEX, index)\n"
        "            index_words *= TABLE_COPIES",
    ),
    Mutant(
        "old-tables-stay-live",
        "the blocks of a checkpoint's tables are counted as live for ever",
        "P7",
        "holdfast.pool.checkpoint",
        "            for address in self.meta_addresses:\n"
        "                space.live_words[address >> log.shift] -= 1\n",
        "",
    ),
    Mutant(
        "live-not-dropped-on-overwrite",
        "the block that a write replaces stays counted as live",
        "P7",
        "holdfast.volume.write",
        "        if old:\n            self._live[(old & ADDRESS_MASK) >> self._shift] -= 1\n        return 0\n",
        "        return 0\n",
    ),
    Mutant(
        "frozen-page-changed",
        "a write changes a page that the running checkpoint has not written yet",
        "P3, P7",
        "holdfast.volume.write",
        "        if self._stamp[slot] != self.cache.generation:\n"
        "            obstacle = self._make_writable(slot)\n"
        "            if obstacle:\n"
        "                return obstacle\n"
        "        log = self.log\n"
        "        if not log.room:\n"
        "            room = log.make_room()\n",
        "        if not self._stamp[slot]:\n"
        "            obstacle = self._make_writable(slot)\n"
        "            if obstacle:\n"
        "                return obstacle\n"
        "        log = self.log\n"
        "        if not log.room:\n"
        "            room = log.make_room()\n",
    ),
    Mutant(
        "frozen-page-evicted",
        "a page that the running checkpoint has still to write may be evicted",
        "P1, P2",
        "holdfast.volume.page_cache",
        "self._used & (self._stamp_column == 0) & ",
        "self._used & (self._stamp_column != self.generation) & ",
    ),
    Mutant(
        "parent-evicted",
        "a page is evicted while pages below it are in memory",
        "P1, P3",
        "holdfast.volume.page_cache",
        " & (self._stamp_column == 0) & (self._children_column == 0)\n",
        " & (self._stamp_column == 0) & (self._children_column <= 1)\n",
    ),
    Mutant(
        "page-written-without-its-parent",
        "a checkpoint that moves a page does not write the page above it again",
        "P1, P6",
        "holdfast.volume.page_writer",
        "            self._levels[self._level(parent)].append(parent)",
        "            pass",
    ),
    Mutant(
        "reserve-for-metadata-ignored",
        "clients may take the last segments: the checkpoint that would free some finds none",
        "P7, T5",
        "holdfast.pool.space",
        "        if available > self.reserve_segments:\n",
        "        if available > 0:\n",
    ),
    Mutant(
        "removal-not-stored",
        "the volume table does not say that a volume is being removed: after a crash it is back",
        "P3",
        "holdfast.pool.tables",
        "FLAG_REMOVING * row.removing | ",
        "",
    ),
]

VOLUMES = [
    Mutant(
        "check-not-compared-on-read",
        "what was read of the disk is handed out without a look at its check",
        "P6",
        "holdfast.pool.block",
        "        if entry and digest(view[at : at + size], (owner + index) ^ SEED_DATA)"
        " & CHECK_MASK != entry >> ADDRESS_BITS:",
        "        if entry and not view[at : at + size]:",
    ),
    Mutant(
        "page-check-not-compared",
        "map pages are taken as they come",
        "P6",
        "holdfast.volume.block_reader",
        "            if block_matches(into, owner, kind, entry):\n",
        "            if at < 0 or block_matches(into, owner, kind, entry):\n",
    ),
    Mutant(
        "pin-not-released",
        "a task that is cancelled while it reads a block leaves the segment pinned",
        "P5, P7",
        "holdfast.volume.block_reader",
        "                try:\n                    yield io\n"
        "                finally:\n                    self.space.unpin(segment)",
        "                yield io\n                self.space.unpin(segment)",
    ),
    Mutant(
        "failed-read-keeps-its-page",
        "a page that cannot be read keeps the slot that it was to go into",
        "P8",
        "holdfast.volume.page_table",
        "                for slot in slots:\n                    cache.give_back(slot)\n",
        "                for slot in slots[1:]:\n                    cache.give_back(slot)\n",
    ),
    Mutant(
        "parent-not-held",
        "a page is evicted while a page below it is being read",
        "P3, P5",
        "holdfast.volume.page_table",
        "                cache.children[parent] += 1  # stays",
        "                cache.children[parent] += 0  # stays",
    ),
    Mutant(
        "new-pages-overlooked",
        "what looks for the next leaf sees only pages that are stored: a trim passes over those written just now",
        "P6",
        "holdfast.volume.page_table",
        "        if cache.children[slot]:\n",
        "        if cache.children[slot] and found is None:\n",
    ),
    Mutant(
        "page-room-lost-wake-up",
        "a refused charge for a page is not tried again unless a page comes free",
        "P5, W4",
        "holdfast.engine",
        "        # A budget may have refused although nobody holds anything that will be released.\n"
        "        self.page_room.wake()\n",
        "",
    ),
    Mutant(
        "buffer-room-lost-wake-up",
        "a refused charge for a read buffer is not tried again unless one is released",
        "P5",
        "holdfast.engine",
        "        self.clean_room.wake()\n        self.buffer_room.wake()\n",
        "        self.clean_room.wake()\n",
    ),
    Mutant(
        "ring-room-lost-wake-up",
        "who waits for room in the ring is not woken when there is some",
        "P5",
        "holdfast.engine",
        "        self.ring_room.wake()\n        self.on_released()",
        "        self.on_released()",
    ),
    Mutant(
        "segment-room-lost-wake-up",
        "who waits for a segment is not woken when one has been prepared",
        "P5",
        "holdfast.engine",
        "        self._maintenance_wanted = True\n        self.segment_room.wake()\n        self.metadata_room.wake()\n"
        "        self.on_released()",
        "        self._maintenance_wanted = True\n        self.on_released()",
    ),
    Mutant(
        "wake-up-of-one",
        "a list of waiting tasks wakes only the first, which may not be able to go on",
        "P5",
        "holdfast.work.task",
        "        while self.tasks:\n            task = self.tasks.popleft()",
        "        if self.tasks:\n            task = self.tasks.popleft()",
    ),
    Mutant(
        "buffer-of-a-cancelled-read-freed",
        "a task is ended at once although its I/O is still under way",
        "P6",
        "holdfast.work.task",
        "        self.cancelled = True\n        if isinstance",
        "        self.cancelled = True\n        self.work.close()\n        if isinstance",
    ),
    Mutant(
        "trim-takes-partial-blocks",
        "a trim makes a hole of the block that its range begins in the middle of",
        "P6",
        "holdfast.volume.write",
        "        yield from self.punch(volume, -(-offset // BLOCK_SIZE_BYTES), ",
        "        yield from self.punch(volume, offset // BLOCK_SIZE_BYTES, ",
    ),
    Mutant(
        "zeroes-drop-the-tail",
        "WRITE_ZEROES leaves the last block alone where it covers only a part of it",
        "P6",
        "holdfast.volume.write",
        "        if end % BLOCK_SIZE_BYTES:\n",
        "        if end % BLOCK_SIZE_BYTES and allocate:\n",
    ),
    Mutant(
        "changed-while-read",
        "a change of a part of a block does not look whether the block changed while it was read",
        "P6",
        "holdfast.volume.write",
        "                if slot is None or self._words[slot << PAGE_SHIFT | lba & PAGE_MASK] != entry:\n"
        "                    continue\n",
        "",
    ),
    Mutant(
        "trim-gives-up",
        "a trim that meets an obstacle waits, and then goes on behind the leaf that it could not change",
        "P6",
        "holdfast.volume.write",
        "                yield from self.overcome(obstacle, volume, first)\n"
        "            else:\n                first = stop",
        "                yield from self.overcome(obstacle, volume, first)\n            first = stop",
    ),
]

SERVING = [
    Mutant(
        "acknowledged-before-the-ring-holds-it",
        "a batch is answered before the ring says that it is there",
        "P2",
        "holdfast.serving.session",
        "        self.at = at\n        self.engine.log.publish()\n\n",
        "        self.at = at\n\n",
    ),
    Mutant(
        "fua-is-a-plain-write",
        "FUA is answered when the ring holds the data",
        "P1, W2",
        "holdfast.serving.in_flight",
        "        if errno == 0 and flags & CMD_FLAG_FUA:",
        "        if errno == 0 and not flags:",
    ),
    Mutant(
        "backlog-without-copies",
        "requests that must wait keep pointing into the receive buffer, which is used again",
        "P6",
        "holdfast.serving.session",
        "        payload = memoryview(bytes(payload))\n",
        "        payload = memoryview(payload)\n",
    ),
    Mutant(
        "rest-of-a-write-begins-anew",
        "what is left of a WRITE that had to wait goes to where the whole of it was to go",
        "P6",
        "holdfast.serving.waiting_write",
        "                return command, flags, cookie, offset + done, len(payload) - done, payload[done:]",
        "                return command, flags, cookie, offset, len(payload) - done, payload[done:]",
    ),
    Mutant(
        "error-of-a-piece-overwritten",
        "a WRITE in pieces is answered with what became of its last piece",
        "P5, T3",
        "holdfast.serving.waiting_write",
        "            pieces.errno = pieces.errno or errno",
        "            pieces.errno = errno",
    ),
    Mutant(
        "cold-read-not-checked",
        "a small read from the disk is answered without a look at its check",
        "P6",
        "holdfast.serving.waiting_read",
        " or first_mismatch(io.view, owner, entries) >= 0:",
        ":",
    ),
    Mutant(
        "read-buffer-leak",
        "a read that fails keeps its share of the read buffers",
        "P5, P8",
        "holdfast.serving.waiting_read",
        "            except ReadError as error:\n",
        "            except ReadError as error:\n                kept = True\n",
    ),
    Mutant(
        "in-flight-leak",
        "a read that is answered from the disk stays counted as under way",
        "P5",
        "holdfast.serving.waiting_read",
        "            in_flight.end()\n",
        "            in_flight._go_on()\n",
    ),
    Mutant(
        "session-ends-and-its-work-goes-on",
        "what a client that is gone had under way is not cancelled",
        "P5",
        "holdfast.serving.in_flight",
        "        for task in list(self._tasks):\n            task.cancel()\n",
        "",
    ),
    Mutant(
        "stalled-connection-forgotten",
        "a connection that waits for the engine is not looked at when there is room again",
        "P5",
        "holdfast.serving.clients",
        "                    if connection.stalled:\n",
        "                    if connection.stalled and connection.idle:\n",
    ),
    Mutant(
        "budget-leak",
        "a connection that is closed keeps what it had of the connections' memory",
        "P8",
        "holdfast.serving.connection",
        "        self._leave_group()\n        if self.session is not None:\n",
        "        if self.session is not None:\n",
    ),
    Mutant(
        "budget-counts-twice",
        "what a connection keeps is charged again each time that it changes",
        "P8",
        "holdfast.serving.connection",
        "            self.group.charge(Kind.CONNECTIONS, kept - self._counted)\n",
        "            self.group.charge(Kind.CONNECTIONS, max(0, kept - self._counted))\n",
    ),
    Mutant(
        "part-of-a-reply-sent-twice",
        "what a socket took of a reply in several parts is forgotten with the second part",
        "P6",
        "holdfast.serving.connection",
        "            self._unsent += part[sent:]\n            sent = 0\n",
        "            self._unsent += part[sent:]\n",
    ),
    Mutant(
        "output-room-lost-wake-up",
        "tasks that wait for the client to take its replies are not woken when it has",
        "P5",
        "holdfast.serving.outgoing",
        "        self.blocked = False\n        self.room.wake()\n",
        "        self.blocked = False\n",
    ),
    Mutant(
        "rest-not-looked-at",
        "what was received while a connection was stalled is dropped when it goes on",
        "P5",
        "holdfast.serving.connection",
        "            self._process(len(stash))\n",
        "            self._process(0)\n",
    ),
]

# Against the order of waits: nobody need be stuck for these to be found.
ORDER_OF_WAITS = [
    Mutant(
        "buffer-kept-for-a-client",
        "a read keeps its buffer until its client takes replies: clients that do not read use up all there are",
        "P5, A5",
        "holdfast.serving.waiting_read",
        "                kept = not outgoing.blocked\n",
        "                while outgoing.blocked:\n                    yield outgoing.room\n"
        "                kept = True\n",
    ),
    Mutant(
        "checkpoint-waits-for-checkpoint",
        "a checkpoint waits for the segments that only a checkpoint frees, not for those held back for it",
        "P7, A5",
        "holdfast.engine",
        "            yield self.metadata_room\n",
        "            yield self.segment_room\n",
    ),
]

# What the simulator found in the engine, planted again: the mends taken back.  Seeds that found them once draw other
# runs today; that the bug is found is what is kept.
FOUND_AND_MENDED = [
    Mutant(
        "replies-within-a-long-read",
        "a batch goes on being answered while a long read that must be one piece is being sent",
        "NBD",
        "holdfast.serving.session",
        "            if waiting is not None or self.outgoing.exclusive:\n",
        "            if waiting is not None:\n",
    ),
    Mutant(
        "backlog-of-the-gone",
        "an answer that cannot be sent closes the session while its backlog is worked off: the server ends",
        "P5",
        "holdfast.serving.session",
        "            waiting = self._begin(self.backlog.popleft())\n            if self.closed:\n"
        "                return  # it answered something, and that could not be sent\n"
        "            if waiting is not None:\n"
        "                self.backlog.appendleft(waiting)\n                break\n",
        "            waiting = self._begin(self.backlog[0])\n            if waiting is not None:\n"
        "                self.backlog[0] = waiting\n                break\n            self.backlog.popleft()\n",
    ),
    Mutant(
        "requests-of-the-gone",
        "what is left of a batch is begun for a client that is gone, and nothing ends it any more",
        "P5",
        "holdfast.serving.connection",
        "                if not self._is_open():\n"
        "                    return  # what is left of the batch is that of a client which is gone\n",
        "",
    ),
    Mutant(
        "answered-and-still-counted",
        "bytes that a connection kept stay counted in the budget after they were answered",
        "P8",
        "holdfast.serving.connection",
        "            self._count()  # what was answered is not kept any more\n",
        "",
    ),
    Mutant(
        "unreadable-called-damaged",
        "a table that cannot be read now is called damaged: restore from a backup",
        "P5",
        "holdfast.pool.opening",
        "            if errno:\n                # What cannot be read now may be whole",
        "            if errno < 0:\n                # What cannot be read now may be whole",
    ),
    Mutant(
        "page-looked-at-once",
        "one wrong reading of a map page in replay poisons it for good",
        "P1",
        "holdfast.volume.block_reader",
        "        for _ in range(2):\n",
        "        for _ in range(1):\n",
    ),
    Mutant(
        "log-cut-after-one-look",
        "one wrong reading of a commit in recovery cuts off the log, flushed data and all",
        "P1",
        "holdfast.pool.roll_forward",
        "                            1 + commit.block_count)  # fmt: skip\n"
        "                whole = yield from self._is_whole(commit)\n",
        "                            1 + commit.block_count)  # fmt: skip\n",
    ),
    Mutant(
        "tables-looked-at-once",
        "a wrong reading of each copy of a table keeps the pool from being opened",
        "P1",
        "holdfast.pool.opening",
        "        for again in (False, True):\n",
        "        for again in (False,):\n",
    ),
    Mutant(
        "half-made-pool",
        "a pool whose making was cut short can never be made",
        "P5",
        "holdfast.serving.bring_up",
        "            if disk.segments():\n                raise\n",
        "            raise\n",
    ),
    Mutant(
        "torn-summary-called-damage",
        "the summary of a sealed segment, torn by a crash, is taken for damage ever after",
        "check",
        "holdfast.engine",
        "        yield from self._drop_torn_summaries(opened.torn_summaries)\n",
        "",
    ),
    Mutant(
        "seams-within-blocks",
        "long unaligned reads are cut within blocks, which a write may change between two pieces",
        "P6",
        "holdfast.serving.waiting_read",
        "(limit & -BLOCK_SIZE_BYTES) - (offset + at) % BLOCK_SIZE_BYTES",
        "limit & -BLOCK_SIZE_BYTES",
    ),
    Mutant(
        "volume-in-one-slot",
        "only the newer superblock slot tells of a new volume: should it be lost, so is the volume",
        "P1",
        "holdfast.engine",
        "            checkpoint=lambda: self.checkpoint(both_slots=True),\n",
        "            checkpoint=self.checkpoint,\n",
    ),
    Mutant(
        "written-before-it-is-published",
        "the flusher writes what a recovery from the ring would not find: a summary lists a commit that is not there",
        "check",
        "holdfast.writeback.flusher",
        "        log.publish()\n        while self.issued",
        "        while self.issued",
    ),
    Mutant(
        "first-superblock-trusted",
        "a pool whose making was cut short goes on with a superblock that may not be durable",
        "P5",
        "holdfast.serving.bring_up",
        "    if superblock.epoch == 0:\n",
        "    if not exists:\n",
    ),
    Mutant(
        "log-in-a-dead-segment-not-found",
        "the older superblock slot does not know of a segment that the newer checkpoint freed and the log is in again",
        "P1",
        "holdfast.pool.opening",
        "        for segment in [*self.space.free, *dead]:\n",
        "        for segment in list(self.space.free):\n",
    ),
]

MUTANTS = [
    *RING_AND_LOG,
    *FLUSHER,
    *RECOVERY,
    *CHECKPOINT_AND_SPACE,
    *VOLUMES,
    *SERVING,
    *ORDER_OF_WAITS,
    *FOUND_AND_MENDED,
]


# Found, but not within the bound of the others: what they break needs several rare things at once.
RARE = {
    "buffer-of-a-cancelled-read-freed",
    "buffer-room-lost-wake-up",
    "changed-while-read",
    "cold-read-not-checked",
    "durable-write-covers-the-earlier-ones",
    "epoch-not-renewed",
    "error-of-a-piece-overwritten",
    "failed-sync-is-forgotten",
    "frozen-page-evicted",
    "holes-not-published",
    "log-in-a-dead-segment-not-found",
    "log-cut-after-one-look",
    "no-dying",
    "old-commits-count",
    "old-summaries-count",
    "page-room-lost-wake-up",
    "reserve-for-metadata-ignored",
    "seams-within-blocks",
    "tables-looked-at-once",
    "torn-summary-called-damage",
    "trim-gives-up",
    "unreadable-called-damaged",
    "write-back-not-tried-again",
}

# Not found within a thousand seeds: why, and which test finds it.
SURVIVORS = {
    "open-privilege-forgotten": "it uses up a reserve, and where that is gone the simulator adds capacity, until there "
    "is a cleaner: tests/writeback/test_log.py",
    "sync-covers-later-writes": "a power failure must come between two syncs, with writes that ended then: "
    "tests/writeback/test_flusher.py",
    "backlog-of-the-gone": "a client must vanish at the one send that a request of the backlog makes at once: it was "
    "found by an earlier swarm, and not again",
    "requests-of-the-gone": "a client must vanish between two parts of one batch: one in some thousand seeds",
    "first-superblock-trusted": "two deaths within a few effects of a pool's making, one in 100,000 seeds: "
    "tests/engine/test_lost_slot.py",
    "written-before-it-is-published": "a death between two steps of one turn, one in 100,000 seeds: "
    "tests/writeback/test_flusher.py",
}


def find(name: str) -> Mutant:
    """The mutant of that name. KeyError where there is none."""
    return {mutant.name: mutant for mutant in MUTANTS}[name]

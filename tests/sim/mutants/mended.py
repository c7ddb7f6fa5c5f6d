"""What the simulator found in the engine, planted again: the mends taken back.

Seeds that found them once draw other runs today; that the bug is found is what is kept.
"""

from __future__ import annotations

from tests.sim.mutants.mutant import Mutant

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
        "holdfast.volume.recovery",
        "        yield from drop_torn_summaries(self._torn_summaries, self._log.segment_blocks, allocate)\n",
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
        "holdfast.volume.checkpoints",
        "            yield from self.write(clean=False, both_slots=True)\n",
        "            yield from self.write(clean=False, both_slots=False)\n",
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

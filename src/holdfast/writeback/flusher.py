"""The flusher: takes what is sealed from the ring to the segment files, and says what is durable.

Comes after `Log` in the write path; below it there is only the disk.

How it always advances: writing needs neither memory, nor room in the ring, nor a segment; the blocks are in the ring
and their place in a file that was written through beforehand. It never waits for anybody who waits for it.

Group commit: a **round** makes durable everything that waits at its start. Flushes that arrive meanwhile wait for the
next round, which takes all of them at once. A round whose data fit one write, with nothing else unsynced before it, is
a single synchronous write; any other round is writes, then one sync of each file that they touched.

When the disk fails, what failed stays in the ring, dirty, and the waiting flushes get the error. After a pause, doubled
each time that nothing gets on, it is written again: from the write that failed on; or, after a failed sync, from the
last position that is known to be durable, because nobody can say any more which of the writes behind it are.

After a crash nothing of this class is needed: `Ring` says what was durable.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from holdfast.runtime.ports import SYNC, WRITE, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB
from holdfast.work.task import Owner, StartIo
from holdfast.work.waits import DISK, Wait
from holdfast.writeback.log import Log

WRITE_BLOCKS_MAX = MIB // BLOCK_SIZE_BYTES  # a direct write of 1 MiB reaches the bandwidth of the disk
WRITES_IN_FLIGHT_MAX = 4
EAGER_BLOCKS_MIN = 64  # without anyone waiting, smaller writes are left to gather
RETRY_DELAY_NS_MIN = 50_000_000
RETRY_DELAY_NS_MAX = 5_000_000_000

FLUSHER = "the flusher"  # among those who wait, or end waits

Waiter = Callable[[int], None]  # called with 0 or an errno


class Flusher:
    """Positions, in order: durable <= written <= issued <= log.sealed. All fields belong to the loop thread."""

    def __init__(
        self,
        log: Log,
        disk: StartIo,
        *,
        released: Callable[[], None],
        failed: Callable[[int, int, int], None] = lambda _start, _end, _errno: None,
    ) -> None:
        self.log = log
        self.disk = disk
        self.released = released  # called after ring slots became free
        self.failed = failed  # called with log positions [start, end) that stay dirty, and why
        self.durable = self.written = self.issued = log.durable
        self.rounds = 0
        self.writes = 0
        self.syncs = 0
        self.failures = 0
        self.failed_with: Counter[int] = Counter()  # the same failures, by errno
        self.retries = 0
        self.paused_ns = 0  # in the pauses that are over
        self.last_errno = 0
        self._in_flight: deque[_Extent] = deque()
        self._syncs_in_flight = 0
        self._sync_target = 0
        self._sync_failed = False
        self._unsynced: dict[int, None] = {}  # segments with completed writes that are not durable
        # Log position, whom to call, since when (to the tick), what waits and on whose behalf.
        self._waiters: deque[tuple[int, Waiter, int, str, Owner | None]] = deque()
        self._round_end = 0  # position that the running round makes durable; 0 when none runs
        self._errno = 0  # failure of this round; the round ends when nothing is in flight any more
        self.pause_ns = 0  # after a failure: how long from then on until `resume` is to be called
        self._retry_delay_ns = RETRY_DELAY_NS_MIN
        self._got_on_to = 0  # `written` at the last failure
        self._dirty_limit_blocks = max(EAGER_BLOCKS_MIN, min(log.ring.blocks // 4, 16 * WRITE_BLOCKS_MAX))
        self._aged_position = 0
        self._now_ns = 0  # at the last tick
        self._since_ns = 0  # the last tick at which it had nothing to wait for, or had got on
        self._seen = (-1, -1)  # how far it had come by then
        # The map from position to file; the ring's window drops a segment only after it is durable.
        self._segment_of: dict[int, int] = {}

    # ---- requests

    def when_durable(self, waiter: Waiter, operation: str = "", owner: Owner | None = None) -> None:
        """Call `waiter(0)` once everything appended so far is durable, or with an errno if that attempt failed.
        `operation`: what waits, where no task does."""
        position = self.log.position if self.log.open_entries else self.log.sealed
        if self.durable >= position:
            waiter(0)
            return
        self._waiters.append((position, waiter, self._now_ns, operation, owner))

    @property
    def idle(self) -> bool:
        return not self._in_flight and not self._syncs_in_flight and not self._waiters

    @property
    def dirty_blocks(self) -> int:
        return self.log.position - self.durable

    # ---- progress

    def pump(self) -> None:
        """Start what can be started. Cheap when there is nothing to do; called after every batch of events."""
        if self._errno or self.pause_ns:
            return
        log = self.log
        if not self._round_end:
            if self._waiters:
                log.seal_commit()
                self._begin_round(log.sealed)
            elif self.dirty_blocks >= self._dirty_limit_blocks:
                if log.sealed == self.durable:
                    log.seal_commit()
                self._begin_round(log.sealed)
        if self.issued < log.sealed:
            self._issue_writes()
        if self._round_end and not self._syncs_in_flight and self.written >= self._round_end:
            self._start_syncs()

    def resume(self) -> None:
        """The pause after a failure is over."""
        self.retries += 1
        self.paused_ns += self.pause_ns
        self.pause_ns = 0
        self.pump()

    def push(self) -> None:
        """Write what there is now, though nobody waits for it to be durable: some group needs its share of the ring."""
        if not self._round_end and not self.pause_ns and not self._errno:
            self.log.seal_commit()
            self._begin_round(self.log.sealed)

    def tick(self, now_ns: int = 0) -> None:
        """Called some times a second: pushes out what nobody asked for in a while."""
        log = self.log
        self._now_ns = now_ns
        seen = (self.written, self.durable)
        if seen != self._seen or not (self._in_flight or self._syncs_in_flight or self.pause_ns):
            self._seen = seen
            self._since_ns = now_ns
        if not self._round_end and not self.pause_ns and self.durable < self._aged_position:
            log.seal_commit()
            self._begin_round(log.sealed)
        self._aged_position = log.position if log.open_entries else log.sealed
        self.pump()

    def waits(self) -> list[Wait]:
        """What the flusher waits for, and the requests that wait for it without a task."""
        found = []
        if self._in_flight or self._syncs_in_flight:
            under_way = f"{DISK}: {len(self._in_flight)} writes, {self._syncs_in_flight} syncs of the log"
            found.append(Wait(FLUSHER, under_way, self._since_ns, ended_by=(DISK,)))
        elif self.pause_ns:
            pause = f"the end of its pause: write-back failed (errno {self.last_errno})"
            found.append(Wait(FLUSHER, pause, self._since_ns, ended_by=("the clock",)))
        for _, _, since_ns, operation, owner in self._waiters:
            if owner is not None:
                found.append(
                    Wait(operation, "durability", since_ns, owner.volume_name, owner.peer, ended_by=(FLUSHER,))
                )
        return found

    def _begin_round(self, end: int) -> None:
        if end > self.durable:
            self._round_end = end
            self.rounds += 1

    def _issue_writes(self) -> None:
        log = self.log
        ring = log.ring
        # A recovery brings back what was published. If more of a commit than that were in its file, and a summary that
        # lists it, they would contradict each other.
        log.publish()
        while self.issued < log.sealed and len(self._in_flight) < WRITES_IN_FLIGHT_MAX:
            start = self.issued
            ordinal = start >> log.shift
            offset = start & (log.segment_blocks - 1)
            slot = start % ring.blocks
            count = min(log.sealed - start, log.segment_blocks - offset, ring.blocks - slot, WRITE_BLOCKS_MAX)
            if start >= self._round_end and count < EAGER_BLOCKS_MIN:
                return
            segment = self._segment(ordinal)
            end = start + count
            durable = (
                start == self.durable and end >= self._round_end > 0 and not self._in_flight and not self._unsynced
            )
            extent = _Extent(start, end, segment)
            self._in_flight.append(extent)
            self.issued = end
            self.writes += 1
            at = slot << BLOCK_SHIFT
            self.disk.start(
                Io(
                    WRITE,
                    segment,
                    offset << BLOCK_SHIFT,
                    log.slots[at : at + (count << BLOCK_SHIFT)],
                    durable=durable,
                    done=extent.completion(self),
                )
            )

    def _segment(self, ordinal: int) -> int:
        segment = self._segment_of.get(ordinal)
        if segment is None:
            segment = next(segment for segment, its in self.log.window.items() if its == ordinal)
            self._segment_of = {old: its for old, its in self._segment_of.items() if old >= ordinal - 2}
            self._segment_of[ordinal] = segment
        return segment

    def write_done(self, extent: _Extent, io: Io) -> None:
        extent.done = True
        extent.durable = io.durable
        if io.result < 0:
            extent.errno = -io.result
            self._fail(extent.errno)
        in_flight = self._in_flight
        while in_flight and in_flight[0].done and not in_flight[0].errno:
            first = in_flight.popleft()
            self.written = first.end
            if first.durable and first.start == self.durable and not self._unsynced:
                self._advance(first.end)
            else:
                self._unsynced[first.segment] = None
        self._settle_failure()
        self.pump()

    def _start_syncs(self) -> None:
        if not self._unsynced:
            self._advance(self.written)
            return
        self._sync_target = self.written
        self._sync_failed = False
        segments = list(self._unsynced)
        self._unsynced.clear()  # writes that complete from now on are not covered by these syncs
        self._syncs_in_flight = len(segments)
        for segment in segments:
            self.syncs += 1
            self.disk.start(Io(SYNC, segment, done=self._sync_done))

    def _sync_done(self, io: Io) -> None:
        self._syncs_in_flight -= 1
        if io.result < 0:
            self._sync_failed = True
            self._fail(-io.result)
        if self._syncs_in_flight == 0 and not self._sync_failed:
            self._advance(self._sync_target)
        self._settle_failure()
        self.pump()

    def _advance(self, position: int) -> None:
        """Everything below `position` is durable: publish, release slots, answer."""
        assert self.durable <= position <= self.written
        self.durable = position
        self.log.became_durable(position)
        self.last_errno = 0
        self._retry_delay_ns = RETRY_DELAY_NS_MIN
        if position >= self._round_end:
            self._round_end = 0
        self.log.publish()
        waiters = self._waiters
        while waiters and waiters[0][0] <= position:
            waiters.popleft()[1](0)
        self.released()

    def _fail(self, errno: int) -> None:
        self.failures += 1
        self.failed_with[errno] += 1
        if not self._errno:
            self._errno = errno

    def _settle_failure(self) -> None:
        """Once nothing is in flight after a failure: what failed is dirty again, and whoever waits is told."""
        if not self._errno or self._syncs_in_flight or not all(extent.done for extent in self._in_flight):
            return
        self.last_errno, self._errno = self._errno, 0
        end = self.issued
        if self._sync_failed:
            self._sync_failed = False
            self.written = self.durable
            self._unsynced.clear()
        if self.written > self._got_on_to:
            self._retry_delay_ns = RETRY_DELAY_NS_MIN
        self._got_on_to = self.written
        self.issued = self.written
        self._in_flight.clear()  # those behind a write that failed are written again with it
        self._round_end = 0
        self.pause_ns = self._jittered(self._retry_delay_ns)
        self._retry_delay_ns = min(2 * self._retry_delay_ns, RETRY_DELAY_NS_MAX)
        self.failed(self.written, end, self.last_errno)
        waiters, self._waiters = self._waiters, deque()
        for _, waiter, *_ in waiters:
            waiter(self.last_errno)

    def _jittered(self, delay_ns: int) -> int:
        """The delay, shorter by up to a half: several pools on one disk do not all come back at once."""
        return delay_ns * (50 + self.failures * 31 % 51) // 100


class _Extent:
    """A write under way: log positions [start, end) of one segment."""

    __slots__ = ("done", "durable", "end", "errno", "segment", "start")

    def __init__(self, start: int, end: int, segment: int) -> None:
        self.start = start
        self.end = end
        self.segment = segment
        self.done = False
        self.durable = False
        self.errno = 0

    def completion(self, flusher: Flusher) -> Callable[[Io], None]:
        return lambda io: flusher.write_done(self, io)

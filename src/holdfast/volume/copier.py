"""The copier: fills one cold segment with what is live in a few victims, and points the maps at it.

What the cleaner has decided (`volume/cleaner.py`) is carried out here, in this order:

 1. what is live in victims is found (`volume/live_blocks.py`), and which are worth it (`volume/cleaning_plan.py`);
    pages of maps in those are marked dirty
 2. live data blocks are read, held against their checks, and written into a cold segment (`pool/cold_segment.py`)
 3. the cold segment is made durable, as a whole
 4. the maps are pointed at the copies (`volume/moves.py`)

Nothing is changed before 4 but pages that are dirty although they hold what they held. A block that is damaged is noted
like one that was read, and stays where it is. A victim is pinned for as long as it is read and no longer; that it was
not used again in between is asked each time (`_is_as_it_was`), and with each move.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.errors import CorruptionError, DiskError, HoldfastError, log_fields
from holdfast.pool.block import KIND_DATA, LBA_MASK, block_matches, is_given_up
from holdfast.pool.cold_segment import COLD, ColdSegment, age_ordinal, cold_blocks_max
from holdfast.pool.space import SEALED
from holdfast.pool.victim import stored_blocks
from holdfast.runtime.ports import READ, Clock, Disk, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB
from holdfast.volume.cleaning_plan import Plan, Planned, Planner
from holdfast.volume.holders import Holders
from holdfast.volume.live_blocks import LiveBlocks, LiveFinder
from holdfast.volume.metadata_waits import MetadataWaits
from holdfast.volume.moves import Moves
from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT
from holdfast.volume.page_table import PageTable
from holdfast.volume.set_aside import FOR_GOOD, UNTIL_CHECKPOINT, SetAside
from holdfast.volume.waitlists import Waitlists
from holdfast.volume.write import Obstacle, Writer
from holdfast.work.task import Work
from holdfast.writeback.log import Room

log_output = logging.getLogger("holdfast.cleaner")

COPY_BYTES = MIB  # a cold segment is written in pieces of this size
READ_BYTES = MIB // 2
COLUMN_BYTES = 240  # a block: entry, owner, check, place, map entry, holder; sorted, in a plan, and as a move
URGENT_GAIN = 3  # victims that are emptied into one segment: for so many it may have one that checkpoints have
GAP_BLOCKS = 8  # blocks that nobody wants are read along where that saves a read
DISK_SHARE = 0.25
TICK_NS = 250_000_000
SET_ASIDE_NS = 5_000_000_000  # a victim that cannot be read


def _buffer_bytes(segment_blocks: int) -> tuple[int, int]:
    segment_bytes = segment_blocks << BLOCK_SHIFT
    return min(COPY_BYTES, segment_bytes), min(READ_BYTES, segment_bytes)


def cleaner_bytes(segment_blocks: int) -> int:
    """The memory that cleaning needs at most: buffers, and columns for the blocks of a victim and for moves."""
    return sum(_buffer_bytes(segment_blocks)) + segment_blocks * COLUMN_BYTES


@dataclass(slots=True)
class Counts:
    """What was done since the start."""

    copied_blocks: int = 0
    moved_blocks: int = 0  # of these; the others were overwritten meanwhile
    cold_segments: int = 0
    pages_marked: int = 0
    damaged_blocks: int = 0
    failures: int = 0  # segments that could not be read or written


class Copier:
    """Fields: I fixed when made, L loop thread."""

    def __init__(
        self,
        writer: Writer,
        table: PageTable,
        holders: Holders,
        metadata: MetadataWaits,
        waitlists: Waitlists,
        disk: Disk,
        clock: Clock,
        *,
        allocate: Callable[[int], memoryview],
        stopping: Callable[[], bool],
        hurried: Callable[[], bool],
    ) -> None:
        """
        allocate    gives page-aligned memory: `cleaner_bytes`, as long as it lives
        stopping    True once there is to be no more background work
        hurried     True while somebody waits for what it does
        """
        self.log = writer.log  # I
        self.space = writer.log.space  # I
        self.finder = LiveFinder(writer, table, holders, overcome=self._overcome, next_turn=waitlists.next_turn)  # I
        self.counts = Counts()  # L
        self.set_aside = SetAside(self.space, clock)  # I
        self.worth_blocks = cold_blocks_max(self.log.segment_blocks)  # I: what a segment holds at most
        self.lacks_segment = False  # L: the last round did not get one to fill
        self._cache = writer.cache  # I
        self._writer = writer  # I
        self._disk = disk  # I
        self._clock = clock  # I
        copy_bytes, read_bytes = _buffer_bytes(self.log.segment_blocks)
        self._copy_buffer = allocate(copy_bytes)  # I
        self._read_buffer = allocate(read_bytes)  # I
        self._metadata = metadata  # I
        self._waitlists = waitlists  # I
        self._stopping = stopping  # I
        self._hurried = hurried  # I
        self._moves = Moves(self.log.segment_blocks)  # I
        self.planner = Planner(  # I
            self.space,
            self._cache,
            self.finder,
            self.set_aside,
            worth_blocks=self.worth_blocks,
            look=self._live_blocks,
            stopping=stopping,
        )
        self._busy_ns = 0  # L: since it last left the disk to others

    def fill_one(self, victims: list[int], *, whatever_it_costs: bool = False, strict: bool = False) -> Work:
        """Fill a cold segment out of these, in this order, as far as they are needed, and have pages in them written
        somewhere else (a task's work). False: nothing was gained. Raises DiskError if the cold segment cannot be
        written. `whatever_it_costs`: also where that gains no space; `strict`: only where it gains much."""
        self._moves.clear()
        self.lacks_segment = False
        plan: Plan = yield from self.planner.plan(victims, whatever_it_costs=whatever_it_costs, strict=strict)
        marked = 0
        for planned in plan.rewritten:
            marked += yield from self._rewrite(planned)
            self.set_aside.put(planned.victim, UNTIL_CHECKPOINT)
        if not plan.copied or self._stopping():
            return marked > 0
        cold = self._begin_cold(plan)
        if cold is None:
            self.lacks_segment = True
            return marked > 0
        taken: ColdSegment | None = cold
        try:
            for planned in plan.copied:
                if not self.planner.can_afford(marked + self._moves.pages()):
                    break
                yield from self._copy(planned, cold)
                marked += yield from self._rewrite(planned)
                if not cold.has_room() or self._stopping():
                    break
            if not self._moves.count or self._stopping():
                return marked > 0
            yield from self._working(cold.finish())
            self.counts.cold_segments += 1
            self.space.filled(cold.segment_id, cold.ordinal)
            taken = None
            yield from self._move(cold.segment_id)
            return True
        finally:
            if taken is not None:
                self.space.give_back_unfilled(taken.segment_id)

    def _rewrite(self, planned: Planned) -> Work:
        """Have the pages of a victim written somewhere else (a task's work); returns how many leaves were marked."""
        try:
            marked: int = yield from self.finder.rewrite(planned.victim, planned.ordinal, planned.blocks)
        except (CorruptionError, DiskError) as error:
            self._cannot_be_read(planned.victim, error)
            return 0
        self.counts.pages_marked += marked
        return marked

    def note_failure(self, error: HoldfastError) -> None:
        self.counts.failures += 1
        log_output.warning("the cleaner: %s", error, extra=log_fields(error.resource, errno=error.errno))

    def _live_blocks(self, victim: int, ordinal: int) -> Work:
        """What is live in a victim; or None, and it is set aside."""
        space, log = self.space, self.log
        try:
            stored = yield from self._working(
                self._pinned(
                    victim,
                    stored_blocks(
                        victim,
                        ordinal,
                        tag=log.tag,
                        segment_blocks=log.segment_blocks,
                        buffer=self._read_buffer,
                    ),
                )
            )
            blocks: LiveBlocks = yield from self.finder.find(victim, stored, int(space.live[victim]))
        except (CorruptionError, DiskError) as error:
            self._cannot_be_read(victim, error)
            return None
        return blocks

    def _cannot_be_read(self, victim: int, error: CorruptionError | DiskError) -> None:
        self.note_failure(error)
        damaged = isinstance(error, CorruptionError)
        self.set_aside.put(victim, FOR_GOOD if damaged else self._clock.now_ns() + SET_ASIDE_NS)

    def _begin_cold(self, plan: Plan) -> ColdSegment | None:
        log = self.log
        newest = max(age_ordinal(planned.ordinal) for planned in plan.copied)
        emptied = len(plan.copied) - (sum(len(planned.blocks) for planned in plan.copied) > self.worth_blocks)
        segment = self.space.take_for_cleaning(urgent=emptied >= URGENT_GAIN)
        if segment is None:
            return None
        log.forget_segment(segment)
        return ColdSegment(
            segment,
            COLD | newest,
            tag=log.tag,
            epoch=log.epoch,
            segment_blocks=log.segment_blocks,
            buffer=self._copy_buffer,
        )

    def _copy(self, planned: Planned, cold: ColdSegment) -> Work:
        """Copy the live blocks of a victim, as many as find room. What cannot be read, or is damaged, stays there."""
        victim, ordinal, blocks = planned.victim, planned.ordinal, planned.blocks
        numbers = blocks.block.tolist()
        read_blocks = len(self._read_buffer) >> BLOCK_SHIFT
        start = 0
        bad = False
        while start < len(numbers) and cold.has_room() and not self._stopping():
            stop = start + 1
            while (
                stop < len(numbers)
                and numbers[stop] - numbers[stop - 1] <= GAP_BLOCKS
                and numbers[stop] - numbers[start] < read_blocks
            ):
                stop += 1
            view = self._read_buffer[: numbers[stop - 1] - numbers[start] + 1 << BLOCK_SHIFT]
            if not self._is_as_it_was(victim, ordinal):
                return
            io = yield from self._working(
                self._pinned(victim, _one(Io(READ, victim, numbers[start] << BLOCK_SHIFT, view)))
            )
            if io.result < 0:
                self.note_failure(
                    DiskError(f"segment {victim:08x} cannot be read by the cleaner (errno {-io.result})", -io.result)
                )
                self.set_aside.put(victim, self._clock.now_ns() + SET_ASIDE_NS)
            else:
                offsets = [number - numbers[start] << BLOCK_SHIFT for number in numbers[start:stop]]
                index = start
                while index < stop:
                    count = min(cold.room_in_commit(), blocks.alike(index, stop))
                    if count:
                        count = blocks.whole(index, index + count, view, offsets[index - start :])
                    if count:
                        run = slice(index, index + count)
                        address = cold.add_run(
                            view, offsets[index - start : run.stop - start], blocks.owner[run], blocks.check[run]
                        )
                        self._moves.add_run(blocks, run, address, ordinal)
                        self.counts.copied_blocks += count
                        index += count
                        continue
                    at = offsets[index - start]
                    block = view[at : at + BLOCK_SIZE_BYTES]
                    owner, entry = int(blocks.owner[index]), int(blocks.entry[index])
                    if not block_matches(block, owner, KIND_DATA, entry):
                        whole: bool = yield from self._read_again(victim, numbers[index], owner, entry, block)
                        if not whole:
                            yield from self._note_damage(blocks, index, victim, ordinal)
                            bad = True
                            index += 1
                            continue
                    if not cold.has_room():
                        break
                    if cold.is_full_of_unwritten:
                        yield from self._working(cold.write())
                    address = cold.add(block, owner, int(blocks.check[index]))
                    self._moves.add_run(blocks, slice(index, index + 1), address, ordinal)
                    self.counts.copied_blocks += 1
                    index += 1
            start = stop
            yield self._waitlists.next_turn
        if bad:
            self.set_aside.put(victim, FOR_GOOD)

    def _read_again(self, victim: int, number: int, owner: int, entry: int, into: memoryview) -> Work:
        """Read a block that did not check out, from the disk; False if it is damaged there as well."""
        offset = number << BLOCK_SHIFT
        self._disk.drop_cached(victim, offset, BLOCK_SIZE_BYTES)
        io = yield from self._pinned(victim, _one(Io(READ, victim, offset, into)))
        return io.result == 0 and block_matches(into, owner, KIND_DATA, entry)

    def _pinned(self, victim: int, work: Work) -> Work:
        """Work that waits for the disk alone, during which the victim is not used again. Not longer: a segment that
        comes free and may not be taken is one that a checkpoint could wait for."""
        self.space.pin(victim)
        try:
            return (yield from work)
        finally:
            self.space.unpin(victim)

    def _is_as_it_was(self, victim: int, ordinal: int) -> bool:
        """True if the victim has not come free and been used again."""
        return int(self.space.ordinal[victim]) == ordinal and self.space.state[victim] == SEALED

    def _note_damage(self, blocks: LiveBlocks, index: int, victim: int, ordinal: int) -> Work:
        """As a read does; unless the block was overwritten since, and nobody will ever read it."""
        volume = blocks.holders[int(blocks.holder[index])]
        lba, entry = int(blocks.owner[index]) & LBA_MASK, int(blocks.entry[index])
        try:
            slot = yield from self.finder.leaf_slot(volume, lba >> PAGE_SHIFT)
        except (CorruptionError, DiskError):
            return
        if slot < 0 or not self._is_as_it_was(victim, ordinal):
            return
        if self._cache.words[slot << PAGE_SHIFT | lba & PAGE_MASK] == entry:
            self.counts.damaged_blocks += 1
            volume.note_damage(lba, "found by the cleaner", known=is_given_up(entry))

    def _move(self, segment: int) -> Work:
        """The copies in `segment` are durable: point the maps at them."""
        try:
            self.counts.moved_blocks += yield from self._moves.apply(
                finder=self.finder,
                writer=self._writer,
                overcome=self._overcome,
                next_turn=self._waitlists.next_turn,
            )
        finally:
            self.space.sealed(segment)

    # ---- waiting

    def _overcome(self, obstacle: int) -> Work:
        """Wait until a page may be changed."""
        if obstacle == Obstacle.TOO_DIRTY:
            yield self._waitlists.clean_room
        else:  # a page that a checkpoint still needs as it is has to be written first
            yield from self._metadata.wait_for_room(Room(obstacle))

    def _working(self, work: Work) -> Work:
        """Work on the disk. Where nobody waits for it, it leaves most of the time to others."""
        began_ns = self._clock.now_ns()
        outcome = yield from work
        self._busy_ns += self._clock.now_ns() - began_ns
        if self._busy_ns > DISK_SHARE * TICK_NS and not self._hurried():
            self._busy_ns = 0
            yield self._waitlists.cleaner_rest
        return outcome


def _one(io: Io) -> Work:
    yield io
    return io

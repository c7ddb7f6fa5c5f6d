"""The engine: joins the rooms. Events in, effects out, in one thread, without a clock or a file of its own.

Events are calls: requests of sessions (`Session.submit`), completions of I/O, `tick`, `turn`. Effects are calls of the
ports it was made with and of the sessions' sinks. With the same events it has the same effects, byte for byte.

Each batch of events ends with `turn`: what became ready runs, the flusher is pumped, what was appended is published.
Only after that may answers to writes leave the process.

Background work (a checkpoint, preparing segments, removing a volume) are tasks; one of each kind at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from holdfast.complaints import Complaints
from holdfast.errors import (
    ACTIONS,
    DiskError,
    HoldfastError,
    NoSpaceError,
    Resource,
    errno_name,
    log_fields,
    resource_of,
)
from holdfast.memory.accounts import Accounts
from holdfast.memory.group import Kind, Refuses
from holdfast.memory.must_succeed import Registry
from holdfast.memory.plan import MemoryPlan
from holdfast.memory.reclaim import Pressure, Shrinker
from holdfast.pool.checkpoint import Checkpointer
from holdfast.pool.opening import Opener
from holdfast.pool.segment import SegmentFooter, encode_segment_footer, without_summary
from holdfast.pool.space import DYING, SEALED, Privilege, SpaceTable
from holdfast.pool.superblock import Superblock
from holdfast.runtime.ports import PREPARE, WRITE, Clock, Disk, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, GIB
from holdfast.volume.block_reader import BlockReader
from holdfast.volume.group_changes import Groups
from holdfast.volume.groups import DEFAULT_GROUP, GroupDirectory, TenantGroup
from holdfast.volume.page_cache import PageCache
from holdfast.volume.page_table import PageTable
from holdfast.volume.page_writer import PageWriter
from holdfast.volume.read import Reader
from holdfast.volume.replay import Replayer
from holdfast.volume.reserve import Reserve
from holdfast.volume.settings import AS_BY_DEFAULT, VolumeSettings
from holdfast.volume.volume import Volume
from holdfast.volume.volumes import Answer, Volumes
from holdfast.volume.write import Writer
from holdfast.work.order import WaitOrder
from holdfast.work.task import Scheduler, Waitlist, Work, guarded
from holdfast.work.waits import DISK, Wait, Waits
from holdfast.work.watchdog import Watchdog
from holdfast.writeback.flusher import FLUSHER, Flusher
from holdfast.writeback.log import Log, Room
from holdfast.writeback.owners import owned_blocks
from holdfast.writeback.ring import Ring

log_output = logging.getLogger("holdfast.engine")

# A checkpoint is due when so much log was written since the last one: recovery reads that much at most.
CHECKPOINT_LOG_BYTES = 1 * GIB
# Segments kept prepared ahead of the log's head, besides those held back, so that no write waits for a new file to be
# written through.
PREPARED_AHEAD = 4
HOST_FULL_RETRY_NS = 2_000_000_000
# Those who end waits and are no tasks.
PREPARATION = "the preparation of segments"
CLOCK = "the clock"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """pages_per_turn: how many pages of the map a checkpoint appends before clients have a turn
    verify: check at each wait that it is entered in order (`work.order`); for tests and the simulator"""

    memory: MemoryPlan
    preallocate: bool = False
    pages_per_turn: int = 64
    refuses: Refuses | None = None  # asked with each charge of memory, for faults on purpose
    hand_back: Callable[[memoryview], None] = lambda _page: None  # lets the host have a page's memory for now
    verify: bool = False


class Engine:
    """Made from a superblock and a formatted ring; `open` brings it up, `close` down. All fields: loop thread."""

    def __init__(
        self,
        superblock: Superblock,
        ring: Ring,
        *,
        epoch: int,
        disk: Disk,
        clock: Clock,
        allocate: Callable[[int], memoryview],
        options: EngineOptions,
    ) -> None:
        self.disk = disk
        self.clock = clock
        self.options = options
        self._allocate = allocate
        self.findings: list[str] = []
        self.complaints = Complaints()
        self.checkpoint_failures = 0  # writes of a superblock or a checkpoint that failed, and were tried again or not
        self._recovered = False  # the space table is what the log says: segments may be prepared and opened
        self.opened = False
        self._pages_wanted = False  # a checkpoint is due, because it makes pages clean that a group is to give up
        self._rows_changed = False  # a checkpoint is due, because it alone tells of that
        self.slows_all = False  # the host is under high pressure
        self.throttles = False  # some group has a limit of dirty data, or the host is under high pressure
        self.closing = False
        self.accounts = accounts = Accounts(options.memory, refuses=options.refuses)
        self.scheduler = Scheduler(disk, WaitOrder() if options.verify else None)
        self.scheduler.now_ns = clock.now_ns()
        self._make_waitlists()
        self._preparing: dict[int, int] = {}  # segments whose files are being made, since when
        self.waits = Waits(self.scheduler)
        self._watchdog = Watchdog(self.waits, alarm=self.complain, note=log_output.info)
        self.on_released: Callable[[], None] = lambda: None  # the sessions' chance to go on

        shift = superblock.segment_blocks.bit_length() - 1
        pages = PageCache(allocate(options.memory.page_bytes), accounts.root, hand_back=options.hand_back)
        accounts.reclaimer.shrinkers.append(Shrinker("map pages", Kind.MAP_PAGES, pages.shrink, pages.give_way))
        self.space = SpaceTable(superblock.capacity_segments, shift)
        self.must_succeed = Registry(superblock.segment_blocks)
        self.reserve = reserve = Reserve(
            self.space, pages, accounts.system, self.must_succeed, pages_per_turn=options.pages_per_turn
        )
        reserve.hold_for(0)
        self.space.on_unpinned = self._segment_unpinned
        self.log = Log(
            ring,
            self.space,
            tag=superblock.tag,
            epoch=epoch,
            system=accounts.system,
            reserve_blocks=self.must_succeed.ring_blocks,
        )
        self.flusher = Flusher(self.log, disk, released=self._released, failed=self._write_back_failed)
        self.waits.sources += [self.flusher.waits, self._waits_of_preparation]
        self.cache = pages
        blocks = BlockReader(self.log, self.space, disk)
        self.table = PageTable(pages, blocks, self.scheduler, self.page_room)
        volumes: dict[int, Volume] = {}
        groups = GroupDirectory(TenantGroup(0, DEFAULT_GROUP, accounts.make_group(DEFAULT_GROUP)))
        self.pages = PageWriter(
            pages,
            self.log,
            volumes,
            pages_per_turn=options.pages_per_turn,
            clean_room=self.clean_room,
            wait_for_room=self._wait_for_room,
            next_turn=self._wait_for_turn,
        )
        self.reader = Reader(pages, self.table, blocks, next_turn=self.next_turn)
        self.writer = Writer(
            pages,
            self.table,
            self.pages,
            self.log,
            blocks,
            ring_room=self.ring_room,
            group_room=self.group_room,
            segment_room=self.segment_room,
            next_turn=self.next_turn,
            full_wait=self.full_wait,
            now_ns=clock.now_ns,
        )
        self.checkpointer = Checkpointer(
            self.log,
            self.space,
            self.pages,
            superblock,
            allocate(BLOCK_SIZE_BYTES),
            staging=reserve.staging,
            rows=lambda: [volume.row() for volume in volumes.values()],
            groups=lambda: [group.row() for group in groups.by_id.values() if not group.removing],
            root_of=lambda volume_id: volumes[volume_id].root,
            make_room=self._make_room,
            until_durable=self.until_durable,
            retry=self.next_tick,
            on_error=self._checkpoint_error,
        )
        self.volumes = Volumes(
            volumes,
            groups,
            accounts.system,
            reserve,
            self.space,
            pages,
            self.table,
            self.writer,
            self.scheduler,
            clock,
            next_id=superblock.next_volume_id,
            checkpoint=lambda: self.checkpoint(both_slots=True),
            is_checkpoint_running=lambda: self._checkpoint_running,
            row_changed=self._row_changed,
            next_tick=self.next_tick,
        )
        self.groups = Groups(
            self.volumes, accounts, self.scheduler, checkpoint=self.checkpoint, changed=self.note_throttling
        )
        self._checkpoint_running = False
        self._checkpoint_position = 0
        self._maintained_ordinal = -1
        self._maintenance_wanted = True
        self._host_full_until_ns = 0
        self._checkpoint_log_blocks = (
            min(CHECKPOINT_LOG_BYTES, superblock.capacity_segments * superblock.segment_blocks * BLOCK_SIZE_BYTES // 4)
            >> BLOCK_SHIFT
        )

    def _make_waitlists(self) -> None:
        """What can be waited for, and who ends it: docs/waits.md argues that no cycle comes of it."""

        def waitlist(
            name: str, *ended_by: str | Waitlist, held_as: str = "", meant: bool = False, passing: bool = False
        ) -> Waitlist:
            return Waitlist(self.scheduler, name, ended_by=ended_by, held_as=held_as, meant=meant, passing=passing)

        self.checkpoint_end = waitlist("the end of a checkpoint", held_as="the checkpoint")
        self.ring_room = waitlist("room in the ring", FLUSHER)
        self.group_room = waitlist("the group's share of the ring", FLUSHER)
        self.segment_room = waitlist("a free segment", PREPARATION, self.checkpoint_end)
        self.metadata_room = waitlist("a segment held back for metadata", PREPARATION, "reads of segments to be freed")
        self.page_room = waitlist("a page of map memory", self.checkpoint_end, held_as="pages of map memory")
        self.clean_room = waitlist("fewer dirty pages of the map", self.checkpoint_end)
        self.buffer_room = waitlist("a read buffer", held_as="bytes of read buffers")
        self.next_turn = waitlist("the next turn", "the engine", passing=True)
        self.next_tick = waitlist("another try, with the next tick", CLOCK)
        self.full_wait = waitlist("space, as long as --on-full says", CLOCK, "whoever trims", meant=True)

    # ---- life

    def open(self, known_end: int, done: Callable[[HoldfastError | None], None]) -> None:
        """Recover, then write the first checkpoint of this epoch; `done` is called when the pool can be served."""
        self.scheduler.spawn(guarded(self._open(known_end)), "open", done)

    def _open(self, known_end: int) -> Work:
        superblock = self.checkpointer.superblock
        opener = Opener(superblock, self.space, self.disk, self.findings)
        opened = yield from opener.read(known_end)
        self.groups.bring_back(opened.groups)
        for row in opened.rows:
            self.volumes.add(Volume(row, self.volumes.groups.by_id.get(row.group_id, self.volumes.groups.default)))
        self.checkpointer.meta_addresses = opened.meta_addresses
        if opened.segment >= 0:
            self.log.start_at(
                position=opened.end,
                segment=opened.segment,
                next_ordinal=opened.next_ordinal,
                summary=opened.summary,
            )
        else:
            self.log.start_empty(next_ordinal=opened.next_ordinal)
        self.flusher.durable = self.flusher.written = self.flusher.issued = self.log.durable
        self._recovered = True
        replayer = Replayer(
            self.cache,
            self.table,
            self.space,
            self.volumes.by_id,
            write_pages=self._write_pages,
            findings=self.findings,
        )
        yield from replayer.replay(opened.commits)
        yield from self._drop_torn_summaries(opened.torn_summaries)
        if opened.commits:
            log_output.info("replayed %d entries of %d commits", replayer.entries_applied, len(opened.commits))
        # The older slot still tells of the epoch before: it must lead here too.
        yield from self._checkpoint(clean=False, epoch=self.log.epoch, both_slots=True)
        self.opened = True
        self.volumes.resume_removals()

    def _drop_torn_summaries(self, footers: list[SegmentFooter]) -> Work:
        """Let sealed segments whose summary was torn by a crash say that they have none: nobody is to take that for
        damage. Only the first sector of the footer changes, so this write cannot be torn itself."""
        for footer in footers:
            block = self._allocate(BLOCK_SIZE_BYTES)
            encode_segment_footer(block, without_summary(footer, self.log.segment_blocks))
            last = self.log.segment_blocks - 1
            io = yield Io(WRITE, footer.segment_id, last << BLOCK_SHIFT, block, durable=True)
            if io.result < 0:
                errno = -io.result
                raise DiskError(f"segment {footer.segment_id:08x}: its footer cannot be written (errno {errno})", errno)

    def close(self, done: Callable[[HoldfastError | None], None]) -> None:
        """Make everything durable and write a clean checkpoint. The caller has ended all sessions."""
        self.closing = True
        self.scheduler.spawn(guarded(self._close()), "close", done)

    def _close(self) -> Work:
        if self.opened:
            yield from self.checkpoint(clean=True)

    # ---- time

    def turn(self) -> bool:
        """End a batch of events. True: call again soon, even if nothing happens."""
        scheduler = self.scheduler
        ready = scheduler.ready
        if self.next_turn.tasks:
            self.next_turn.wake()
        if self.table.released:
            self.table.released = False
            self.page_room.wake()
        if ready:
            scheduler.run_ready()
        reclaimer = self.accounts.reclaimer
        if reclaimer.short or reclaimer.io_wanted:
            self._reclaim()
        # Looked at once a segment, and whenever something happened that may have changed the answer: not in every turn.
        if (
            self.log.ordinal != self._maintained_ordinal
            or len(self.cache.dirty) >= self.cache.dirty_soft_limit
            or self.page_room.tasks
            or self._maintenance_wanted
        ) and self._recovered:
            self._maintained_ordinal = self.log.ordinal
            self._maintenance_wanted = False
            self._maintain()
        self.flusher.pump()
        if ready:
            scheduler.run_ready()
        self.log.publish()
        return bool(self.next_turn.tasks or ready or reclaimer.short or (self.table.released and self.page_room.tasks))

    def tick(self) -> None:
        """Some times a second."""
        now_ns = self.scheduler.now_ns = self.clock.now_ns()
        self._maintenance_wanted = True
        self.complaints.tick()
        self.flusher.tick(now_ns)
        self._watchdog.tick(now_ns)
        self.next_tick.wake()
        self.full_wait.wake()
        # A budget may have refused although nobody holds anything that will be released.
        self.page_room.wake()
        self.clean_room.wake()
        self.buffer_room.wake()
        self._released()
        if self.accounts.reclaimer.under_pressure() < 0:
            self.page_room.wake()
        if self.space.host_full and now_ns >= self._host_full_until_ns:
            self._host_full_until_ns = now_ns + HOST_FULL_RETRY_NS
            self._prepare_segment()

    def pressure(self, pressure: Pressure) -> None:
        """The host has too little memory, or enough again. What is done about it is done at the next tick."""
        if pressure is not self.accounts.reclaimer.pressure:
            log_output.info("memory pressure: %s", pressure.name.lower())
        self.accounts.reclaimer.note_pressure(pressure)
        self.note_throttling()

    def note_throttling(self) -> None:
        """Whether anybody may have to be slowed: asked after each batch of writes, so it is known beforehand."""
        limited = any(group.limits.dirty_bytes for group in self.groups.directory.by_id.values())
        self.slows_all = self.accounts.reclaimer.pressure is Pressure.HIGH
        self.throttles = limited or self.slows_all

    # ---- background

    def _reclaim(self) -> None:
        """Somebody was refused memory: let caches give way, and have written what only writing can free."""
        reclaimer = self.accounts.reclaimer
        if any(group.parent is not None and kind is Kind.READ_BUFFERS for (_, kind), group in reclaimer.short.items()):
            # A group has used up what it may have of all kinds: what is dirty of it gives way for the buffer.
            self.flusher.push()
            self._pages_wanted = self.cache.dirty_pages > 0
            self._maintenance_wanted = True
        if reclaimer.run():
            self.page_room.wake()
            self.buffer_room.wake()
        if Kind.RING in reclaimer.io_wanted:
            self.flusher.push()
        if Kind.MAP_PAGES in reclaimer.io_wanted:
            self._maintenance_wanted = True
        reclaimer.io_wanted.clear()

    def _maintain(self) -> None:
        space = self.space
        wanted = len(space.free) < space.reserve_segments + PREPARED_AHEAD or self.options.preallocate
        if wanted and space.absent and not space.preparing and not space.host_full:
            self._prepare_segment()
        if not self._checkpoint_running and self._checkpoint_due():
            self.scheduler.spawn(guarded(self._checkpoint(clean=False)), "checkpoint", self._checkpoint_done)

    def _checkpoint_due(self) -> bool:
        if self.closing or not self.opened:
            return False
        if self._rows_changed or self._pages_wanted:
            return True
        if self.cache.dirty_pages >= self.cache.dirty_soft_limit or (self.page_room.tasks and self.cache.dirty_pages):
            return True
        if self.log.position - self._checkpoint_position >= self._checkpoint_log_blocks:
            return True
        return self._space_is_low() and self._checkpoint_would_free()

    def _space_is_low(self) -> bool:
        return self.space.available_segments <= self.space.reserve_segments + 1

    def _checkpoint_would_free(self) -> bool:
        state = self.space.state
        return bool(np.any(state == DYING) or np.any((state == SEALED) & (self.space.live == 0)))

    def _row_changed(self) -> None:
        """A volume has lost data, or takes no writes any more: that is to be known after a crash as well."""
        self._rows_changed = True
        self._maintenance_wanted = True

    def _checkpoint_done(self, outcome: HoldfastError | None) -> None:
        if outcome is not None:
            self.checkpoint_failures += 1
            log_output.error("checkpoint failed: %s", outcome, extra=log_fields(outcome.resource, errno=outcome.errno))

    def checkpoint(self, *, clean: bool = False, both_slots: bool = False) -> Work:
        """Write a checkpoint of a moment at or after the call (a task's work).

        both_slots: let both superblock slots lead to it, for what only a checkpoint tells of (which volumes there are)
        and no log can bring back should the newer slot be lost.
        """
        while self._checkpoint_running:
            yield self.checkpoint_end
        yield from self._checkpoint(clean=clean, both_slots=both_slots)

    def _checkpoint(self, *, clean: bool, epoch: int | None = None, both_slots: bool = False) -> Work:
        self._checkpoint_running = True
        self._checkpoint_position = self.log.position
        self._rows_changed = self._pages_wanted = False
        held = self.scheduler.hold(self.checkpoint_end)
        try:
            yield from self.checkpointer.write(clean=clean, next_volume_id=self.volumes.next_id, epoch=epoch)
            if both_slots:
                yield from self.checkpointer.write_superblock(_next_sequence(self.checkpointer.superblock))
                self.space.free_dying()
        finally:
            held.release()
            self._checkpoint_running = False
            self._maintenance_wanted = True
            self.checkpoint_end.wake()
        self.page_room.wake()
        self.segment_room.wake()
        self.metadata_room.wake()
        self._released()

    def _checkpoint_error(self, what: str, errno: int) -> None:
        self.checkpoint_failures += 1
        log_output.error(
            "%s: cannot be written (%s); trying again; %s",
            what,
            errno_name(errno),
            ACTIONS[resource_of(errno)],
            extra=log_fields(resource_of(errno), errno=errno),
        )

    def _write_pages(self) -> Work:
        """Clean all dirty pages by appending them, without a superblock: recovery in less memory than the log needs."""
        self.pages.begin(self.space.live.copy())
        yield from self.pages.write_all()
        self.log.seal_commit()

    def _prepare_segment(self) -> None:
        segment = self.space.take_absent()
        if segment is not None:
            self._preparing[segment] = self.scheduler.now_ns
            length = self.log.segment_blocks << BLOCK_SHIFT
            self.disk.start(Io(PREPARE, segment, length=length, done=self._segment_prepared))

    def _segment_prepared(self, io: Io) -> None:
        del self._preparing[io.file]
        if io.result < 0:
            if not self.space.host_full:
                resource = resource_of(-io.result)
                log_output.error(
                    "segment file %08x cannot be made (%s: %s): writes that need it get ENOSPC until it can; %s",
                    io.file,
                    resource,
                    errno_name(-io.result),
                    ACTIONS[resource],
                    extra=log_fields(resource, errno=-io.result),
                )
            self.space.preparation_failed(io.file)
        else:
            self.space.prepared(io.file)
        self._maintenance_wanted = True
        self.segment_room.wake()
        self.metadata_room.wake()
        self.on_released()

    def complain(self, text: str) -> None:
        self.complaints.say(text)

    def _segment_unpinned(self) -> None:
        self.segment_room.wake()
        self.metadata_room.wake()
        self.on_released()

    # ---- waiting

    def until_durable(self) -> Work:
        """Until everything appended so far is durable, however often that has to be tried (a task's work)."""
        while True:
            arrived = Waitlist(self.scheduler, "durability", ended_by=(FLUSHER,))
            outcome: list[int] = []

            def heard(errno: int, arrived: Waitlist = arrived, outcome: list[int] = outcome) -> None:
                outcome.append(errno)
                arrived.wake()

            self.flusher.when_durable(heard)
            if not outcome:
                yield arrived
            if outcome[0] == 0:
                return

    def _make_room(self) -> Work:
        while True:
            room = self.log.make_room(Privilege.CHECKPOINT)
            if room is Room.YES:
                return
            yield from self._wait_for_room(room)

    def _wait_for_room(self, room: Room) -> Work:
        if room is Room.RING_FULL:
            yield self.ring_room
        else:
            if room is Room.NO_SPACE and not self.opened:
                if self.space.host_full:
                    raise NoSpaceError(
                        "the filesystem below the pool is full: free some of it, the pool needs a segment",
                        resource=Resource.HOST_FILESYSTEM,
                    )
                raise NoSpaceError("the pool has no segment left for its own metadata; serve it with more --capacity")
            if room is Room.NO_SPACE:
                log_output.error(
                    "no segment left for metadata: the checkpoint waits for space to be freed; %s",
                    ACTIONS[Resource.POOL_SPACE],
                    extra=log_fields(Resource.POOL_SPACE),
                )
            yield self.metadata_room

    def _waits_of_preparation(self) -> list[Wait]:
        return [
            Wait(PREPARATION, f"{DISK}: preparation of segment {segment:08x}", since_ns, ended_by=(DISK,))
            for segment, since_ns in self._preparing.items()
        ]

    def _wait_for_turn(self) -> Work:
        self.page_room.wake()
        yield self.next_turn

    def _write_back_failed(self, start: int, end: int, errno: int) -> None:
        """What failed stays dirty, and is tried again: say whose it is."""
        met = []
        names: dict[str, None] = {}
        for blocks in owned_blocks(self.log, start, end):
            volume = self.volumes.by_id.get(blocks.volume_id)
            if volume is not None:
                volume.write_back_failures += 1
                volume.write_back_errno = errno
                volume.write_back_has_failed()
                met.append(blocks.describe(volume.name))
                names[volume.name] = None
        resource = resource_of(errno)
        self.complaints.say(
            f"write-back failed ({errno_name(errno)}) for {', '.join(met) or 'metadata alone'}; "
            f"it stays in the ring and is written again; {ACTIONS[resource]}",
            log_fields(resource, volume=", ".join(names) or None, errno=errno),
        )

    def _released(self) -> None:
        self.ring_room.wake()
        self.group_room.wake()
        self.on_released()

    # ---- volumes: the calls of those outside

    @property
    def by_name(self) -> dict[str, Volume]:
        """The volumes that exist, those that are being removed among them."""
        return self.volumes.by_name

    def find(self, name: str) -> Volume:
        return self.volumes.find(name)

    def create_volume(
        self, name: str, size_bytes: int, answer: Answer, settings: VolumeSettings = AS_BY_DEFAULT
    ) -> None:
        self.volumes.create(name, size_bytes, answer, settings)

    def change_volume(self, name: str, answer: Answer, settings: VolumeSettings) -> None:
        self.volumes.change(name, answer, settings)

    def remove_volume(self, name: str, answer: Answer) -> None:
        self.volumes.remove(name, answer)


def _next_sequence(superblock: Superblock) -> Superblock:
    return replace(superblock, sequence=superblock.sequence + 1)

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
from dataclasses import dataclass

from holdfast.complaints import Complaints
from holdfast.errors import HoldfastError
from holdfast.memory.accounts import Accounts
from holdfast.memory.group import Kind, Refuses
from holdfast.memory.must_succeed import Registry
from holdfast.memory.plan import MemoryPlan
from holdfast.memory.reclaim import Pressure, Shrinker
from holdfast.pool.preparation import Preparation
from holdfast.pool.space import SpaceTable
from holdfast.pool.superblock import Superblock
from holdfast.runtime.ports import Clock, Disk
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.block_reader import BlockReader
from holdfast.volume.capacity import Capacity, CapacityAnswer
from holdfast.volume.checkpoints import Checkpoints
from holdfast.volume.cleaner import Cleaner
from holdfast.volume.copier import cleaner_bytes
from holdfast.volume.difference import Differences
from holdfast.volume.exchange import Exchange
from holdfast.volume.group_changes import Groups
from holdfast.volume.groups import DEFAULT_GROUP, GroupDirectory, TenantGroup
from holdfast.volume.holders import Holders
from holdfast.volume.leaves import Leaves
from holdfast.volume.metadata_waits import MetadataWaits
from holdfast.volume.page_cache import MUST_PAGES, PageCache
from holdfast.volume.page_table import PageTable
from holdfast.volume.page_writer import PageWriter
from holdfast.volume.read import Reader
from holdfast.volume.recovery import Recovery
from holdfast.volume.removal import Removal
from holdfast.volume.reserve import Reserve
from holdfast.volume.resize import ResizeAnswer, Resizes
from holdfast.volume.settings import AS_BY_DEFAULT, VolumeSettings
from holdfast.volume.sharing import Sharing
from holdfast.volume.snapshots import Snapshots
from holdfast.volume.view import Views
from holdfast.volume.volume import Volume
from holdfast.volume.volumes import Answer, Volumes
from holdfast.volume.waitlists import Waitlists
from holdfast.volume.write import Writer
from holdfast.volume.write_back_failures import WriteBackFailures
from holdfast.work.order import WaitOrder
from holdfast.work.task import Scheduler, Work, guarded
from holdfast.work.waits import Waits
from holdfast.work.watchdog import Watchdog
from holdfast.writeback.flusher import Flusher
from holdfast.writeback.log import Log
from holdfast.writeback.ring import Ring

log_output = logging.getLogger("holdfast.engine")


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
        self._recovered = False  # the space table is what the log says: segments may be prepared and opened
        self.opened = False
        self.slows_all = False  # the host is under high pressure
        self.throttles = False  # some group has a limit of dirty data, or the host is under high pressure
        self.closing = False
        self.accounts = accounts = Accounts(options.memory, refuses=options.refuses)
        self.scheduler = Scheduler(disk, WaitOrder() if options.verify else None)
        self.scheduler.now_ns = clock.now_ns()
        self.waitlists = waitlists = Waitlists(self.scheduler)
        self.waits = Waits(self.scheduler)
        self._watchdog = Watchdog(self.waits, alarm=self.complain, note=log_output.info)
        self.on_released: Callable[[], None] = lambda: None  # the sessions' chance to go on

        shift = superblock.segment_blocks.bit_length() - 1
        pages = PageCache(
            allocate(options.memory.page_bytes), accounts.root, hand_back=options.hand_back, held_back=MUST_PAGES
        )
        accounts.reclaimer.shrinkers.append(Shrinker("map pages", Kind.MAP_PAGES, pages.shrink, pages.give_way))
        self.space = SpaceTable(superblock.capacity_segments, shift)
        self.must_succeed = Registry(superblock.segment_blocks)
        self.reserve = reserve = Reserve(
            self.space,
            pages,
            accounts.system,
            self.must_succeed,
            pages_per_turn=options.pages_per_turn,
            cleaner_bytes=cleaner_bytes(superblock.segment_blocks),
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
        volumes: dict[int, Volume] = {}
        failures = WriteBackFailures(self.log, volumes, self.complaints.say)
        self.flusher = Flusher(self.log, disk, released=self._released, failed=failures.failed)
        self.preparation = Preparation(
            self.space,
            self.scheduler,
            segment_size_bytes=superblock.segment_blocks << BLOCK_SHIFT,
            preallocate=options.preallocate,
            ended=self._segment_prepared,
        )
        self.waits.sources += [self.flusher.waits, self.preparation.waits]
        self.cache = pages
        blocks = BlockReader(self.log, self.space, disk)
        self.table = PageTable(pages, blocks, self.scheduler, waitlists.page_room)
        groups = GroupDirectory(TenantGroup(0, DEFAULT_GROUP, accounts.make_group(DEFAULT_GROUP)))
        metadata = MetadataWaits(self.log, self.flusher, waitlists, self.scheduler, is_opened=lambda: self.opened)
        self.pages = PageWriter(
            pages,
            self.log,
            volumes,
            waitlists,
            pages_per_turn=options.pages_per_turn,
            wait_for_room=metadata.wait_for_room,
        )
        self.views = Views(pages, self.table, self.scheduler, waitlists.page_room)
        self.exchange = Exchange(pages, self.views, self.space)
        self.leaves = leaves = Leaves(pages, self.table, self.scheduler, waitlists.leaves_turn)
        self.reader = Reader(pages, self.views, blocks, next_turn=waitlists.next_turn)
        self.sharing = Sharing(pages, self.table, self.scheduler, next_turn=waitlists.next_turn)
        self.differences = Differences(pages, self.views, self.table, next_turn=waitlists.next_turn)
        self.writer = Writer(
            pages,
            self.table,
            self.views,
            self.exchange,
            leaves,
            self.pages,
            self.log,
            blocks,
            waitlists,
            now_ns=clock.now_ns,
        )
        self.checkpoints = Checkpoints(
            superblock,
            allocate(BLOCK_SIZE_BYTES),
            self.pages,
            groups,
            metadata,
            waitlists,
            self.scheduler,
            staging=reserve.staging,
            next_volume_id=lambda: self.volumes.next_id,
            look=self._look_again,
            released=self._released,
        )
        self.checkpointer = self.checkpoints.checkpointer
        self.volumes = Volumes(
            volumes,
            groups,
            accounts.system,
            reserve,
            self.space,
            pages,
            self.writer,
            self.scheduler,
            clock,
            next_id=superblock.next_volume_id,
            checkpoint=lambda: self.checkpoints.checkpoint(both_slots=True),
            row_changed=self.checkpoints.row_changed,
        )
        self.cleaner = Cleaner(
            self.writer,
            Holders(volumes),
            self.checkpoints,
            metadata,
            waitlists,
            self.scheduler,
            disk,
            clock,
            allocate=allocate,
            freed=self._segment_unpinned,
            stopping=lambda: self.closing or not self.opened,
        )
        self.space.on_wanted = self._cleaner_wanted
        self.volumes.removal = Removal(
            volumes,
            pages,
            self.table,
            self.views,
            leaves,
            self.writer,
            waitlists,
            self.scheduler,
            checkpoint=self.checkpoints.checkpoint,
            is_checkpoint_running=lambda: self.checkpoints.running,
            is_visited=self.cleaner.is_visiting,
            gone=self._gone,
        )
        self.snapshots = Snapshots(self.volumes, pages, pool_uuid=superblock.uuid)
        self.groups = Groups(
            self.volumes, accounts, self.scheduler, checkpoint=self.checkpoints.checkpoint, changed=self.note_throttling
        )
        self.resizes = Resizes(self.volumes, self.writer, self.checkpoints, waitlists, self.scheduler)
        self.capacity = Capacity(
            self.log,
            reserve,
            self.volumes,
            self.checkpoints,
            waitlists,
            self.scheduler,
            changed=self._segment_prepared,
            stopping=lambda: self.closing,
            evacuate=self.cleaner.evacuate,
            is_cleaning=lambda: self.cleaner.running,
        )
        self.space.on_resized = self._resized
        self._maintained_ordinal = -1
        self._maintenance_wanted = True

    # ---- life

    def open(self, known_end: int, done: Callable[[HoldfastError | None], None]) -> None:
        """Recover, then write the first checkpoint of this epoch; `done` is called when the pool can be served."""
        self.scheduler.spawn(guarded(self._open(known_end)), "open", done)

    def _open(self, known_end: int) -> Work:
        recovery = Recovery(
            self.pages,
            self.table,
            self.exchange,
            self.flusher,
            self.volumes,
            self.groups,
            self.checkpoints,
            self.disk,
            self.findings,
        )
        yield from recovery.read(known_end)
        self._recovered = True
        yield from recovery.replay(self._allocate)
        self.volumes.hold_provisioned()
        # The older slot still tells of the epoch before: it must lead here too.
        yield from self.checkpoints.write(clean=False, epoch=self.log.epoch, both_slots=True)
        self.opened = True
        self.volumes.removal.begin()
        self.resizes.resume()
        self.capacity.remove_strays()

    def close(self, done: Callable[[HoldfastError | None], None]) -> None:
        """Make everything durable and write a clean checkpoint. The caller has ended all sessions."""
        self.closing = True
        self.scheduler.spawn(guarded(self._close()), "close", done)

    def _close(self) -> Work:
        while self.cleaner.running:
            yield self.waitlists.next_tick
        if self.opened:
            yield from self.checkpoints.checkpoint(clean=True)

    # ---- time

    def turn(self) -> bool:
        """End a batch of events. True: call again soon, even if nothing happens."""
        scheduler, waitlists = self.scheduler, self.waitlists
        ready = scheduler.ready
        if waitlists.next_turn.tasks:
            waitlists.next_turn.wake()
        if self.table.released:
            self.table.released = False
            waitlists.page_room.wake()
        if ready:
            scheduler.run_ready()
        reclaimer = self.accounts.reclaimer
        if reclaimer.short or reclaimer.io_wanted:
            self._reclaim()
        # Looked at once a segment, and whenever something happened that may have changed the answer: not in every turn.
        if (
            self.log.ordinal != self._maintained_ordinal
            or len(self.cache.dirty) >= self.cache.dirty_soft_limit
            or waitlists.page_room.tasks
            or self._maintenance_wanted
        ) and self._recovered:
            self._maintained_ordinal = self.log.ordinal
            self._maintenance_wanted = False
            self._maintain()
        self.flusher.pump()
        if ready:
            scheduler.run_ready()
        self.log.publish()
        return bool(
            waitlists.next_turn.tasks or ready or reclaimer.short or (self.table.released and waitlists.page_room.tasks)
        )

    def tick(self) -> None:
        """Some times a second."""
        now_ns = self.scheduler.now_ns = self.clock.now_ns()
        self._maintenance_wanted = True
        self.complaints.tick()
        self.flusher.tick(now_ns)
        self._watchdog.tick(now_ns)
        waitlists = self.waitlists
        waitlists.next_tick.wake()
        waitlists.cleaner_rest.wake()
        waitlists.full_wait.wake()
        # A budget may have refused although nobody holds anything that will be released.
        waitlists.page_room.wake()
        waitlists.clean_room.wake()
        waitlists.buffer_room.wake()
        self._released()
        if self.accounts.reclaimer.under_pressure() < 0:
            waitlists.page_room.wake()
        self.preparation.tick()
        self.cleaner.look_again()

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
            self.checkpoints.clean_pages()
        if reclaimer.run():
            self.waitlists.page_room.wake()
            self.waitlists.buffer_room.wake()
        if Kind.RING in reclaimer.io_wanted:
            self.flusher.push()
        if Kind.MAP_PAGES in reclaimer.io_wanted:
            self._look_again()
        reclaimer.io_wanted.clear()

    def _look_again(self) -> None:
        """Something happened that background work may be wanted for: to be looked at in the next turn."""
        self._maintenance_wanted = True

    def _maintain(self) -> None:
        self.preparation.keep_ahead()
        if self.opened and not self.closing and self.checkpoints.due():
            self.checkpoints.begin()
        if self.cleaner.is_due():
            self.cleaner.begin()

    def _cleaner_wanted(self) -> None:
        self.cleaner.want()
        self._look_again()

    def _gone(self, node: Volume) -> None:
        volumes, parent = self.volumes, node.parent
        volumes.gone(node)
        if parent is not None and parent.provisioned:
            self.sharing.settle([parent], lambda: volumes.hold_for_parent(node))

    def _resized(self) -> None:
        self.writer.renew()
        self.cleaner.renew()

    def _segment_prepared(self) -> None:
        self._maintenance_wanted = True
        self._segment_unpinned()

    def complain(self, text: str) -> None:
        self.complaints.say(text)

    def _segment_unpinned(self) -> None:
        self.waitlists.segment_room.wake()
        self.waitlists.metadata_room.wake()
        self.on_released()

    def _released(self) -> None:
        self.waitlists.ring_room.wake()
        self.waitlists.group_room.wake()
        self.on_released()

    # ---- the calls of those outside

    def checkpoint(self, *, clean: bool = False, both_slots: bool = False) -> Work:
        """Write a checkpoint of a moment at or after the call (a task's work), as `Checkpoints.checkpoint` does."""
        return self.checkpoints.checkpoint(clean=clean, both_slots=both_slots)

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

    def resize_volume(self, name: str, size_bytes: int, answer: ResizeAnswer, *, force: bool = False) -> None:
        self.resizes.resize(name, size_bytes, answer, force=force)

    def resize_pool(self, capacity_bytes: int, answer: CapacityAnswer) -> None:
        self.capacity.resize(capacity_bytes, answer)

    def remove_volume(self, name: str, answer: Answer, *, snapshots: bool = False) -> None:
        self.volumes.remove(name, answer, snapshots=snapshots)

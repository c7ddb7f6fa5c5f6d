"""What an engine is made of: the rooms, joined by what they are handed of each other.

Nothing is done here but to pass on, in the same turn, what one of them says and others wait for. What the engine does,
and when, is in `engine.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from holdfast.complaints import Complaints
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
from holdfast.volume.capacity import Capacity
from holdfast.volume.checkpoints import Checkpoints
from holdfast.volume.cleaner import Cleaner
from holdfast.volume.copier import cleaner_bytes
from holdfast.volume.difference import Differences
from holdfast.volume.exchange import Exchange
from holdfast.volume.group_changes import Groups
from holdfast.volume.groups import DEFAULT_GROUP, GroupDirectory, TenantGroup
from holdfast.volume.holders import Holders
from holdfast.volume.leaves import Leaves
from holdfast.volume.long_write import LongWriter
from holdfast.volume.metadata_waits import MetadataWaits
from holdfast.volume.page_cache import MUST_PAGES, PageCache
from holdfast.volume.page_table import PageTable
from holdfast.volume.page_writer import PageWriter
from holdfast.volume.provision import Provisions
from holdfast.volume.read import Reader
from holdfast.volume.removal import Removal
from holdfast.volume.reserve import Reserve
from holdfast.volume.resize import Resizes
from holdfast.volume.sharing import Sharing
from holdfast.volume.snapshots import Snapshots
from holdfast.volume.view import Views
from holdfast.volume.volume import Volume
from holdfast.volume.volumes import Volumes
from holdfast.volume.waitlists import Waitlists
from holdfast.volume.write import Writer
from holdfast.volume.write_back_failures import WriteBackFailures
from holdfast.work.order import WaitOrder
from holdfast.work.task import Scheduler
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


class EngineParts:
    """Made from a superblock and a formatted ring. All fields: loop thread."""

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
        alone: bool = False,
    ) -> None:
        """`alone`: neither superblock slot leads to another checkpoint."""
        self.disk = disk
        self.clock = clock
        self.options = options
        self._allocate = allocate
        self._alone = alone
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
        self.views = Views(pages, self.table, self.scheduler, waitlists.page_room, waitlists.next_turn)
        self.exchange = Exchange(pages, self.views, self.space)
        self.leaves = leaves = Leaves(pages, self.table, self.scheduler, waitlists.leaves_turn)
        self.reader = Reader(pages, self.views, blocks, next_turn=waitlists.next_turn)
        self.sharing = Sharing(
            pages,
            self.table,
            self.scheduler,
            next_turn=waitlists.next_turn,
            counted=Provisions(self.space).hold,
        )
        self.differences = Differences(pages, self.views, self.table, next_turn=waitlists.next_turn)
        self.writer = Writer(pages, self.views, self.exchange, self.pages, self.log)
        self.long_writer = LongWriter(self.writer, self.table, leaves, blocks, waitlists, now_ns=clock.now_ns)
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
            is_cleaning=lambda: self.cleaner.running or self.cleaner.is_due(),
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
            self.long_writer,
            self.scheduler,
            clock,
            next_id=superblock.next_volume_id,
            checkpoint=self.checkpoints.for_command,
            row_changed=self.checkpoints.row_changed,
        )
        self.cleaner = Cleaner(
            self.writer,
            self.table,
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
            self.long_writer,
            waitlists,
            self.scheduler,
            checkpoint=self.checkpoints.for_command,
            is_checkpoint_running=lambda: self.checkpoints.running,
            should_wait=self.checkpoints.should_be_spared,
            is_visited=self.cleaner.is_visiting,
            gone=self._gone,
        )
        self.snapshots = Snapshots(self.volumes, pages, pool_uuid=superblock.uuid)
        self.groups = Groups(
            self.volumes,
            accounts,
            self.scheduler,
            checkpoint=self.checkpoints.for_command,
            changed=self.note_throttling,
        )
        self.resizes = Resizes(
            self.volumes, self.writer, self.long_writer, self.table, self.checkpoints, waitlists, self.scheduler
        )
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

    # ---- what one of them says and others wait for

    def note_throttling(self) -> None:
        """Whether anybody may have to be slowed: asked after each batch of writes, so it is known beforehand."""
        limited = any(group.limits.dirty_bytes for group in self.groups.directory.by_id.values())
        self.slows_all = self.accounts.reclaimer.pressure is Pressure.HIGH
        self.throttles = limited or self.slows_all

    def _look_again(self) -> None:
        """Something happened that background work may be wanted for: to be looked at in the next turn."""
        self._maintenance_wanted = True

    def _cleaner_wanted(self) -> None:
        self.cleaner.want()
        self._look_again()

    def _gone(self, nodes: Iterable[Volume]) -> None:
        volumes = self.volumes
        volumes.gone(nodes)
        # What thick volumes share, and so what is held for them, may be less: also of one that these were not named
        # after, since a clone of it was promoted.
        for volume in [volume for volume in volumes.by_id.values() if volume.provisioned]:
            self.sharing.settle([volume], partial(volumes.provisions.hold, volume))

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

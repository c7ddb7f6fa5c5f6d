"""What is held back of a pool for those who must not fail, computed from the list of them (`memory/must_succeed.py`).

    checkpoint            two of them at their largest, because a segment comes free two checkpoints after it was
                          emptied. Nothing else may take these segments: a pool that could not write a checkpoint could
                          never be opened again
    cleaner               segments to copy into, and the memory to copy with
    trims and removals    on top of that, what they append before they give space back: a full pool has a way out
    end of a segment      slots of the ring for its summary and footer, which are written when it is full

What is left for clients they may not fill with live blocks either, because the cleaner needs dead ones to make room:
`usable_blocks` is what the pool holds without the reserve and without what is spare.

The figures grow with the number of volumes and groups, whose table a checkpoint writes, so they are set anew whenever
that changes; and before a volume is made, to see whether its part can be had. The memory in which the tables are put
together is reserved as long as the server runs.
"""

from __future__ import annotations

from holdfast.errors import NoSpaceError
from holdfast.memory.group import Group, Kind
from holdfast.memory.must_succeed import MustSucceed, Registry
from holdfast.memory.reservation import Reservation
from holdfast.pool.cold_segment import cold_blocks_max
from holdfast.pool.segment import summary_blocks, summary_entries_max
from holdfast.pool.space import ROW_DTYPE, SpaceTable
from holdfast.pool.tables import TABLE_COPIES
from holdfast.units import BLOCK_SIZE_BYTES
from holdfast.volume.page_cache import PageCache

CHECKPOINT = "checkpoint"
FREEING = "trims and removals"
SEGMENT_END = "end of a segment"
CLEANER = "cleaner"
# One is being filled while another, filled before, waits for the checkpoint that empties its victims.
CLEANER_SEGMENTS = 2
COLUMN_BYTES = 8  # of the copy of the live column, a segment


class Reserve:
    """Sets the reserve in `space`, and in a small pool the limits of dirty pages in `pages`."""

    def __init__(
        self,
        space: SpaceTable,
        pages: PageCache,
        system: Group,
        registry: Registry,
        *,
        pages_per_turn: int,
        cleaner_bytes: int = 0,
    ) -> None:
        """`cleaner_bytes`: memory that the cleaner has."""
        self.registry = registry
        self.staging = Reservation(system, Kind.STAGING, 0, "the checkpoint of this pool")
        self._space = space
        self._segment_blocks = 1 << space.segment_shift
        self._pages_per_turn = pages_per_turn
        self._pages = pages
        self._dirty_pages_max = pages.dirty_hard_limit
        self.limit_dirty(space.capacity_segments)
        entries = summary_entries_max(self._segment_blocks)
        registry.register(
            MustSucceed(
                SEGMENT_END,
                "a full segment is closed with a summary of what is in it before the next one is opened",
                ring_blocks=summary_blocks(entries) + 1,
            )
        )
        registry.register(
            MustSucceed(
                CLEANER,
                "it makes room where much is dead, and nobody else can",
                segments=CLEANER_SEGMENTS,
                staging_bytes=cleaner_bytes,
            )
        )
        self._register(registry, 0, space.capacity_segments)

    def limit_dirty(self, capacity_segments: int) -> None:
        """Let so many pages be dirty as a pool of this capacity can bear. When it becomes smaller, this comes before
        `hold_for` by a checkpoint: only then no more of them are dirty."""
        pages = self._pages
        pages.dirty_hard_limit = self._dirty_limit(capacity_segments)
        pages.dirty_soft_limit = pages.dirty_hard_limit // 2

    def _dirty_limit(self, capacity_segments: int) -> int:
        # A checkpoint writes at most the dirty pages and as many pages above them. In a small pool the number of dirty
        # pages is limited, so that clients get most of the space.
        return max(32, min(self._dirty_pages_max, capacity_segments * self._segment_blocks // 64))

    def usable_blocks_for(self, capacity_segments: int, rows_bytes: int) -> int:
        """How many blocks could be live in a pool of another capacity."""
        registry = Registry(self._segment_blocks)
        for caller in self.registry.callers:
            registry.register(caller)
        self._register(registry, rows_bytes, capacity_segments)
        return self._usable_blocks(capacity_segments, registry.segments())

    def _usable_blocks(self, capacity_segments: int, reserve_segments: int) -> int:
        left_segments = capacity_segments - reserve_segments - self._spare_segments(capacity_segments)
        return max(0, left_segments) * cold_blocks_max(self._segment_blocks)

    def _spare_segments(self, capacity_segments: int) -> int:
        """What clients may write to, and not fill with live blocks: one segment is open, one at least must be gained
        from; and the pages of maps that may become live before a checkpoint has counted them."""
        pages = -(-2 * self._dirty_limit(capacity_segments) // cold_blocks_max(self._segment_blocks))
        return max(2 + pages, capacity_segments // 32)

    def _register(self, registry: Registry, rows_bytes: int, capacity_segments: int) -> None:
        """Compute the worst cases for a volume table of so many bytes."""
        page_blocks = 2 * self._dirty_limit(capacity_segments)
        space_bytes = capacity_segments * ROW_DTYPE.itemsize
        tables = TABLE_COPIES * ((rows_bytes + space_bytes) // BLOCK_SIZE_BYTES + 4)
        registry.register(
            MustSucceed(
                CHECKPOINT,
                "recovery starts from it, and segments come free only with it",
                log_blocks=page_blocks + tables,
                times=2,
                segments=2,
                ring_blocks=self._pages_per_turn + 2,
                # both tables, their blocks once more, the live column of the moment
                staging_bytes=2 * (rows_bytes + space_bytes) + capacity_segments * COLUMN_BYTES,
            )
        )
        registry.register(
            MustSucceed(
                FREEING,
                "they are the way out of a full pool",
                segments=max(2, registry.segments(CHECKPOINT) // 4),
                ring_blocks=2,
            )
        )

    def hold_for(self, rows_bytes: int, *, exist: bool = True) -> None:
        """Hold back what the checkpoints of a volume table of so many bytes may need. Raises NoSpaceError if a pool of
        this size never has that much, the reserve being set all the same; and, unless its rows exist already,
        ShortageError if the memory cannot be had."""
        space = self._space
        registry = self.registry
        self._register(registry, rows_bytes, space.capacity_segments)
        space.checkpoint_segments = registry.segments(CHECKPOINT)
        space.cleaner_segments = registry.segments(CLEANER)
        space.reserve_segments = registry.segments()
        space.set_usable(self._usable_blocks(space.limit_segments, space.reserve_segments))
        staging_bytes = max(registry.staging_bytes, self.staging.drawn_bytes)
        if exist:
            self.staging.insist_on(staging_bytes)
        else:
            self.staging.resize(staging_bytes)
        if space.reserve_segments >= space.limit_segments - 1:
            raise NoSpaceError(
                f"the pool is too small for its own metadata, {space.reserve_segments} segments; "
                "give it more --capacity"
            )

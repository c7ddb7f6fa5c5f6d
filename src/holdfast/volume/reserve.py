"""The segments of a pool that are held back: what metadata may need must be there before a client's data takes it.

Two amounts, kept in the space table, which refuses segments by them:

    checkpoint_segments   two checkpoints at their largest. Nothing else may take them: a pool that could not write a
                          checkpoint could never be opened again.
    reserve_segments      on top of that, what trims, zeroes and removals need before they give space back: a full pool
                          has a way out

Both grow with the number of volumes, whose table a checkpoint writes, so they are set anew whenever that changes; and
before a volume is made, to see whether its part can be had.
"""

from __future__ import annotations

from holdfast.errors import NoSpaceError
from holdfast.pool.space import ROW_DTYPE, SpaceTable
from holdfast.pool.tables import ROW_SIZE_BYTES, TABLE_COPIES
from holdfast.units import BLOCK_SIZE_BYTES
from holdfast.volume.page_cache import PageCache


class Reserve:
    """Sets the reserve in `space`, and in a small pool the limits of dirty pages in `pages`."""

    def __init__(self, space: SpaceTable, pages: PageCache) -> None:
        self._space = space
        self._segment_blocks = 1 << space.segment_shift
        capacity_blocks = space.capacity_segments << space.segment_shift
        # A checkpoint writes at most the dirty pages and as many pages above them. In a small pool the number of dirty
        # pages is limited, so that clients get most of the space.
        pages.dirty_hard_limit = max(32, min(pages.dirty_hard_limit, capacity_blocks // 64))
        pages.dirty_soft_limit = pages.dirty_hard_limit // 2
        self._page_blocks = 2 * pages.dirty_hard_limit

    def hold_for(self, volumes: int) -> None:
        """Hold back what the checkpoints of so many volumes may need. Raises NoSpaceError if a pool of this size never
        has that much; the reserve is set all the same."""
        space = self._space
        table_bytes = space.capacity_segments * ROW_DTYPE.itemsize + volumes * ROW_SIZE_BYTES
        tables = TABLE_COPIES * (table_bytes // BLOCK_SIZE_BYTES + 4)
        blocks = 2 * (self._page_blocks + tables)
        # 2 % for commit headers: there is one for each 252 blocks, and some commits are not full.
        space.checkpoint_segments = -(-blocks * 102 // 100 // self._segment_blocks) + 2
        space.reserve_segments = space.checkpoint_segments + max(2, space.checkpoint_segments // 4)
        if space.reserve_segments >= space.capacity_segments - 1:
            raise NoSpaceError(
                f"the pool is too small for its own metadata, {space.reserve_segments} segments; "
                "give it more --capacity"
            )

"""Space that is held back for provisioned (thick) volumes, so that no write to one is answered ENOSPC.

A provisioned volume holds what writing all of it over would take: a block for each of its blocks that has none of its
own yet (`Volume.blocks_to_hold`), be it a hole, or shared with a snapshot that would keep it, and the pages of maps. As
it is written what is used grows and what is held shrinks; when it is trimmed, the other way round. Others find a pool,
and a group, that is smaller by what is held.

So taking a snapshot of it holds as much again as the volume has of its own, and is refused where that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.errors import NoSpaceError, RequestError, Resource
from holdfast.pool.space import SpaceTable
from holdfast.units import BLOCK_SHIFT, format_size
from holdfast.volume.volume import Volume


class Provisions:
    """All fields: loop thread."""

    def __init__(self, space: SpaceTable) -> None:
        self._space = space

    def hold(self, volume: Volume) -> None:
        """Hold what the volume needs as it is now, whether there is as much or not."""
        change = volume.blocks_to_hold() - volume.held_blocks
        if change:
            volume.held_blocks += change
            volume.group.hold(change)
            self._space.hold(change)

    def hold_or_refuse(self, volume: Volume) -> None:
        """The same for a volume that wants more than before. Raises NoSpaceError or RequestError, with nothing
        changed, if that is not there."""
        if volume.provisioned and volume.mapped_blocks_max < volume.size_blocks:
            raise RequestError(
                f"volume {volume.name!r} cannot be provisioned with a quota of {format_size(volume.quota_bytes)}, "
                "which is less than its size: `holdfast volume set --quota none`"
            )
        self.check([(volume, volume.blocks_to_hold() - volume.held_blocks)])
        self.hold(volume)

    def check(self, wanted: Sequence[tuple[Volume, int]]) -> None:
        """Raise NoSpaceError unless so many blocks more can be held for each of these volumes, all together."""
        wanted = [(volume, blocks) for volume, blocks in wanted if blocks > 0]
        if not wanted:
            return
        total = sum(blocks for _, blocks in wanted)
        space = self._space
        left = space.open_blocks - space.used_blocks
        if total > left:
            raise NoSpaceError(
                f"{_names(wanted)} {format_size(total << BLOCK_SHIFT)} of the pool held back, which has "
                f"{format_size(max(left, 0) << BLOCK_SHIFT)}; trim or remove something, or add --capacity"
            )
        for group in {volume.group for volume, _ in wanted}:
            theirs = sum(blocks for volume, blocks in wanted if volume.group is group)
            left = group.mapped_blocks_max - group.mapped_blocks
            if theirs > left:
                raise NoSpaceError(
                    f"{_names(wanted)} {format_size(theirs << BLOCK_SHIFT)} of the space of group {group.name!r}, of "
                    f"which {format_size(max(left, 0) << BLOCK_SHIFT)} are left: `holdfast group set --space`",
                    resource=Resource.GROUP_SPACE,
                )


def _names(wanted: Sequence[tuple[Volume, int]]) -> str:
    if len(wanted) == 1:
        return f"volume {wanted[0][0].name!r} is provisioned: this needs"
    return f"{len(wanted)} volumes are provisioned: this needs"

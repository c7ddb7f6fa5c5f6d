"""Writes, zeroes and trims that take as long as they need: for pages of maps to be read, for room, for checkpoints.

Between whoever has a task for it (requests that the hot path could not take whole, commands, the pool itself) and
`Writer`, which never waits: what it says stands in the way is overcome here, and then it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from holdfast.errors import CorruptionError, DiskError, NoSpaceError, Resource
from holdfast.memory.group import Group
from holdfast.pool.block import (
    ADDRESS_BITS,
    ADDRESS_MASK,
    CHECK_MASK,
    GROUND_MARK,
    KIND_DATA,
    is_given_up,
)
from holdfast.pool.space import SpaceTable
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB, format_size
from holdfast.volume.block_reader import DAMAGED, BlockReader
from holdfast.volume.leaves import Leaves
from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT
from holdfast.volume.page_table import PageTable
from holdfast.volume.patience import Patience
from holdfast.volume.volume import Volume
from holdfast.volume.waitlists import Waitlists
from holdfast.volume.write import Obstacle, Writer
from holdfast.work.task import Work

LEAVES_PER_TURN = 32
ZEROES = memoryview(bytes(MIB))


class LongWriter:
    """All fields are fixed when made."""

    def __init__(
        self,
        writer: Writer,
        table: PageTable,
        leaves: Leaves,
        reader: BlockReader,
        waitlists: Waitlists,
        *,
        now_ns: Callable[[], int],
    ) -> None:
        self._writer = writer
        self._table = table
        self._leaves = leaves
        self._reader = reader
        self._waitlists = waitlists
        self._now_ns = now_ns
        self._cache = writer.cache
        self._views = writer.views
        self._exchange = writer.exchange
        self._log = writer.log
        self._slot_of = writer.cache.slot_of
        self._stamp = writer.cache.stamp
        self._words = writer.cache.words

    def overcome(self, obstacle: int, volume: Volume, lba: int, patience: Patience | None = None) -> Work:
        """Wait until trying again makes sense (a task's work). Raises NoSpaceError when waiting cannot help, or nobody
        has the patience."""
        if obstacle == Obstacle.TOO_DIRTY or (obstacle == Obstacle.NO_PAGE and self._writer.is_too_dirty()):
            # Not even read before it may become dirty: many who wait would evict each other's pages.
            yield self._waitlists.clean_room
        elif obstacle == Obstacle.NO_PAGE:
            yield from self._bring_in(volume, lba >> PAGE_SHIFT)
        elif obstacle == Obstacle.RING_FULL:
            yield self._waitlists.ring_room
        elif obstacle == Obstacle.GROUP_FULL:
            yield self._waitlists.group_room
        elif obstacle == Obstacle.NO_SEGMENT:
            yield self._waitlists.segment_room
        elif patience is not None and patience.is_left():
            yield self._waitlists.full_wait
        else:
            if patience is not None:  # a write; not what gives space back
                volume.found_full()
            raise _no_space(obstacle, volume, self._log.space)

    def _bring_in(self, volume: Volume, leaf: int) -> Work:
        """Make a leaf and those of its keepers resident (a task's work), all of them when it returns."""
        if not volume.versioned:
            yield from self._table.page(volume, 0, leaf, create=True)
            return
        yield from self._leaves.bring_in(lambda: (volume, *self._exchange.keepers(volume, leaf)), leaf)

    def write(self, volume: Volume, offset: int, payload: memoryview, payer: Group | None = None) -> Work:
        """Write any byte range (a task's work); `payload` must stay as it is until the end. `payer`: the group to which
        the dirty data is charged, the volume's unless the issuer has one."""
        payer = payer or volume.group.memory
        at = 0
        patience = Patience(volume, self._now_ns)
        while at < len(payload):
            lba, start = divmod(offset + at, BLOCK_SIZE_BYTES)
            left = len(payload) - at
            if start or left < BLOCK_SIZE_BYTES:
                count = min(BLOCK_SIZE_BYTES - start, left)
                yield from self._write_part(volume, lba, start, payload[at : at + count], patience, payer)
                at += count
                continue
            whole = left & -BLOCK_SIZE_BYTES
            self._log.bill(payer)
            done, obstacle = self._writer.write_run(volume, lba, payload[at : at + whole])
            at += done << BLOCK_SHIFT
            if obstacle:
                yield from self.overcome(obstacle, volume, lba + done, patience)

    def _write_part(
        self, volume: Volume, lba: int, start: int, data: memoryview, patience: Patience | None, payer: Group
    ) -> Work:
        """Read a block, change a part of it, write it. If the block changed while it was read, all over again."""
        block = memoryview(bytearray(BLOCK_SIZE_BYTES))
        read_for = -1  # the entry in the volume's own map that `block` holds the content of
        errno = 0
        while True:
            yield from self._bring_in(volume, lba >> PAGE_SHIFT)
            own = self._words[self._slot_of[volume.key_base | lba >> PAGE_SHIFT] << PAGE_SHIFT | lba & PAGE_MASK]
            if own != read_for:
                errno = yield from self._read_block(volume, lba, own, block)
                read_for = own
                continue
            if errno:
                self._cannot_read(volume, lba, own, errno)
            block[start : start + len(data)] = data
            self._log.bill(payer)
            # Nobody's patience: not for a client, but for letting go of what is behind the end of a volume.
            obstacle = self._writer.write_block(volume, lba, block, must=patience is None)
            if not obstacle:
                return
            yield from self.overcome(obstacle, volume, lba, patience)

    def _read_block(self, volume: Volume, lba: int, own: int, block: memoryview) -> Work:
        """What a block holds while `own` is the entry that the volume's map has for it: what a clone sees through to
        stays as it is. Returns 0, or the errno."""
        entry = own & ADDRESS_MASK and own
        if not own and volume.basis is not None:
            slot = yield from self._views.leaf(volume, lba >> PAGE_SHIFT)
            entry = 0 if slot < 0 else self._words[slot << PAGE_SHIFT | lba & PAGE_MASK]
        if entry:
            return (yield from self._reader.read(entry, volume.key_base | lba, KIND_DATA, block))
        block[:] = ZEROES[:BLOCK_SIZE_BYTES]
        return 0

    def _cannot_read(self, volume: Volume, lba: int, entry: int, errno: int) -> None:
        where = f"block {lba} of volume {volume.name}, to be changed in part,"
        if errno == DAMAGED:
            volume.note_damage(lba, "found when it was to be changed in part", known=is_given_up(entry))
            raise CorruptionError(f"{where} is damaged; overwrite it whole")
        raise DiskError(f"{where} cannot be read: errno {errno}", errno)

    def give_up(self, volume: Volume, lba: int) -> Work:
        """Mark a damaged block as one whose loss is known (a task's work): its map entry, in whoever's map it is, gets
        the check that no block is looked for with, and keeps its address. A checkpoint makes that durable."""
        node: Volume | None = volume
        while node is not None:
            entry = yield from self._give_up_in(node, lba)
            if entry and entry != GROUND_MARK:
                break
            node = node.ground if entry else node.basis
        volume.damaged.pop(lba, None)

    def _give_up_in(self, node: Volume, lba: int) -> Work:
        """The same in the map of one node; returns the entry that was found there, or 0."""
        block = memoryview(bytearray(BLOCK_SIZE_BYTES))
        while True:
            slot = yield from self._table.page(node, 0, lba >> PAGE_SHIFT, create=False)
            entry = 0 if slot < 0 else self._words[slot << PAGE_SHIFT | lba & PAGE_MASK]
            if not entry & ADDRESS_MASK:
                return entry
            if (yield from self._reader.read(entry, node.key_base | lba, KIND_DATA, block)) != DAMAGED:
                return entry  # overwritten since, or the disk has thought better of it
            slot = self._slot_of.get(node.key_base | lba >> PAGE_SHIFT)
            if slot is None or self._words[slot << PAGE_SHIFT | lba & PAGE_MASK] != entry:
                continue
            if self._stamp[slot] != self._cache.generation:
                obstacle = self._writer.make_writable(slot)
                if obstacle:
                    yield from self.overcome(obstacle, node, lba)
                    continue
            given_up = entry | CHECK_MASK << ADDRESS_BITS
            self._words[slot << PAGE_SHIFT | lba & PAGE_MASK] = given_up
            at = np.array([lba & PAGE_MASK])
            self._views.changed(lba >> PAGE_SHIFT, at, np.array([entry], np.uint64), np.array([given_up], np.uint64))
            return entry

    def clear_rest(self, volume: Volume, lba: int, start: int) -> Work:
        """Make a block zero from byte `start` on (a task's work), on behalf of the pool: that there is no space changes
        nothing about the volume. A hole stays one. Raises NoSpaceError, CorruptionError, DiskError."""
        slot = yield from self._views.leaf(volume, lba >> PAGE_SHIFT)
        if slot >= 0 and self._words[slot << PAGE_SHIFT | lba & PAGE_MASK]:
            rest = ZEROES[: BLOCK_SIZE_BYTES - start]
            yield from self._write_part(volume, lba, start, rest, None, volume.group.memory)

    def zero(self, volume: Volume, offset: int, length: int, *, allocate: bool, payer: Group | None = None) -> Work:
        """Make a byte range read as zeroes: whole blocks become holes, or written zeroes with `allocate`."""
        end = offset + length
        first, last = -(-offset // BLOCK_SIZE_BYTES), end // BLOCK_SIZE_BYTES
        if first > last or (first == last and offset % BLOCK_SIZE_BYTES and end % BLOCK_SIZE_BYTES):
            yield from self.write(volume, offset, ZEROES[:length], payer)  # within one block
            return
        head = first * BLOCK_SIZE_BYTES - offset
        if head:
            yield from self.write(volume, offset, ZEROES[:head], payer)
        if allocate and not volume.provisioned:
            at = first * BLOCK_SIZE_BYTES
            while at < last * BLOCK_SIZE_BYTES:
                count = min(last * BLOCK_SIZE_BYTES - at, len(ZEROES))
                yield from self.write(volume, at, ZEROES[:count], payer)
                at += count
                yield self._waitlists.next_turn  # a long request takes turns with all others
        else:
            yield from self.punch(volume, first, last)
        if end % BLOCK_SIZE_BYTES:
            yield from self.write(volume, last * BLOCK_SIZE_BYTES, ZEROES[: end % BLOCK_SIZE_BYTES], payer)

    def trim(self, volume: Volume, offset: int, length: int) -> Work:
        """Let go of the whole blocks within a byte range; what is left over at its ends stays as it is."""
        yield from self.punch(volume, -(-offset // BLOCK_SIZE_BYTES), (offset + length) // BLOCK_SIZE_BYTES)

    def punch(self, volume: Volume, first: int, last: int) -> Work:
        """Make blocks [first, last) holes (a task's work), leaf by leaf; what is a hole already costs nothing."""
        leaves = 0
        looked_at, stop = -1, first  # a leaf that has something to let go of: its view may be out of memory again
        while first < last:
            leaves += 1
            if leaves % LEAVES_PER_TURN == 0:
                yield self._waitlists.next_turn
            end_leaf = (last - 1 >> PAGE_SHIFT) + 1
            if looked_at != first >> PAGE_SHIFT:
                leaf = yield from self._views.next_leaf(volume, first >> PAGE_SHIFT, end_leaf)
                if leaf >= end_leaf:
                    return
                first = max(first, leaf << PAGE_SHIFT)
                stop = min(last, leaf + 1 << PAGE_SHIFT)
                slot = yield from self._views.leaf(volume, leaf)
                if slot < 0 or not self._cache.arena[slot, first & PAGE_MASK : (stop - 1 & PAGE_MASK) + 1].any():
                    first = stop
                    continue
                looked_at = leaf
            obstacle = self._writer.punch_in_leaf(volume, first, stop)
            if obstacle:
                # Holes are what gives space back, so they may use what is reserved for metadata.
                yield from self.overcome(obstacle, volume, first)
            else:
                first = stop


def _no_space(obstacle: int, volume: Volume, space: SpaceTable) -> NoSpaceError:
    """The space that is used up, and what to do."""
    if obstacle == Obstacle.OVER_QUOTA:
        quota = format_size(volume.quota_bytes)
        return NoSpaceError(
            f"its quota of {quota} is used up; trim it, or `holdfast volume set --quota`", resource=Resource.QUOTA
        )
    if obstacle == Obstacle.GROUP_OVER_SPACE:
        group = volume.group
        return NoSpaceError(
            f"the space of its group {group.name!r}, {format_size(group.limits.space_bytes)}, is used up; trim or "
            "remove volumes of the group, or `holdfast group set --space`",
            resource=Resource.GROUP_SPACE,
        )
    if space.is_full:
        held = f", {format_size(space.held_blocks << BLOCK_SHIFT)} are held back" if space.held_blocks else ""
        return NoSpaceError(
            f"the pool is full: {format_size(space.used_blocks << BLOCK_SHIFT)} of the "
            f"{format_size(space.usable_blocks << BLOCK_SHIFT)} that it holds are used{held}; trim or remove volumes "
            "or snapshots, or add capacity"
        )
    if space.host_full:
        return NoSpaceError(
            "the filesystem below the pool has no room for another segment; free some of it",
            resource=Resource.HOST_FILESYSTEM,
        )
    return NoSpaceError("the pool has no free segment left for client data; trim or remove volumes, or add capacity")

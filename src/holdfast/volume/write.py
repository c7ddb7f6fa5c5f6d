"""Writes, zeroes and trims: blocks into the log, then the map pointed at them, in one step.

In the write path this comes after the engine has taken a request, before `Log`. Every step here that changes a map does
three things with nothing in between: append to the log, change the page, adjust the counts of live blocks. So replaying
the log in order gives the same map.

`write_block` and `write_run` never wait: they say how far they came and what stands in the way. The generators around
them wait and try again.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from holdfast.errors import CorruptionError, DiskError, NoSpaceError, Resource
from holdfast.memory.group import Group
from holdfast.pool.block import (
    ADDRESS_BITS,
    ADDRESS_MASK,
    CHECK_MASK,
    GROUND_MARK,
    HOLE_MARK,
    KIND_DATA,
    LBA_MASK,
    WordArray,
    is_given_up,
)
from holdfast.pool.space import Privilege
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES, MIB, format_size
from holdfast.volume.block_reader import DAMAGED, BlockReader
from holdfast.volume.exchange import Exchange
from holdfast.volume.leaves import Leaves
from holdfast.volume.page_cache import PAGE_ENTRIES, PAGE_MASK, PAGE_SHIFT, PageCache
from holdfast.volume.page_table import PageTable
from holdfast.volume.page_writer import PageWriter
from holdfast.volume.patience import Patience
from holdfast.volume.provision import Provisions
from holdfast.volume.view import Views
from holdfast.volume.volume import Volume
from holdfast.volume.waitlists import Waitlists
from holdfast.work.task import Work
from holdfast.writeback.log import Log, Room


class Obstacle(IntEnum):
    """Why a write could not go on at once. The values are `Room`'s, and some more."""

    NONE = Room.YES
    RING_FULL = Room.RING_FULL
    NO_SEGMENT = Room.NO_SEGMENT
    NO_SPACE = Room.NO_SPACE
    NO_PAGE = 4  # the leaf is not resident
    TOO_DIRTY = 5  # too many dirty pages: a checkpoint must come first
    OVER_QUOTA = 6  # the volume may not map as many blocks
    GROUP_FULL = Room.GROUP_FULL
    GROUP_OVER_SPACE = 8  # the volumes of the group may not map as many blocks together


LEAVES_PER_TURN = 32
ZEROES = memoryview(bytes(MIB))


class Writer:
    def __init__(
        self,
        cache: PageCache,
        table: PageTable,
        views: Views,
        exchange: Exchange,
        leaves: Leaves,
        pages: PageWriter,
        log: Log,
        reader: BlockReader,
        waitlists: Waitlists,
        *,
        now_ns: Callable[[], int],
    ) -> None:
        self.cache = cache
        self.table = table
        self.views = views
        self.exchange = exchange
        self.leaves = leaves
        self.pages = pages
        self.log = log
        self.reader = reader
        self.waitlists = waitlists
        self._now_ns = now_ns
        self._slot_of = cache.slot_of
        self._stamp = cache.stamp
        self._words = cache.words
        self._live = log.space.live_words
        self._shift = log.shift
        self._provisions = Provisions(log.space)

    def renew(self) -> None:
        """The pool has another capacity, and the space table other columns."""
        self._live = self.log.space.live_words

    # ---- without waiting

    def write_block(
        self, volume: Volume, lba: int, block: memoryview | bytearray | bytes, *, must: bool = False
    ) -> int:
        """Write one whole block; returns 0, or the `Obstacle` in the way, with nothing changed. `must`: whatever the
        limits of space are, and out of what is held back for letting go of space."""
        words = self._words
        if must or volume.versioned:
            if must or volume.basis is not None:
                return self.write_run(volume, lba, memoryview(block), must=must)[1]
            keeper_slot = self._slot_of.get(volume.keeper_base | lba >> PAGE_SHIFT)
            if keeper_slot is None or not words[keeper_slot << PAGE_SHIFT | lba & PAGE_MASK]:
                return self._write_kept_block(volume, lba, block)
            # What its snapshots see there they have already: it is as if there were none.
        slot = self._slot_of.get(volume.key_base | lba >> PAGE_SHIFT)
        if slot is None:
            return Obstacle.NO_PAGE
        log = self.log
        at = slot << PAGE_SHIFT | lba & PAGE_MASK
        old = words[at]
        if not old:
            obstacle = self._refusal(volume, own=True)
            if obstacle:
                return obstacle
        if not log.room:
            room = log.make_room()
            if room:
                return room
        if self._stamp[slot] != self.cache.generation:
            obstacle = self._writable_with_room(slot)
            if obstacle:
                return obstacle
        if not old:
            log.space.used_blocks += 1
            volume.mapped_blocks += 1
            volume.group.mapped_blocks += 1
            if volume.provisioned:
                self._provisions.hold(volume)
        words[at] = log.append(block, volume.key_base | lba, volume.data_seed, KIND_DATA)
        if old:
            self._live[(old & ADDRESS_MASK) >> self._shift] -= 1
            if volume.damaged:
                volume.damaged.pop(lba, None)
        return 0

    def _write_kept_block(self, volume: Volume, lba: int, block: memoryview | bytearray | bytes) -> int:
        """`write_block` for a volume without a basis that has snapshots: as `Exchange.replace`, for one block."""
        slot = self._slot_of.get(volume.key_base | lba >> PAGE_SHIFT)
        if slot is None:
            return Obstacle.NO_PAGE
        keeper_slots = self.exchange.keeper_slots(volume, lba >> PAGE_SHIFT)
        if keeper_slots is None:
            return Obstacle.NO_PAGE
        words, log = self._words, self.log
        inside = lba & PAGE_MASK
        old = words[slot << PAGE_SHIFT | inside]
        keeps = bool(keeper_slots) and lba < volume.keep_below
        for keeper_slot in keeper_slots:
            if words[keeper_slot << PAGE_SHIFT | inside]:
                keeps = False
        if keeps or not old:
            obstacle = self._refusal(volume, own=not old)
            if obstacle:
                return obstacle
        if not log.room:
            room = log.make_room()
            if room:
                return room
        for changed in (slot, keeper_slots[-1]) if keeps else (slot,):
            if self._stamp[changed] != self.cache.generation:
                obstacle = self._writable_with_room(changed)
                if obstacle:
                    return obstacle
        if keeps or not old:
            log.space.used_blocks += 1
            if not old:
                volume.count_mapped(1)
        words[slot << PAGE_SHIFT | inside] = log.append(block, volume.key_base | lba, volume.data_seed, KIND_DATA)
        if keeps:
            words[keeper_slots[-1] << PAGE_SHIFT | inside] = old or HOLE_MARK
            if old:
                volume.count_given(lba >> PAGE_SHIFT, 1)
                volume.keepers[-1].count_kept(lba >> PAGE_SHIFT, inside, 1)
        elif old:
            self._live[(old & ADDRESS_MASK) >> self._shift] -= 1
        if volume.provisioned:
            self._provisions.hold(volume)
        if old and volume.damaged:
            volume.damaged.pop(lba, None)
        return 0

    def write_run(self, volume: Volume, lba: int, view: memoryview, *, must: bool = False) -> tuple[int, int]:
        """Write consecutive whole blocks; returns how many were written, and 0 or the `Obstacle` before the next.
        `must`: as of `write_block`."""
        total = len(view) >> BLOCK_SHIFT
        done = 0
        log = self.log
        privilege = Privilege.FREEING if must else Privilege.CLIENT
        while done < total:
            here = lba + done
            slot = self._slot_of.get(volume.key_base | here >> PAGE_SHIFT)
            if slot is None:
                return done, Obstacle.NO_PAGE
            first = here & PAGE_MASK
            keeper_slots = self.exchange.keeper_slots(volume, here >> PAGE_SHIFT) if volume.versioned else []
            if keeper_slots is None:
                return done, Obstacle.NO_PAGE
            if not log.room:
                room = log.make_room(privilege)
                if room:
                    return done, room
            count = min(total - done, PAGE_ENTRIES - first, log.room)
            if not must:
                count, obstacle = self._admitted(volume, slot, first, count, keeper_slots)
                if not count:
                    return done, obstacle
            if keeper_slots or self._stamp[slot] != self.cache.generation:
                obstacle = self._change_in(volume, slot, slice(first, first + count), keeper_slots, privilege)
                if obstacle:
                    return done, obstacle
                count = min(count, log.room)
            part = view[done << BLOCK_SHIFT : (done + count) << BLOCK_SHIFT]
            entries = log.append_run(part, volume.key_base | here)
            log.space.used_blocks += count
            self._replace(volume, slot, first, entries, keeper_slots)
            done += count
            if must:
                log.room = 0  # the next client finds its own limit again
        return done, Obstacle.NONE

    def _replace(self, volume: Volume, slot: int, first: int, entries: WordArray, keeper_slots: list[int]) -> None:
        """Put entries into a writable leaf and count what they replace."""
        if volume.damaged:
            lba = (self.cache.key_of[slot] & LBA_MASK) << PAGE_SHIFT | first
            volume.forget_damage(lba, lba + len(entries))
        if volume.versioned:
            self.exchange.replace(volume, slot, slice(first, first + len(entries)), entries, keeper_slots)
            if volume.provisioned:
                self._provisions.hold(volume)
            return
        row = self.cache.arena[slot, first : first + len(entries)]
        replaced = int(np.count_nonzero(row))
        if replaced:
            self.log.space.drop_blocks(row & np.uint64(ADDRESS_MASK))
        volume.count_mapped(int(np.count_nonzero(entries)) - replaced)
        row[:] = entries
        if volume.provisioned:
            self._provisions.hold(volume)

    def _change_in(
        self, volume: Volume, slot: int, inside: slice, keeper_slots: list[int], privilege: Privilege | None
    ) -> int:
        """Let these entries of a leaf be changed, and the leaf of the last keeper if that changes it; and see to it
        that there still is room in the log behind that, unless `privilege` is None. 0, or the `Obstacle`."""
        changed = [slot]
        if (
            keeper_slots
            and self._stamp[keeper_slots[-1]] != self.cache.generation
            and self.exchange.is_kept(volume, slot, inside, keeper_slots)
        ):
            changed.append(keeper_slots[-1])
        obstacle = 0
        for leaf in changed:
            if not obstacle and self._stamp[leaf] != self.cache.generation:
                obstacle = self._writable_with_room(leaf, privilege)
        if obstacle and privilege is Privilege.FREEING:
            self.log.room = 0  # the next client finds its own limit again
        return obstacle

    def _writable_with_room(self, slot: int, privilege: Privilege | None = Privilege.CLIENT) -> int:
        """`make_writable`, and room in the log for what is to be written, which is asked for first: were a leaf dirty
        whenever somebody finds no room, and waits, then checkpoints would use up what is held back for them."""
        obstacle = self.make_writable(slot)
        if obstacle or privilege is None or self.log.room:
            return obstacle
        return self.log.make_room(privilege)  # the leaf as it was took what there was

    def _refusal(self, volume: Volume, *, own: bool) -> int:
        """Whether the quota (if the volume itself has one block more, `own`), the group's limit of space and the pool
        let a block in: 0, or the `Obstacle`."""
        if own and volume.mapped_blocks >= volume.mapped_blocks_max:
            return Obstacle.OVER_QUOTA
        if volume.provisioned:
            return 0
        if volume.group.mapped_blocks >= volume.group.mapped_blocks_max:
            return Obstacle.GROUP_OVER_SPACE
        space = self.log.space
        return Obstacle.NO_SPACE if space.used_blocks >= space.open_blocks else 0

    def _admitted(self, volume: Volume, slot: int, first: int, count: int, keeper_slots: list[int]) -> tuple[int, int]:
        """How many of `count` blocks the quota, the group's limit of space and the pool let in; if none, the
        `Obstacle`."""
        own_left = max(0, volume.mapped_blocks_max - volume.mapped_blocks)
        group_left = max(0, volume.group.mapped_blocks_max - volume.group.mapped_blocks)
        space = self.log.space
        pool_left = max(0, space.open_blocks - space.used_blocks)
        if volume.provisioned:  # it is held
            group_left = pool_left = 2 * count
        while count > own_left or 2 * count > min(group_left, pool_left):
            own, total = self._growth(volume, slot, first, count, keeper_slots)
            if own <= own_left and total <= min(group_left, pool_left):
                break
            if count == 1:
                if own > own_left:
                    return 0, Obstacle.OVER_QUOTA
                return 0, Obstacle.GROUP_OVER_SPACE if total > group_left else Obstacle.NO_SPACE
            count >>= 1
        return count, Obstacle.NONE

    def _growth(self, volume: Volume, slot: int, first: int, count: int, keeper_slots: list[int]) -> tuple[int, int]:
        """How many blocks more `count` new entries mean, of the volume and of its group."""
        if volume.versioned:
            return self.exchange.growth(volume, slot, slice(first, first + count), keeper_slots)
        holes = count - int(np.count_nonzero(self.cache.arena[slot, first : first + count]))
        return holes, holes

    def make_writable(self, slot: int) -> int:
        """Let a leaf be changed: append it first if the running checkpoint still needs it as it is."""
        cache = self.cache
        if self._is_too_dirty():
            return Obstacle.TOO_DIRTY
        if cache.stamp[slot]:
            room = self.pages.thaw(slot)
            if room is not Room.YES:
                return room
        cache.mark_dirty(slot)
        return 0

    def _is_too_dirty(self) -> bool:
        return self.cache.dirty_pages >= self.cache.dirty_hard_limit

    # ---- with waiting

    def overcome(self, obstacle: int, volume: Volume, lba: int, patience: Patience | None = None) -> Work:
        """Wait until trying again makes sense (a task's work). Raises NoSpaceError when waiting cannot help, or nobody
        has the patience."""
        if obstacle == Obstacle.TOO_DIRTY or (obstacle == Obstacle.NO_PAGE and self._is_too_dirty()):
            # Not even read before it may become dirty: many who wait would evict each other's pages.
            yield self.waitlists.clean_room
        elif obstacle == Obstacle.NO_PAGE:
            yield from self._bring_in(volume, lba >> PAGE_SHIFT)
        elif obstacle == Obstacle.RING_FULL:
            yield self.waitlists.ring_room
        elif obstacle == Obstacle.GROUP_FULL:
            yield self.waitlists.group_room
        elif obstacle == Obstacle.NO_SEGMENT:
            yield self.waitlists.segment_room
        elif patience is not None and patience.is_left():
            yield self.waitlists.full_wait
        else:
            if patience is not None:  # a write; not what gives space back
                volume.found_full()
            raise _no_space(obstacle, volume, host_full=self.log.space.host_full)

    def _bring_in(self, volume: Volume, leaf: int) -> Work:
        """Make a leaf and those of its keepers resident (a task's work), all of them when it returns."""
        if not volume.versioned:
            yield from self.table.page(volume, 0, leaf, create=True)
            return
        yield from self.leaves.bring_in((volume, *self.exchange.keepers(volume, leaf)), leaf)

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
            self.log.bill(payer)
            done, obstacle = self.write_run(volume, lba, payload[at : at + whole])
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
            self.log.bill(payer)
            # Nobody's patience: not for a client, but for letting go of what is behind the end of a volume.
            obstacle = self.write_block(volume, lba, block, must=patience is None)
            if not obstacle:
                return
            yield from self.overcome(obstacle, volume, lba, patience)

    def _read_block(self, volume: Volume, lba: int, own: int, block: memoryview) -> Work:
        """What a block holds while `own` is the entry that the volume's map has for it: what a clone sees through to
        stays as it is. Returns 0, or the errno."""
        entry = own & ADDRESS_MASK and own
        if not own and volume.basis is not None:
            slot = yield from self.views.leaf(volume, lba >> PAGE_SHIFT)
            entry = 0 if slot < 0 else self._words[slot << PAGE_SHIFT | lba & PAGE_MASK]
        if entry:
            return (yield from self.reader.read(entry, volume.key_base | lba, KIND_DATA, block))
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
            slot = yield from self.table.page(node, 0, lba >> PAGE_SHIFT, create=False)
            entry = 0 if slot < 0 else self._words[slot << PAGE_SHIFT | lba & PAGE_MASK]
            if not entry & ADDRESS_MASK:
                return entry
            if (yield from self.reader.read(entry, node.key_base | lba, KIND_DATA, block)) != DAMAGED:
                return entry  # overwritten since, or the disk has thought better of it
            slot = self._slot_of.get(node.key_base | lba >> PAGE_SHIFT)
            if slot is None or self._words[slot << PAGE_SHIFT | lba & PAGE_MASK] != entry:
                continue
            if self._stamp[slot] != self.cache.generation:
                obstacle = self.make_writable(slot)
                if obstacle:
                    yield from self.overcome(obstacle, node, lba)
                    continue
            given_up = entry | CHECK_MASK << ADDRESS_BITS
            self._words[slot << PAGE_SHIFT | lba & PAGE_MASK] = given_up
            at = np.array([lba & PAGE_MASK])
            self.views.changed(lba >> PAGE_SHIFT, at, np.array([entry], np.uint64), np.array([given_up], np.uint64))
            return entry

    def clear_rest(self, volume: Volume, lba: int, start: int) -> Work:
        """Make a block zero from byte `start` on (a task's work), on behalf of the pool: that there is no space changes
        nothing about the volume. A hole stays one. Raises NoSpaceError, CorruptionError, DiskError."""
        slot = yield from self.views.leaf(volume, lba >> PAGE_SHIFT)
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
                yield self.waitlists.next_turn  # a long request takes turns with all others
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
                yield self.waitlists.next_turn
            end_leaf = (last - 1 >> PAGE_SHIFT) + 1
            if looked_at != first >> PAGE_SHIFT:
                leaf = yield from self.views.next_leaf(volume, first >> PAGE_SHIFT, end_leaf)
                if leaf >= end_leaf:
                    return
                first = max(first, leaf << PAGE_SHIFT)
                stop = min(last, leaf + 1 << PAGE_SHIFT)
                slot = yield from self.views.leaf(volume, leaf)
                if slot < 0 or not self.cache.arena[slot, first & PAGE_MASK : (stop - 1 & PAGE_MASK) + 1].any():
                    first = stop
                    continue
                looked_at = leaf
            obstacle = self._punch_in_leaf(volume, first, stop)
            if obstacle:
                # Holes are what gives space back, so they may use what is reserved for metadata.
                yield from self.overcome(obstacle, volume, first)
            else:
                first = stop

    def forget_in_leaf(self, volume: Volume, first: int, stop: int) -> int:
        """Make blocks [first, stop), which lie in one leaf, holes without a record in the log: for what a crash brings
        back only together with the reason to do it again. 0, or the `Obstacle`."""
        return self._punch_in_leaf(volume, first, stop, logged=False)

    def _punch_in_leaf(self, volume: Volume, first: int, stop: int, *, logged: bool = True) -> int:
        slot = self._slot_of.get(volume.key_base | first >> PAGE_SHIFT)
        if slot is None:
            return Obstacle.NO_PAGE
        keeper_slots = self.exchange.keeper_slots(volume, first >> PAGE_SHIFT) if volume.versioned else []
        if keeper_slots is None:
            return Obstacle.NO_PAGE
        log = self.log
        if logged:
            log.bill(volume.group.memory)
            if not log.room:
                room = log.make_room(Privilege.FREEING)
                if room:
                    return room
        at = first & PAGE_MASK
        if keeper_slots or self._stamp[slot] != self.cache.generation:
            inside = slice(at, at + stop - first)
            obstacle = self._change_in(volume, slot, inside, keeper_slots, Privilege.FREEING if logged else None)
            if obstacle:
                return obstacle
        if logged:
            log.append_hole(volume.key_base | first & LBA_MASK, stop - first)
            log.room = 0
        self._replace(volume, slot, at, np.zeros(stop - first, np.uint64), keeper_slots)
        return Obstacle.NONE


def _no_space(obstacle: int, volume: Volume, *, host_full: bool) -> NoSpaceError:
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
    if host_full:
        return NoSpaceError(
            "the filesystem below the pool has no room for another segment; free some of it",
            resource=Resource.HOST_FILESYSTEM,
        )
    return NoSpaceError("the pool has no free segment left for client data; trim or remove volumes, or add capacity")

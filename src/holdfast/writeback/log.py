"""The log's head: blocks are appended to the open commit, commits to the open segment, all of it in the ring.

In the write path this comes after the map has said that it can take the blocks, and before the map is pointed at them.
`Flusher` takes what is sealed from here to the segment files.

Invariants
 1. `durable <= sealed <= position`, and `position - durable <= ring.blocks`: no slot is used again before what it holds
    is durable.
 2. A commit is sealed once and never changes after that.
 3. Clients leave `reserve_blocks` slots alone, so that sealing a segment, metadata and a checkpoint always find
    room once the flusher has written what is sealed; and the flusher needs no room at all. That is why a full ring
    drains.
 4. What was appended since the last `publish` is acknowledged to nobody.
 5. Whoever appends on behalf of a client has said whose it is (`bill`), and no group gets more of the ring than its
    limit, but for headers, the records of holes (which free space) and the end of a segment.

After a crash of the process the ring is written out and recovery goes on as after a power failure, from the segment
files.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import numpy as np
from xxhash import xxh3_64_intdigest

from holdfast.memory.group import UNLIMITED_BYTES, Group, Kind
from holdfast.pool.block import (
    ADDRESS_BITS,
    CHECK_MASK,
    ENTRY_DTYPE,
    ENTRY_SIZE_BYTES,
    HOLE_COUNT_MAX,
    KIND_COMMIT,
    KIND_DATA,
    KIND_HOLE,
    ZERO_BLOCK,
    EntryArray,
    WordArray,
    data_checks,
    hole_check,
)
from holdfast.pool.commit import COMMIT_ENTRIES_AT, COMMIT_ENTRIES_MAX, seal_commit_header
from holdfast.pool.segment import (
    FIRST_COMMIT_OFFSET,
    SegmentFooter,
    SegmentHeader,
    commits_limit,
    encode_segment_footer,
    encode_segment_header,
    summary_blocks,
    summary_check,
    summary_entries_max,
)
from holdfast.pool.space import Privilege, SpaceTable
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.writeback.dirty import DirtyStretches
from holdfast.writeback.ring import Ring

FIRST_BLOCKS = 16  # of a group that is at its limit of all kinds with nothing in the ring

_ENTRY = struct.Struct("<QII")
_NUMBERS = np.arange(COMMIT_ENTRIES_MAX, dtype=np.uint64)
_CHECK_MASK = np.uint64(CHECK_MASK)
_ADDRESS_BITS = np.uint64(ADDRESS_BITS)
_pack_entry = _ENTRY.pack_into


class Room(IntEnum):
    """What `Log.make_room` found."""

    YES = 0
    RING_FULL = 1  # wait until more is durable
    NO_SEGMENT = 2  # wait until a segment is prepared, cleaned or freed
    NO_SPACE = 3  # nothing to wait for: the pool is full
    GROUP_FULL = 7  # the group that pays has its share of the ring: wait until more of it is durable


class Log:
    """Fields: I fixed when made, L loop thread, F set by the flusher (in the same thread)."""

    def __init__(
        self, ring: Ring, space: SpaceTable, *, tag: int, epoch: int, system: Group, reserve_blocks: int
    ) -> None:
        """`system`: the group that pays for what no client asked for. `reserve_blocks`: slots that clients leave to
        whoever must not fail; the root of the groups gets the rest as its limit."""
        self.ring = ring  # I
        self.dirty = DirtyStretches(system)  # I
        self.payer = system  # L: whose the appends of clients are
        self._billed = system  # L: whose the appends since `dirty.settled` are
        self.reserve_blocks = reserve_blocks  # I
        system.root.limits[Kind.RING] = (ring.blocks - reserve_blocks) << BLOCK_SHIFT
        self.space = space  # I
        self.tag = tag  # I
        self.epoch = epoch  # I
        self.segment_blocks = ring.segment_blocks  # I
        self.shift = space.segment_shift  # I
        self.slots = ring.slots  # I
        self._entries: EntryArray = np.frombuffer(ring.slots, ENTRY_DTYPE)  # I: the same memory, as entries
        self.window: dict[int, int] = {}  # L: segment id -> ordinal, of segments whose blocks may be in the ring
        self.segment = -1  # L: the open one; -1 before `open_at` or `make_room`
        self.ordinal = -1  # L
        self.next_ordinal = 0  # L
        self.offset = 0  # L: next free block of the open segment
        self.position = 0  # L: log position of that block
        self.address = 0  # L: block address of that block
        self.privilege = Privilege.CLIENT  # L: who at least may append to the open segment
        self.room = 0  # L: blocks that `append` takes before `make_room` must be called
        self.sealed = 0  # L: the flusher may write what is below
        self.durable = 0  # F
        self.start = 0  # L: position at which this epoch's use of the ring began
        self._slot_at = 0  # L: byte offset in `slots` of the next block
        self._commit_position = 0  # L: of the open commit; 0 when none is open (position 0 is a segment header)
        self._commit_offset = 0
        self._header_at = 0
        self._entry_at = 0
        self._summary: bytearray | None = bytearray()
        self._summary_limit = summary_entries_max(self.segment_blocks) * ENTRY_SIZE_BYTES
        self._published_position = -1
        self._published_entry_at = -1
        self._published_durable = -1

    # ---- opening

    def start_at(self, *, position: int, segment: int, next_ordinal: int, summary: bytes | None) -> None:
        """Go on at `position` in a segment that recovery left open, with the summary entries that it has so far."""
        self.segment = segment
        self.ordinal = position >> self.shift
        self.next_ordinal = next_ordinal
        self.offset = position & (self.segment_blocks - 1)
        self.position = self.sealed = self.durable = self.start = position
        self.dirty.start_at(position)
        self.address = segment << self.shift | self.offset
        self._slot_at = position % self.ring.blocks * BLOCK_SIZE_BYTES
        # Over the limit the segment went without a summary before, and may hold more commits than leave room for one.
        usable = summary is not None and len(summary) <= self._summary_limit
        self._summary = bytearray(summary) if summary is not None and usable else None
        self.window = {segment: self.ordinal}
        self.ring.set_window(self.ordinal, segment)

    def start_empty(self, *, next_ordinal: int) -> None:
        """No segment is open: the first append opens one."""
        self.next_ordinal = next_ordinal
        self.position = self.sealed = self.durable = self.start = next_ordinal << self.shift
        self.dirty.start_at(self.position)
        self.segment = -1

    # ---- appending

    def bill(self, group: Group) -> None:
        """From now on what clients append is charged to `group`."""
        if group is not self.payer:
            self.payer = group
            self.room = 0

    def append(self, block: bytes | bytearray | memoryview, owner: int, seed: int, kind: int) -> int:
        """Append one block; returns its map entry. Needs `room >= 1`. `seed`: what `owner` is XORed with to
        give the check's seed (`block.check_seed`): the kind's `SEED_*`, for data `Volume.data_seed`."""
        assert self.room > 0
        at = self._slot_at
        self.slots[at : at + 4096] = block
        check = xxh3_64_intdigest(block, owner ^ seed) & 0xFFFFFFFF
        _pack_entry(self.slots, self._entry_at, owner, check, kind)
        address = self.address
        self._entry_at += 16
        self._slot_at = at + 4096
        self.address = address + 1
        self.position += 1
        self.room -= 1
        return (check & 0xFFFFFFF) << 36 | address

    def append_run(self, view: memoryview, owner: int) -> WordArray:
        """Append `len(view) / 4096 <= room` data blocks of consecutive owners; returns their map entries."""
        count = len(view) >> BLOCK_SHIFT
        assert 0 < count <= self.room
        at = self._slot_at
        end = at + len(view)
        self.slots[at:end] = view
        checks = np.array(data_checks(view, owner), np.uint64)
        numbers = _NUMBERS[:count]
        first = self._entry_at // ENTRY_SIZE_BYTES
        entries = self._entries[first : first + count]
        entries["owner"] = numbers + np.uint64(owner)
        entries["check"] = checks
        entries["meta"] = KIND_DATA
        address = self.address
        self._entry_at += count * ENTRY_SIZE_BYTES
        self._slot_at = end
        self.address += count
        self.position += count
        self.room -= count
        checks &= _CHECK_MASK
        checks <<= _ADDRESS_BITS
        checks |= numbers + np.uint64(address)
        return checks

    def append_hole(self, owner: int, count: int) -> None:
        """Append the record that `count` blocks from `owner`'s lba on are a hole. Needs `room >= 1`."""
        assert self.room > 0
        assert 0 < count <= HOLE_COUNT_MAX
        meta = KIND_HOLE | count << 8
        _pack_entry(self.slots, self._entry_at, owner, hole_check(owner, meta), meta)
        self._entry_at += ENTRY_SIZE_BYTES
        self.room = min(self.room, self._entries_left())

    def _entries_left(self) -> int:
        return (self._header_at + BLOCK_SIZE_BYTES - self._entry_at) // ENTRY_SIZE_BYTES

    def make_room(self, privilege: Privilege = Privilege.CLIENT) -> Room:
        """Make `room` at least 1, or say what stands in the way. Opens and seals commits and segments as needed."""
        reserve = 0 if privilege else self.reserve_blocks
        self._settle(self.dirty.system if privilege is Privilege.CHECKPOINT else self.payer)
        group_left = self.ring.blocks
        if privilege is Privilege.CLIENT:
            group_left = self.payer.room_bytes(Kind.RING) >> BLOCK_SHIFT
            if group_left <= 0 or self.payer.refuses:
                refused = self._admit()
                first = self._first_blocks() if refused is Room.GROUP_FULL else 0
                if refused is not Room.YES and not first:
                    return refused
                group_left = max(group_left, first)
        began = self.position
        while True:
            if privilege < self.privilege:
                self.privilege = min(self.privilege, self.space.least_privilege())
                if privilege < self.privilege:
                    return self._no_segment()
            if self.segment < 0:
                outcome = self._open_segment(privilege)
                if outcome is not Room.YES:
                    return outcome
            if not self._commit_position:
                if self._commit_limit() - self.offset < 2:
                    if not self._seal_segment():
                        return Room.RING_FULL
                    continue
                if self._ring_left() < reserve + 2:
                    return Room.RING_FULL
                self._open_commit()
            ring_bytes_left = len(self.slots) - self._slot_at
            if ring_bytes_left == 0:
                self._slot_at = 0
                continue
            entries_left = self._entries_left()
            segment_left = self._commit_limit() - self.offset_now()
            if entries_left == 0 or segment_left <= 0:
                self.seal_commit()
                continue
            ring_left = self._ring_left() - reserve
            if ring_left <= 0:
                return Room.RING_FULL
            group_left -= self.position - began  # headers, and the end of a segment
            if group_left <= 0:
                self.settle()
                return self._admit() or Room.GROUP_FULL
            room = min(entries_left, segment_left, ring_left, ring_bytes_left >> BLOCK_SHIFT)
            self.room = min(room, group_left)
            return Room.YES

    def settle(self) -> None:
        """Charge what was appended to whoever appended it. Not done with each block: `room` is within the limits."""
        self.dirty.settle(self.position, self._billed)

    def _settle(self, next_group: Group) -> None:
        """The same, and what comes now is `next_group`'s."""
        self.settle()
        self._billed = next_group

    def _admit(self) -> Room:
        """Whether the payer may have at least one block more; a refusal is noted for the reclaimer, which has what is
        dirty written."""
        refuser = self.payer.try_charge(Kind.RING, BLOCK_SIZE_BYTES)
        if refuser is None:
            self.payer.release(Kind.RING, BLOCK_SIZE_BYTES)  # what is appended is charged when it is settled
            return Room.YES
        return Room.RING_FULL if refuser is self.payer.root else Room.GROUP_FULL

    def _first_blocks(self) -> int:
        """What a group that has nothing in the ring gets although it is at its limit of all kinds, if the server has
        it: what it has used its memory for, copies of what is to be written above all, may wait for just these."""
        payer = self.payer
        if payer.usage[Kind.RING] or payer.limit_bytes >= UNLIMITED_BYTES:
            return 0
        left_bytes = min(payer.limits[Kind.RING], payer.root.room_bytes(Kind.RING))
        return min(FIRST_BLOCKS, left_bytes >> BLOCK_SHIFT)

    def offset_now(self) -> int:
        """Next free block of the open segment."""
        return self.position - (self.ordinal << self.shift)

    def _ring_left(self) -> int:
        return self.ring.blocks - (self.position - self.durable)

    def _commit_limit(self) -> int:
        """Block offset of the open segment that commits may not pass: behind it come summary and footer."""
        if self._summary is None:
            return self.segment_blocks - 1
        return commits_limit(self.segment_blocks, len(self._summary) // ENTRY_SIZE_BYTES)

    def _take_slot(self) -> memoryview:
        """The next block of the log, raw."""
        if self._slot_at == len(self.slots):
            self._slot_at = 0
        at = self._slot_at
        self._slot_at = at + BLOCK_SIZE_BYTES
        self.position += 1
        self.address += 1
        self.offset = self.offset_now()
        return self.slots[at : at + BLOCK_SIZE_BYTES]

    def _open_commit(self) -> None:
        self._commit_position = self.position
        self._commit_offset = self.offset
        self._take_slot()
        self._header_at = self._slot_at - BLOCK_SIZE_BYTES
        self._entry_at = self._header_at + COMMIT_ENTRIES_AT

    def _open_segment(self, privilege: Privilege) -> Room:
        if self._ring_left() < 4:
            return Room.RING_FULL
        least = self.space.least_privilege()
        if privilege < least:
            return self._no_segment()
        segment = self.space.take_free() if self.space.is_prepared_for(privilege) else None
        if segment is None:
            return Room.NO_SEGMENT if self.space.available_segments else Room.NO_SPACE
        self.privilege = least
        ordinal = self.next_ordinal
        self.next_ordinal += 1
        self.space.opened(segment, ordinal)
        self.segment = segment
        self.ordinal = ordinal
        self.position = ordinal << self.shift
        self.address = segment << self.shift
        self.offset = 0
        self._slot_at = self.position % self.ring.blocks * BLOCK_SIZE_BYTES
        self._summary = bytearray()
        low = self.position - self.ring.blocks
        self.window = {old: its for old, its in self.window.items() if (its + 1) << self.shift > low}
        self.window[segment] = ordinal
        self.ring.set_window(ordinal, segment)
        header = SegmentHeader(self.tag, self.epoch, ordinal, self.durable, segment, self.segment_blocks)
        encode_segment_header(self._take_slot(), header)
        self.sealed = self.position
        assert self.offset == FIRST_COMMIT_OFFSET
        return Room.YES

    def _no_segment(self) -> Room:
        """What is left is held back for others. It is worth waiting if the cleaner can make more of it."""
        return Room.NO_SEGMENT if self.space.cleaning_may_help() else Room.NO_SPACE

    def forget_segment(self, segment: int) -> None:
        """The cleaner is about to write a segment: what the ring still holds of its last contents is not in it."""
        self.window.pop(segment, None)

    # ---- sealing

    @property
    def open_entries(self) -> int:
        """Entries of the open commit; 0 if none is open."""
        if not self._commit_position:
            return 0
        return (self._entry_at - self._header_at - COMMIT_ENTRIES_AT) // ENTRY_SIZE_BYTES

    def seal_commit(self) -> None:
        """Close the open commit, so that the flusher may take it. Nothing happens if it has no entries yet."""
        entry_count = self.open_entries
        if not entry_count:
            return
        position = self._commit_position
        block_count = self.position - position - 1
        header_at = self._header_at
        header = self.slots[header_at : header_at + BLOCK_SIZE_BYTES]
        check = seal_commit_header(
            header,
            tag=self.tag,
            epoch=self.epoch,
            position=position,
            durable_position=self.durable,
            entry_count=entry_count,
            block_count=block_count,
        )
        if self._summary is not None:
            self._summary += _ENTRY.pack(position, check & 0xFFFFFFFF, KIND_COMMIT | entry_count << 8)
            self._summary += self.slots[header_at + COMMIT_ENTRIES_AT : self._entry_at]
            if len(self._summary) > self._summary_limit:
                self._summary = None
        self.space.live_words[self.segment] += block_count
        self._commit_position = 0
        self.room = 0
        self.offset = self.offset_now()
        self.sealed = self.position

    def _seal_segment(self) -> bool:
        """Write summary and footer behind the last commit. False if the ring has no room for them now."""
        assert not self._commit_position
        entries = self._summary if self._summary is not None else bytearray()
        count = len(entries) // ENTRY_SIZE_BYTES
        blocks = summary_blocks(count)
        if self._ring_left() < self.segment_blocks - self.offset:
            return False
        commits_end = self.offset
        summary_offset = self.segment_blocks - 1 - blocks
        while self.offset < summary_offset:
            self._take_slot()[:] = ZERO_BLOCK
        for at in range(0, len(entries), BLOCK_SIZE_BYTES):
            self._take_slot()[:] = bytes(entries[at : at + BLOCK_SIZE_BYTES]).ljust(BLOCK_SIZE_BYTES, b"\0")
        footer = SegmentFooter(
            tag=self.tag,
            epoch=self.epoch,
            ordinal=self.ordinal,
            segment_id=self.segment,
            entry_count=count,
            summary_offset=summary_offset,
            commits_end=commits_end,
            summary_check=summary_check(entries),
        )
        encode_segment_footer(self._take_slot(), footer)
        assert self.offset_now() == self.segment_blocks
        self.sealed = self.position
        self.space.sealed(self.segment)
        self.segment = -1
        return True

    def leave_segment(self) -> bool:
        """Seal the open segment although it has room: what follows goes into another one. False: not now, because the
        ring has no room for what is left of it, or a commit has just been opened."""
        self._settle(self.dirty.system)
        self.seal_commit()
        return self.segment < 0 or (not self._commit_position and self._seal_segment())

    # ---- publishing and reading

    def publish(self) -> None:
        """Let everything appended so far be found by a recovery. Call before acknowledging it, and after `durable`
        moved."""
        # The three numbers that change with whatever there is to publish: blocks, holes, and what became durable.
        if (
            self.position == self._published_position
            and self._entry_at == self._published_entry_at
            and self.durable == self._published_durable
        ):
            return
        self._published_position = self.position
        self._published_entry_at = self._entry_at
        self._published_durable = self.durable
        self.ring.publish(
            head_position=self.position,
            durable_position=self.durable,
            commit_position=self._commit_position,
            entry_count=self.open_entries,
        )

    def became_durable(self, position: int) -> None:
        """Everything below `position` is durable: those who paid for it have that much of the ring again."""
        self.durable = position
        self.settle()
        self.dirty.release(position)

    def slot_of(self, address: int) -> int:
        """Byte offset in `slots` of a block that the ring still holds, or -1."""
        ordinal = self.window.get(address >> self.shift)
        if ordinal is None:
            return -1
        position = ordinal << self.shift | address & (self.segment_blocks - 1)
        if position < self.start or position < self.position - self.ring.blocks:
            return -1
        return position % self.ring.blocks * BLOCK_SIZE_BYTES

    def run_in_ring(self, address: int, count: int) -> int:
        """How many of `count` consecutive addresses from `address` on lie in contiguous slots from `slot_of(address)`
        on."""
        at = self.slot_of(address)
        if at < 0:
            return 0
        return min(count, (len(self.slots) - at) >> BLOCK_SHIFT)

"""Reads: byte ranges of a volume out of the ring, the page cache and the disk; holes without any I/O.

Everything that leaves here was checked block by block (promise 6). `read_now` never waits; when it says no, nothing is
known and the generator `read` finds out.
"""

from __future__ import annotations

from errno import EIO
from itertools import pairwise

import numpy as np
from xxhash import xxh3_64_intdigest

from holdfast.errors import HoldfastError, Resource, resource_of
from holdfast.pool.block import ADDRESS_MASK, CHECK_MASK, SEED_DATA, first_mismatch, is_given_up
from holdfast.runtime.ports import READ, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.block_reader import BlockReader
from holdfast.volume.page_cache import PAGE_ENTRIES, PAGE_MASK, PAGE_SHIFT, PageCache
from holdfast.volume.view import Views
from holdfast.volume.volume import Volume
from holdfast.work.task import Waitlist, Work

# The extents of one answer to a block status request: enough for a fragmented GiB, 64 KiB as a reply.
EXTENTS_MAX = 8192
# Leaves looked at for one answer: 64 GiB of volume, so that a request for more ends in bounded time.
STATUS_LEAVES_MAX = 32768
LEAVES_PER_TURN = 64
PREFETCH_LEAVES_MAX = 16  # 32 MiB, as much as a READ may ask for


class ReadError(HoldfastError):
    """Part of a range cannot be read. `offset`: the first byte that cannot."""

    def __init__(self, message: str, errno: int, offset: int, resource: Resource | None) -> None:
        super().__init__(message, resource=resource)
        self.errno = errno
        self.offset = offset


class Reader:
    def __init__(self, cache: PageCache, views: Views, blocks: BlockReader, *, next_turn: Waitlist) -> None:
        self.next_turn = next_turn
        self.cache = cache
        self.views = views
        self.log = blocks.log
        self.space = blocks.space
        self.disk = blocks.disk
        self._read_now = blocks.disk.read_now
        self._slot_of = cache.slot_of
        self._words = cache.words
        self._slots = blocks.log.slots
        self._shift = blocks.log.shift
        self._offset_mask = blocks.log.segment_blocks - 1

    # ---- without waiting

    def read_block(self, volume: Volume, lba: int, into: memoryview) -> bool:
        """Read one whole block. False: it needs waiting, or it does not check out."""
        slot = self._slot_of.get(volume.read_base | lba >> PAGE_SHIFT)
        if slot is None:
            return False
        entry = self._words[slot << PAGE_SHIFT | lba & PAGE_MASK]
        if not entry:
            into[:] = bytes(BLOCK_SIZE_BYTES)
            return True
        address = entry & ADDRESS_MASK
        at = self.log.slot_of(address)
        if at >= 0:
            into[:] = self._slots[at : at + BLOCK_SIZE_BYTES]
        elif not self._read_now(address >> self._shift, (address & self._offset_mask) << BLOCK_SHIFT, into):
            return False
        return xxh3_64_intdigest(into, lba ^ SEED_DATA) & CHECK_MASK == entry >> 36

    def on_disk(self, volume: Volume, lba: int, count: int) -> tuple[Io, list[int]] | None:
        """A READ for consecutive blocks that lie in one piece on the disk, not yet started, and their map entries. None
        if they do not, or if that is not known without waiting."""
        slot = self._slot_of.get(volume.read_base | lba >> PAGE_SHIFT)
        first = lba & PAGE_MASK
        if slot is None or first + count > PAGE_ENTRIES:
            return None
        entries = self._entries(slot, lba, count)
        address = entries[0] & ADDRESS_MASK
        if not address or self._run_on_disk(address, count) < count or self.log.slot_of(address) >= 0:
            return None
        for index in range(1, count):
            if entries[index] & ADDRESS_MASK != address + index:
                return None
        view = memoryview(bytearray(count << BLOCK_SHIFT))
        return Io(READ, address >> self._shift, (address & self._offset_mask) << BLOCK_SHIFT, view), entries

    def read_run(self, volume: Volume, lba: int, into: memoryview) -> bool:
        """Read consecutive whole blocks. False: something needs waiting, or does not check out."""
        total = len(into) >> BLOCK_SHIFT
        done = 0
        while done < total:
            here = lba + done
            slot = self._slot_of.get(volume.read_base | here >> PAGE_SHIFT)
            if slot is None:
                return False
            first = here & PAGE_MASK
            count = min(total - done, PAGE_ENTRIES - first)
            base = slot << PAGE_SHIFT | first
            entries = self._words[base : base + count].tolist()
            part = into[done << BLOCK_SHIFT : (done + count) << BLOCK_SHIFT]
            if self._fill(entries, part):
                return False
            if first_mismatch(part, here, entries) >= 0:
                return False
            done += count
        return True

    def _fill(self, entries: list[int], into: memoryview, missing: list[Io] | None = None) -> bool:
        """Fill `into` with the blocks of `entries`. What needs waiting is added to `missing` as READs; without that
        list, True is returned at the first such block."""
        index = 0
        count = len(entries)
        mask = ADDRESS_MASK
        while index < count:
            address = entries[index] & mask
            stop = index + 1
            if not address:
                while stop < count and not entries[stop]:
                    stop += 1
                into[index << BLOCK_SHIFT : stop << BLOCK_SHIFT] = bytes((stop - index) << BLOCK_SHIFT)
                index = stop
                continue
            expected = address + 1
            while stop < count and entries[stop] & mask == expected:
                stop += 1
                expected += 1
            at = self.log.slot_of(address)
            if at >= 0:
                stop = index + self.log.run_in_ring(address, stop - index)
                into[index << BLOCK_SHIFT : stop << BLOCK_SHIFT] = self._slots[
                    at : at + ((stop - index) << BLOCK_SHIFT)
                ]
            else:
                stop = index + self._run_on_disk(address, stop - index)
                part = into[index << BLOCK_SHIFT : stop << BLOCK_SHIFT]
                segment, offset = address >> self._shift, (address & self._offset_mask) << BLOCK_SHIFT
                if not self._read_now(segment, offset, part):
                    if missing is None:
                        return True
                    missing.append(Io(READ, segment, offset, part))
            index = stop
        return False

    def _run_on_disk(self, address: int, count: int) -> int:
        """How many of `count` consecutive addresses, the first of which has left the ring, have left it too."""
        if address >> self._shift not in self.log.window:
            return count
        left = 1
        while left < count and self.log.slot_of(address + left) < 0:
            left += 1
        return left

    def is_hole(self, volume: Volume, offset: int, length: int) -> bool:
        """True if the range, within one leaf that is resident, is a hole. False: it is not, or that is not known
        now."""
        first, last = offset >> BLOCK_SHIFT, (offset + length - 1) >> BLOCK_SHIFT
        slot = self._slot_of.get(volume.read_base | first >> PAGE_SHIFT)
        if slot is None or first >> PAGE_SHIFT != last >> PAGE_SHIFT:
            return False
        return not self.cache.arena[slot, first & PAGE_MASK : (last & PAGE_MASK) + 1].any()

    # ---- with waiting

    def read(self, volume: Volume, offset: int, into: memoryview) -> Work:
        """Read any byte range (a task's work) into `into`. Raises ReadError, naming the first byte that cannot be
        read."""
        first, start = divmod(offset, BLOCK_SIZE_BYTES)
        stop = -(-(offset + len(into)) // BLOCK_SIZE_BYTES)
        whole = start == 0 and len(into) == (stop - first) << BLOCK_SHIFT
        blocks = into if whole else memoryview(bytearray((stop - first) << BLOCK_SHIFT))
        lba = first
        while lba < stop:
            count = min(stop - lba, PAGE_ENTRIES - (lba & PAGE_MASK))
            at = (lba - first) << BLOCK_SHIFT
            yield from self._read_in_leaf(volume, lba, blocks[at : at + (count << BLOCK_SHIFT)])
            lba += count
        if not whole:
            into[:] = blocks[start : start + len(into)]

    def _read_in_leaf(self, volume: Volume, lba: int, into: memoryview) -> Work:
        """Read blocks of one leaf. If an entry changed while its block was read and the block does not check out,
        again."""
        count = len(into) >> BLOCK_SHIFT
        dropped = False
        while True:
            try:
                slot = yield from self.views.leaf(volume, lba >> PAGE_SHIFT)
            except HoldfastError as error:
                raise ReadError(str(error), error.errno, lba << BLOCK_SHIFT, error.resource) from error
            if slot < 0:
                into[:] = bytes(len(into))
                return
            base = slot << PAGE_SHIFT | lba & PAGE_MASK
            entries = self._words[base : base + count].tolist()
            missing: list[Io] = []
            self._fill(entries, into, missing)
            if missing:
                yield from self._read_missing(missing)
            bad = first_mismatch(into, lba, entries)
            failed = next((io for io in missing if io.result < 0), None)
            if bad < 0 and failed is None:
                return
            slot = self._slot_of.get(volume.read_base | lba >> PAGE_SHIFT)
            if missing and (slot is None or self._entries(slot, lba, count) != entries):
                continue
            if bad >= 0:  # it may be what a failed READ left in the buffer: that says nothing of the block
                failed = next((io for io in missing if io.result < 0 and self._covers(io, entries[bad])), None)
            if failed is not None:
                where = (lba + max(bad, 0)) << BLOCK_SHIFT
                errno = -failed.result
                raise ReadError(
                    f"segment {failed.file:08x} cannot be read: errno {errno}", errno, where, resource_of(errno)
                )
            if not dropped:
                # A cached copy can be stale or damaged where the disk is right: ask the disk before saying so.
                dropped = True
                self._drop_cached(entries)
                continue
            volume.note_damage(lba + bad, "its check does not match", known=is_given_up(entries[bad]))
            raise ReadError(
                f"block {lba + bad} of volume {volume.name} is damaged; overwrite it whole",
                EIO,
                (lba + bad) << BLOCK_SHIFT,
                Resource.DAMAGE,
            )

    def _covers(self, io: Io, entry: int) -> bool:
        address = entry & ADDRESS_MASK
        offset = (address & self._offset_mask) << BLOCK_SHIFT
        return io.file == address >> self._shift and io.offset <= offset < io.offset + io.length

    def _drop_cached(self, entries: list[int]) -> None:
        for entry in entries:
            address = entry & ADDRESS_MASK
            if address and self.log.slot_of(address) < 0:
                offset = (address & self._offset_mask) << BLOCK_SHIFT
                self.disk.drop_cached(address >> self._shift, offset, BLOCK_SIZE_BYTES)

    def _entries(self, slot: int, lba: int, count: int) -> list[int]:
        base = slot << PAGE_SHIFT | lba & PAGE_MASK
        return self._words[base : base + count].tolist()

    def _read_missing(self, missing: list[Io]) -> Work:
        for io in missing:
            self.space.pin(io.file)
        try:
            yield missing
        finally:
            for io in missing:
                self.space.unpin(io.file)

    def prefetch(self, volume: Volume, offset: int, length: int) -> Work:
        """Ask the kernel to read a range ahead (a task's work). A hint: what cannot be found out is left out."""
        lba, stop = offset >> BLOCK_SHIFT, -(-(offset + length) // BLOCK_SIZE_BYTES)
        end_leaf = (stop - 1 >> PAGE_SHIFT) + 1
        for _ in range(PREFETCH_LEAVES_MAX):
            leaf = yield from self.views.next_leaf(volume, lba >> PAGE_SHIFT, end_leaf)
            if leaf >= end_leaf:
                return
            slot = yield from self.views.leaf(volume, leaf)
            if slot < 0:
                continue
            lba = max(lba, leaf << PAGE_SHIFT)
            count = min(stop - lba, PAGE_ENTRIES - (lba & PAGE_MASK))
            addresses = [entry & ADDRESS_MASK for entry in self._entries(slot, lba, count)]
            while addresses:
                run = 1
                while run < len(addresses) and addresses[run] == addresses[0] + run:
                    run += 1
                if addresses[0] and self.log.slot_of(addresses[0]) < 0:
                    at = (addresses[0] & self._offset_mask) << BLOCK_SHIFT
                    self.disk.will_read(addresses[0] >> self._shift, at, run << BLOCK_SHIFT)
                del addresses[:run]
            lba += count

    # ---- block status

    def extents(self, volume: Volume, offset: int, length: int) -> Work:
        """The extents from `offset` on (a task's work): a list of (length, hole), at least one, covering at most
        `length` bytes and possibly fewer. Raises CorruptionError or DiskError if the map cannot be read."""
        end = offset + length
        lba, stop = offset >> BLOCK_SHIFT, -(-end // BLOCK_SIZE_BYTES)
        runs: list[tuple[int, bool]] = []  # in blocks
        leaves = 0
        while lba < stop and len(runs) < EXTENTS_MAX and leaves < STATUS_LEAVES_MAX:
            end_leaf = (stop - 1 >> PAGE_SHIFT) + 1
            leaf = yield from self.views.next_leaf(volume, lba >> PAGE_SHIFT, end_leaf)
            leaves += 1
            if leaves % LEAVES_PER_TURN == 0:
                yield self.next_turn  # and look the leaf up again: it may have been evicted meanwhile
                continue
            if leaf << PAGE_SHIFT > lba:
                hole_end = min(stop, leaf << PAGE_SHIFT)
                add_run(runs, hole_end - lba, True)
                lba = hole_end
                continue
            slot = yield from self.views.leaf(volume, leaf)
            if slot < 0:
                continue  # removed meanwhile
            first = lba & PAGE_MASK
            count = min(stop - lba, PAGE_ENTRIES - first)
            holes = self.cache.arena[slot, first : first + count] == 0
            edges = [0, *(np.flatnonzero(holes[1:] != holes[:-1]) + 1).tolist(), count]
            for start, until in pairwise(edges):
                add_run(runs, until - start, bool(holes[start]))
            lba += count
        return clip(runs[:EXTENTS_MAX], offset % BLOCK_SIZE_BYTES, length)


def add_run(runs: list[tuple[int, bool]], blocks: int, state: bool) -> None:
    if runs and runs[-1][1] == state:
        runs[-1] = (runs[-1][0] + blocks, state)
    else:
        runs.append((blocks, state))


def clip(runs: list[tuple[int, bool]], skip: int, length: int) -> list[tuple[int, bool]]:
    """Runs of blocks as byte extents that begin `skip` bytes into the first block and cover at most `length` bytes."""
    extents = []
    left = length
    for blocks, state in runs:
        size = min((blocks << BLOCK_SHIFT) - skip, left)
        skip = 0
        if size > 0:
            extents.append((size, state))
            left -= size
    return extents

"""Stored blocks by their map entries: from the ring, from the page cache, or from the disk; never a wrong byte.

Whatever comes back was checked against the entry that asked for it (promise 6).
"""

from __future__ import annotations

from holdfast.pool.block import ADDRESS_MASK, block_matches
from holdfast.pool.space import SpaceTable
from holdfast.runtime.ports import READ, Disk, Io
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.work.task import Work
from holdfast.writeback.log import Log

DAMAGED = -1  # what `BlockReader.read` returns for a block that was read and is not the one that the entry was made for


class BlockReader:
    def __init__(self, log: Log, space: SpaceTable, disk: Disk) -> None:
        self.log = log
        self.space = space
        self.disk = disk
        self.shift = log.shift
        self.offset_mask = log.segment_blocks - 1

    def read_now(self, entry: int, owner: int, kind: int, into: memoryview) -> bool:
        """Read one block if that needs no waiting and it checks out. False says nothing about the block."""
        address = entry & ADDRESS_MASK
        at = self.log.slot_of(address)
        if at >= 0:
            into[:] = self.log.slots[at : at + BLOCK_SIZE_BYTES]
        elif not self.disk.read_now(address >> self.shift, (address & self.offset_mask) << BLOCK_SHIFT, into):
            return False
        return block_matches(into, owner, kind, entry)

    def read(self, entry: int, owner: int, kind: int, into: memoryview) -> Work:
        """Read one block into `into` (a task's work); returns 0, or the errno: of the disk, or `DAMAGED`.

        A block that does not check out is read once more, from the disk: a cached copy can be stale or damaged, or one
        reading of it, where the disk is right.
        """
        if self.read_now(entry, owner, kind, into):
            return 0
        address = entry & ADDRESS_MASK
        segment, offset = address >> self.shift, (address & self.offset_mask) << BLOCK_SHIFT
        for _ in range(2):
            at = self.log.slot_of(address)
            if at >= 0:
                into[:] = self.log.slots[at : at + BLOCK_SIZE_BYTES]
            else:
                io = Io(READ, segment, offset, into)
                self.space.pin(segment)
                try:
                    yield io
                finally:
                    self.space.unpin(segment)
                if io.result < 0:
                    return -io.result
            if block_matches(into, owner, kind, entry):
                return 0
            self.disk.drop_cached(segment, offset, BLOCK_SIZE_BYTES)
        return DAMAGED

"""Replay: the entries of commits behind the checkpoint are put into the maps, in the order of the log.

Runs once, when a pool is opened, before anybody is served. The maps come out as they were when the last of the commits
was appended, and the counts of live blocks with them: an entry that a later one of the same batch replaces is never
counted.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from holdfast.pool.block import (
    ADDRESS_BITS,
    ADDRESS_MASK,
    CHECK_MASK,
    KIND_DATA,
    KIND_HOLE,
    LBA_MASK,
    STORED_KINDS,
    VOLUME_SHIFT,
)
from holdfast.pool.roll_forward import FoundCommit
from holdfast.pool.space import SpaceTable
from holdfast.volume.exchange import Exchange
from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT, PageCache
from holdfast.volume.page_table import PageDamagedError, PageTable
from holdfast.volume.volume import Volume
from holdfast.work.task import Work

BATCH_ENTRIES = 32768

_U64 = np.uint64
Words = npt.NDArray[np.uint64]


class Replayer:
    def __init__(
        self,
        cache: PageCache,
        table: PageTable,
        space: SpaceTable,
        volumes: dict[int, Volume],
        exchange: Exchange,
        *,
        write_pages: Callable[[], Work],
        findings: list[str],
    ) -> None:
        self.cache = cache
        self.table = table
        self.space = space
        self.volumes = volumes
        self._exchange = exchange
        self.entries_applied = 0
        self._findings = findings
        self._write_pages = write_pages  # makes dirty pages clean by appending them to the new end of the log

    def replay(self, commits: list[FoundCommit]) -> Work:
        """Apply all entries (a task's work)."""
        self.table.relieve = self._relieve
        try:
            yield from self._replay(commits)
        finally:
            self.table.relieve = None

    def _relieve(self) -> Work:
        """No page can be had: dirty ones, and those above them, take all that this group may have."""
        if not self.cache.dirty_pages:
            return False
        yield from self._write_pages()
        return True

    def _replay(self, commits: list[FoundCommit]) -> Work:
        batch: list[tuple[Words, Words, npt.NDArray[np.uint32]]] = []
        size = 0
        for commit in commits:
            entries = commit.entries
            kinds = entries["meta"] & np.uint32(0xFF)
            # The n-th stored entry of a commit lies n blocks behind the first one's address.
            addresses = commit.address + np.cumsum(np.isin(kinds, STORED_KINDS)) - 1
            words = (entries["check"].astype(_U64) & _U64(CHECK_MASK)) << _U64(ADDRESS_BITS) | addresses.astype(_U64)
            batch.append((entries["owner"].astype(_U64), words, entries["meta"].astype(np.uint32)))
            size += len(entries)
            if size >= BATCH_ENTRIES:
                yield from self._apply(batch)
                batch, size = [], 0
        if batch:
            yield from self._apply(batch)

    def _apply(self, batch: list[tuple[Words, Words, npt.NDArray[np.uint32]]]) -> Work:
        owners = np.concatenate([part[0] for part in batch])
        words = np.concatenate([part[1] for part in batch])
        metas = np.concatenate([part[2] for part in batch])
        self.entries_applied += len(owners)
        kinds = metas & np.uint32(0xFF)
        data = kinds == KIND_DATA
        start = 0
        for hole in [*np.flatnonzero(kinds == KIND_HOLE).tolist(), len(owners)]:
            chosen = data[start:hole]
            if chosen.any():
                yield from self._apply_data(owners[start:hole][chosen], words[start:hole][chosen])
            if hole < len(owners):
                yield from self._apply_hole(int(owners[hole]), int(metas[hole]) >> 8)
            start = hole + 1

    def _apply_data(self, owners: Words, words: Words) -> Work:
        # The last entry of each owner counts; np.unique finds first ones, so it is given the reverse.
        owners, first = np.unique(owners[::-1], return_index=True)
        words = words[::-1][first]
        there = self._within_size(owners)
        owners, words = owners[there], words[there]
        if not len(owners):
            return
        leaves = owners >> _U64(PAGE_SHIFT)
        edges = [0, *(np.flatnonzero(leaves[1:] != leaves[:-1]) + 1).tolist(), len(owners)]
        for start, stop in pairwise(edges):
            owner = int(owners[start])
            volume = self.volumes.get(owner >> VOLUME_SHIFT)
            if volume is None:
                continue  # removed by a checkpoint that came after it
            try:
                slots = yield from self._writable_leaves(volume, (owner & LBA_MASK) >> PAGE_SHIFT)
            except PageDamagedError as error:
                # The rest of the pool must come up all the same. What should have gone into the page stays in the log,
                # counted as live, so that a repair from the reverse map still finds it.
                self.space.count_blocks(words[start:stop] & _U64(ADDRESS_MASK))
                self._leave_out(volume, error)
                continue
            inside = (owners[start:stop] & _U64(PAGE_MASK)).astype(np.intp)
            self.space.count_blocks(words[start:stop] & _U64(ADDRESS_MASK))
            self._exchange.replace(volume, slots[0], inside, words[start:stop], slots[1:])

    def _within_size(self, owners: Words) -> npt.NDArray[np.bool_]:
        """Which blocks are not behind the end of their volume; nobody was told that it has those."""
        ids = owners >> _U64(VOLUME_SHIFT)
        ends = np.full(len(owners), LBA_MASK + 1, np.uint64)
        for volume_id in np.unique(ids).tolist():
            volume = self.volumes.get(volume_id)
            if volume is not None:
                ends[ids == _U64(volume_id)] = volume.size_blocks
        return (owners & _U64(LBA_MASK)) < ends

    def _apply_hole(self, owner: int, count: int) -> Work:
        volume = self.volumes.get(owner >> VOLUME_SHIFT)
        if volume is None:
            return
        lba, stop = owner & LBA_MASK, min((owner & LBA_MASK) + count, volume.map_end_blocks)
        while lba < stop:
            leaf_end = min(stop, (lba >> PAGE_SHIFT) + 1 << PAGE_SHIFT)
            try:
                yield from self._apply_hole_in_leaf(volume, lba, leaf_end)
            except PageDamagedError as error:
                self._leave_out(volume, error)
            lba = leaf_end

    def _apply_hole_in_leaf(self, volume: Volume, lba: int, stop: int) -> Work:
        leaf = lba >> PAGE_SHIFT
        if volume.basis is None and (yield from self.table.page(volume, 0, leaf, create=False)) < 0:
            return
        slots = yield from self._writable_leaves(volume, leaf)
        inside = np.arange(lba & PAGE_MASK, (lba & PAGE_MASK) + stop - lba)
        self._exchange.replace(volume, slots[0], inside, np.zeros(stop - lba, np.uint64), slots[1:])

    def _leave_out(self, volume: Volume, error: PageDamagedError) -> None:
        self._findings.append(str(error))
        volume.note_page_damage(error.key, "replay could not read it, and left out what it was to get")
        self.table.poison(volume, error.key)

    def _writable_leaves(self, volume: Volume, leaf: int) -> Work:
        """The slots of a leaf and of its keepers' leaves, resident all together; the first and the last can be
        changed."""
        cache = self.cache
        if cache.dirty_pages >= cache.dirty_soft_limit:
            yield from self._write_pages()
        nodes = [volume, *self._exchange.keepers(volume, leaf)]
        slots: list[int] = []
        try:
            for node in nodes:
                try:
                    slot = yield from self.table.page(node, 0, leaf, create=True)
                except PageDamagedError as error:
                    if node is volume:
                        raise
                    # What the snapshot had there cannot be read any more; the volume goes on without it.
                    self._leave_out(node, error)
                    node.note_lost_leaf(leaf)
                    break
                cache.children[slot] += 1  # stays while the next one is read
                slots.append(slot)
        finally:
            for slot in slots:
                cache.children[slot] -= 1
        if len(slots) < len(nodes):
            slots = slots[:1]
        for slot in {slots[0], slots[-1]}:
            if cache.stamp[slot] == 0:
                cache.mark_dirty(slot)
        return slots

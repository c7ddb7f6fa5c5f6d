"""Where the structures of a pool lie, found with the project's own decoders. For pools that nobody serves."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from holdfast.pool.block import ADDRESS_MASK, KIND_DATA, STORED_KINDS
from holdfast.pool.commit import CommitHeader, decode_commit_header
from holdfast.pool.segment import SegmentFooter, SegmentHeader, decode_segment_footer, decode_segment_header
from holdfast.pool.superblock import Superblock
from holdfast.pool.tables import VolumeRow, decode_volume_table, table_block_count
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.page_cache import PAGE_ENTRIES
from holdfast.writeback.ring import Publication, Ring
from tests.crash.harness import read_superblock, segment_path
from tests.crash.power import open_ring


@dataclass(frozen=True, slots=True)
class Place:
    """A byte of a file."""

    path: Path
    offset: int


class Anatomy:
    def __init__(self, pool: Path) -> None:
        self.pool = pool
        self.superblock: Superblock = read_superblock(pool)
        self.blocks = self.superblock.segment_blocks
        self.shift = self.blocks.bit_length() - 1

    # ---- blocks by address

    def place(self, address: int, within: int = 0) -> Place:
        return Place(segment_path(self.pool, address >> self.shift), self._offset(address) + within)

    def block(self, address: int) -> bytes:
        with self.place(address).path.open("rb") as file:
            file.seek(self._offset(address))
            return file.read(BLOCK_SIZE_BYTES)

    def _offset(self, address: int) -> int:
        return (address & self.blocks - 1) << BLOCK_SHIFT

    # ---- tables and maps

    def index_address(self) -> int:
        return self.superblock.index_entries[0] & ADDRESS_MASK

    def table_addresses(self, copy: int = 0) -> tuple[list[int], list[int]]:
        """Block addresses of the volume table and of the space table, of their first or second copy."""
        volumes = table_block_count(self.superblock.volume_table_bytes)
        spaces = table_block_count(self.superblock.space_table_bytes)
        first = copy * (volumes + spaces) * 8
        words = struct.unpack_from(f"<{volumes + spaces}Q", self.block(self.index_address()), first)
        addresses = [word & ADDRESS_MASK for word in words]
        return addresses[:volumes], addresses[volumes:]

    def volume(self, name: str) -> VolumeRow:
        raw = b"".join(self.block(address) for address in self.table_addresses()[0])
        rows, _groups = decode_volume_table(raw[: self.superblock.volume_table_bytes])
        return next(row for row in rows if row.name == name)

    def root_address(self, name: str) -> int:
        return self.volume(name).root & ADDRESS_MASK

    def leaf_address(self, name: str, leaf: int) -> int:
        row = self.volume(name)
        word = row.root
        for level in range(row.root_level, 0, -1):
            index = leaf // PAGE_ENTRIES ** (level - 1) % PAGE_ENTRIES
            word = struct.unpack_from("<Q", self.block(word & ADDRESS_MASK), index * 8)[0]
        assert word, f"volume {name} has no leaf {leaf}"
        return int(word) & ADDRESS_MASK

    def data_address(self, name: str, lba: int) -> int:
        """Where the last checkpoint found a block."""
        leaf = self.block(self.leaf_address(name, lba // PAGE_ENTRIES))
        word = struct.unpack_from("<Q", leaf, lba % PAGE_ENTRIES * 8)[0]
        assert word, f"block {lba} of volume {name} is a hole"
        return int(word) & ADDRESS_MASK

    # ---- the log

    @cached_property
    def segments(self) -> dict[int, SegmentHeader]:
        """All segments with a valid header, by id."""
        found = {}
        for path in sorted((self.pool / "segments").glob("*.seg")):
            segment = int(path.name.partition(".")[0], 16)
            header = decode_segment_header(self.block(segment << self.shift))
            if header is not None:
                found[segment] = header
        return found

    def footer(self, segment: int) -> SegmentFooter | None:
        footer = decode_segment_footer(self.block((segment + 1 << self.shift) - 1), self.blocks)
        return footer if footer is not None and footer.ordinal == self.segments[segment].ordinal else None

    def commits(self, *, replayed: bool) -> list[tuple[int, CommitHeader]]:
        """(address, header) of the commits in the files, in the order of the log: those at and behind the replay
        position, or those before it."""
        found = []
        for segment, header in self.segments.items():
            for offset in range(1, self.blocks):
                address = segment << self.shift | offset
                commit = decode_commit_header(self.block(address))
                if commit is not None and commit.position == header.ordinal << self.shift | offset:
                    found.append((address, commit))
        limit = self.superblock.replay_position
        chosen = [
            each for each in found if (each[1].position >= limit and each[1].epoch == self.superblock.epoch) == replayed
        ]
        return sorted(chosen, key=lambda each: each[1].position)

    def sealed_segment(self, *, replayed: bool) -> int:
        """A sealed segment with a summary, wholly behind the replay position or wholly before it."""
        first = (self.superblock.replay_position >> self.shift) + 1
        return next(
            segment
            for segment, header in self.segments.items()
            if (footer := self.footer(segment)) is not None
            and footer.entry_count
            and (header.ordinal >= first and header.epoch == self.superblock.epoch) == replayed
            and header.ordinal != first - 1
        )

    def newest_segment(self) -> int:
        mine = {its: header for its, header in self.segments.items() if header.epoch == self.superblock.epoch}
        return max(mine, key=lambda segment: mine[segment].ordinal)

    # ---- the ring of a dead server

    @cached_property
    def ring(self) -> Ring:
        return open_ring(self.pool)[0]

    @cached_property
    def publication(self) -> Publication:
        publication = self.ring.publication(self.superblock.epoch)
        assert publication is not None
        return publication


def data_entries(commit: CommitHeader) -> list[tuple[int, int]]:
    """(block offset behind the header, owner word) of the data blocks of a commit."""
    found = []
    offset = 0
    for owner, _check, meta in commit.entries.tolist():
        if meta & 0xFF in STORED_KINDS:
            offset += 1
            if meta & 0xFF == KIND_DATA:
                found.append((offset, owner))
    return found

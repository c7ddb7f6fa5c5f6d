"""A volume: a name, a size and the root of a map."""

from __future__ import annotations

from holdfast.pool.block import VOLUME_SHIFT
from holdfast.pool.tables import VolumeRow
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.page_cache import PAGE_SHIFT

DAMAGED_BLOCKS_LISTED_MAX = 1000
UNLIMITED_BLOCKS = 1 << 60  # more than any volume has


def root_level_for(size_bytes: int) -> int:
    """The level of the root page of a map that covers `size_bytes`: 0 to 2 MiB, 1 to 1 GiB, 2 to 512 GiB, 3 to 64
    TiB."""
    leaves = max(1, -(-size_bytes >> (BLOCK_SHIFT + PAGE_SHIFT)))
    level = 0
    while leaves > 1:
        leaves = -(-leaves >> PAGE_SHIFT)
        level += 1
    return level


class Volume:
    """Fields: I fixed when made, L loop thread, C changed by a checkpoint only (in the loop thread)."""

    __slots__ = (
        "connections",
        "created_ns",
        "damaged",
        "key_base",
        "mapped_blocks",
        "mapped_blocks_max",
        "name",
        "on_full_wait_s",
        "quota_bytes",
        "removing",
        "root",
        "root_level",
        "size_bytes",
        "volume_id",
        "write_back_errno",
        "write_back_failures",
    )

    def __init__(self, row: VolumeRow) -> None:
        self.volume_id = row.volume_id  # I
        self.name = row.name  # I
        self.key_base = row.volume_id << VOLUME_SHIFT  # I
        self.size_bytes = row.size_bytes  # L
        self.root = row.root  # C: map entry of the root page; 0 if it was never written
        self.root_level = row.root_level  # I
        self.mapped_blocks = row.mapped_blocks  # L
        self.created_ns = row.created_ns  # I
        self.removing = row.removing  # L
        self.quota_bytes = row.quota_bytes  # L: 0 if there is none
        self.on_full_wait_s = row.on_full_wait_s  # L: how long a write waits for space
        self.mapped_blocks_max = 0  # L: by the quota; a quota that was made smaller may be below what is mapped
        self.connections = 0  # L
        self.damaged: dict[int, str] = {}  # L: lba -> what was found, the first DAMAGED_BLOCKS_LISTED_MAX of them

        self.write_back_failures = 0  # L: attempts since the start that failed and met data of this volume
        self.write_back_errno = 0  # L: of the last of them
        self.set_quota(row.quota_bytes)

    @property
    def size_blocks(self) -> int:
        return -(-self.size_bytes // BLOCK_SIZE_BYTES)

    def set_quota(self, quota_bytes: int) -> None:
        """Let so many bytes be mapped; 0: as many as there are. What is mapped stays, however much that is."""
        self.quota_bytes = quota_bytes
        self.mapped_blocks_max = quota_bytes >> BLOCK_SHIFT if quota_bytes else UNLIMITED_BLOCKS

    def row(self) -> VolumeRow:
        """The volume as the volume table stores it."""
        return VolumeRow(
            volume_id=self.volume_id,
            name=self.name,
            size_bytes=self.size_bytes,
            root=self.root,
            root_level=self.root_level,
            mapped_blocks=self.mapped_blocks,
            created_ns=self.created_ns,
            removing=self.removing,
            quota_bytes=self.quota_bytes,
            on_full_wait_s=self.on_full_wait_s,
        )

    def note_damage(self, lba: int, what: str) -> None:
        if len(self.damaged) < DAMAGED_BLOCKS_LISTED_MAX:
            self.damaged.setdefault(lba, what)

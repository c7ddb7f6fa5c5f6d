"""A volume: a name, a size and the root of a map."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from holdfast.errors import CorruptionError, ReadOnlyError
from holdfast.memory.group import Group
from holdfast.pool import tables
from holdfast.pool.block import SEED_DATA, VOLUME_SHIFT
from holdfast.pool.tables import VolumeRow
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.groups import DEFAULT_GROUP, UNLIMITED_BLOCKS, TenantGroup
from holdfast.volume.page_cache import PAGE_SHIFT

if TYPE_CHECKING:
    from holdfast.volume.sharing import Recount

DAMAGED_BLOCKS_LISTED_MAX = 1000
LOSS_EPOCH_MAX = (1 << 16) - 1


class OnFull(IntEnum):
    """What a volume does once a write finds no space, after it has waited for some."""

    ERROR = 0  # ENOSPC to whoever asked; all else goes on
    READ_ONLY = 1  # the same, and no write is taken until an operator says so; trims are


class OnError(IntEnum):
    """What a volume does once write-back of its data failed. It is tried again in any case."""

    RETRY = 0  # writes are taken as long as there is room for them
    READ_ONLY = 1  # no write is taken until an operator says so


def root_level_for(size_bytes: int) -> int:
    """The level of the root page of a map that covers `size_bytes`: 0 to 2 MiB, 1 to 1 GiB, 2 to 512 GiB, 3 to 64
    TiB."""
    leaves = max(1, -(-size_bytes >> (BLOCK_SHIFT + PAGE_SHIFT)))
    level = 0
    while leaves > 1:
        leaves = -(-leaves >> PAGE_SHIFT)
        level += 1
    return level


def map_pages(size_bytes: int) -> int:
    """How many pages the map of a volume of this size has, all of it written."""
    pages, level = 0, -(-size_bytes >> (BLOCK_SHIFT + PAGE_SHIFT))
    while level > 1:
        pages += level
        level = -(-level >> PAGE_SHIFT)
    return pages + 1


def read_only_error(volume: Volume) -> ReadOnlyError:
    why = "its write-back failed" if volume.read_only is ReadOnly.FAILED else "there was no space"
    return ReadOnlyError(
        f"it takes no writes since {why}; once that is mended, `holdfast volume set --writable` lets it go on"
    )


def loss_error(volume: Volume) -> CorruptionError:
    return CorruptionError(
        f"FLUSH fails because accepted data is lost (loss {volume.loss_epoch}): `holdfast volume show` says what, "
        f"`holdfast volume acknowledge-loss POOL/{volume.name} {volume.loss_epoch}` ends it"
    )


class Role(IntEnum):
    """What a node of the version tree is to those outside."""

    VOLUME = tables.VOLUME
    SNAPSHOT = tables.SNAPSHOT
    HIDDEN = tables.HIDDEN  # removed, and on its way out or still needed by those that were made from it


class ReadOnly(IntEnum):
    """Whether a volume takes no writes, and since when."""

    NO = 0
    FULL = 1
    FAILED = 2


class Volume:
    """Fields: I fixed when made, L loop thread, C changed by a checkpoint only (in the loop thread)."""

    __slots__ = (
        "basis",
        "connections",
        "created_ns",
        "cutting",
        "damaged",
        "damaged_pages",
        "data_seed",
        "dependents",
        "ground",
        "grounded",
        "group",
        "held_blocks",
        "identity",
        "keep_below",
        "keeper_base",
        "keepers",
        "key_base",
        "label",
        "looked_through",
        "loss_acknowledged",
        "loss_epoch",
        "loss_open",
        "lost_leaves",
        "mapped_blocks",
        "mapped_blocks_max",
        "on_error",
        "on_full",
        "on_full_wait_s",
        "origin_id",
        "parent",
        "predecessor",
        "protected",
        "provisioned",
        "quota_bytes",
        "reach_blocks",
        "read_base",
        "read_only",
        "recount",
        "removing",
        "resizing",
        "role",
        "root",
        "root_level",
        "row_bytes",
        "row_changed",
        "shared_blocks",
        "sharing_unsure",
        "size_bytes",
        "stored_size_bytes",
        "versioned",
        "volume_id",
        "write_back_errno",
        "write_back_failures",
    )

    def __init__(self, row: VolumeRow, group: TenantGroup | None = None) -> None:
        """`group`: None for a volume that stands alone, without a server."""
        self.volume_id = row.volume_id  # I
        self.label = row.name  # L: of a snapshot, what comes behind the @
        self.key_base = row.volume_id << VOLUME_SHIFT  # I
        self.data_seed = SEED_DATA ^ self.key_base  # I: for `Log.append`
        self.size_bytes = row.size_bytes  # L: what clients are told
        self.stored_size_bytes = row.size_bytes  # L: what the next checkpoint tells of; larger while it is being grown
        self.cutting = row.cutting  # L: it was made smaller, and the map may still refer to blocks behind its end
        self.resizing = False  # L: its size is being changed, or what was cut off let go of
        self.root = row.root  # C: map entry of the root page; 0 if it was never written
        self.root_level = row.root_level  # L: changed only while no checkpoint is running (`volume/resize.py`)
        self.mapped_blocks = row.mapped_blocks  # L
        self.created_ns = row.created_ns  # I
        self.removing = False  # L: its removal is on its way to the disk; after that it is hidden
        self.quota_bytes = row.quota_bytes  # L: 0 if there is none
        self.on_full_wait_s = row.on_full_wait_s  # L: how long a write waits for space
        self.mapped_blocks_max = 0  # L: by the quota; a quota that was made smaller may be below what is mapped
        self.group = group or TenantGroup(0, DEFAULT_GROUP, Group(DEFAULT_GROUP))  # L
        self.on_full = OnFull(row.on_full)  # L
        self.on_error = OnError(row.on_error)  # L
        self.read_only = ReadOnly(row.read_only)  # L: by one of these policies, until an operator says otherwise
        self.loss_epoch = row.loss_epoch  # L
        self.loss_acknowledged = 0  # L: the epoch whose acknowledgement is on its way to the disk
        self.loss_open = row.loss_open  # L: FLUSH fails until an operator has acknowledged the epoch by its number
        self.connections = 0  # L
        self.row_changed: Callable[[], None] = lambda: None  # I: told of changes that nobody waits for
        self.damaged_pages: dict[int, str] = {}  # L: owner word of a map page -> what was found
        self.damaged: dict[int, str] = {}  # L: lba -> what was found, the first DAMAGED_BLOCKS_LISTED_MAX of them

        # Its place in the version tree, kept by `VersionTree`.
        self.role = Role(row.role)  # L
        self.basis: Volume | None = None  # L: where a block is that its own map has no entry for
        self.ground: Volume | None = None  # L: what its clone was made from: where GROUND_MARK leads
        self.parent: Volume | None = None  # L: of a snapshot: the volume under whose name it is found
        self.origin_id = row.origin_id  # L: the snapshot that it was cloned from, for those who ask
        self.reach_blocks = row.reach_blocks  # L: what lies behind is not looked for in the basis; 0: all is
        self.protected = row.protected  # L: not to be removed
        self.provisioned = row.provisioned  # L: all of it can be written, whatever else there is (`provision.py`)
        self.held_blocks = 0  # L: ... for which so much is held back
        self.identity = row.identity  # I: of a snapshot: of what it holds, in whatever pool (`snapshots.py`)
        self.row_bytes = 0  # L: what is held back for its row in the volume table
        self.dependents = 0  # L: how many have it as their basis
        # L: of these, the snapshot that was taken before it; not a clone of it
        self.predecessor: Volume | None = None
        self.grounded = 0  # L: how many have it as their ground
        self.keepers: tuple[Volume, ...] = ()  # L: of a volume: who gets what it replaces (`volume/versions.py`)
        self.keep_below = 0  # L: ... if it lies below this block
        self.keeper_base = -1  # L: key base of the last of them; -1, which no key begins with: there is none
        self.lost_leaves: AbstractSet[int] = frozenset()  # L: of its map; nothing more is kept there
        self.looked_through = False  # L: a snapshot before it, one that stays, does so
        # L: of the data blocks in its map, those that a snapshot before it sees as well; `volume/sharing.py`.
        self.shared_blocks = row.shared_blocks
        self.sharing_unsure = row.sharing_unsure  # L: it may be fewer
        self.recount: Recount | None = None  # L
        self.versioned = False  # L: it has keepers or a basis
        self.read_base = self.key_base  # L: of the pages that reads go through: its own, or those of its view

        self.write_back_failures = 0  # L: attempts since the start that failed and met data of this volume
        self.write_back_errno = 0  # L: of the last of them
        self.set_quota(row.quota_bytes)

    @property
    def name(self) -> str:
        return self.label if self.parent is None else f"{self.parent.label}@{self.label}"

    @property
    def size_blocks(self) -> int:
        return -(-self.size_bytes // BLOCK_SIZE_BYTES)

    @property
    def map_end_blocks(self) -> int:
        """No block from here on is in the map; who looks through the volume sees it up to here."""
        return 1 << PAGE_SHIFT * (self.root_level + 1) if self.cutting else self.size_blocks

    def set_quota(self, quota_bytes: int) -> None:
        """Let so many bytes be mapped; 0: as many as there are. What is mapped stays, however much that is."""
        self.quota_bytes = quota_bytes
        self.mapped_blocks_max = quota_bytes >> BLOCK_SHIFT if quota_bytes else UNLIMITED_BLOCKS

    def row(self) -> VolumeRow:
        """The volume as the volume table stores it."""
        return VolumeRow(
            volume_id=self.volume_id,
            name=self.label,
            size_bytes=self.stored_size_bytes,
            root=self.root,
            root_level=self.root_level,
            mapped_blocks=self.mapped_blocks,
            created_ns=self.created_ns,
            quota_bytes=self.quota_bytes,
            on_full_wait_s=self.on_full_wait_s,
            group_id=self.group.group_id,
            on_full=self.on_full,
            on_error=self.on_error,
            read_only=self.read_only,
            loss_epoch=self.loss_epoch,
            loss_open=self.loss_open and self.loss_acknowledged != self.loss_epoch,
            role=Role.HIDDEN if self.removing else self.role,
            basis_id=_id(self.basis),
            ground_id=_id(self.ground),
            parent_id=_id(self.parent),
            origin_id=self.origin_id,
            reach_blocks=self.reach_blocks,
            protected=self.protected,
            cutting=self.cutting,
            identity=self.identity,
            provisioned=self.provisioned,
            shared_blocks=self.shared_blocks,
            sharing_unsure=self.sharing_unsure,
        )

    def encoded_row(self) -> bytes:
        """The same, as bytes."""
        if self.role is Role.VOLUME:
            return tables.encode_row(self.row())
        basis, ground, parent = self.basis, self.ground, self.parent
        return tables.encode_node(
            tables.HIDDEN if self.removing else self.role,
            self.label,
            self.identity,
            self.shared_blocks,
            tables.FLAG_PROTECTED * self.protected
            | tables.FLAG_CUTTING * self.cutting
            | tables.FLAG_SHARING_UNSURE * self.sharing_unsure,
            self.volume_id,
            0 if basis is None else basis.volume_id,
            0 if ground is None else ground.volume_id,
            0 if parent is None else parent.volume_id,
            self.origin_id,
            self.stored_size_bytes,
            self.root,
            self.mapped_blocks,
            self.created_ns,
            self.reach_blocks,
            self.root_level,
            self.group.group_id,
        )

    def count_mapped(self, change: int) -> None:
        """So many blocks more are mapped, of this volume and of its group."""
        self.mapped_blocks += change
        self.group.mapped_blocks += change

    def count_kept(self, leaf: int, inside: npt.NDArray[np.bool_] | int, blocks: int) -> None:
        """So many blocks of others, in these entries of a leaf, are in its map now, because it sees them. Whether
        snapshots before it do is not asked."""
        self.count_mapped(blocks)
        if self.looked_through and blocks:
            self.shared_blocks += blocks
            self.sharing_unsure = True
            if self.recount is not None:
                self.recount.got(leaf, inside)

    def count_given(self, leaf: int, blocks: int) -> None:
        """So many blocks that a snapshot before it sees, or one that is going, are in the map of that one now."""
        if self.looked_through:
            self.shared_blocks -= blocks
        if self.recount is not None:
            self.recount.gave(leaf, blocks)

    def sharing_changed(self) -> None:
        """Fewer than before may look through it, or through less of it."""
        self.sharing_unsure = self.looked_through
        self.recount = None

    def move_to(self, group: TenantGroup) -> None:
        """Its space counts in another group from now on, whatever that one's limit is."""
        self.group.let_go(self.mapped_blocks)
        self.group.hold(-self.held_blocks)
        self.group = group
        group.take_in(self.mapped_blocks)
        group.hold(self.held_blocks)

    def blocks_to_hold(self) -> int:
        """How many blocks the pool must have left for all of it to be written over: 0 if it is not provisioned."""
        if not self.provisioned or self.role is not Role.VOLUME:
            return 0
        size_bytes = max(self.size_bytes, self.stored_size_bytes)
        alone = self.mapped_blocks - min(self.shared_blocks, self.mapped_blocks)
        if self.cutting:
            alone = 0  # it may lie behind the end
        # What a snapshot gets needs pages of its map as well.
        pages = map_pages(size_bytes) << self.looked_through
        return max(0, -(-size_bytes // BLOCK_SIZE_BYTES) - alone) + pages

    def write_back_has_failed(self) -> None:
        """Its data is still dirty, and tried again; what it wants to do about that."""
        if self.on_error is OnError.READ_ONLY and not self.read_only:
            self.read_only = ReadOnly.FAILED
            self.row_changed()

    def found_full(self) -> None:
        """A write found no space; what it wants to do about that."""
        if self.on_full is OnFull.READ_ONLY and not self.read_only:
            self.read_only = ReadOnly.FULL
            self.row_changed()

    def note_loss(self) -> None:
        """Accepted data is lost for good. That begins a new epoch if the last one was acknowledged, or is just being:
        whoever does that cannot know of this."""
        if self.loss_open and self.loss_acknowledged != self.loss_epoch:
            return
        self.loss_epoch = self.loss_epoch % LOSS_EPOCH_MAX + 1
        self.loss_open = True
        self.row_changed()

    def note_page_damage(self, key: int, what: str, *, known: bool = False) -> None:
        """A page of the map cannot be read any more, and nothing below it. `known`: as of a block."""
        if key not in self.damaged_pages and not known:
            self.note_loss()
        if len(self.damaged_pages) < DAMAGED_BLOCKS_LISTED_MAX:
            self.damaged_pages.setdefault(key, what)

    def note_lost_leaf(self, leaf: int) -> None:
        """A leaf of its map cannot be read, and never will be: what is in it is lost, whatever comes."""
        self.lost_leaves = {*self.lost_leaves, leaf}
        node = self.basis
        while node is not None:  # what is there in this leaf is not seen through it any more
            node.sharing_changed()
            node = node.basis

    def forget_damage(self, first: int, stop: int) -> None:
        """Blocks [first, stop) were overwritten, or are holes: should they be damaged again, that is a new loss."""
        for lba in [lba for lba in self.damaged if first <= lba < stop]:
            del self.damaged[lba]

    def note_damage(self, lba: int, what: str, *, known: bool = False) -> None:
        """A block cannot be read any more. `known`: its loss was acknowledged."""
        if lba not in self.damaged and not known:
            self.note_loss()
        if len(self.damaged) < DAMAGED_BLOCKS_LISTED_MAX:
            self.damaged.setdefault(lba, what)


def _id(volume: Volume | None) -> int:
    return 0 if volume is None else volume.volume_id

"""Volumes and snapshots as the control API lists them.

With ten thousands of snapshots a list is more than the loop should make in one go, and more than an answer should hold:
snapshots are listed in parts, and what is said of a volume's snapshots together is counted once for the whole list. All
of it reads what is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

from holdfast.control.api import SNAPSHOTS_LISTED_MAX, DamagedRange, SnapshotList, VolumeInfo
from holdfast.engine import Engine
from holdfast.pool.block import page_place
from holdfast.pool.tables import NO_IDENTITY
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.page_cache import PAGE_SHIFT
from holdfast.volume.sharing import freed_blocks
from holdfast.volume.volume import OnError, OnFull, Role, Volume

Uris = Callable[[str], list[str]]


@dataclass(slots=True)
class Sum:
    """Several nodes of the version tree, and the data blocks in their own maps."""

    nodes: list[Volume] = field(default_factory=list)
    blocks: int = 0

    @property
    def count(self) -> int:
        return len(self.nodes)

    def add(self, node: Volume) -> None:
        self.nodes.append(node)
        self.blocks += node.mapped_blocks


@dataclass(slots=True)
class Census:
    """What the nodes of a pool are at one moment. Those that are being made are not counted."""

    volumes: list[Volume]
    snapshots: Sum  # of all volumes
    of_volume: dict[Volume, Sum]  # the snapshots of each volume that has some
    removed: Sum  # hidden: on their way out, or needed by clones


_NONE = Sum()


def census(engine: Engine) -> Census:
    found = Census([], Sum(), {}, Sum())
    for node in engine.by_name.values():
        if node.role is Role.VOLUME:
            found.volumes.append(node)
            continue
        found.snapshots.add(node)
        if node.parent is not None:
            sum_ = found.of_volume.get(node.parent)
            if sum_ is None:
                sum_ = found.of_volume[node.parent] = Sum()
            sum_.add(node)
    for node in engine.volumes.by_id.values():
        if node.role is Role.HIDDEN:
            found.removed.add(node)
    return found


def list_volumes(engine: Engine, uris: Uris) -> list[VolumeInfo]:
    found = census(engine)
    return [_info(engine, volume, uris(volume.name), found.of_volume.get(volume, _NONE)) for volume in found.volumes]


def list_snapshots(engine: Engine, uris: Uris, *, of: str = "", after: int = 0) -> SnapshotList:
    """Those with ids above `after`, of one volume or of all. Raises NotFoundError for a volume that is not there."""
    volume = engine.find(of) if of else None
    listed = list(islice(_snapshots(engine, volume, after), SNAPSHOTS_LISTED_MAX + 1))
    there_is_more = len(listed) > SNAPSHOTS_LISTED_MAX
    del listed[SNAPSHOTS_LISTED_MAX:]
    return SnapshotList(
        snapshots=[_info(engine, node, uris(node.name), _NONE) for node in listed],
        next=listed[-1].volume_id if there_is_more else 0,
    )


def _snapshots(engine: Engine, volume: Volume | None, after: int) -> Iterator[Volume]:
    """In the order of their ids, which is that in which they were taken."""
    by_name = engine.by_name
    for volume_id, node in engine.volumes.by_id.items():
        if volume_id <= after or node.role is not Role.SNAPSHOT or not (volume is None or node.parent is volume):
            continue
        if by_name.get(node.name) is node:  # else it is not durable yet
            yield node


def asked_of(volume: Volume) -> list[Volume]:
    """Those of which it must be known how much they share, for all to be known that is told of a volume."""
    nodes = [volume]
    ground = volume.ground
    while ground is not None and ground.role is Role.HIDDEN:
        nodes.append(ground)
        ground = ground.ground
    return nodes


def volume_info(engine: Engine, volume: Volume, uris: list[str]) -> VolumeInfo:
    sum_ = Sum()
    for snapshot in engine.volumes.snapshots_of(volume):
        sum_.add(snapshot)
    return _info(engine, volume, uris, sum_)


def _info(engine: Engine, volume: Volume, uris: list[str], snapshots: Sum) -> VolumeInfo:
    origin = engine.volumes.by_id.get(volume.origin_id)
    freed = freed_blocks(volume, snapshots.nodes)
    return VolumeInfo(
        name=volume.name,
        id=volume.volume_id,
        size_bytes=volume.size_bytes,
        mapped_bytes=volume.mapped_blocks << BLOCK_SHIFT,
        quota_bytes=volume.quota_bytes,
        on_full_wait_s=volume.on_full_wait_s,
        uris=uris,
        connections=volume.connections,
        damaged=_damaged(volume) if volume.damaged or volume.damaged_pages else [],
        write_back_failures=volume.write_back_failures,
        write_back_errno=volume.write_back_errno,
        on_full="read-only" if volume.on_full is OnFull.READ_ONLY else "error",
        on_error="read-only" if volume.on_error is OnError.READ_ONLY else "retry",
        read_only=bool(volume.read_only),
        group=volume.group.name,
        loss_epoch=volume.loss_epoch,
        loss_open=volume.loss_open,
        identity=volume.identity.hex() if volume.identity != NO_IDENTITY else "",
        created=datetime.fromtimestamp(volume.created_ns / 1e9, UTC).isoformat(timespec="seconds"),
        kind="snapshot" if volume.role is Role.SNAPSHOT else "volume",
        origin="" if origin is None or origin.role is not Role.SNAPSHOT else origin.name,
        protected=volume.protected,
        provisioned=volume.provisioned,
        held_bytes=volume.held_blocks << BLOCK_SHIFT,
        snapshots=snapshots.count,
        snapshots_bytes=snapshots.blocks << BLOCK_SHIFT,
        shared_bytes=None if volume.sharing_unsure else volume.shared_blocks << BLOCK_SHIFT,
        freed_bytes=None if freed is None else freed << BLOCK_SHIFT,
    )


def _damaged(volume: Volume) -> list[DamagedRange]:
    return [
        DamagedRange(offset=lba << BLOCK_SHIFT, length=BLOCK_SIZE_BYTES, what=what)
        for lba, what in sorted(volume.damaged.items())
    ] + [_damaged_page(key, what) for key, what in sorted(volume.damaged_pages.items())]


def _damaged_page(key: int, what: str) -> DamagedRange:
    """What cannot be found without a page of the map."""
    level, index = page_place(key)
    length = BLOCK_SIZE_BYTES << PAGE_SHIFT * (level + 1)
    return DamagedRange(offset=index * length, length=length, what=f"a map page on level {level}: {what}")

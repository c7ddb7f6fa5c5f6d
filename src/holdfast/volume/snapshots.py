"""Taking snapshots and making clones: nodes of the version tree (`versions.py`) from one moment to the next.

Whatever a volume holds, this costs a node without a map. It is durable with the next checkpoint, which is when whoever
asked is answered; the snapshot is of the moment at which it was asked for: all writes acknowledged before are in it,
none that come after. Should the server die before the answer, there is no snapshot.

Each snapshot has an **identity**, 16 bytes that no other has, save a copy of it in this or another pool that was made
from a stream of it (docs/stream-format.md): two snapshots of one identity hold the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from xxhash import xxh3_128_digest

from holdfast.errors import HoldfastError, RequestError, RetryError
from holdfast.pool.tables import NO_IDENTITY, SNAPSHOT_NAME_BYTES_MAX, VolumeRow
from holdfast.volume.page_cache import PageCache
from holdfast.volume.settings import AS_BY_DEFAULT, VolumeSettings, apply_settings
from holdfast.volume.versions import hide, place, take_snapshot
from holdfast.volume.volume import Role, Volume, map_pages
from holdfast.volume.volumes import Answer, Volumes
from holdfast.work.task import guarded

SnapshotsAnswer = Callable[[list[Volume] | HoldfastError], None]


class Snapshots:
    """All fields: loop thread."""

    def __init__(self, volumes: Volumes, cache: PageCache, *, pool_uuid: bytes) -> None:
        self._pool_uuid = pool_uuid
        self._volumes = volumes
        self._cache = cache

    def take(
        self, wanted: Sequence[tuple[str, str]], answer: SnapshotsAnswer, *, identity: bytes = NO_IDENTITY
    ) -> None:
        """Take a snapshot of each (volume, snapshot name), all of one moment. `answer` gets them once they are durable,
        or the error, and then there is none of them. `identity`: of the one that this one is a copy of."""
        assert identity == NO_IDENTITY or len(wanted) == 1
        volumes = self._volumes
        try:
            heads = [volumes.find(name) for name, _ in wanted]
            for head, (_, label) in zip(heads, wanted, strict=True):
                _check_snapshotable(head, label)
                volumes.check_free(f"{head.name}@{label}")
            if len({head.volume_id for head in heads}) < len(heads):
                raise RequestError("a volume is named twice; a snapshot of several volumes has each of them once")
            volumes.provisions.check([(head, to_share(head)) for head in heads])
            volumes.hold_for_more([Role.SNAPSHOT] * len(wanted))
        except HoldfastError as error:
            answer(error)
            return
        nodes = [self._take(head, label, identity) for head, (_, label) in zip(heads, wanted, strict=True)]
        names = [node.name for node in nodes]
        volumes.claim(names)

        def taken(error: HoldfastError | None) -> None:
            volumes.release_claim(names)
            for node in nodes:
                if error is not None:
                    hide(node)
                elif node.role is Role.SNAPSHOT:  # not removed with its volume meanwhile
                    volumes.by_name[node.name] = node
            if error is not None:
                volumes.removal.begin()
            answer(error or nodes)

        volumes.scheduler.spawn(guarded(volumes.checkpoint()), f"snapshot {nodes[0].name}", taken)

    def _take(self, head: Volume, label: str, identity: bytes = NO_IDENTITY) -> Volume:
        volumes = self._volumes
        row = self._new_row(head, label, Role.SNAPSHOT)
        if identity == NO_IDENTITY:
            place_and_time = row.volume_id.to_bytes(8, "little") + row.created_ns.to_bytes(8, "little")
            identity = xxh3_128_digest(self._pool_uuid + place_and_time)
        node = volumes.make(replace(row, identity=identity), head.group)
        take_snapshot(head, node)
        self._volumes.provisions.hold(head)
        return node

    def clone(self, source: str, name: str, answer: Answer, settings: VolumeSettings = AS_BY_DEFAULT) -> None:
        """Make a volume with the content of a snapshot, or of a volume at this moment; `answer` gets it once it is
        durable, or the error."""
        volumes = self._volumes
        try:
            origin = volumes.find(source)
            volumes.check_free(name)
            from_volume = origin.role is Role.VOLUME
            _check_whole(origin)
            if from_volume:
                volumes.provisions.check([(origin, to_share(origin))])
            volumes.hold_for_more([Role.SNAPSHOT, Role.VOLUME] if from_volume else [Role.VOLUME])
        except HoldfastError as error:
            answer(error)
            return
        base = self._take(origin, "") if from_volume else origin
        clone = self._clone(base, name)
        apply_settings(clone, settings, self._cache)
        refusal = None
        try:
            volumes.provisions.hold_or_refuse(clone)
        except HoldfastError as error:
            refusal = error
        if from_volume:
            hide(base)  # a snapshot that nobody asked for by name: it goes once no clone needs it
        if refusal is not None:
            hide(clone)
            volumes.let_go(clone)
            volumes.removal.begin()
            answer(refusal)
            return
        volumes.claim([name])

        def made(error: HoldfastError | None) -> None:
            volumes.release_claim([name])
            if error is None:
                volumes.by_name[clone.name] = clone
            else:
                hide(clone)
                volumes.let_go(clone)
                volumes.removal.begin()
            answer(error or clone)

        volumes.scheduler.spawn(guarded(volumes.checkpoint()), f"clone {name}", made)

    def _clone(self, base: Volume, name: str) -> Volume:
        volumes = self._volumes
        row = replace(self._new_row(base, name, Role.VOLUME), origin_id=base.volume_id)
        clone = volumes.make(row, base.group)
        place(clone, base, base)
        return clone

    def _new_row(self, like: Volume, name: str, role: Role) -> VolumeRow:
        """Of a node as large as another one, without a map, and with nothing of what its owner has set for that."""
        return VolumeRow(
            self._volumes.next_id,
            name,
            like.stored_size_bytes,
            root=0,
            root_level=like.root_level,
            mapped_blocks=0,
            created_ns=self._volumes.now_ns(),
            role=role,
        )

    def promote(self, name: str, answer: Answer) -> None:
        """Let a clone take over the snapshot that it was made from, and the older ones with it: they are found under
        its name from now on, and the volume that they were of counts as its clone. Nothing is copied."""
        volumes = self._volumes
        try:
            clone = volumes.find(name)
            base = clone.ground
            if (
                clone.role is not Role.VOLUME
                or base is None
                or base.role is not Role.SNAPSHOT
                or base.parent in (None, clone)
            ):
                raise RequestError(f"{name!r} is not a clone of a snapshot that there is")
            former = base.parent
            assert former is not None
            moving = [base]
            while (older := moving[-1].predecessor) is not None:
                moving.append(older)
            moving = [node for node in moving if node.parent is former]
            for node in moving:
                if node.role is Role.SNAPSHOT:
                    volumes.check_free(f"{clone.label}@{node.label}")
        except HoldfastError as error:
            answer(error)
            return
        self._rename(moving, clone)
        origins = clone.origin_id, former.origin_id
        clone.origin_id, former.origin_id = former.origin_id, base.volume_id

        def promoted(error: HoldfastError | None) -> None:
            if error is not None:
                self._rename(moving, former)
                clone.origin_id, former.origin_id = origins
            answer(error or clone)

        volumes.scheduler.spawn(guarded(volumes.checkpoint()), f"promote {name}", promoted)

    def _rename(self, nodes: list[Volume], parent: Volume) -> None:
        by_name = self._volumes.by_name
        for node in nodes:
            found = by_name.pop(node.name, None)  # none: hidden, or not durable yet
            node.parent = parent
            if found is not None:
                by_name[node.name] = node
        self._volumes.gather_snapshots(parent)

    def roll_back(self, name: str, answer: Answer) -> None:
        """Let a volume, to which nobody is connected, be what its snapshot is. All its snapshots stay. `answer` gets
        the volume once that is durable."""
        volumes = self._volumes
        try:
            snapshot = volumes.find(name)
            volume = snapshot.parent
            if snapshot.role is not Role.SNAPSHOT or volume is None:
                raise RequestError(f"{name!r} is not a snapshot; give it as VOLUME@SNAPSHOT")
            volumes.check_unused(volume)
            if volume.provisioned:
                volumes.provisions.check([(volume, snapshot.size_blocks + map_pages(snapshot.size_bytes))])
            volumes.hold_for_more([Role.VOLUME])
        except HoldfastError as error:
            answer(error)
            return
        row = replace(
            volume.row(),
            volume_id=volumes.next_id,
            size_bytes=snapshot.size_bytes,
            cutting=False,
            root=0,
            root_level=snapshot.root_level,
            mapped_blocks=0,
            reach_blocks=0,
            shared_blocks=0,
            sharing_unsure=False,
            loss_open=False,
        )
        successor = volumes.make(row, volume.group)
        place(successor, snapshot, snapshot)
        volumes.provisions.hold(successor)
        theirs = [node for node in volumes.by_id.values() if node.parent is volume]
        volume.removing = True
        self._rename(theirs, successor)

        def rolled_back(error: HoldfastError | None) -> None:
            volume.removing = False
            if error is None:
                volumes.by_name[successor.name] = successor
                hide(volume)
                volumes.let_go(volume)
            else:
                self._rename(theirs, volume)
                hide(successor)
                volumes.let_go(successor)
            volumes.removal.begin()
            answer(error or successor)

        volumes.scheduler.spawn(guarded(volumes.checkpoint()), f"roll back to {name}", rolled_back)


def to_share(head: Volume) -> int:
    """How many blocks more a snapshot taken now makes a provisioned volume hold."""
    if not head.provisioned:
        return 0
    alone = head.mapped_blocks - min(head.shared_blocks, head.mapped_blocks)
    return alone + (0 if head.looked_through else map_pages(head.size_bytes))


def _check_snapshotable(head: Volume, label: str) -> None:
    if head.role is not Role.VOLUME:
        raise RequestError(f"{head.name!r} is a snapshot; clone it, and take snapshots of the clone")
    _check_whole(head)
    if not 0 < len(label.encode()) <= SNAPSHOT_NAME_BYTES_MAX:
        raise RequestError(f"the name of a snapshot has 1 to {SNAPSHOT_NAME_BYTES_MAX} characters")


def _check_whole(head: Volume) -> None:
    """Older snapshots still look through to what is behind the end of a volume that was just made smaller: not through
    a newer snapshot, which is as small as the volume."""
    if head.cutting:
        raise RetryError(f"what was cut off {head.name!r} is still being let go of; try again in a moment")

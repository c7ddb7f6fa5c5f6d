"""A service with volumes in a dict: what stands behind the control socket in these tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import UNSET
from msgspec.structs import asdict, replace

from holdfast.control.api import (
    ChangeVolume,
    CloneVolume,
    CreateVolume,
    MemoryUse,
    MustSucceedInfo,
    PoolStatus,
    Reply,
    SegmentCounts,
    SnapshotList,
    Statistics,
    TakeSnapshots,
    VolumeInfo,
    VolumeList,
    VolumeRemoved,
    WaitInfo,
    WaitList,
)
from holdfast.control.group_api import ChangeGroup, CreateGroup, GroupInfo, GroupRemoved
from holdfast.control.space_api import ChangePool, ResizeVolume, VolumeResized
from holdfast.errors import HoldfastError, NoSpaceError, NotFoundError, RequestError
from holdfast.units import GIB, TIB


class FakeService:
    """Answers at once, or, with `hold_replies`, when the test calls `release`."""

    def __init__(self, *, hold_replies: bool = False) -> None:
        self.known: dict[str, VolumeInfo] = {}
        self.known_groups = {"default": GroupInfo(name="default", id=0)}
        self.reserved: list[MustSucceedInfo] = []
        self.waiting: list[WaitInfo] = []
        self.cycles: list[str] = []
        self.hold_replies = hold_replies
        self.held: list[Callable[[], None]] = []
        self.stopped = False
        self.capacity_bytes = 8 * GIB
        self.asked_age_ns = -1
        self.snapshots_listed_max = 1000
        self.uri = "nbd+unix:///{name}?socket=/pool/nbd.sock"

    def add(self, name: str, size_bytes: int, *, connections: int = 0, uris: list[str] | None = None) -> VolumeInfo:
        info = VolumeInfo(
            name=name,
            id=len(self.known) + 1,
            size_bytes=size_bytes,
            connections=connections,
            uris=uris or [self.uri.format(name=name)],
            kind="snapshot" if "@" in name else "volume",
            created="2024-05-06T07:08:09Z",
        )
        self.known[name] = info
        return info

    def release(self) -> None:
        held, self.held = self.held, []
        for answer in held:
            answer()

    def status(self) -> PoolStatus:
        return PoolStatus(
            path="/pool",
            uuid="6f0c7a34-0000-4000-8000-000000000001",
            pid=4711,
            format_version=1,
            capacity_bytes=self.capacity_bytes,
            segments=SegmentCounts(total=8, free=5, open=1, sealed=2),
            memory=MemoryUse(reserved=self.reserved),
            volumes=len(self.known),
        )

    def statistics(self) -> Statistics:
        return {"writes": 12, "write_bytes": 49152, "fill": 0.25}

    def metrics(self, *, age_ns_max: int = 0) -> bytes:
        self.asked_age_ns = age_ns_max
        return b"# TYPE holdfast_tasks gauge\nholdfast_tasks 3.0\n"

    def waits(self) -> WaitList:
        return WaitList(waits=self.waiting, total=len(self.waiting), cycles=self.cycles)

    def volumes(self) -> list[VolumeInfo]:
        return [
            replace(info, snapshots=len(self._snapshots_of(info.name)))
            for info in self.known.values()
            if info.kind == "volume"
        ]

    def snapshots(self, *, of: str = "", after: int = 0) -> SnapshotList:
        if of:
            self._find(of)
        found = [info for info in self._snapshots_of(of) if info.id > after]
        listed = found[: self.snapshots_listed_max]
        return SnapshotList(snapshots=listed, next=listed[-1].id if len(listed) < len(found) else 0)

    def _snapshots_of(self, name: str) -> list[VolumeInfo]:
        return [
            info
            for info in self.known.values()
            if info.kind == "snapshot" and (not name or info.name.startswith(f"{name}@"))
        ]

    def volume(self, name: str, reply: Reply) -> None:
        info = self._find(name)
        self._answer(lambda: reply(info))

    def _find(self, name: str) -> VolumeInfo:
        info = self.known.get(name)
        if info is None:
            raise NotFoundError(f"there is no volume {name!r} in this pool")
        return info

    def create_volume(self, wanted: CreateVolume, reply: Reply) -> None:
        name, size_bytes = wanted.name, wanted.size_bytes

        def answer() -> None:
            outcome: VolumeInfo | HoldfastError
            if name in self.known:
                outcome = RequestError(f"the volume {name!r} exists already; choose another name")
            elif size_bytes > TIB:
                outcome = NoSpaceError("the pool has no room for the map of this volume; give it more --capacity")
            else:
                self.add(name, size_bytes)
                settings = {field: value for field, value in asdict(wanted).items() if value is not None}
                outcome = self.known[name] = replace(self.known[name], **settings)
            reply(outcome)

        self._answer(answer)

    def change_volume(self, name: str, change: ChangeVolume, reply: Reply) -> None:
        info = self._find(name)

        def answer() -> None:
            changes = {field: value for field, value in asdict(change).items() if value is not None}
            if changes.pop("writable"):
                changes["read_only"] = False
            self.known[name] = replace(info, **changes)
            reply(self.known[name])

        self._answer(answer)

    def remove_volume(self, name: str, reply: Reply, *, force: bool = False, snapshots: bool = False) -> None:
        info = self._find(name)
        gone = self._snapshots_of(name) if info.kind == "volume" else []
        if gone and not snapshots:
            raise RequestError(f"volume {name!r} has snapshots")
        if info.protected:
            raise RequestError(f"{name!r} is protected")
        if info.connections and not force:
            raise RequestError(f"the volume {name!r} has {info.connections} connections; end them or use --force")

        def answer() -> None:
            for each in (info, *gone):
                del self.known[each.name]
            reply(VolumeRemoved(removed=name, snapshots=len(gone)))

        self._answer(answer)

    def take_snapshots(self, wanted: TakeSnapshots, reply: Reply) -> None:
        heads = [self._find(name.partition("@")[0]) for name in wanted.names]

        def answer() -> None:
            if any(name in self.known for name in wanted.names):
                reply(RequestError("there is such a snapshot already"))
                return
            pairs = zip(wanted.names, heads, strict=True)
            taken = [self.add(name, head.size_bytes) for name, head in pairs]
            for info in taken:
                self.known[info.name] = replace(info, identity=wanted.identity or f"{info.id:032x}")
            reply(VolumeList(volumes=[self.known[info.name] for info in taken]))

        self._answer(answer)

    def clone_volume(self, source: str, wanted: CloneVolume, reply: Reply) -> None:
        origin = self._find(source)

        def answer() -> None:
            self.add(wanted.name, origin.size_bytes)
            settings = {field: value for field, value in asdict(wanted).items() if value is not None}
            self.known[wanted.name] = replace(self.known[wanted.name], origin=source, **settings)
            reply(self.known[wanted.name])

        self._answer(answer)

    def promote_volume(self, name: str, reply: Reply) -> None:
        info = self._find(name)

        def answer() -> None:
            if not info.origin:
                reply(RequestError(f"{name!r} is not a clone"))
                return
            self.known[name] = replace(info, origin="", snapshots=1)
            reply(self.known[name])

        self._answer(answer)

    def roll_back_volume(self, snapshot: str, reply: Reply) -> None:
        self._find(snapshot)
        name = snapshot.partition("@")[0]
        self._answer(lambda: reply(replace(self.known[name], snapshots=len(self._snapshots_of(name)))))

    def resize_volume(self, name: str, wanted: ResizeVolume, reply: Reply) -> None:
        info = self._find(name)
        cut_bytes = max(0, info.size_bytes - wanted.size_bytes)
        if cut_bytes and not wanted.force:
            raise RequestError(f"cuts {cut_bytes} off")

        def answer() -> None:
            self.known[name] = replace(info, size_bytes=wanted.size_bytes)
            reply(VolumeResized(name=name, size_bytes=wanted.size_bytes, cut_bytes=cut_bytes))

        self._answer(answer)

    def change_pool(self, change: ChangePool, reply: Reply) -> None:
        def answer() -> None:
            self.capacity_bytes = change.capacity_bytes
            reply(self.status())

        self._answer(answer)

    def acknowledge_loss(self, name: str, loss_epoch: int, reply: Reply) -> None:
        info = self._find(name)
        if not info.loss_open or info.loss_epoch != loss_epoch:
            raise RequestError(f"volume {name!r} has no loss {loss_epoch} that is not acknowledged")

        def answer() -> None:
            self.known[name] = replace(info, loss_open=False)
            reply(self.known[name])

        self._answer(answer)

    def groups(self) -> list[GroupInfo]:
        return list(self.known_groups.values())

    def group(self, name: str) -> GroupInfo:
        info = self.known_groups.get(name)
        if info is None:
            raise NotFoundError(f"there is no group {name!r}")
        return info

    def create_group(self, wanted: CreateGroup, reply: Reply) -> None:
        def answer() -> None:
            if wanted.name in self.known_groups:
                reply(RequestError(f"there is a group {wanted.name!r} already"))
                return
            self.known_groups[wanted.name] = GroupInfo(id=len(self.known_groups), **_set_fields(wanted))
            reply(self.known_groups[wanted.name])

        self._answer(answer)

    def change_group(self, name: str, change: ChangeGroup, reply: Reply) -> None:
        info = self.group(name)

        def answer() -> None:
            self.known_groups[name] = replace(info, **_set_fields(change))
            reply(self.known_groups[name])

        self._answer(answer)

    def remove_group(self, name: str, reply: Reply) -> None:
        self.group(name)
        if any(volume.group == name for volume in self.known.values()):
            raise RequestError(f"group {name!r} has volumes; put them into another one")

        def answer() -> None:
            del self.known_groups[name]
            reply(GroupRemoved(removed=name))

        self._answer(answer)

    def shutdown(self) -> None:
        self.stopped = True

    def _answer(self, answer: Callable[[], None]) -> None:
        if self.hold_replies:
            self.held.append(answer)
        else:
            answer()


def _set_fields(change: ChangeGroup) -> dict[str, Any]:
    return {field: value for field, value in asdict(change).items() if value is not UNSET}

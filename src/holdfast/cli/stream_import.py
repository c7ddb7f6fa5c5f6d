"""`holdfast copy FILE POOL/vol`, where FILE is a stream: a volume becomes what a snapshot was, and gets that snapshot.

A full stream makes a new volume. An increment is applied to a volume that has the snapshot it begins with, by its
identity, and did not change since. Records are applied as they are read, over NBD; once all are durable, a snapshot
with the identity of the stream's is taken. An import that was broken off leaves a volume without that snapshot, and
repeated with --resume comes to the same end:

 - what the volume holds already is read and compared, not written again, so whatever was lost of it is found
 - what changed and is not in the stream is refused: then it was not an import that was broken off
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from holdfast.cli.command import EXIT_NO, CommandError
from holdfast.cli.locate import PoolPath
from holdfast.cli.nbd_session import CONTROL_BYTES_MAX, NbdAddress, NbdSession
from holdfast.cli.places import NbdPlace, Worker
from holdfast.cli.reach import ReachedPool
from holdfast.cli.stream_format import (
    DATA,
    DATA_BYTES_MAX,
    Record,
    SnapshotIdentity,
    StreamError,
    StreamHeader,
    StreamReader,
)
from holdfast.cli.transfer import Collector, Progress
from holdfast.control.api import CreateVolume, TakeSnapshots, VolumeInfo
from holdfast.control.client import ControlClient
from holdfast.errors import NotFoundError
from holdfast.units import format_size


class RefusedError(CommandError):
    """The volume is not what the stream can be applied to."""

    exit_code = EXIT_NO


@dataclass(slots=True)
class Imported:
    """`kept_bytes`: data that the volume held already. `is_copy`: the snapshot surely holds what the stream's did."""

    snapshot: str
    kept_bytes: int = 0
    is_copy: bool = True
    was_there: bool = False


@dataclass(frozen=True, slots=True)
class Destination:
    """What is received, and how."""

    pool: ReachedPool
    pool_path: str
    volume: str
    label: str  # of the snapshot to be
    resume: bool
    force: bool
    create: bool

    @property
    def snapshot(self) -> str:
        return f"{self.volume}@{self.label}"

    def named(self, name: str) -> str:
        return f"{self.pool_path}/{name}"


def import_stream(reader: StreamReader, into: Destination, *, depth: int, progress: Progress) -> Imported:
    """Raises RefusedError, StreamError, and what the pool and its server say."""
    header, client = reader.header, into.pool.client
    there = _find(client, into.snapshot)
    if there is not None:
        return _already(into, there, header)
    info = _find(client, into.volume)
    is_new = info is None
    base = None
    if header.base is None:
        info = info or _make(into, header)
        if not (is_new or into.resume or into.force):
            raise RefusedError(
                f"{into.named(into.volume)}: the volume exists, and a whole stream makes a new one; name another, go "
                "on with an import that was broken off with --resume, or overwrite it with --force"
            )
    elif info is None:
        raise RefusedError(
            f"{into.named(into.volume)}: there is no such volume, and the stream only has what changed since "
            f"{header.base.name}; import a stream of that first"
        )
    else:
        base = _find_base(into, header.base)
    if info.size_bytes != header.size_bytes:
        raise RefusedError(
            f"{into.named(into.volume)} has {format_size(info.size_bytes)} ({info.size_bytes} bytes), what the stream "
            f"holds {format_size(header.size_bytes)} ({header.size_bytes} bytes); first give it that size: "
            f"`holdfast volume resize {into.named(into.volume)} {header.size_bytes}`"
        )
    address = NbdAddress.parse(into.pool.uri_of(PoolPath(Path(into.pool_path), into.volume), info))
    with ExitStack() as stack:
        place = NbdPlace(address, depth=depth, write_size_bytes=header.size_bytes)
        stack.callback(place.close)
        place.known_zero = is_new
        is_copy = header.base is None
        if base is not None and not into.resume:
            is_copy = _is_unchanged(address, into, base, header.size_bytes)
        holdings = None
        if into.resume and not is_new:
            is_copy = True
            session = NbdSession(address, depth=depth, changed_since="" if base is None else base.name)
            stack.callback(session.close)
            holdings = _Holdings(session, into, base, header.size_bytes)
        imported = Imported(into.snapshot, is_copy=is_copy)
        imported.kept_bytes = _apply(reader, place, holdings, progress)
        place.flush()
    identity = header.snapshot.identity if is_copy else ""
    client.take_snapshots(TakeSnapshots(names=[into.snapshot], identity=identity))
    return imported


# --- What the stream meets --------------------------------------------------------------------------------------------


def _find(client: ControlClient, name: str) -> VolumeInfo | None:
    try:
        return client.volume(name)
    except NotFoundError:
        return None


def _already(into: Destination, there: VolumeInfo, header: StreamHeader) -> Imported:
    name = into.named(there.name)
    if there.identity != header.snapshot.identity:
        raise RefusedError(
            f"{name}: there is another snapshot of this name; name the one to be, as {into.named(into.volume)}@NAME"
        )
    if not into.resume:
        raise RefusedError(f"{name}: the snapshot is there already, with what the stream holds; there is nothing to do")
    return Imported(into.snapshot, was_there=True)


def _make(into: Destination, header: StreamHeader) -> VolumeInfo:
    if not into.create:
        raise RefusedError(f"{into.named(into.volume)}: there is no such volume; leave out --no-create")
    return into.pool.client.create_volume(CreateVolume(name=into.volume, size_bytes=header.size_bytes))


def _find_base(into: Destination, wanted: SnapshotIdentity) -> VolumeInfo | None:
    """The snapshot of the volume that the increment begins with; None, with --force, if it has none."""
    for snapshot in into.pool.client.snapshots(into.volume):
        if snapshot.identity == wanted.identity:
            return snapshot
    if into.force:
        return None
    raise RefusedError(
        f"{into.named(into.volume)} has no snapshot with the content of {wanted.name}, since which the stream has the "
        "changes; import a stream of that first, or apply it all the same with --force"
    )


def _is_unchanged(address: NbdAddress, into: Destination, base: VolumeInfo, size_bytes: int) -> bool:
    """True if the volume is what its snapshot is. If not, that is refused, or, with --force, False."""
    session = NbdSession(address, changed_since=base.name)
    try:
        at = _Runs(session, size_bytes, since_base=True).first_touched(size_bytes)
    finally:
        session.close()
    if at < 0 or into.force:
        return at < 0
    raise RefusedError(
        f"{into.named(into.volume)} was written to since {base.name}, at offset {at} first; go back to that with "
        f"`holdfast volume rollback {into.named(base.name)}`, go on with an import that was broken off with --resume, "
        "or apply the stream all the same with --force"
    )


class _Runs:
    """What a volume holds, or what of it changed since a snapshot, looked through once from its beginning on: asked for
    only when it is reached, so that what is written behind that point is not told."""

    def __init__(self, session: NbdSession, size_bytes: int, *, since_base: bool) -> None:
        self._session = session
        self._size_bytes = size_bytes
        self._since_base = since_base
        self._runs: deque[tuple[int, bool]] = deque()
        self._offset = 0

    def first_touched(self, end: int) -> int:
        """The first offset up to `end`, from where the last call stopped, of something there; -1: there is nothing."""
        found = -1
        while self._offset < end:
            if not self._runs:
                self._runs.extend(self._ask())
            length, touched = self._runs.popleft()
            taken = min(length, end - self._offset)
            if touched and found < 0:
                found = self._offset
            self._offset += taken
            if taken < length:
                self._runs.appendleft((length - taken, touched))
        return found

    def _ask(self) -> list[tuple[int, bool]]:
        asked = min(self._size_bytes - self._offset, CONTROL_BYTES_MAX)
        if self._since_base:
            return self._session.changes(self._offset, asked)[0]
        return [(length, not is_hole) for length, is_hole in self._session.block_status(self._offset, asked)]


# --- Applying it ------------------------------------------------------------------------------------------------------


class _Holdings:
    """What an import that was broken off has left in the volume."""

    def __init__(self, session: NbdSession, into: Destination, base: VolumeInfo | None, size_bytes: int) -> None:
        self._into = into
        self._base = base
        self._runs = _Runs(session, size_bytes, since_base=base is not None)
        self._collector = Collector(DATA_BYTES_MAX)

    def pass_over(self, end: int) -> None:
        """What lies up to `end` is not in the stream: it must not have changed."""
        at = self._runs.first_touched(end)
        if at >= 0:
            assert self._base is not None, "a whole stream leaves nothing out"
            raise RefusedError(
                f"{self._into.named(self._into.volume)} was written to since {self._base.name}, at offset {at}, where "
                f"the stream has nothing; go back with `holdfast volume rollback {self._into.named(self._base.name)}`, "
                "then import it anew"
            )

    def has(self, record: Record, worker: Worker) -> bool:
        """Whether the record is in the volume already."""
        touched = self._runs.first_touched(record.offset + record.length) >= 0
        if record.kind != DATA:
            return self._base is None and not touched
        # As bytes: comparing memoryviews goes element by element.
        return touched and bytes(self._collector.fetch(worker, record.offset, record.length)) == bytes(record.view)


def _apply(reader: StreamReader, place: NbdPlace, holdings: _Holdings | None, progress: Progress) -> int:
    """Write the records; returns the bytes of data that were there already."""
    kept_bytes = 0
    worker = place.open_worker()
    try:
        while (record := reader.record()) is not None:
            if holdings is not None:
                holdings.pass_over(record.offset)
            if holdings is not None and holdings.has(record, worker):
                kept_bytes += len(record.view)
            elif record.kind == DATA:
                worker.data(record.offset, record.view)
            else:
                worker.zeros(record.offset, record.length)
            progress(record.offset + record.length)
        if holdings is not None:
            holdings.pass_over(reader.header.size_bytes)
        worker.drain()
    except StreamError:
        worker.drain()  # what came before was whole, and need not be sent again
        raise
    finally:
        worker.close()
    return kept_bytes

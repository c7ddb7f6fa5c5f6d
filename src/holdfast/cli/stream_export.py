"""`holdfast copy POOL/vol@a..b FILE`: a snapshot, or what differs between two, written as a stream.

The server says what changed (holdfast:changed-since) and what of that is a hole, the data is read over the same
connection, several requests in flight, and written in the order of the volume. A snapshot does not change, so an export
that was broken off goes on behind the last whole record of its file, and ends in the same stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.cli.command import CommandError
from holdfast.cli.nbd_session import CONTROL_BYTES_MAX, NbdAddress, NbdSession
from holdfast.cli.stream_file import StreamTarget
from holdfast.cli.stream_format import (
    DATA_BYTES_MAX,
    SnapshotIdentity,
    StreamHeader,
    StreamWriter,
    Totals,
    encode_header,
)
from holdfast.cli.transfer import Progress
from holdfast.control.api import VolumeInfo

# Of DATA_BYTES_MAX each, and all in memory at once; more requests at a time make nothing faster.
BATCH_PIECES_MAX = 32

Piece = tuple[int, int, bool]  # offset, length, reads as zeroes


def identity_of(info: VolumeInfo, pool_uuid: str) -> SnapshotIdentity:
    if not info.identity:
        raise CommandError(f"{info.name}: the server of the pool is too old for streams; restart it with this version")
    return SnapshotIdentity(identity=info.identity, name=info.name, pool=pool_uuid, created=info.created)


@dataclass(slots=True)
class Exported:
    totals: Totals
    resumed_at: int  # in the volume; 0: it was made from the start


def export_stream(
    address: NbdAddress, header: StreamHeader, target: str, *, depth: int, resume: bool, progress: Progress
) -> Exported:
    """Write the stream of `header.snapshot`, which is the export at `address`, to a file, or to standard output."""
    session = NbdSession(address, depth=depth, changed_since="" if header.base is None else header.base.name)
    try:
        if header.base is not None and session.terms.changed_since_context is None:
            raise CommandError(f"{address.uri}: the server does not tell what changed since {header.base.name}")
        with StreamTarget(target, encode_header(header), resume=resume) as output:
            resumed_at = output.totals.end
            if not output.complete:
                writer = StreamWriter(output.write, output.totals)
                _write_pieces(session, header, writer, depth=depth, progress=progress)
                writer.end()
                output.finish()
            return Exported(output.totals, resumed_at)
    finally:
        session.close()


def _write_pieces(
    session: NbdSession, header: StreamHeader, writer: StreamWriter, *, depth: int, progress: Progress
) -> None:
    """Write what is still missing."""
    batch = _Batch(session, depth)
    for offset, length, zero in _cut(_extents(session, header, writer.totals.end)):
        if zero:
            batch.write_to(writer)
            writer.zeros(offset, length)
        else:
            batch.read(offset, length)
            if batch.full:
                batch.write_to(writer)
        progress(offset + length)
    batch.write_to(writer)


def _extents(session: NbdSession, header: StreamHeader, start: int) -> Iterator[Piece]:
    """What belongs into the stream from `start` on: neighbours differ, or what is between them did not change."""
    begin, end, zero = start, start, False
    for offset, length, is_zero in _told(session, header, start):
        if offset == end and is_zero == zero:
            end += length
            continue
        if end > begin:
            yield begin, end - begin, zero
        begin, end, zero = offset, offset + length, is_zero
    if end > begin:
        yield begin, end - begin, zero


def _told(session: NbdSession, header: StreamHeader, start: int) -> Iterator[Piece]:
    size = header.size_bytes
    offset = start
    while offset < size:
        asked = min(size - offset, CONTROL_BYTES_MAX)
        if header.base is None:
            holes = session.block_status(offset, asked)
            changed = [(sum(run for run, _ in holes), True)]
        else:
            changed, holes = session.changes(offset, asked)
        end = min(size, offset + min(sum(run for run, _ in changed), sum(run for run, _ in holes)))
        for at, until, is_changed, is_hole in _both(offset, end, changed, holes):
            if is_changed:
                yield at, until - at, is_hole
        offset = end


def _both(
    offset: int, end: int, left: list[tuple[int, bool]], right: list[tuple[int, bool]]
) -> Iterator[tuple[int, int, bool, bool]]:
    """Two lists of runs laid over each other: (begin, end, state of the left, state of the right)."""
    lefts, rights = iter(left), iter(right)
    left_end = right_end = offset
    ours = theirs = False
    while offset < end:
        if left_end == offset:
            run, ours = next(lefts)
            left_end += run
        if right_end == offset:
            run, theirs = next(rights)
            right_end += run
        until = min(left_end, right_end, end)
        yield offset, until, ours, theirs
        offset = until


def _cut(extents: Iterator[Piece]) -> Iterator[Piece]:
    """Data in records of at most DATA_BYTES_MAX, that end where a multiple of it does."""
    for begin, length, zero in extents:
        offset, end = begin, begin + length
        while offset < end:
            step = end - offset if zero else min(end - offset, DATA_BYTES_MAX - offset % DATA_BYTES_MAX)
            yield offset, step, zero
            offset += step


class _Batch:
    """Pieces that are read at the same time and written one after the other; a sink of the session that reads them."""

    def __init__(self, session: NbdSession, depth: int) -> None:
        self._session = session
        self._buffers = [memoryview(bytearray(DATA_BYTES_MAX)) for _ in range(min(depth, BATCH_PIECES_MAX))]
        self._pieces: list[tuple[int, int]] = []

    @property
    def full(self) -> bool:
        return len(self._pieces) == len(self._buffers)

    def read(self, offset: int, length: int) -> None:
        buffer = self._buffers[len(self._pieces)]
        self._pieces.append((offset, length))
        step_max = self._session.transfer_bytes_max
        for at in range(0, length, step_max):
            self._session.read(offset + at, min(step_max, length - at), _Slot(offset, buffer))

    def write_to(self, writer: StreamWriter) -> None:
        self._session.drain()
        for (offset, length), buffer in zip(self._pieces, self._buffers, strict=False):
            writer.data(offset, buffer[:length])
        self._pieces.clear()


class _Slot:
    """Where one piece goes."""

    def __init__(self, offset: int, buffer: memoryview) -> None:
        self._offset = offset
        self._buffer = buffer

    def data(self, offset: int, view: memoryview) -> None:
        at = offset - self._offset
        self._buffer[at : at + len(view)] = view

    def zeros(self, offset: int, length: int) -> None:
        at = offset - self._offset
        self._buffer[at : at + length] = bytes(length)

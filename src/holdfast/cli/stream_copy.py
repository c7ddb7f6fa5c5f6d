"""The part of `holdfast copy` that deals with streams: what the words on the command line mean, and the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
from msgspec import Struct

from holdfast.cli.command import CommandError
from holdfast.cli.locate import PoolPath, is_pool
from holdfast.cli.nbd_session import NbdAddress
from holdfast.cli.output import print_json
from holdfast.cli.progress import progress_bar
from holdfast.cli.reach import ReachedPool
from holdfast.cli.stream_export import export_stream, identity_of
from holdfast.cli.stream_file import STANDARD, StreamFile
from holdfast.cli.stream_format import StreamHeader, StreamReader, Totals
from holdfast.cli.stream_import import Destination, import_stream
from holdfast.control.names import validate_name, validate_snapshot_name
from holdfast.errors import RequestError
from holdfast.units import format_size


class StreamReport(Struct, frozen=True, kw_only=True):
    source: str
    target: str
    snapshot: str  # VOLUME@SNAPSHOT: whose stream it is, or what was received
    base: str | None  # what the stream begins with; none: it holds everything
    size_bytes: int
    data_bytes: int
    zero_bytes: int
    records: int
    stream_bytes: int
    seconds: float
    resumed: bool = False
    kept_bytes: int = 0  # data that the volume held already when the import went on
    identical: bool = True  # false: applied by force, what the snapshot holds is not what the stream's did


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options of the command say."""

    requests: int
    resume: bool
    force: bool
    create: bool
    show_progress: bool
    quiet: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Span:
    """The snapshots whose difference is wanted; no `base`: all of one."""

    where: PoolPath  # POOL/VOLUME@SNAPSHOT
    base: str | None = None  # VOLUME@SNAPSHOT


def span_of(text: str, *, stream: bool) -> Span | None:
    """What POOL/VOLUME@A..B, or with `stream` POOL/VOLUME@B, means; None if no stream is to be made of it."""
    path = Path(text)
    if "://" in text or not is_pool(path.parent) or is_pool(path):
        if stream:
            raise CommandError(f"{text}: a stream is made of a snapshot of a pool; write POOL/VOLUME@SNAPSHOT")
        return None
    volume, at, label = path.name.partition("@")
    first, dots, last = label.partition("..")
    if not dots and not stream:
        return None
    here = f"{path.parent}/{volume}"
    if not at or (dots and not last):
        now = f"{here}@{first}..NAME" if dots else f"{here}@NAME"
        raise CommandError(
            f"{text}: a stream ends with a snapshot, which the next one begins with; take one with `holdfast volume "
            f"snapshot {here}@NAME`, then copy {now}" + ("" if dots else " --stream")
        )
    if dots and not first:
        raise CommandError(f"{text}: there is nothing before the dots; for all of it copy {here}@{last} --stream")
    try:
        where = PoolPath(path.parent, validate_snapshot_name(f"{volume}@{last if dots else label}"))
        return Span(where, validate_snapshot_name(f"{volume}@{first}") if dots else None)
    except RequestError as error:
        raise CommandError(str(error)) from error


def export(span: Span, target: str, source: str, reach: Callable[[Path], ReachedPool], wanted: Wanted) -> StreamReport:
    if wanted.force:
        raise CommandError("--force is for importing a stream; a file is replaced without it")
    began = time.monotonic()
    pool = reach(span.where.pool)
    assert span.where.name is not None
    uuid = pool.client.status().uuid
    info = pool.client.volume(span.where.name)
    base = None if span.base is None else identity_of(pool.client.volume(span.base), uuid)
    header = StreamHeader(size_bytes=info.size_bytes, snapshot=identity_of(info, uuid), base=base)
    address = NbdAddress.parse(pool.uri_of(span.where, info))
    with progress_bar("exporting", info.size_bytes, show=wanted.show_progress) as progress:
        made = export_stream(
            address, header, target, depth=wanted.requests, resume=wanted.resume, progress=_seldom(progress)
        )
    report = _report(source, target, header, made.totals, began, resumed=made.resumed_at > 0)
    _print(report, f"exported {header.what()}", wanted, to_stderr=target == STANDARD)
    return report


def import_(source: str, where: PoolPath, reach: Callable[[Path], ReachedPool], wanted: Wanted) -> StreamReport:
    if wanted.force and wanted.resume:
        raise CommandError("--resume and --force exclude each other: one trusts what the volume holds, one does not")
    began = time.monotonic()
    assert where.name is not None
    volume, _, label = where.name.partition("@")
    with ExitStack() as stack:
        file = stack.enter_context(StreamFile(source))
        reader = StreamReader(file.fill, source if source != STANDARD else "standard input")
        header = reader.header
        label = label or header.snapshot.label
        try:
            validate_name(f"{volume}@{label}")
        except RequestError as error:
            raise CommandError(f"{error}; name the snapshot to be, as {where.pool}/{volume}@NAME") from error
        into = Destination(
            reach(where.pool), str(where.pool), volume, label, wanted.resume, wanted.force, wanted.create
        )
        progress = stack.enter_context(progress_bar("importing", header.size_bytes, show=wanted.show_progress))
        done = import_stream(reader, into, depth=wanted.requests, progress=_seldom(progress))
    target = into.named(done.snapshot)
    report = _report(
        source, target, header, reader.totals, began,
        resumed=wanted.resume, kept_bytes=done.kept_bytes, identical=done.is_copy,
    )  # fmt: skip
    if done.was_there:
        _print(report, f"{target} is there already, with what the stream holds", wanted, short=True)
    else:
        _print(report, f"imported {header.what()} as {target}", wanted)
    if not done.is_copy and not wanted.quiet:
        click.echo(
            f"holdfast: {target}: applied by force, it may not hold what {header.snapshot.name} did; the next "
            "increment will have to be forced as well",
            err=True,
        )
    return report


def _seldom(progress: Callable[[int], None]) -> Callable[[int], None]:
    """Drawing takes longer than a record: ten times a second are enough."""
    drawn = 0.0

    def show(done_bytes: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn > 0.1:
            drawn = now
            progress(done_bytes)

    return show


def _report(
    source: str, target: str, header: StreamHeader, totals: Totals, began: float, *,
    resumed: bool, kept_bytes: int = 0, identical: bool = True,
) -> StreamReport:  # fmt: skip
    return StreamReport(
        source=source,
        target=target,
        snapshot=header.snapshot.name,
        base=None if header.base is None else header.base.name,
        size_bytes=header.size_bytes,
        data_bytes=totals.data_bytes,
        zero_bytes=totals.zero_bytes,
        records=totals.records,
        stream_bytes=totals.stream_bytes,
        seconds=round(time.monotonic() - began, 3),
        resumed=resumed,
        kept_bytes=kept_bytes,
        identical=identical,
    )


def _print(report: StreamReport, what: str, wanted: Wanted, *, to_stderr: bool = False, short: bool = False) -> None:
    if wanted.as_json and not to_stderr:
        print_json(report)
    elif not wanted.quiet:
        amounts = (
            f": {format_size(report.data_bytes)} of data and {format_size(report.zero_bytes)} of zeroes in "
            f"{report.records} records, {report.seconds:.1f} s"
        )
        kept = f", {format_size(report.kept_bytes)} of it was there" if report.kept_bytes else ""
        click.echo(what if short else what + amounts + kept, err=to_stderr)

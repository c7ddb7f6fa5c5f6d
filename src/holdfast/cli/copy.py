"""`holdfast copy`: what SRC and DST name, the server of an idle pool, the progress bar, the verdict.

The data always goes over NBD, also to a pool on this host: one path, the one that is tested most.  An idle pool is
served for the time of the copy by a child process on a socket of its own, and left as it was found: idle and clean.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click
from msgspec import Struct

from holdfast.cli.command import EXIT_NO, CommandError, ManualCommand, print_error
from holdfast.cli.locate import PLACE, PoolPath, is_pool
from holdfast.cli.output import print_json
from holdfast.cli.progress import progress_bar
from holdfast.cli.reach import ReachedPool, reach_pool
from holdfast.control.api import CreateVolume
from holdfast.control.names import validate_name
from holdfast.errors import NotFoundError, RequestError
from holdfast.units import GIB, format_size

if TYPE_CHECKING:
    # Imported when a copy begins: `holdfast copy --help` does without.
    from holdfast.cli.places import FilePlace, NbdPlace

    _Place: TypeAlias = FilePlace | NbdPlace

STANDARD = "-"  # as SRC or DST: standard input or output


class CopyReport(Struct, frozen=True, kw_only=True):
    source: str
    target: str
    size_bytes: int
    data_bytes: int  # read; the rest was known to be zeroes
    seconds: float
    verified: bool
    identical: bool = True
    different_at: int | None = None


@click.command(
    name="copy",
    cls=ManualCommand,
    exit_codes={
        1: "the copy differs (--verify), the stream is damaged or does not fit, or the pool refused: no such volume, "
        "no space"
    },
    examples=[
        ("An image into a new volume", "holdfast copy debian.raw ./pool/disk0"),
        ("A volume into a sparse file, compared afterwards", "holdfast copy --verify ./pool/disk0 backup.raw"),
        ("A block device into a volume", "holdfast copy /dev/sdb ./pool/disk1"),
        ("From another NBD server", "holdfast copy nbd://host/export ./pool/disk2"),
        ("A snapshot into a raw file", "holdfast copy ./pool/disk0@monday monday.raw"),
        ("A snapshot as a stream", "holdfast copy --stream ./pool/disk0@monday monday.hfs"),
        ("What changed from one snapshot to the next", "holdfast copy ./pool/disk0@monday..tuesday tuesday.hfs"),
        ("Streams into another pool, one after the other", "holdfast copy monday.hfs /backup/pool/disk0"),
        (
            "Without a file in between",
            "holdfast copy ./pool/disk0@monday..tuesday - | ssh host holdfast copy - /backup/pool/disk0",
        ),
    ],
)
@click.argument("source", type=PLACE, metavar="SRC")
@click.argument("target", type=PLACE, metavar="DST")
@click.option("--create/--no-create", default=True, help="Create the volume DST with the size of SRC if it is missing.")
@click.option("--verify", is_flag=True, help="Read both back afterwards and compare them.")
@click.option("--stream", is_flag=True, help="Write the snapshot SRC to DST as a stream, for increments to follow.")
@click.option("--resume", is_flag=True, help="Go on with a stream whose export or import was broken off.")
@click.option("--force", is_flag=True, help="Apply a stream to a volume that it does not fit, or that holds data.")
@click.option("--raw", is_flag=True, help="Copy a SRC that is a stream as it is, as the content of a disk.")
@click.option("--connections", type=click.IntRange(1, 64), default=2, help="NBD connections, each with a thread.")
@click.option("--requests", type=click.IntRange(1, 256), default=8, help="Requests in flight on each connection.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar. There is none without a terminal anyway.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    source: str,
    target: str,
    create: bool,
    verify: bool,
    stream: bool,
    resume: bool,
    force: bool,
    raw: bool,
    connections: int,
    requests: int,
    no_progress: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Copy SRC to DST, one of them a volume.

    SRC and DST are a file, a block device, a volume as POOL/NAME, or an NBD URI (nbd://HOST/NAME or
    nbd+unix:///NAME?socket=PATH); at least one is a volume or a URI.  The pool may be served or idle.  SRC may be a
    snapshot, POOL/NAME@SNAPSHOT.

    Holes and zeroes take no space where they arrive.  All is durable when the command ends.  A file DST is replaced;
    a volume or a device DST must be at least as large as SRC, and keeps what it has behind the end of SRC.

    POOL/NAME@A..B is what changed from snapshot A to snapshot B: DST, a file or - for standard output, gets it as a
    stream, which has a checksum on everything; --stream makes one of a whole snapshot.  A stream as SRC, or - for
    standard input, is applied to the volume DST: a whole one makes it, an increment needs the snapshot that it begins
    with, unchanged.  DST then gets the snapshot that the stream ends with (another name: POOL/NAME@SNAPSHOT), so that
    the next increment fits.
    """
    from holdfast.cli import stream_copy
    from holdfast.cli.places import check_fits
    from holdfast.cli.stream_file import is_damaged_stream, is_stream
    from holdfast.cli.stream_format import StreamError
    from holdfast.cli.transfer import DifferentError, compare, transfer

    show_progress = not (no_progress or quiet or as_json) and sys.stderr.isatty()
    began = time.monotonic()
    with ExitStack() as stack:
        ends = _Ends(stack, requests=requests)
        wanted = stream_copy.Wanted(requests, resume, force, create, show_progress, quiet, as_json)
        span = stream_copy.span_of(source, stream=stream)
        where = None if target == STANDARD else _volume_of(target)
        to_import = span is None and not raw and not ends.is_remote(source) and is_stream(source)
        if span is not None or (to_import and where is not None):
            if verify:
                raise CommandError("a stream has a checksum on everything, tried by each import; leave out --verify")
            if span is None:
                assert where is not None
                stream_copy.import_(source, where, ends.reach, wanted)
            elif ends.is_remote(target):
                raise CommandError(f"{target}: a stream is written to a file, or to -; import that into a volume")
            else:
                stream_copy.export(span, target, source, ends.reach, wanted)
            return 0
        if to_import:
            raise CommandError(
                f"{source} is a stream: import it into a volume, POOL/NAME, or copy it as it is with --raw"
            )
        if not raw and not ends.is_remote(source) and is_damaged_stream(source):
            raise StreamError(
                f"{source} is a stream whose beginning is damaged or cut off: get it anew, or copy it with --raw"
            )
        if resume or force:
            raise CommandError("--resume and --force are for streams; other copies are simply made anew")
        if STANDARD in (source, target):
            raise CommandError("only a stream goes through a pipe: - is for POOL/NAME@A..B or --stream, and for import")
        if where is not None and "@" in (where.name or ""):
            raise CommandError(f"{target}: a snapshot stays as it is; name a volume")
        if not ends.is_remote(source) and not ends.is_remote(target):
            raise CommandError(f"{source} and {target} are both files; name a volume as POOL/NAME, or use cp --sparse")
        left = ends.open_source(source)
        if not left.size_bytes and ends.is_remote(target):
            raise CommandError(f"{source} is empty; is it the right SRC? nothing was copied")
        right = ends.open_target(target, source, left.size_bytes, create=create)
        check_fits(left, source, right, target)
        with progress_bar("copying", left.size_bytes, show=show_progress) as progress:
            moved = transfer(left, right, connections=connections, progress=progress)
        seconds = time.monotonic() - began
        different_at = None
        if verify:
            with progress_bar("comparing", left.size_bytes, show=show_progress) as progress:
                try:
                    compare(left, right, connections=connections, progress=progress)
                except DifferentError as error:
                    different_at = error.offset
    report = CopyReport(
        source=source,
        target=target,
        size_bytes=left.size_bytes,
        data_bytes=moved.data_bytes,
        seconds=round(seconds, 3),
        verified=verify,
        identical=different_at is None,
        different_at=different_at,
    )
    _print_report(report, as_json=as_json, quiet=quiet)
    return 0 if report.identical else EXIT_NO


def _print_report(report: CopyReport, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json(report)
    elif report.identical and not quiet:
        speed = report.size_bytes / GIB / max(report.seconds, 0.001)
        click.echo(
            f"copied {format_size(report.size_bytes)}, {format_size(report.data_bytes)} of it data, in "
            f"{report.seconds:.1f} s ({speed:.2f} GiB/s)" + (", verified" if report.verified else "")
        )
    if not report.identical:
        print_error(
            f"{report.target} differs from {report.source} at or after offset {report.different_at}; "
            "was one of them written to meanwhile? copy again, then check the pool"
        )


# --- Source and target ------------------------------------------------------------------------------------------------


class _Ends:
    """Opens both ends of a copy; what is opened, and the server of an idle pool, is closed with `stack`."""

    def __init__(self, stack: ExitStack, *, requests: int) -> None:
        self._stack = stack
        self._requests = requests
        self._pools: dict[Path, ReachedPool] = {}

    @staticmethod
    def is_remote(text: str) -> bool:
        return text != STANDARD and ("://" in text or _volume_of(text) is not None)

    def open_source(self, text: str) -> _Place:
        from holdfast.cli.nbd_session import NbdAddress
        from holdfast.cli.places import FilePlace, NbdPlace

        place: _Place
        if "://" in text:
            place = NbdPlace(NbdAddress.parse(text), depth=self._requests)
        elif (where := _volume_of(text)) is not None:
            pool = self.reach(where.pool)
            uri = pool.uri_of(where, pool.client.volume(where.name or ""))
            place = NbdPlace(NbdAddress.parse(uri), depth=self._requests)
        else:
            place = FilePlace(Path(text))
        self._stack.callback(place.close)
        return place

    def open_target(self, text: str, source: str, size_bytes: int, *, create: bool) -> _Place:
        """`source` of `size_bytes` is what is to be copied there."""
        from holdfast.cli.nbd_session import NbdAddress
        from holdfast.cli.places import FilePlace, NbdPlace

        place: _Place
        if "://" in text:
            place = NbdPlace(NbdAddress.parse(text), depth=self._requests, write_size_bytes=size_bytes)
        elif (where := _volume_of(text)) is not None:
            pool = self.reach(where.pool)
            created = False
            assert where.name is not None
            try:
                info = pool.client.volume(where.name)
            except NotFoundError:
                if not create:
                    raise
                info = pool.client.create_volume(CreateVolume(name=where.name, size_bytes=size_bytes))
                created = True
            uri = pool.uri_of(where, info)
            place = NbdPlace(NbdAddress.parse(uri), depth=self._requests, write_size_bytes=size_bytes)
            place.known_zero = created
        else:
            place = FilePlace(Path(text), write_size_bytes=size_bytes)
        self._stack.callback(place.close)
        return place

    def reach(self, pool: Path) -> ReachedPool:
        key = pool.resolve()
        if key not in self._pools:
            self._pools[key] = self._stack.enter_context(reach_pool(pool))
        return self._pools[key]


def _volume_of(text: str) -> PoolPath | None:
    """The volume that `text` names, or None if it names a file."""
    path = Path(text)
    if is_pool(path):
        raise CommandError(f"{text} is a pool and names no volume; write {text.rstrip('/')}/NAME")
    if not is_pool(path.parent):
        return None
    try:
        return PoolPath(path.parent, validate_name(path.name))
    except RequestError as error:
        raise CommandError(str(error)) from error

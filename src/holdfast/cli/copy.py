"""`holdfast copy`: what SRC and DST name, the server of an idle pool, the progress bar, the verdict.

The data always goes over NBD, also to a pool on this host: one path, the one that is tested most.  An idle pool is
served for the time of the copy by a child process on a socket of its own, and left as it was found: idle and clean.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias
from urllib.parse import quote

import click
from msgspec import Struct

from holdfast.cli.command import EXIT_NO, CommandError, ManualCommand, print_error
from holdfast.cli.locate import PLACE, PoolPath, is_pool
from holdfast.cli.output import print_json
from holdfast.control.api import CreateVolume, VolumeInfo
from holdfast.control.client import ControlClient
from holdfast.control.names import validate_name
from holdfast.errors import NotFoundError, RequestError
from holdfast.units import GIB, format_size

if TYPE_CHECKING:
    # Imported when a copy begins: `holdfast copy --help` does without.
    from holdfast.cli.places import FilePlace, NbdPlace

    _Place: TypeAlias = FilePlace | NbdPlace

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


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
    exit_codes={1: "the copy differs (--verify), or the pool refused: no such volume, no space"},
    examples=[
        ("An image into a new volume", "holdfast copy debian.raw ./pool/disk0"),
        ("A volume into a sparse file, compared afterwards", "holdfast copy --verify ./pool/disk0 backup.raw"),
        ("A block device into a volume", "holdfast copy /dev/sdb ./pool/disk1"),
        ("From another NBD server", "holdfast copy nbd://host/export ./pool/disk2"),
    ],
)
@click.argument("source", type=PLACE, metavar="SRC")
@click.argument("target", type=PLACE, metavar="DST")
@click.option("--create/--no-create", default=True, help="Create the volume DST with the size of SRC if it is missing.")
@click.option("--verify", is_flag=True, help="Read both back afterwards and compare them.")
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
    connections: int,
    requests: int,
    no_progress: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Copy SRC to DST, one of them a volume.

    SRC and DST are a file, a block device, a volume as POOL/NAME, or an NBD URI (nbd://HOST/NAME or
    nbd+unix:///NAME?socket=PATH); at least one is a volume or a URI.  The pool may be served or idle.

    Holes and zeroes take no space where they arrive.  All is durable when the command ends.  A file DST is replaced;
    a volume or a device DST must be at least as large as SRC, and keeps what it has behind the end of SRC.
    """
    from holdfast.cli.places import check_fits
    from holdfast.cli.transfer import DifferentError, compare, transfer

    show_progress = not (no_progress or quiet or as_json) and sys.stderr.isatty()
    began = time.monotonic()
    with ExitStack() as stack:
        ends = _Ends(stack, requests=requests)
        if not ends.is_remote(source) and not ends.is_remote(target):
            raise CommandError(f"{source} and {target} are both files; name a volume as POOL/NAME, or use cp --sparse")
        left = ends.open_source(source)
        right = ends.open_target(target, source, left.size_bytes, create=create)
        check_fits(left, source, right, target)
        with _progress("copying", left.size_bytes, show=show_progress) as progress:
            moved = transfer(left, right, connections=connections, progress=progress)
        seconds = time.monotonic() - began
        different_at = None
        if verify:
            with _progress("comparing", left.size_bytes, show=show_progress) as progress:
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
        self._pools: dict[Path, _ReachedPool] = {}

    @staticmethod
    def is_remote(text: str) -> bool:
        return "://" in text or _volume_of(text) is not None

    def open_source(self, text: str) -> _Place:
        from holdfast.cli.nbd_session import NbdAddress
        from holdfast.cli.places import FilePlace, NbdPlace

        place: _Place
        if "://" in text:
            place = NbdPlace(NbdAddress.parse(text), depth=self._requests)
        elif (where := _volume_of(text)) is not None:
            pool = self._reach(where.pool)
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
            pool = self._reach(where.pool)
            created = False
            assert where.name is not None
            try:
                info = pool.client.volume(where.name)
            except NotFoundError:
                if not create:
                    raise
                if size_bytes == 0:
                    raise CommandError(
                        f"{source} is empty, and a volume cannot be; is it the right SRC? nothing was created"
                    ) from None
                info = pool.client.create_volume(CreateVolume(name=where.name, size_bytes=size_bytes))
                created = True
            uri = pool.uri_of(where, info)
            place = NbdPlace(NbdAddress.parse(uri), depth=self._requests, write_size_bytes=size_bytes)
            place.known_zero = created
        else:
            place = FilePlace(Path(text), write_size_bytes=size_bytes)
        self._stack.callback(place.close)
        return place

    def _reach(self, pool: Path) -> _ReachedPool:
        key = pool.resolve()
        if key not in self._pools:
            self._pools[key] = self._stack.enter_context(_reach_pool(pool))
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


class _ReachedPool:
    """A pool whose volumes can be connected to: its control client, and the socket of our own server if it has one."""

    def __init__(self, client: ControlClient, socket_path: Path | None) -> None:
        self.client = client
        self.socket_path = socket_path

    def uri_of(self, where: PoolPath, info: VolumeInfo) -> str:
        if self.socket_path is not None:
            return f"nbd+unix:///{info.name}?socket={quote(str(self.socket_path))}"
        # The Unix socket is the faster one.
        uris = sorted(info.uris, key=lambda uri: not uri.startswith("nbd+unix:"))
        if not uris:
            raise CommandError(f"{where}: the server of the pool accepts no NBD clients; serve it with --nbd unix:PATH")
        return uris[0]


@contextmanager
def _reach_pool(pool: Path) -> Iterator[_ReachedPool]:
    client = ControlClient.connect_if_served(pool)
    if client is not None:
        with client:
            yield _ReachedPool(client, None)
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-copy-") as directory, _serve(pool, Path(directory)) as path:
        client = ControlClient.connect_if_served(pool)
        if client is None:
            raise CommandError(f"{pool}: the server started for this copy cannot be reached; try holdfast serve {pool}")
        with client:
            yield _ReachedPool(client, path)


@contextmanager
def _serve(pool: Path, directory: Path) -> Iterator[Path]:
    """Serve an idle pool by a child process until the end of the block; gives its NBD socket."""
    socket_path = directory / "nbd.sock"
    command_line = [sys.executable, "-m", "holdfast.cli.main", "serve", str(pool), "--nbd", f"unix:{socket_path}"]
    with (
        open(directory / "log", "w+") as log,
        subprocess.Popen(
            [*command_line, "--log-level", "warning"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Killed with SIGKILL we could not stop it: it stops itself then.
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (no thread of ours runs yet)
        ) as server,
    ):
        try:
            assert server.stdout is not None
            _wait_ready(server.stdout, log, pool)
            yield socket_path
        finally:
            server.terminate()


def _wait_ready(output: IO[str], log: IO[str], pool: Path) -> None:
    for line in output:
        if line.startswith("ready "):
            return
    log.seek(0)
    said = log.read().strip().splitlines() or ["it said nothing"]
    raise CommandError(f"{pool}: the pool cannot be served for this copy: {said[-1].removeprefix('holdfast: ')}")


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


# --- Progress ---------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(what: str, size_bytes: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; gives the function that is told the bytes done so far."""
    if not show:
        yield lambda done_bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # The bar is drawn when we say so: a thread of its own would only contend with those that copy.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task(what, total=size_bytes)

        def show_done(done_bytes: int) -> None:
            bar.update(task, completed=done_bytes, refresh=True)

        yield show_done

"""The table: rounds x rows x servers, alternating, one cell at a time.

Within a row the servers take turns, each in a process just started, so that drift of the machine meets all of them; the
order moves on by one with every row and round, so that nobody always begins.  Everything dirty is on disk (`sync`)
before a cell is measured: what one server left behind is not the next one's bill.

Disks: peers write in place, so each keeps one disk for all rows.  A log-structured server without a cleaner would fill
up, so it has one disk for the rows that read and a new one, filled again, for each cell that writes.  (What scatters
the blocks of a log leaves a disk that writes in place as it was, so there only the log is scattered.)
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench import fio, machine
from bench.measure import Memory, Meter, cpu_seconds_per_gib
from bench.servers import EXPORT, Disk, Holdfast, NbdkitNull, Running, Server, new_disk, serving
from bench.settings import BenchError, Settings, drop_caches, is_root, memory_directory, remove_disk, without_paths
from bench.workloads import Row, State, disk_bytes, has_ramp, job, log_bytes, needs_own_disk
from holdfast.units import GIB, KIB, MIB

COPY_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One server in one row in one round. With `error`, the figures mean nothing."""

    row: str
    server: str
    round: int
    value: float = 0.0  # in the row's unit
    latency_p50_us: float = 0.0
    latency_p99_us: float = 0.0
    cpu_seconds: float = 0.0
    cpu_seconds_per_gib: float | None = None
    moved_bytes: int = 0
    memory: Memory = field(default_factory=Memory)
    error: str = ""


def run_table(
    rows: Sequence[Row],
    servers: Sequence[Server],
    settings: Settings,
    *,
    say: Callable[[str], None],
    on_round: Callable[[machine.Noise], None],
    on_cell: Callable[[Cell], None],
) -> None:
    """Measure everything. `on_cell` is called with each cell when it is done, a failed one included, so that a run that
    is stopped leaves what it had."""
    disks: dict[tuple[str, int], Disk] = {}
    for round_index in range(settings.rounds):
        on_round(machine.measure_noise(settings.scratch))
        for row_index, row in enumerate(rows):
            shift = (round_index + row_index) % len(servers)
            for server in [*servers[shift:], *servers[:shift]]:
                if not takes_part(row, server):
                    continue
                cell = run_cell(row, server, settings, disks, round_index)
                figure = cell.error or f"{cell.value:,.0f} {row.unit}"
                say(f"round {round_index + 1}/{settings.rounds}  {row.name:<24} {server.name:<16} {figure}")
                on_cell(cell)


def takes_part(row: Row, server: Server) -> bool:
    """A disk without content is copied out by not copying it: no ceiling of anything."""
    return not (row.pattern == "copy-out" and isinstance(server, NbdkitNull))


def run_cell(
    row: Row,
    server: Server,
    settings: Settings,
    disks: dict[tuple[str, int], Disk],
    round_index: int = 0,
    *,
    extra_environment: dict[str, str] | None = None,
    before: Callable[[Running], None] | None = None,
) -> Cell:
    """One cell. A server that cannot do it gets a cell that says why; the others go on.

    `disks` holds the disks that are kept from cell to cell and is added to.  For profiles: `extra_environment` for the
    server that is measured, and `before`, called when it is in the row's state, just before the measured run.
    """
    try:
        with _disk_for(row, server, settings, disks) as disk:
            return _measure(row, server, disk, settings, round_index, extra_environment, before)
    except BenchError as error:
        return Cell(row.name, server.name, round_index, error=without_paths(str(error), settings))


@contextmanager
def _disk_for(row: Row, server: Server, settings: Settings, disks: dict[tuple[str, int], Disk]) -> Iterator[Disk]:
    """A fully written disk in the right state for the row, its server not running."""
    size_bytes = disk_bytes(row, settings)
    if server.log_structured and needs_own_disk(row):
        directory = settings.scratch / "cell"
        try:
            disk = new_disk(server, directory, size_bytes, log_bytes(row, settings))
            _fill(server, disk, settings)
            if row.state is State.SCATTERED:
                _scatter(server, disk, settings)
            yield disk
        finally:
            with suppress(FileNotFoundError):
                remove_disk(directory)
        return
    key = (server.name, size_bytes)
    if key not in disks:
        directory = settings.scratch / f"{server.name.replace(' ', '-')}-{size_bytes // MIB}M"
        disk = new_disk(server, directory, size_bytes, size_bytes + _just_written_bytes(settings))
        _fill(server, disk, settings)
        disks[key] = disk  # only now: a disk that could not be filled is not used half empty
    yield disks[key]


def _just_written_bytes(settings: Settings) -> int:
    """What the rows that read a region just written add to a disk's log: twice each, three depths."""
    return settings.rounds * 3 * 2 * settings.ring_region_bytes + 256 * MIB


def _fill(server: Server, disk: Disk, settings: Settings) -> None:
    if server.fills_at_start:  # its base is filled as the file that it is; the overlay at each start
        _write_base(disk)
        return
    with serving(server, disk, socket_path(settings)) as running:
        fio.fill(running.uri(), disk.size_bytes, disk.directory)


def _scatter(server: Server, disk: Disk, settings: Settings) -> None:
    """Overwrite as many blocks, at random, as the disk has."""
    with serving(server, disk, socket_path(settings)) as running:
        size_bytes = disk.size_bytes
        scatter = fio.Job("randwrite", 4 * KIB, 64, size_bytes, bytes_max=size_bytes, flush_at_end=True)
        fio.run(scatter, [running.uri()], disk.directory)


def _write_base(disk: Disk) -> None:
    """Random bytes, one mebibyte of them over and over: nothing below compresses or shares them."""
    piece = os.urandom(MIB)
    with (disk.directory / "disk.raw").open("r+b", buffering=0) as image:
        for _ in range(disk.size_bytes // MIB):
            image.write(piece)


def socket_path(settings: Settings) -> Path:
    """Short, because a Unix socket's path may have 107 bytes at most; relative paths would do, were all servers to keep
    their working directory."""
    return settings.scratch / "s"


def _measure(
    row: Row,
    server: Server,
    disk: Disk,
    settings: Settings,
    round_index: int,
    extra_environment: dict[str, str] | None,
    before: Callable[[Running], None] | None,
) -> Cell:
    if row.state is State.COLD:
        if not is_root():
            raise BenchError("only root can empty the page cache")
        drop_caches()
    with serving(server, disk, socket_path(settings), extra_environment) as running:
        _prepare(row, server, running, disk, settings)
        if has_ramp(row, settings):
            fio.run(job(row, settings, seed=round_index + 1, ramp=True), [running.uri()], disk.directory)
        if before is not None:
            before(running)
        if row.client != "fio":
            return _copy(row, server, running, disk, settings, round_index)
        with Meter(running.pid) as meter:
            result = fio.run(job(row, settings, seed=round_index + 1), [running.uri()], disk.directory)
    if row.flush_every and not result.flushes:
        raise BenchError("fio sent no flush, so this is not the row that it claims to be")
    return Cell(
        row.name,
        server.name,
        round_index,
        value=result.iops if row.unit == "IOPS" else result.bytes_per_s / MIB,
        latency_p50_us=result.latency_p50_us,
        latency_p99_us=result.latency_p99_us,
        cpu_seconds=meter.cpu_seconds,
        cpu_seconds_per_gib=cpu_seconds_per_gib(meter.cpu_seconds, result.moved_bytes),
        moved_bytes=result.moved_bytes,
        memory=meter.memory,
    )


def _prepare(row: Row, server: Server, running: Running, disk: Disk, settings: Settings) -> None:
    """Bring the running server into the row's state."""
    if server.fills_at_start and row.writes:
        fio.fill(running.uri(), disk.size_bytes, disk.directory)
    if row.state in (State.CACHED, State.SCATTERED):
        fio.read_through(running.uri(), disk.size_bytes, disk.directory)
    if row.state is not State.COLD:
        os.sync()
    if row.state is State.JUST_WRITTEN:  # after the sync, which would otherwise make "a moment ago" a second ago
        fio.run(fio.Job("write", MIB, 4, settings.ring_region_bytes), [running.uri()], disk.directory)


def copy_command(row: Row, server: Server, running: Running, disk: Disk, file: Path) -> list[str]:
    """Copy `file` in, or the disk out into it, with the row's client. Peers are always served by nbdcopy."""
    if row.client == "holdfast copy" and isinstance(server, Holdfast):
        command = [str(server.executable), "copy", "--no-progress"]
        inside = str(disk.directory / "pool" / EXPORT)
    else:
        command = ["nbdcopy"]
        inside = running.uri()
    if row.pattern == "copy-in":
        flush = ["--flush"] if row.flush_at_end and command[0] == "nbdcopy" else []
        return [*command, *flush, str(file), inside]
    return [*command, inside, str(file)]


def _copy(row: Row, server: Server, running: Running, disk: Disk, settings: Settings, round_index: int) -> Cell:
    with memory_directory(settings.copy_bytes, settings.scratch) as directory:
        file = directory / "image"
        if row.pattern == "copy-in":
            write_image(file, settings.copy_bytes)
        else:
            with file.open("wb") as image:
                image.truncate(settings.copy_bytes)
        command = copy_command(row, server, running, disk, file)
        with Meter(running.pid) as meter:
            started = time.monotonic()
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=COPY_TIMEOUT_S, check=False)
            except (FileNotFoundError, subprocess.TimeoutExpired) as error:
                raise BenchError(f"{command[0]}: {error}") from error
            elapsed_s = time.monotonic() - started
        if done.returncode:
            raise BenchError(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-300:]}")
        if file.stat().st_size != settings.copy_bytes:
            raise BenchError(f"{command[0]} left {file.stat().st_size} bytes instead of {settings.copy_bytes}")
    return Cell(
        row.name,
        server.name,
        round_index,
        value=settings.copy_bytes / MIB / elapsed_s,
        cpu_seconds=meter.cpu_seconds,
        cpu_seconds_per_gib=cpu_seconds_per_gib(meter.cpu_seconds, settings.copy_bytes),
        moved_bytes=settings.copy_bytes,
        memory=meter.memory,
    )


def write_image(file: Path, size_bytes: int) -> None:
    """A file of random bytes, fast: a few random mebibytes in turn, none of it zero."""
    pieces = [os.urandom(MIB) for _ in range(16)]
    with file.open("wb", buffering=0) as image:
        for index in range(size_bytes // MIB):
            image.write(pieces[index % len(pieces)])


def scratch_bytes(rows: Sequence[Row], servers: Sequence[Server], settings: Settings) -> int:
    """The most that a run of these rows takes at any moment: every server's disk for reading (a copy-on-write peer has
    its overlay too), the largest disk for writing, and the copies where tmpfs is too small for them."""
    need_bytes = 0
    sizes = {disk_bytes(row, settings) for row in rows}
    for server in servers:
        for size_bytes in sizes:
            if isinstance(server, Holdfast):
                log = size_bytes + _just_written_bytes(settings)
                need_bytes += log * 5 // 4 + GIB // 2
            elif server.name != "nbdkit null":
                need_bytes += size_bytes * (2 if server.fills_at_start else 1)
    if any(server.log_structured for server in servers):
        need_bytes += max(
            (log_bytes(row, settings) * 5 // 4 + GIB // 2 for row in rows if needs_own_disk(row)), default=0
        )
    return need_bytes + (settings.copy_bytes if any(row.client != "fio" for row in rows) else 0)

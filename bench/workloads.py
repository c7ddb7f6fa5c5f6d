"""The rows of the table: what the client does, the state the disk is in before, and what the row must reach.

The targets are ratios to the best of the real peers in the same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bench.fio import Job
from bench.settings import Settings
from holdfast.units import GIB, KIB, MIB

# No row is expected to write faster; the byte bound of a row, and so the space a pool needs, follows from it.
SMALL_WRITE_BYTES_PER_S_MAX = 1 * GIB
LARGE_WRITE_BYTES_PER_S_MAX = 3 * GIB
ROW_BYTES_MAX = 8 * GIB


class State(Enum):
    """The disk before the row begins. It is fully written in all of them."""

    WRITTEN = "written"  # a server just started
    CACHED = "cached"  # a server just started, everything read once: the page cache holds it
    SCATTERED = "scattered"  # as CACHED, but overwritten at random before: what was adjacent lies all over a log
    JUST_WRITTEN = "just written"  # a small region written a moment ago, by the server that is now asked for it
    COLD = "cold"  # the page cache dropped, then the server started


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    title: str
    state: State
    pattern: str  # fio's rw, or copy-in, copy-out
    unit: str = "IOPS"
    block_bytes: int = 4 * KIB
    depth: int = 1
    flush_every: int = 0
    target: float | None = None
    client: str = "fio"  # or nbdcopy, or `holdfast copy`, which is held against nbdcopy with the peers
    flush_at_end: bool = False  # copies only

    @property
    def writes(self) -> bool:
        return self.pattern in ("write", "randwrite", "copy-in")

    @property
    def needs_flush(self) -> bool:
        return self.flush_every > 0 or self.flush_at_end


def bytes_max(row: Row, settings: Settings) -> int:
    """How many bytes the measured run may write. For reads 0: no bound."""
    if not row.writes:
        return 0
    if row.client != "fio":
        return settings.copy_bytes
    rate = SMALL_WRITE_BYTES_PER_S_MAX if row.block_bytes < 64 * KIB else LARGE_WRITE_BYTES_PER_S_MAX
    return min(ROW_BYTES_MAX, int(rate * settings.runtime_s))


def ramp_bytes_max(row: Row, settings: Settings) -> int:
    """The same of the run before, which is not counted."""
    share = settings.ramp_s / settings.runtime_s
    return max(MIB, int(bytes_max(row, settings) * share))


def has_ramp(row: Row, settings: Settings) -> bool:
    """Cold reads have none: it would warm what they ask for. Copies have none: they are timed from start to end."""
    return settings.ramp_s > 0 and row.client == "fio" and row.state is not State.COLD


def disk_bytes(row: Row, settings: Settings) -> int:
    return settings.disk_bytes if row.client == "fio" else settings.copy_bytes


def needs_own_disk(row: Row) -> bool:
    """On a log-structured server: the row uses up space, or leaves a disk that others should not be measured on."""
    return row.writes or row.state is State.SCATTERED


def log_bytes(row: Row, settings: Settings) -> int:
    """All that is written, in its life, to a disk that is made for this row alone: the fill (and the
    scattering), the ramp, the measured run."""
    fills = 2 if row.state is State.SCATTERED else 1
    return fills * disk_bytes(row, settings) + bytes_max(row, settings) + ramp_bytes_max(row, settings)


def job(row: Row, settings: Settings, *, seed: int, ramp: bool = False) -> Job:
    """The fio job of a row, or of the ramp before it."""
    region_bytes = settings.ring_region_bytes if row.state is State.JUST_WRITTEN else settings.disk_bytes
    limit_bytes = bytes_max(row, settings)
    return Job(
        pattern=row.pattern,
        block_bytes=row.block_bytes,
        depth=row.depth,
        region_bytes=region_bytes,
        runtime_s=settings.ramp_s if ramp else settings.runtime_s,
        bytes_max=ramp_bytes_max(row, settings) if ramp and limit_bytes else limit_bytes,
        flush_every=row.flush_every,
        visit_once=row.state is State.COLD,
        # Another seed than the ramp's, so that the measured run does not repeat the offsets it has just been to.
        seed=2 * seed + (1 if ramp else 0),
    )


def _rows() -> list[Row]:
    rows: list[Row] = []
    for depth, target in ((1, 1.2), (16, 2.5), (64, 2.5)):
        title = f"randwrite 4k, depth {depth}"
        rows.append(Row(f"randwrite-d{depth}", title, State.WRITTEN, "randwrite", depth=depth, target=target))
    # fio counts writes when it issues them and sends a flush each time it looks while the count stands at a multiple,
    # so at depth 32 it sends several in a row: some two flushes for each five writes.  The same for all servers.
    for name, title, depth, flush_every, target in (
        ("randwrite-flush-d1", "randwrite 4k + flush each", 1, 1, 1.4),
        ("randwrite-flush32-d32", "randwrite 4k, depth 32, flush each 32", 32, 32, 2.0),
    ):
        rows.append(Row(name, title, State.WRITTEN, "randwrite", depth=depth, flush_every=flush_every, target=target))
    for name, state, where, target in (
        ("cached", State.CACHED, "page cache", 1.0),
        ("ring", State.JUST_WRITTEN, "just written", 1.3),
        ("cold", State.COLD, "cold", 0.9),
    ):
        for depth in (1, 16, 64):
            title = f"randread 4k, depth {depth}, {where}"
            rows.append(Row(f"randread-{name}-d{depth}", title, state, "randread", depth=depth, target=target))
    for depth in (1, 4, 16):
        title = f"write 1M, depth {depth}"
        rows.append(Row(f"write-1m-d{depth}", title, State.WRITTEN, "write", "MiB/s", MIB, depth, target=1.1))
    rows.append(Row("read-1m-d4", "read 1M, depth 4, page cache", State.CACHED, "read", "MiB/s", MIB, 4, target=1.0))
    title = "read 1M, depth 4, page cache, after random overwrites"
    rows.append(Row("read-1m-d4-scattered", title, State.SCATTERED, "read", "MiB/s", MIB, 4))
    copies: tuple[tuple[str, str, float | None], ...] = (
        ("nbdcopy", "nbdcopy", 1.0),
        ("holdfast copy", "holdfast copy against nbdcopy", None),
    )
    for client, title, wanted in copies:
        name = client.replace(" ", "-")
        flushed = client != "nbdcopy"  # `holdfast copy` always ends with a flush, so its rivals do too
        for pattern, state in (("copy-in", State.WRITTEN), ("copy-out", State.CACHED)):
            way = pattern.removeprefix("copy-")
            end = ", flushed" if flushed and way == "in" else ""
            row = Row(
                *(f"{name}-{way}", f"{title}, {way}{end}", state, pattern, "MiB/s", 256 * KIB),
                target=wanted,
                client=client,
                flush_at_end=flushed and way == "in",
            )
            rows.append(row)
    return rows


ROWS = _rows()

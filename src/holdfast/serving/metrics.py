"""The engine's state as Prometheus metrics: read when somebody asks, so that counting costs the hot path nothing.

Each function of `PARTS` gives the metrics of one subject. docs/metrics.md lists all of them, and a test holds that page
against what is exported. Names and units follow Prometheus: bytes, seconds, `_total` for what only grows.

What a scrape may cost is bounded: with more than `VOLUMES_LISTED_MAX` volumes none of them has series of its own, and
scrapers from outside share a text that may be a second old (`PoolMetrics.text`), however often they ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from holdfast.errors import Resource, errno_name
from holdfast.runtime.fault import FAULT_POINTS
from holdfast.serving.clients import Clients
from holdfast.serving.listing import census
from holdfast.serving.memory_metrics import MEMORY_PARTS
from holdfast.serving.metric_families import NS, Labelled, Observed, counter, counters, gauge, gauges
from holdfast.serving.pool import ServedPool
from holdfast.serving.space_watch import VOLUME
from holdfast.units import BLOCK_SHIFT
from holdfast.volume.volume import Volume

# Beyond this, totals only: six series a volume are 350 KB of text and 30 ms of the loop for 1,000 of them.
VOLUMES_LISTED_MAX = 1000

# Answers that an alert should be able to watch before the first of them: a rate needs a zero to start from.
EXPECTED_ERRORS = (
    ("ENOSPC", Resource.POOL_SPACE),
    ("ENOSPC", Resource.QUOTA),
    ("ENOSPC", Resource.GROUP_SPACE),
    ("ENOSPC", Resource.HOST_FILESYSTEM),
    ("EIO", Resource.DISK),
    ("EIO", Resource.DAMAGE),
)


# ---- parts


def _server(seen: Observed) -> Iterator[Metric]:
    yield gauges("build_info", "Always 1; the version is the label.", ["version"], [([seen.version], 1)])
    uptime_ns = seen.pool.clock.now_ns() - seen.started_ns
    yield gauge("uptime_seconds", "Time since the server was started.", uptime_ns * NS)
    yield gauge(
        "tasks", "Requests and background work that are under way or wait.", len(seen.pool.engine.scheduler.tasks)
    )
    struck = seen.pool.faults.struck
    points = [point for point in FAULT_POINTS if seen.pool.faults.watches(point)]
    yield counters(
        "faults_struck_total",
        "Attempts that `serve --fault` let fail on purpose.",
        ["point"],
        [([point], struck[point]) for point in points],
    )


def _pool(seen: Observed) -> Iterator[Metric]:
    space = seen.pool.engine.space
    superblock = seen.pool.engine.checkpointer.superblock
    segment_bytes = superblock.segment_blocks << BLOCK_SHIFT
    capacity_bytes = superblock.capacity_segments * segment_bytes
    yield gauge("pool_capacity_bytes", "Disk space that the pool may use.", capacity_bytes)
    live_blocks = max(0, int(space.live.sum()))
    yield gauge(
        "pool_live_bytes", "Blocks that something refers to: data, map pages, tables.", live_blocks << BLOCK_SHIFT
    )
    yield gauge(
        "pool_used_bytes", "Those of them that data and maps of volumes take.", space.used_blocks << BLOCK_SHIFT
    )
    yield gauge(
        "pool_usable_bytes", "How much of that there may be: ENOSPC beyond.", space.usable_blocks << BLOCK_SHIFT
    )
    yield gauge(
        "pool_held_bytes", "Of the usable ones, held back for provisioned volumes.", space.held_blocks << BLOCK_SHIFT
    )
    yield gauge("pool_segment_size_bytes", "Size of a segment file.", segment_bytes)
    yield gauges(
        "pool_segments", "Segments by state.", ["state"], [([state], count) for state, count in space.counts().items()]
    )
    yield gauge(
        "pool_available_segments",
        "Segments that could still be opened, those held back included.",
        space.available_segments,
    )
    yield gauge(
        "pool_reserve_segments",
        "Segments that data of clients may not take: the way out of a full pool.",
        space.reserve_segments,
    )
    yield gauge(
        "pool_checkpoint_reserve_segments",
        "Those of the reserve that only checkpoints may take.",
        space.checkpoint_segments,
    )
    yield counter("pool_freed_segments_total", "Segments that came free.", space.freed_segments)
    cleaner = seen.pool.engine.cleaner
    yield gauge("cleaner_running", "1 while the cleaner works, else 0.", int(cleaner.running))
    yield gauge("cleaner_helps", "0 once the cleaner has found nothing to gain, else 1.", int(space.cleaning_helps))
    yield counter(
        "cleaner_copied_bytes_total", "Live data copied by the cleaner.", cleaner.counts.copied_blocks << BLOCK_SHIFT
    )
    yield counter("cleaner_segments_total", "Segments filled by the cleaner.", cleaner.counts.cold_segments)
    yield counter("cleaner_pages_total", "Map pages that were written anew for it.", cleaner.counts.pages_marked)
    yield counter("cleaner_damaged_blocks_total", "Damage found while copying.", cleaner.counts.damaged_blocks)
    yield counter("cleaner_failures_total", "Segments that it could not read or write.", cleaner.counts.failures)
    yield gauge(
        "host_filesystem_full", "1 if the last attempt to make a segment file failed, else 0.", int(space.host_full)
    )


def _space(seen: Observed) -> Iterator[Metric]:
    """How full everything is that can be."""
    found = seen.pool.space_watch.look()
    if len(found) > VOLUMES_LISTED_MAX:
        found = [watched for watched in found if watched.kind != VOLUME]
    labels = ["kind", "name"]
    yield gauges(
        "space_used_bytes",
        "What is used of what can become full.",
        labels,
        [([watched.kind, watched.name], watched.used_bytes) for watched in found],
    )
    yield gauges(
        "space_limit_bytes",
        "How much of it can be used.",
        labels,
        [([watched.kind, watched.name], watched.limit_bytes) for watched in found],
    )
    yield gauges(
        "space_warning_percent",
        "The highest threshold of the warnings that is crossed: 80, 90, 95, or 0.",
        labels,
        [([watched.kind, watched.name], watched.thresholds.percent) for watched in found],
    )
    ends = [(watched, watched.seconds_left) for watched in found]
    yield gauges(
        "space_full_in_seconds",
        "Until it is full, at the rate of the last minutes; no series if it never will be.",
        labels,
        [([watched.kind, watched.name], seconds) for watched, seconds in ends if seconds is not None],
    )


def _map(seen: Observed) -> Iterator[Metric]:
    engine = seen.pool.engine
    yield counter("map_pages_read_total", "Map pages read because they were not in memory.", engine.table.pages_read)
    yield counter("map_pages_written_total", "Map pages written to the log.", engine.pages.pages_written)
    yield gauge("map_dirty_pages", "Map pages changed since the last checkpoint began.", engine.cache.dirty_pages)
    yield gauges(
        "map_dirty_limit_pages",
        "Watermarks of dirty map pages: a checkpoint begins, writers wait.",
        ["watermark"],
        [(["checkpoint"], engine.cache.dirty_soft_limit), (["wait"], engine.cache.dirty_hard_limit)],
    )


def _write_back(seen: Observed) -> Iterator[Metric]:
    engine, flusher = seen.pool.engine, seen.pool.engine.flusher
    yield gauge("dirty_bytes", "Appended to the log and not durable yet.", flusher.dirty_blocks << BLOCK_SHIFT)
    yield counter("writeback_rounds_total", "Rounds of the flusher: each makes durable all that waits.", flusher.rounds)
    yield counter("writeback_writes_total", "Writes to segment files.", flusher.writes)
    yield counter("writeback_syncs_total", "Syncs of segment files; a durable write is none.", flusher.syncs)
    yield counters(
        "writeback_failures_total",
        "Writes and syncs of segment files that failed.",
        ["errno"],
        [([errno_name(errno)], count) for errno, count in sorted(flusher.failed_with.items())],
    )
    yield counter("writeback_retries_total", "Pauses after failures that ended with another attempt.", flusher.retries)
    yield counter("writeback_paused_seconds_total", "Time spent in those pauses.", flusher.paused_ns * NS)
    yield gauge("writeback_paused", "1 while write-back pauses after a failure, else 0.", int(flusher.pause_ns > 0))
    yield gauge("log_position_blocks", "Where the log ends: the next block goes there.", engine.log.position)
    yield gauge("log_durable_position_blocks", "Where the durable part of the log ends.", flusher.durable)
    yield counter("checkpoints_total", "Checkpoints written.", engine.checkpointer.written)
    yield counter(
        "checkpoint_failures_total", "Attempts to write a checkpoint that failed.", engine.checkpoints.failures
    )


def _clients(seen: Observed) -> Iterator[Metric]:
    """NBD clients and what they are told."""
    connections = seen.clients.connections
    complaints = seen.pool.engine.complaints
    yield gauge("connections", "Open NBD connections.", len(connections))
    yield gauge(
        "connections_waiting",
        "Of these, how many are not read from because a request of theirs waits for room.",
        sum(connection.stalled for connection in connections),
    )
    answered = dict.fromkeys(((errno, str(resource)) for errno, resource in EXPECTED_ERRORS), 0)
    answered |= complaints.answered
    yield counters(
        "errors_total",
        "Requests of NBD clients that were answered with an error.",
        ["errno", "resource"],
        [(labels, count) for labels, count in sorted(answered.items())],
    )
    yield counter(
        "log_lines_suppressed_total",
        "Warnings about errors that were counted and not logged, to bound the log.",
        complaints.suppressed,
    )


def _volumes(seen: Observed) -> Iterator[Metric]:
    nodes = census(seen.pool.engine)
    volumes = nodes.volumes
    listed = volumes if len(volumes) <= VOLUMES_LISTED_MAX else []
    yield gauge("volumes", "Volumes of the pool.", len(volumes))
    yield gauge("volumes_listed", "Volumes with series of their own: all, or none if there are too many.", len(listed))
    yield gauge("volumes_size_bytes", "Sizes of all volumes together.", sum(volume.size_bytes for volume in volumes))
    yield gauge(
        "volumes_mapped_bytes",
        "Mapped in all volumes together.",
        sum(volume.mapped_blocks for volume in volumes) << BLOCK_SHIFT,
    )
    yield gauge(
        "volumes_damaged_blocks",
        "Blocks of all volumes that were found damaged since the start.",
        sum(len(volume.damaged) for volume in volumes),
    )

    yield gauge("snapshots", "Snapshots of all volumes.", nodes.snapshots.count)
    yield gauge(
        "snapshots_mapped_bytes",
        "Blocks that volumes have replaced since and their snapshots keep.",
        nodes.snapshots.blocks << BLOCK_SHIFT,
    )
    yield gauge(
        "removed_nodes",
        "Removed volumes and snapshots that are on their way out or needed by clones.",
        nodes.removed.count,
    )
    yield gauge("removed_mapped_bytes", "Blocks that only these hold.", nodes.removed.blocks << BLOCK_SHIFT)

    def of_each(value: Callable[[Volume], float]) -> Labelled:
        return [([volume.name], value(volume)) for volume in listed]

    label = ["volume"]
    yield gauges("volume_size_bytes", "Size of the volume.", label, of_each(lambda volume: volume.size_bytes))
    yield gauges(
        "volume_mapped_bytes",
        "How much of the volume is mapped.",
        label,
        of_each(lambda volume: volume.mapped_blocks << BLOCK_SHIFT),
    )
    with_snapshots = [(volume, nodes.of_volume[volume]) for volume in listed if volume in nodes.of_volume]
    yield gauges(
        "volume_snapshots",
        "Snapshots of the volume; no series without one.",
        label,
        [([volume.name], sum_.count) for volume, sum_ in with_snapshots],
    )
    yield gauges(
        "volume_snapshots_mapped_bytes",
        "What the snapshots of the volume keep together.",
        label,
        [([volume.name], sum_.blocks << BLOCK_SHIFT) for volume, sum_ in with_snapshots],
    )
    yield gauges(
        "volume_quota_bytes",
        "How much of the volume may be mapped; no series without a quota.",
        label,
        [([volume.name], volume.quota_bytes) for volume in listed if volume.quota_bytes],
    )
    yield gauges(
        "volume_connections", "NBD connections to the volume.", label, of_each(lambda volume: volume.connections)
    )
    yield counters(
        "volume_writeback_failures_total",
        "Failed writes and syncs that met data of the volume; it stayed dirty.",
        label,
        of_each(lambda volume: volume.write_back_failures),
    )
    yield gauges(
        "volume_read_only",
        "1 if the volume takes no writes, by --on-full or --on-error, else 0.",
        label,
        of_each(lambda volume: int(volume.read_only)),
    )
    yield gauges(
        "volume_loss_open",
        "1 while FLUSH fails because accepted data is lost and no operator has acknowledged that, else 0.",
        label,
        of_each(lambda volume: int(volume.loss_open)),
    )
    yield gauges(
        "volume_damaged_blocks",
        "Blocks of the volume that were found damaged since the start, 1000 at most.",
        label,
        of_each(lambda volume: len(volume.damaged)),
    )


PARTS: tuple[Callable[[Observed], Iterator[Metric]], ...] = (
    _server,
    _pool,
    _space,
    *MEMORY_PARTS,
    _map,
    _write_back,
    _clients,
    _volumes,
)


class PoolMetrics(Collector):
    """The metrics of one served pool, in a registry of their own. All fields: loop thread."""

    def __init__(self, pool: ServedPool, clients: Clients, *, started_ns: int, version: str) -> None:
        self._seen = Observed(pool, clients, started_ns, version)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._text = b""
        self._text_ns = 0

    def collect(self) -> Iterator[Metric]:
        for part in PARTS:
            yield from part(self._seen)

    def text(self, *, age_ns_max: int = 0) -> bytes:
        """All metrics in the text format, of now or at most so long ago."""
        now_ns = self._seen.pool.clock.now_ns()
        if not age_ns_max or not self._text or now_ns - self._text_ns > age_ns_max:
            text = generate_latest(self._registry)
            if not age_ns_max:
                return text  # not kept: only scrapers from outside need one to share
            self._text, self._text_ns = text, now_ns
        return self._text

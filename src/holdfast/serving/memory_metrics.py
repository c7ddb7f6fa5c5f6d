"""Metrics of memory: by kind, by group, and what is held back. As `serving/metrics.py`, which exports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import Metric

from holdfast.memory.group import KIND_NAMES, UNLIMITED_BYTES, Kind
from holdfast.runtime.host import resident_bytes
from holdfast.serving.metric_families import NS, Observed, counter, counters, gauge, gauges
from holdfast.units import BLOCK_SHIFT

GROUPS_LISTED_MAX = 200  # beyond this the default group only: 18 series a group


def _memory(seen: Observed) -> Iterator[Metric]:
    """Memory by kind, whoever has it, and what the host says."""
    engine, accounts = seen.pool.engine, seen.pool.engine.accounts
    root, reclaimer = accounts.root, accounts.reclaimer
    dirty_bytes = engine.flusher.dirty_blocks << BLOCK_SHIFT
    used = {kind: dirty_bytes if kind is Kind.RING else root.usage[kind] for kind in Kind}
    yield gauge("memory_budget_bytes", "What --memory gave.", seen.pool.memory.budget_bytes)
    yield gauges(
        "memory_used_bytes",
        "Memory in use, or set aside for a group, by kind.",
        ["kind"],
        [([KIND_NAMES[kind]], used[kind]) for kind in Kind],
    )
    yield gauges(
        "memory_limit_bytes",
        "How much of each kind there may be.",
        ["kind"],
        [([KIND_NAMES[kind]], root.limits[kind]) for kind in Kind if root.limits[kind] < UNLIMITED_BYTES],
    )
    yield gauge(
        "memory_base_bytes",
        "Resident when the server was ready, beyond what it accounts for.",
        accounts.base_bytes,
    )
    yield gauge(
        "memory_accounted_bytes",
        "The base, what is allocated for good, and what is in use of the rest.",
        accounts.accounted_bytes,
    )
    yield gauge("memory_resident_bytes", "Resident memory of the server, the ring included.", resident_bytes())
    yield gauge("memory_pressure", "What the host or a control group says: 0 none, 1 some, 2 high.", reclaimer.pressure)
    yield counters(
        "memory_reclaimed_bytes_total",
        "Memory that caches gave up because a group or the server was short of it.",
        ["kind"],
        [([KIND_NAMES[shrinker.kind]], reclaimer.reclaimed_bytes[shrinker.kind]) for shrinker in reclaimer.shrinkers],
    )
    given_bytes = reclaimer.given_back_bytes
    yield gauge("memory_given_back_bytes", "Memory that the host has for now, under pressure.", given_bytes)


def _reserve(seen: Observed) -> Iterator[Metric]:
    """What is held back for those who must not fail."""
    engine = seen.pool.engine
    callers = engine.must_succeed.callers
    segment_blocks = engine.log.segment_blocks
    label = ["caller"]
    yield gauges(
        "reserve_segments",
        "Segments held back for a caller that must not fail.",
        label,
        [([caller.name], caller.segments_needed(segment_blocks)) for caller in callers],
    )
    yield gauges(
        "reserve_ring_bytes",
        "Room in the ring without which it would not get on.",
        label,
        [([caller.name], caller.ring_blocks << BLOCK_SHIFT) for caller in callers],
    )
    yield gauges(
        "reserve_staging_bytes",
        "Memory reserved for what it puts together.",
        label,
        [([caller.name], caller.staging_bytes) for caller in callers],
    )
    yield counter(
        "reserve_draws_total",
        "Times that the reservation of memory was drawn on because the ordinary charge had failed.",
        engine.reserve.staging.draws,
    )


def _groups(seen: Observed) -> Iterator[Metric]:
    """Usage and limits by group; with too many groups the server's own and the default group only."""
    engine = seen.pool.engine
    directory = engine.groups.directory.by_id
    listed = list(directory.values()) if len(directory) <= GROUPS_LISTED_MAX else [engine.groups.directory.default]
    engine.log.settle()
    nodes = [engine.accounts.system, *(group.memory for group in listed)]
    both = ["group", "kind"]
    yield gauge("groups", "Groups of volumes, the default group included.", len(directory))
    yield gauges(
        "group_memory_used_bytes",
        "Memory charged to a group, by kind.",
        both,
        [([node.name, KIND_NAMES[kind]], node.usage[kind]) for node in nodes for kind in Kind],
    )
    yield gauges(
        "group_memory_limit_bytes",
        "Its limits, of one kind or of all; no series where there is none.",
        both,
        [
            *(([group.name, "all"], group.limits.memory_bytes) for group in listed if group.limits.memory_bytes),
            *(([group.name, "ring"], group.limits.dirty_bytes) for group in listed if group.limits.dirty_bytes),
        ],
    )
    yield gauges(
        "group_memory_minimum_bytes",
        "What nobody else can have.",
        both,
        [
            ([node.name, KIND_NAMES[kind]], minimum_bytes)
            for node in nodes
            for kind, minimum_bytes in enumerate(node.minimums)
            if minimum_bytes
        ],
    )
    yield counters(
        "group_refusals_total",
        "Charges of memory that the group refused.",
        both,
        [([node.name, KIND_NAMES[kind]], node.refusals[kind]) for node in nodes for kind in Kind],
    )
    yield gauges(
        "group_dirty_watermark_bytes",
        "Dirty data above which its writers are slowed.",
        ["group"],
        [([group.name], group.memory.watermark_bytes) for group in listed if group.limits.dirty_bytes],
    )
    yield counters(
        "group_throttled_seconds_total",
        "Time for which connections were left alone because the group was near its limit, taken together.",
        ["group"],
        [([node.name], node.throttled_ns * NS) for node in nodes],
    )
    yield gauges(
        "group_mapped_bytes",
        "What its volumes map together.",
        ["group"],
        [([group.name], group.mapped_blocks << BLOCK_SHIFT) for group in listed],
    )
    yield gauges(
        "group_space_limit_bytes",
        "What they may map; no series where there is no limit.",
        ["group"],
        [([group.name], group.limits.space_bytes) for group in listed if group.limits.space_bytes],
    )


MEMORY_PARTS: tuple[Callable[[Observed], Iterator[Metric]], ...] = (_memory, _reserve, _groups)

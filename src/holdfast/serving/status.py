"""What the engine's state looks like to people: the answers of the control API."""

from __future__ import annotations

from holdfast.control.api import (
    WAITS_MAX,
    CheckpointInfo,
    CleanerInfo,
    MemoryUse,
    MustSucceedInfo,
    PoolStatus,
    SegmentCounts,
    Statistics,
    WaitInfo,
    WaitList,
)
from holdfast.control.group_api import GroupInfo
from holdfast.control.space_api import FillInfo, VolumeResized
from holdfast.engine import Engine
from holdfast.memory.group import KIND_NAMES, UNLIMITED_BYTES, Kind
from holdfast.pool.superblock import FORMAT_VERSION
from holdfast.pool.tables import NO_UID
from holdfast.runtime.fault import FAULT_POINTS
from holdfast.runtime.host import resident_bytes
from holdfast.serving.listing import census
from holdfast.serving.pool import ServedPool
from holdfast.units import BLOCK_SHIFT
from holdfast.volume.groups import TenantGroup
from holdfast.volume.resize import Resized
from holdfast.volume.volume import Role


def list_groups(engine: Engine) -> list[GroupInfo]:
    """Each volume is looked at once, however many groups there are."""
    names: dict[TenantGroup, list[str]] = {}
    for volume in engine.by_name.values():
        if volume.role is Role.VOLUME:
            names.setdefault(volume.group, []).append(volume.name)
    return [_group_info(group, engine, names.get(group, [])) for group in engine.groups.directory.by_id.values()]


def volume_resized(resized: Resized) -> VolumeResized:
    return VolumeResized(
        name=resized.volume.name,
        size_bytes=resized.volume.size_bytes,
        cut_bytes=resized.cut_bytes,
        cut_data_bytes=resized.cut_data_bytes,
    )


def group_info(group: TenantGroup, engine: Engine) -> GroupInfo:
    volumes = engine.by_name.values()
    return _group_info(
        group, engine, [volume.name for volume in volumes if volume.group is group and volume.role is Role.VOLUME]
    )


def _group_info(group: TenantGroup, engine: Engine, volumes: list[str]) -> GroupInfo:
    engine.log.settle()
    limits, memory = group.limits, group.memory
    watermark = memory.watermark_bytes
    return GroupInfo(
        name=group.name,
        id=group.group_id,
        memory_bytes=limits.memory_bytes,
        dirty_bytes=limits.dirty_bytes,
        space_bytes=limits.space_bytes,
        dirty_min_bytes=limits.dirty_min_bytes,
        map_min_bytes=limits.map_min_bytes,
        minimums_held=group.minimums_held,
        uid=-1 if limits.uid == NO_UID else limits.uid,
        cgroup=limits.cgroup,
        usage=_by_kind(memory.usage),
        mapped_bytes=group.mapped_blocks << BLOCK_SHIFT,
        watermark_bytes=0 if watermark >= UNLIMITED_BYTES else watermark,
        throttled_s=memory.throttled_ns / 1e9,
        refusals=_by_kind(memory.refusals),
        volumes=volumes,
    )


def _by_kind(figures: list[int]) -> dict[str, int]:
    return {KIND_NAMES[kind].replace(" ", "_"): figures[kind] for kind in Kind}


def _must_succeed(engine: Engine) -> list[MustSucceedInfo]:
    segment_blocks = engine.log.segment_blocks
    return [
        MustSucceedInfo(
            name=caller.name,
            why=caller.why,
            segments=caller.segments_needed(segment_blocks),
            ring_bytes=caller.ring_blocks << BLOCK_SHIFT,
            staging_bytes=caller.staging_bytes,
        )
        for caller in engine.must_succeed.callers
    ]


def _cleaner(engine: Engine) -> CleanerInfo:
    cleaner = engine.cleaner
    return CleanerInfo(
        running=cleaner.running,
        helps=engine.space.cleaning_helps,
        copied_bytes=cleaner.counts.copied_blocks << BLOCK_SHIFT,
        segments_written=cleaner.counts.cold_segments,
        segments_freed=engine.space.freed_segments,
        damaged_blocks=cleaner.counts.damaged_blocks,
        failures=cleaner.counts.failures,
    )


def pool_status(
    pool: ServedPool, *, pid: int | None, connections: int, started_ns: int, listening: list[str]
) -> PoolStatus:
    engine = pool.engine
    counts = engine.space.counts()
    superblock = engine.checkpointer.superblock
    segment_bytes = superblock.segment_blocks << BLOCK_SHIFT
    nodes = census(engine)
    return PoolStatus(
        path=str(pool.path),
        uuid=pool.uuid,
        pid=pid,
        format_version=FORMAT_VERSION,
        capacity_bytes=superblock.capacity_segments * segment_bytes,
        live_bytes=max(0, int(engine.space.live.sum())) << BLOCK_SHIFT,
        used_bytes=engine.space.used_blocks << BLOCK_SHIFT,
        usable_bytes=engine.space.usable_blocks << BLOCK_SHIFT,
        held_bytes=engine.space.held_blocks << BLOCK_SHIFT,
        cleaner=_cleaner(engine),
        segment_size_bytes=segment_bytes,
        segments=SegmentCounts(
            total=superblock.capacity_segments,
            unprepared=counts["absent"],
            free=counts["free"],
            open=counts["open"],
            sealed=counts["sealed"] + counts["dying"] + counts["filling"] + counts["moving"],
            reserved=engine.space.reserve_segments,
        ),
        memory=MemoryUse(
            budget_bytes=pool.memory.budget_bytes,
            resident_bytes=resident_bytes(),
            accounted_bytes=engine.accounts.accounted_bytes,
            base_bytes=engine.accounts.base_bytes,
            pressure=engine.accounts.reclaimer.pressure.name.lower(),
            reserved=_must_succeed(engine),
            ring_bytes=pool.memory.ring_bytes,
            ring_used_bytes=engine.flusher.dirty_blocks << BLOCK_SHIFT,
            map_pages=engine.cache.pages - len(engine.cache.free) - len(engine.cache.withdrawn),
            map_pages_max=engine.cache.pages,
        ),
        dirty_bytes=engine.flusher.dirty_blocks << BLOCK_SHIFT,
        log_position=engine.log.position,
        durable_log_position=engine.flusher.durable,
        checkpoint=CheckpointInfo(sequence=superblock.sequence, log_position=superblock.replay_position),
        uptime_s=(pool.clock.now_ns() - started_ns) / 1e9,
        connections=connections,
        volumes=len(nodes.volumes),
        snapshots=nodes.snapshots.count,
        removed=nodes.removed.count,
        removed_bytes=nodes.removed.blocks << BLOCK_SHIFT,
        listening=listening,
        fill=[
            FillInfo(
                kind=watched.kind,
                name=watched.name,
                used_bytes=watched.used_bytes,
                limit_bytes=watched.limit_bytes,
                over_percent=watched.thresholds.percent,
                full_in_s=watched.seconds_left,
            )
            for watched in pool.space_watch.look()
        ],
    )


def statistics(pool: ServedPool) -> Statistics:
    engine = pool.engine
    return {
        "flusher_rounds": engine.flusher.rounds,
        "flusher_writes": engine.flusher.writes,
        "flusher_syncs": engine.flusher.syncs,
        "flusher_failures": engine.flusher.failures,
        "checkpoints": engine.checkpointer.written,
        "map_pages_read": engine.table.pages_read,
        "map_pages_written": engine.pages.pages_written,
        "map_pages_dirty": engine.cache.dirty_pages,
        "log_position": engine.log.position,
        "durable_position": engine.flusher.durable,
        "tasks": len(engine.scheduler.tasks),
        **{f"faults_{point}": pool.faults.struck[point] for point in FAULT_POINTS if pool.faults.watches(point)},
        "read_buffer_bytes_left": engine.accounts.root.room_bytes(Kind.READ_BUFFERS),
        "reclaim_runs": engine.accounts.reclaimer.runs,
        "reclaimed_map_bytes": engine.accounts.reclaimer.reclaimed_bytes[Kind.MAP_PAGES],
        "given_back_bytes": engine.accounts.reclaimer.given_back_bytes,
    }


def wait_list(engine: Engine) -> WaitList:
    picture = engine.waits.picture()
    waiting = picture.waiting
    now_ns = engine.clock.now_ns()
    return WaitList(
        waits=[
            WaitInfo(
                operation=wait.operation,
                volume=wait.volume,
                peer=wait.peer,
                since_s=(now_ns - wait.since_ns) / 1e9,
                waits_for=wait.waits_for,
                held=[str(hold) for hold in wait.held],
                ended_by=picture.ended_by(wait),
                meant=wait.meant,
            )
            for wait in waiting[:WAITS_MAX]
        ],
        total=len(waiting),
        cycles=picture.cycles(),
    )

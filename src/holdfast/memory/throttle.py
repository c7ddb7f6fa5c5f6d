"""Throttling: whoever comes near the limit of dirty data is slowed in proportion, before the limit stops it (row T2).

The means is back-pressure: for a while nothing is read from the connection. A group below its watermark is never
slowed, nor is one without a limit; while the host is under high pressure everybody who writes is, a little.
"""

from __future__ import annotations

from holdfast.memory.group import UNLIMITED_BYTES, Group, Kind
from holdfast.memory.reclaim import Pressure

PAUSE_NS_MAX = 20_000_000
PRESSURE_PAUSE_NS = 5_000_000
WATERMARK_PERCENT = 50


def limit_dirty(group: Group, limit_bytes: int) -> None:
    """Let a group have so much dirty data (`UNLIMITED_BYTES`: as much as there is room for), and set its watermark."""
    group.limits[Kind.RING] = limit_bytes
    unlimited = limit_bytes >= UNLIMITED_BYTES
    group.watermark_bytes = UNLIMITED_BYTES if unlimited else limit_bytes * WATERMARK_PERCENT // 100


def pause_ns(group: Group, pressure: Pressure = Pressure.NONE) -> int:
    """How long a connection that has just written is to be left alone: nothing at the watermark, `PAUSE_NS_MAX` at the
    limit."""
    least_ns = PRESSURE_PAUSE_NS if pressure is Pressure.HIGH else 0
    over_bytes = group.usage[Kind.RING] - group.watermark_bytes
    if over_bytes <= 0:
        return least_ns
    return max(
        least_ns, min(PAUSE_NS_MAX, PAUSE_NS_MAX * over_bytes // (group.limits[Kind.RING] - group.watermark_bytes))
    )

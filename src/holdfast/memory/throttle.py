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


def watermark_bytes(group: Group) -> int:
    """Dirty data above which the group is slowed; `UNLIMITED_BYTES` if it never is."""
    limit_bytes = group.limits[Kind.RING]
    return limit_bytes if limit_bytes >= UNLIMITED_BYTES else limit_bytes * WATERMARK_PERCENT // 100


def pause_ns(group: Group, pressure: Pressure = Pressure.NONE) -> int:
    """How long a connection that has just written is to be left alone: nothing at the watermark, `PAUSE_NS_MAX` at the
    limit."""
    least_ns = PRESSURE_PAUSE_NS if pressure is Pressure.HIGH else 0
    limit_bytes = group.limits[Kind.RING]
    if limit_bytes >= UNLIMITED_BYTES:
        return least_ns
    low_bytes = limit_bytes * WATERMARK_PERCENT // 100
    over_bytes = group.usage[Kind.RING] - low_bytes
    if over_bytes <= 0:
        return least_ns
    return max(least_ns, min(PAUSE_NS_MAX, PAUSE_NS_MAX * over_bytes // (limit_bytes - low_bytes)))

"""The real clock behind the `Clock` port."""

from __future__ import annotations

import time


class SystemClock:
    """CLOCK_MONOTONIC for intervals, CLOCK_REALTIME for records that people read."""

    __slots__ = ()

    # The functions themselves, not wrappers: `now_ns` is called once for each batch of requests.
    now_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)

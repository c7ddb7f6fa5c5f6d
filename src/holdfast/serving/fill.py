"""How full something is, whether that is worth a warning, and when it will be full: arithmetic only."""

from __future__ import annotations

from math import exp

# A warning each time that this much of the whole is used, in percent.
WARNING_PERCENTS = (80, 90, 95)
# A threshold can be crossed again once so much less is used: what hovers about it is one warning.
HYSTERESIS_PERCENT = 3
# The rate is that of the last minutes, the older the less: after so long a change counts for a third.
MEMORY_S = 300.0
# Before that nothing is said of the future: the first look at a pool that is being filled would foretell anything.
OBSERVED_S_MIN = 30.0
# Further ahead is as good as never.
HORIZON_S = 365 * 86400.0


class Thresholds:
    """`percent`: the highest threshold that is crossed, 0 if none is."""

    def __init__(self) -> None:
        self.percent = 0

    def look(self, used: int, limit: int) -> int:
        """Take a look; returns the threshold that was crossed upwards since the last one, or 0. Falling below one is
        silent."""
        filled = 100.0 * used / limit if limit > 0 else 100.0
        crossed = max((percent for percent in WARNING_PERCENTS if filled >= percent), default=0)
        kept = max((percent for percent in WARNING_PERCENTS if filled > percent - HYSTERESIS_PERCENT), default=0)
        news = crossed if crossed > self.percent else 0
        self.percent = max(crossed, min(self.percent, kept))
        return news


class Forecast:
    """The rate at which something is filled, in bytes a second, smoothed exponentially."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._used = -1
        self._sum = 0.0  # of rates, each with the weight that is left of it
        self._weight = 0.0
        self._observed_s = 0.0

    def look(self, now_s: float, used: int) -> None:
        elapsed_s = now_s - self._at_s
        if self._used < 0:
            self._at_s, self._used = now_s, used
        elif elapsed_s > 0:
            left = exp(-elapsed_s / MEMORY_S)
            self._sum = self._sum * left + (used - self._used) / elapsed_s * (1 - left)
            self._weight = self._weight * left + (1 - left)
            self._observed_s += elapsed_s
            self._at_s, self._used = now_s, used

    @property
    def rate(self) -> float:
        """Bytes a second; less than 0 if it becomes emptier."""
        return self._sum / self._weight if self._weight else 0.0

    def seconds_left(self, limit: int) -> float | None:
        """Until it is full, at this rate; None: never, or nothing is known yet."""
        if self._used < 0 or self._observed_s < OBSERVED_S_MIN:
            return None
        left = limit - self._used
        if left <= 0:
            return 0.0
        rate = self.rate
        if rate <= 0 or left > rate * HORIZON_S:
            return None
        return left / rate

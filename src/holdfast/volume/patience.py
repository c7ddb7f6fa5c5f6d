"""What a volume's owner wants when there is no space: an error at once, or to wait so long for some to come free."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.volume.volume import Volume

SECOND_NS = 1_000_000_000


class Patience:
    """Of one request. Its time begins when it is asked for the first time."""

    __slots__ = ("_now_ns", "_until_ns", "_volume")

    def __init__(self, volume: Volume, now_ns: Callable[[], int]) -> None:
        self._volume = volume
        self._now_ns = now_ns
        self._until_ns = 0

    def is_left(self) -> bool:
        """True if the request may wait, and look again."""
        if not self._volume.on_full_wait_s:
            return False
        now_ns = self._now_ns()
        if not self._until_ns:
            self._until_ns = now_ns + self._volume.on_full_wait_s * SECOND_NS
        return now_ns < self._until_ns

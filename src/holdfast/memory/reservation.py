"""A reservation: memory that a transaction is sure of before it starts (row A3).

Its life: made by a charge, which may be refused, and then nothing has begun; drawn on while the transaction runs, only
where the ordinary charge fails; ended exactly once. What was drawn is given back by the transaction before the end.
"""

from __future__ import annotations

from holdfast.errors import ShortageError
from holdfast.memory.context import BACKGROUND, Context
from holdfast.memory.group import KIND_NAMES, Group, Kind
from holdfast.units import format_size


class Reservation:
    """`drawn_bytes` counts as used through the reservation itself: drawing charges nothing more."""

    def __init__(self, group: Group, kind: Kind, size_bytes: int, what: str, context: Context = BACKGROUND) -> None:
        """Raises ShortageError, with nothing held, if it cannot be had."""
        self.group = group
        self.kind = kind
        self.size_bytes = 0
        self.what = what
        self.drawn_bytes = 0
        self.draws = 0  # how often the ordinary charge had failed
        self.ended = False
        self.resize(size_bytes, context)

    def draw(self, group: Group, kind: Kind, count_bytes: int) -> bool:
        """Cover a charge that was refused. False: it is of another kind or group, or more than is left."""
        if self.ended or group is not self.group or kind is not self.kind:
            return False
        if self.drawn_bytes + count_bytes > self.size_bytes:
            return False
        self.drawn_bytes += count_bytes
        self.draws += 1
        return True

    def release(self, count_bytes: int) -> None:
        """Give back what a charge with this reservation took: first what was drawn."""
        drawn = min(count_bytes, self.drawn_bytes)
        self.drawn_bytes -= drawn
        self.group.release(self.kind, count_bytes - drawn)

    def resize(self, size_bytes: int, context: Context = BACKGROUND) -> None:
        """Make it larger or smaller. Raises ShortageError, with nothing changed, if it cannot be had."""
        more_bytes = size_bytes - self.size_bytes
        if more_bytes > 0:
            refuser = self.group.try_charge(self.kind, more_bytes, context)
            if refuser is not None:
                raise ShortageError(
                    f"{self.what} needs {format_size(more_bytes)} more of {KIND_NAMES[self.kind]}, and group "
                    f"{refuser.name!r} refuses; give it more --memory"
                )
            self.size_bytes = size_bytes
        else:
            self.insist_on(size_bytes)

    def insist_on(self, size_bytes: int) -> None:
        """The same, whatever the limits: for what exists already, and would not go away for being refused."""
        assert not self.ended
        assert size_bytes >= self.drawn_bytes
        self.group.charge(self.kind, size_bytes - self.size_bytes)
        self.size_bytes = size_bytes

    def end(self) -> None:
        assert not self.ended, f"the reservation for {self.what} ends twice"
        assert not self.drawn_bytes, f"{self.drawn_bytes} bytes of the reservation for {self.what} are still drawn"
        self.ended = True
        self.group.release(self.kind, self.size_bytes)

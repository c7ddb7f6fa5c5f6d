"""What a caller wants when memory is refused (row A2): an answer at once, or to wait, for ever or until a deadline.

The charge itself never loops on anybody's behalf: the loop is here, in the caller's own work, and it ends by the
caller's word. What follows from a shortage of space is the volume's policy (`volume/volume.py`: OnFull).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from holdfast.errors import ShortageError
from holdfast.memory.context import Context
from holdfast.memory.group import KIND_NAMES, UNLIMITED_BYTES, Group, Kind
from holdfast.units import format_size

NEVER_NS = 1 << 63  # a deadline that does not come


def refused(refuser: Group, kind: Kind, count_bytes: int) -> ShortageError:
    """The error that names the group and the kind that are used up, and what to do."""
    limit_bytes = min(refuser.limits[kind], refuser.limit_bytes)
    remedy = "serve the pool with more --memory" if refuser.parent is None else "`holdfast group set` gives it more"
    return ShortageError(
        f"{format_size(count_bytes)} more of {KIND_NAMES[kind]} were refused: group {refuser.name!r} is at its limit "
        f"of {format_size(limit_bytes)}; {remedy}"
    )


def obtain(
    group: Group,
    kind: Kind,
    count_bytes: int,
    context: Context,
    *,
    room: object,
    until_ns: int,
    now_ns: Callable[[], int],
    first: bool = False,
) -> Generator[Any, Any, None]:
    """Charge, waiting for `room` (a Waitlist) until `until_ns` (a task's work). Raises ShortageError after that.

    `first`: a group that has nothing of this kind gets it although it is at its limit of all kinds, if the server has
    it: what else the group has used its memory for may wait for this very charge.
    """
    while True:
        refuser = group.try_charge(kind, count_bytes, context)
        if refuser is None:
            return
        if first and _is_the_first(group, kind, count_bytes):
            group.charge(kind, count_bytes)
            return
        if until_ns != NEVER_NS and now_ns() >= until_ns:
            raise refused(refuser, kind, count_bytes)
        assert context.may_wait, f"{context.name} waits for memory"
        yield room


def _is_the_first(group: Group, kind: Kind, count_bytes: int) -> bool:
    limited = group.limit_bytes < UNLIMITED_BYTES
    return limited and not group.usage[kind] and group.root.room_bytes(kind) >= count_bytes

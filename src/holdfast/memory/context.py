"""A context: what may be done for a charge, said by whoever charges (row A1).

    may_reclaim   others may be asked to give way: clean pages are dropped, what is dirty is pushed out. That is done by
                  the reclaimer in a turn of its own (`reclaim.py`), never within the charge
    may_wait      the caller holds nothing that frees memory, so it may wait until there is some
    may_start_io  what is done to get memory may start I/O: a checkpoint, or a round of the flusher
    reservation   drawn on when the ordinary charge fails

Write-back, checkpoints and cleaning may do none of the first three: they are what the others wait for (row W4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.memory.reservation import Reservation


@dataclass(frozen=True, slots=True)
class Context:
    name: str
    may_reclaim: bool = False
    may_wait: bool = False
    may_start_io: bool = False
    reservation: Reservation | None = None


CLIENT = Context("a client's request", may_reclaim=True, may_wait=True, may_start_io=True)
BACKGROUND = Context("work in the background")
CONTROL = Context("an operator's command", may_reclaim=True)

"""How `--memory` is divided. All that lives long is allocated and touched at start; what comes and goes has a ceiling.

    a quarter       the ring: acknowledged data on its way to the disk
    half            pages of the maps
    an eighth       buffers of reads that wait for the disk
    a sixteenth     the connections: what was received and not yet taken, what was answered and not yet sent
    a sixteenth     what there is for each connection and each volume, whatever it does

The rest of a process (the interpreter, numpy, stacks) is the base that `docs/memory.md` publishes, and so are the
tables of the pool, whose size its capacity gives.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.errors import RequestError
from holdfast.units import BLOCK_SIZE_BYTES, MIB, format_size

MEMORY_BYTES_MIN = 16 * MIB


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    budget_bytes: int
    ring_bytes: int
    page_bytes: int
    read_buffer_bytes: int
    connection_bytes: int
    state_bytes: int

    @property
    def on_demand_bytes(self) -> int:
        """What is allocated as it is needed, at most; all else is there from the start."""
        return self.read_buffer_bytes + self.connection_bytes + self.state_bytes


def plan_memory(budget_bytes: int) -> MemoryPlan:
    """Divide a budget. Raises RequestError if it is too small to work with."""
    if budget_bytes < MEMORY_BYTES_MIN:
        raise RequestError(
            f"--memory {format_size(budget_bytes)} is too little; {format_size(MEMORY_BYTES_MIN)} is the least"
        )
    ring_bytes = budget_bytes // 4 & -MIB
    page_bytes = budget_bytes // 2 & -BLOCK_SIZE_BYTES
    state_bytes = budget_bytes // 16
    return MemoryPlan(
        budget_bytes=budget_bytes,
        ring_bytes=ring_bytes,
        page_bytes=page_bytes,
        read_buffer_bytes=budget_bytes // 8,
        connection_bytes=budget_bytes - ring_bytes - page_bytes - budget_bytes // 8 - state_bytes,
        state_bytes=state_bytes,
    )

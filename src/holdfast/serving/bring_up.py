"""Bringing a pool up, from what its disk and its ring hold to an engine over both.

In this order: the superblock (made, if there is no pool yet), what a surviving ring still owes to the segment files, a
ring of the right size for this run, the engine. The engine's own recovery runs later, in the loop (`Engine.open`).
"""

from __future__ import annotations

import logging
import uuid as uuid_module
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.engine import Engine
from holdfast.engine_parts import EngineOptions
from holdfast.errors import CorruptionError
from holdfast.pool.format import write_new_pool
from holdfast.pool.opening import read_superblock_slots
from holdfast.pool.superblock import Superblock, is_alone, newest_superblock
from holdfast.runtime.ports import SUPERBLOCK, Clock, Disk, Prng, RingMemory
from holdfast.work.task import run_to_end
from holdfast.writeback.ring import RING_HEADER_BYTES, Ring
from holdfast.writeback.ring_recovery import ring_belongs, write_out_ring

log_output = logging.getLogger("holdfast.pool")

OpenRing = Callable[[str, int], RingMemory]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a pool is brought up in. `ring`: opens the ring of the pool with this UUID, `size` bytes if it is new."""

    disk: Disk
    clock: Clock
    prng: Prng
    ring: OpenRing
    boot_tag: int  # which run of the kernel this is: memory does not outlive it
    allocate: Callable[[int], memoryview]
    name: str  # of the pool, for the log


@dataclass(frozen=True, slots=True)
class BroughtUp:
    """An engine that is still to be opened, with `known_end`: where the old ring's log ended (0 if there was none)."""

    engine: Engine
    uuid: str
    ring_memory: RingMemory
    known_end: int


def bring_up(
    around: Surroundings,
    options: EngineOptions,
    *,
    new: Callable[[], Superblock],
    adjust: Callable[[Superblock], Superblock] = lambda superblock: superblock,
) -> BroughtUp:
    """Blocking. `new` makes the superblock of a pool that is not there yet, `adjust` changes the one that is.

    Raises CorruptionError, DiskError or NoSpaceError, and what `new` and `adjust` raise.
    """
    disk = around.disk
    findings: list[str] = []
    superblock: Superblock | None = None
    alone = False  # no slot leads to another checkpoint
    if disk.exists(SUPERBLOCK):
        slots = run_to_end(read_superblock_slots(), disk.run)
        try:
            superblock, findings = newest_superblock(slots)
            alone = is_alone(slots)
        except CorruptionError:
            if disk.segments():
                raise
            # A pool gets segments only after its superblock: this one was being made when something failed.
            log_output.warning("%s: the making of this pool was cut short; it is made anew", around.name)
    exists = superblock is not None
    superblock = superblock or new()
    if superblock.epoch == 0:
        # A new pool, or one with which nothing was ever done: its making may have been cut short when one slot was
        # written, and that one not made durable. Segments are made only once both are.
        run_to_end(write_new_pool(superblock, around.allocate), disk.run)
    if exists:
        superblock = adjust(superblock)
    for finding in findings:
        log_output.warning("%s: %s", around.name, finding)
    uuid = str(uuid_module.UUID(bytes=superblock.uuid))
    # No two runs may write under the same epoch, also if one of them ended before its first checkpoint.
    epoch = (superblock.epoch >> 32) + 1 << 32 | around.prng.below(1 << 32)
    memory, known_end = _open_ring(around, superblock, uuid, RING_HEADER_BYTES + options.memory.ring_bytes)
    ring = Ring(memory.view, segment_blocks=superblock.segment_blocks)
    ring.format(tag=superblock.tag, epoch=epoch, boot=around.boot_tag)
    engine = Engine(
        superblock,
        ring,
        epoch=epoch,
        disk=disk,
        clock=around.clock,
        allocate=around.allocate,
        options=options,
        alone=alone,
    )
    engine.findings += findings
    return BroughtUp(engine, uuid, memory, known_end)


def _open_ring(around: Surroundings, superblock: Superblock, uuid: str, size_bytes: int) -> tuple[RingMemory, int]:
    """The ring of this run, and the position up to which the old one's log reached (0 if there was none)."""
    memory = around.ring(uuid, size_bytes)
    known_end = 0
    if memory.found:
        try:
            known_end = _write_out(around, superblock, memory)
        except (ValueError, CorruptionError) as error:
            raise CorruptionError(
                f"{memory.path}: {error}; move the file away to serve the pool without what is only in there"
            ) from error
        # Made anew, even where the size fits: after the discard nothing can take the old contents for current ones.
        memory.discard()
        memory.close()
        memory = around.ring(uuid, size_bytes)
    return memory, known_end


def _write_out(around: Surroundings, superblock: Superblock, memory: RingMemory) -> int:
    ring = Ring(memory.view, segment_blocks=superblock.segment_blocks)
    if not ring_belongs(ring, tag=superblock.tag, epoch=superblock.epoch, boot=around.boot_tag):
        return 0

    def note(text: str) -> None:
        log_output.warning("%s: %s", around.name, text)

    log_output.info("the server before this one died; writing out what is in its ring")
    work = write_out_ring(ring, tag=superblock.tag, epoch=superblock.epoch, note=note)
    return int(run_to_end(work, around.disk.run))

"""A pool in use: its lock, its files, its ring and the engine over them. One for `serve`, one for a command on an idle
pool.

Start, in this order: lock, superblock (made, if there is no pool yet), what a surviving ring still owes to the segment
files, a ring of the right size for this run, the engine, and the engine's own recovery, which runs in the loop.
"""

from __future__ import annotations

import logging
import os
import uuid as uuid_module
from collections.abc import Callable
from dataclasses import dataclass, replace
from errno import EIO
from pathlib import Path

from holdfast.engine import Engine, EngineOptions
from holdfast.errors import CorruptionError, DiskError, HoldfastError, NotFoundError, RequestError
from holdfast.memory.plan import plan_memory
from holdfast.pool.format import SEGMENT_SIZE_BYTES_DEFAULT, choose_segment_size, new_superblock, write_new_pool
from holdfast.pool.opening import read_superblock_slots
from holdfast.pool.superblock import Superblock, newest_superblock
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.clock import SystemClock
from holdfast.runtime.disk import DirectoryDisk
from holdfast.runtime.host import boot_tag, default_memory_bytes
from holdfast.runtime.lock import PoolLock
from holdfast.runtime.loop import EventLoop
from holdfast.runtime.ports import SUPERBLOCK
from holdfast.runtime.prng import SystemPrng
from holdfast.runtime.ring_memory import SHM_DIRECTORY, SharedRing, ring_name
from holdfast.units import BLOCK_SHIFT, GIB, format_size
from holdfast.work.task import run_to_end
from holdfast.writeback.ring import RING_HEADER_BYTES, Ring
from holdfast.writeback.ring_recovery import ring_belongs, write_out_ring

log_output = logging.getLogger("holdfast.pool")

TICK_NS = 250_000_000


@dataclass(frozen=True, slots=True)
class PoolOptions:
    memory_bytes: int | None = None
    capacity_bytes: int | None = None
    segment_size_bytes: int | None = None
    preallocate: bool = False


class ServedPool:
    """Raises PoolBusyError, RequestError, CorruptionError, DiskError or NoSpaceError when it cannot be brought up."""

    def __init__(self, path: str, loop: EventLoop, options: PoolOptions, *, create: bool) -> None:
        self.path = Path(path)
        self.loop = loop
        self.clock = SystemClock()
        self.memory = plan_memory(default_memory_bytes() if options.memory_bytes is None else options.memory_bytes)
        exists = (self.path / "superblock").exists()
        if not create and not exists:
            raise NotFoundError(f"{path} is not a pool; `holdfast serve {path}` makes one")
        # Before anything is made: what was asked for may be impossible.
        new = None if exists else self._new_superblock(options)
        self._disk: DirectoryDisk | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = PoolLock(self.path)
            try:
                self._open(options, new)
            except BaseException:
                self._let_go()
                raise
        except (FileExistsError, NotADirectoryError) as error:
            raise RequestError(f"{path} is not a directory") from error
        except OSError as error:
            raise DiskError(f"{error.filename or path}: {error.strerror}", error.errno or EIO) from error

    def _open(self, options: PoolOptions, new: Superblock | None) -> None:
        disk = self._disk = DirectoryDisk(self.path, self.loop, segment_size_bytes=SEGMENT_SIZE_BYTES_DEFAULT)
        findings: list[str] = []
        if disk.exists(SUPERBLOCK):
            superblock, findings = newest_superblock(run_to_end(read_superblock_slots(), disk.run))
            superblock = self._grown(superblock, options)
        else:
            superblock = new if new is not None else self._new_superblock(options)
            run_to_end(write_new_pool(superblock, aligned_buffer), disk.run)
        for finding in findings:
            log_output.warning("%s: %s", self.path, finding)
        self.uuid = str(uuid_module.UUID(bytes=superblock.uuid))
        disk.segment_size_bytes = superblock.segment_blocks << BLOCK_SHIFT
        # No two runs may write under the same epoch, also if one of them ended before its first checkpoint.
        epoch = (superblock.epoch >> 32) + 1 << 32 | SystemPrng().below(1 << 32)
        self.ring_memory, known_end = self._open_ring(superblock, disk)
        ring = Ring(self.ring_memory.view, segment_blocks=superblock.segment_blocks)
        ring.format(tag=superblock.tag, epoch=epoch, boot=boot_tag())
        self._known_end = known_end
        self.engine = Engine(
            superblock,
            ring,
            epoch=epoch,
            disk=disk,
            clock=self.clock,
            allocate=aligned_buffer,
            options=EngineOptions(self.memory, preallocate=options.preallocate),
        )
        self.engine.findings += findings

    def _new_superblock(self, options: PoolOptions) -> Superblock:
        capacity = options.capacity_bytes
        if capacity is None:
            place = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
            status = os.statvfs(place)
            capacity = max(GIB, status.f_bavail * status.f_frsize * 3 // 4)
        size = options.segment_size_bytes or choose_segment_size(capacity, self.memory.ring_bytes)
        return new_superblock(
            uuid=uuid_module.uuid4().bytes,
            segment_size_bytes=size,
            capacity_bytes=capacity,
            created_ns=self.clock.wall_ns(),
        )

    def _grown(self, superblock: Superblock, options: PoolOptions) -> Superblock:
        segment_size = superblock.segment_blocks << BLOCK_SHIFT
        if options.segment_size_bytes not in (None, segment_size):
            raise RequestError(
                f"pool {self.path} has segments of {format_size(segment_size)}; "
                "their size is chosen when a pool is made"
            )
        if options.capacity_bytes is None:
            return superblock
        segments = options.capacity_bytes // segment_size
        if segments < superblock.capacity_segments:
            raise RequestError(
                f"pool {self.path} has a capacity of {format_size(superblock.capacity_segments * segment_size)}; "
                "it can grow, but not shrink yet: leave --capacity out, or give more"
            )
        return replace(superblock, capacity_segments=segments)

    def _open_ring(self, superblock: Superblock, disk: DirectoryDisk) -> tuple[SharedRing, int]:
        """The ring of this run, and the position up to which the old one's log reached (0 if there was none)."""
        size = RING_HEADER_BYTES + self.memory.ring_bytes
        name = ring_name(self.uuid)
        places = [SHM_DIRECTORY, str(self.path)]
        known_end = 0
        memory = SharedRing(name, size, directories=places)
        if memory.found:
            try:
                known_end = self._write_out(memory, superblock, disk)
            except (ValueError, CorruptionError) as error:
                raise CorruptionError(
                    f"{memory.path}: {error}; move the file away to serve the pool without what is only in there"
                ) from error
            # Made anew, even where the size fits: after the discard nothing can take the old contents for current ones.
            memory.discard()
            memory.close()
            memory = SharedRing(name, size, directories=places)
        return memory, known_end

    def _write_out(self, memory: SharedRing, superblock: Superblock, disk: DirectoryDisk) -> int:
        ring = Ring(memory.view, segment_blocks=superblock.segment_blocks)
        if not ring_belongs(ring, tag=superblock.tag, epoch=superblock.epoch, boot=boot_tag()):
            return 0

        def note(text: str) -> None:
            log_output.warning("%s: %s", self.path, text)

        log_output.info("the server before this one died; writing out what is in its ring")
        work = write_out_ring(ring, tag=superblock.tag, epoch=superblock.epoch, note=note)
        return int(run_to_end(work, disk.run))

    # ---- life

    def start(self, done: Callable[[HoldfastError | None], None]) -> None:
        """Recover, in the loop; `done` is called when the engine can be used, or with what is wrong."""
        self.loop.before_sleep.append(self._turn)
        self._tick()
        self.engine.open(self._known_end, done)

    def _turn(self) -> None:
        if self.engine.turn():
            self.loop.turn_again()

    def _tick(self) -> None:
        self.engine.tick()
        self._timer = self.loop.call_later(TICK_NS, self._tick)

    def stop(self, done: Callable[[HoldfastError | None], None]) -> None:
        """Write everything out and a clean checkpoint, in the loop. After `done(None)` call `release`."""
        self.engine.close(done)

    def release(self, *, clean: bool) -> None:
        """Let go of files, ring and lock. Only after a clean end may the ring go."""
        self.loop.before_sleep.remove(self._turn)
        self._timer.cancel()
        if clean:
            self.ring_memory.discard()
        if clean or self.engine.flusher.idle:
            self._let_go()
        # Otherwise the process ends with what is in flight: a disk that hangs must not hang it, and the ring has it
        # all.

    def _let_go(self) -> None:
        if self._disk is not None:
            self._disk.close()
        self.lock.release()

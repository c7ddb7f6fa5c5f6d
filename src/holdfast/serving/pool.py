"""A pool in use: its lock, its files, its ring and the engine over them. One for `serve`, one for a command on an idle
pool.

Start, in this order: lock, what `bring_up` does, and the engine's own recovery, which runs in the loop.
"""

from __future__ import annotations

import os
import uuid as uuid_module
from collections.abc import Callable
from dataclasses import dataclass, replace
from errno import EIO
from pathlib import Path

from holdfast.engine_parts import EngineOptions
from holdfast.errors import DiskError, HoldfastError, NotFoundError, RequestError
from holdfast.memory.group import KIND_NAMES, Kind
from holdfast.memory.plan import plan_memory
from holdfast.pool.format import SEGMENT_SIZE_BYTES_DEFAULT, choose_segment_size, new_superblock
from holdfast.pool.superblock import Superblock
from holdfast.runtime.buffers import aligned_buffer, hand_back
from holdfast.runtime.clock import SystemClock
from holdfast.runtime.disk import DirectoryDisk
from holdfast.runtime.fault import FaultInjector, FaultRule
from holdfast.runtime.fault_disk import FaultyDisk
from holdfast.runtime.host import boot_tag, default_memory_bytes, filesystem_space
from holdfast.runtime.lock import PoolLock
from holdfast.runtime.loop import EventLoop
from holdfast.runtime.pressure import PressureWatch
from holdfast.runtime.prng import SystemPrng
from holdfast.runtime.ring_memory import SHM_DIRECTORY, SharedRing, ring_name
from holdfast.serving.bring_up import Surroundings, bring_up
from holdfast.serving.heartbeat import Heartbeat
from holdfast.serving.space_watch import SpaceWatch
from holdfast.units import BLOCK_SHIFT, GIB, MIB, format_size
from holdfast.volume.capacity import check_capacity

# Where segment files are in memory: left for the kernel's own, sockets above all.
FILES_MARGIN_BYTES = 8 * MIB

# "1": costly checks at run time are on, as in all tests.
VERIFY_VARIABLE = "HOLDFAST_VERIFY"


@dataclass(frozen=True, slots=True)
class PoolOptions:
    memory_bytes: int | None = None
    capacity_bytes: int | None = None
    segment_size_bytes: int | None = None
    preallocate: bool = False
    faults: tuple[FaultRule, ...] = ()


class ServedPool:
    """Raises PoolBusyError, RequestError, CorruptionError, DiskError or NoSpaceError when it cannot be brought up."""

    def __init__(self, path: str, loop: EventLoop, options: PoolOptions, *, create: bool) -> None:
        self.path = Path(path)
        self.loop = loop
        self.clock = SystemClock()
        self.faults = FaultInjector(options.faults)
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
        faults = self.faults
        disk = self._disk = DirectoryDisk(
            self.path,
            self.loop,
            segment_size_bytes=SEGMENT_SIZE_BYTES_DEFAULT,
            refuses_thread=lambda name: faults.strike("worker", name),
            memory_margin_bytes=FILES_MARGIN_BYTES + self.memory.on_demand_bytes,
        )
        around = Surroundings(
            disk=FaultyDisk(disk, faults, self.loop.call_soon) if faults.rules else disk,
            clock=self.clock,
            prng=SystemPrng(),
            ring=lambda uuid, size: SharedRing(
                ring_name(uuid),
                size,
                directories=[SHM_DIRECTORY, str(self.path)],
                refuses=lambda directory: faults.strike("ring", directory),
            ),
            boot_tag=boot_tag(),
            allocate=aligned_buffer,
            name=str(self.path),
        )
        brought_up = bring_up(
            around,
            EngineOptions(
                self.memory,
                preallocate=options.preallocate,
                refuses=self._refuses if faults.watches("charge") else None,
                hand_back=hand_back,
                verify=os.environ.get(VERIFY_VARIABLE) == "1",
            ),
            new=lambda: new or self._new_superblock(options),
            adjust=lambda superblock: self._grown(superblock, options),
        )
        self.engine = brought_up.engine
        faults.told = self.engine.complain
        self._heartbeat = Heartbeat(self.loop, self.engine, pressure=PressureWatch().level)
        self.space_watch = SpaceWatch(self.loop, self.engine, host=lambda: filesystem_space(self.path))
        self.uuid = brought_up.uuid
        self.ring_memory = brought_up.ring_memory
        self._known_end = brought_up.known_end
        disk.segment_size_bytes = self.engine.log.segment_blocks << BLOCK_SHIFT

    def _refuses(self, kind: Kind, count_bytes: int) -> bool:
        return self.faults.strike("charge", f"{count_bytes} bytes of {KIND_NAMES[kind]}") is not None

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
        # Larger from the start, for a pool may be too full to be opened as it is. Smaller it becomes once it is open.
        segments = max(superblock.capacity_segments, options.capacity_bytes // segment_size)
        check_capacity(segments, superblock.segment_blocks)
        return replace(superblock, capacity_segments=segments)

    # ---- life

    def start(self, done: Callable[[HoldfastError | None], None]) -> None:
        """Recover, in the loop; `done` is called when the engine can be used, or with what is wrong."""
        self._heartbeat.start()
        self.engine.open(self._known_end, done)

    def stop(self, done: Callable[[HoldfastError | None], None]) -> None:
        """Write everything out and a clean checkpoint, in the loop. After `done(None)` call `release`."""
        self.engine.close(done)

    def release(self, *, clean: bool) -> None:
        """Let go of files, ring and lock. Only after a clean end may the ring go."""
        self._heartbeat.stop()
        self.space_watch.stop()
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

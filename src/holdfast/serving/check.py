"""`holdfast check`: takes the pool's lock, lays what is in a dead server's ring over its files, and checks the
whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.errors import CorruptionError, HoldfastError, NotFoundError
from holdfast.pool.opening import read_superblock_slots
from holdfast.pool.superblock import Superblock, newest_superblock
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.clock import SystemClock
from holdfast.runtime.disk import DirectoryDisk
from holdfast.runtime.host import boot_tag
from holdfast.runtime.lock import PoolLock
from holdfast.runtime.loop import EventLoop
from holdfast.runtime.ring_memory import SharedRing, ring_path
from holdfast.scrub.pool_check import CheckReport, OverlayDisk, PoolChecker
from holdfast.scrub.segment_check import Finding
from holdfast.units import BLOCK_SHIFT
from holdfast.work.task import run_to_end
from holdfast.writeback.ring import Ring
from holdfast.writeback.ring_recovery import ring_belongs, write_out_ring


def check(path: str, progress: Callable[[int, int], None] = lambda _done, _total: None) -> CheckReport:
    """Check a pool that nobody serves. Raises PoolBusyError, NotFoundError, DiskError, or CorruptionError where the
    pool is damaged too much to be walked."""
    if not (Path(path) / "superblock").exists():
        raise NotFoundError(f"{path} is not a pool: it has no file `superblock`")
    clock = SystemClock()
    started_ns = clock.now_ns()
    loop = EventLoop()
    with PoolLock(path):
        disk = DirectoryDisk(path, loop, threads=1, segment_size_bytes=1 << BLOCK_SHIFT)
        try:
            report = _check(disk, path, progress)
        finally:
            disk.close()
            loop.dispose()
    report.seconds = (clock.now_ns() - started_ns) / 1e9
    return report


def _check(disk: DirectoryDisk, path: str, progress: Callable[[int, int], None]) -> CheckReport:
    superblock, findings = newest_superblock(run_to_end(read_superblock_slots(), disk.run))
    overlay = OverlayDisk(disk)
    damage = [Finding("superblock", "file superblock", text) for text in findings]
    known_end = 0
    try:
        known_end = _lay_ring_over(overlay, superblock, path, damage)
        report = PoolChecker(superblock, overlay, known_end, progress).run()
    except CorruptionError as error:
        report = CheckReport(damage=[Finding("pool", path, str(error))])
    report.damage = damage + report.damage
    return report


def _lay_ring_over(overlay: OverlayDisk, superblock: Superblock, path: str, damage: list[Finding]) -> int:
    """What a dead server's ring would be written to, read instead of the files; returns where the log ends, or 0."""
    found = ring_path(superblock.uuid, path)
    if found is None:
        return 0
    memory = SharedRing(found.name, found.stat().st_size, directories=[found.parent])
    # A copy: writing the ring out seals its open commit, and a check changes nothing.
    copy = aligned_buffer(len(memory.view))
    copy[:] = memory.view
    memory.close()
    try:
        ring = Ring(copy, segment_blocks=superblock.segment_blocks)
    except ValueError as error:
        damage.append(Finding("ring", str(found), str(error)))
        return 0
    if not ring_belongs(ring, tag=superblock.tag, epoch=superblock.epoch, boot=boot_tag()):
        return 0

    def note(text: str) -> None:
        damage.append(Finding("ring", str(found), text))

    try:
        work = write_out_ring(ring, tag=superblock.tag, epoch=superblock.epoch, note=note)
        return int(run_to_end(work, overlay.run))
    except HoldfastError as error:
        damage.append(Finding("ring", str(found), str(error)))
        return 0

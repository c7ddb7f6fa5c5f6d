"""A disk that fails on purpose: the real one, with some of its operations struck by `--fault`."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.runtime.fault import SHORT, FaultInjector, FaultRule, point_of
from holdfast.runtime.ports import WRITE, Disk, Io
from holdfast.units import BLOCK_SIZE_BYTES


class FaultyDisk:
    """The `Disk` port over another one. `call_soon`: of the loop, for completions of what was not even begun."""

    def __init__(self, disk: Disk, faults: FaultInjector, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._disk = disk
        self._faults = faults
        self._call_soon = call_soon

    def read_now(self, file: int, offset: int, view: memoryview) -> bool:
        # Where reads may fail, all of them are READs: the page cache would hide most faults.
        return not self._faults.watches("read") and self._disk.read_now(file, offset, view)

    def will_read(self, file: int, offset: int, length: int) -> None:
        self._disk.will_read(file, offset, length)

    def drop_cached(self, file: int, offset: int, length: int) -> None:
        self._disk.drop_cached(file, offset, length)

    def start(self, io: Io) -> None:
        rule = self._strike(io)
        if rule is None:
            self._disk.start(io)
            return
        part = self._part(io, rule)
        if part is None:
            self._call_soon(lambda: _fail(io, rule))
            return
        part.done = lambda _part: _fail(io, rule)
        self._disk.start(part)

    def run(self, io: Io) -> int:
        rule = self._strike(io)
        if rule is None:
            return self._disk.run(io)
        part = self._part(io, rule)
        if part is not None:
            self._disk.run(part)
        io.result = -rule.errno
        return io.result

    def segments(self) -> list[int]:
        return self._disk.segments()

    def exists(self, file: int) -> bool:
        return self._disk.exists(file)

    def _strike(self, io: Io) -> FaultRule | None:
        rule = self._faults.strike(point_of(io), io)
        if rule is None and io.op == WRITE and io.durable:
            rule = self._faults.strike("flush", io)
        return rule

    @staticmethod
    def _part(io: Io, rule: FaultRule) -> Io | None:
        """What of `io` is carried out before it fails."""
        half = io.length // 2 & -BLOCK_SIZE_BYTES
        if rule.kind != SHORT or not half or io.view is None:
            return None
        return Io(io.op, io.file, io.offset, io.view[:half])


def _fail(io: Io, rule: FaultRule) -> None:
    io.result = -rule.errno
    if io.done is not None:
        io.done(io)

"""The directory, and the mapped file, held to the contracts of the ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.errors import RequestError
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.disk import DirectoryDisk
from holdfast.runtime.loop import EventLoop
from holdfast.runtime.ports import Disk
from holdfast.runtime.ring_memory import SharedRing

from .disk_conformance import SEGMENT_BYTES, DiskConformance, OpenRing, RingConformance


class RealWorld:
    def __init__(self, directory: Path, workers: str) -> None:
        self._directory = directory
        self._workers = workers
        self._loop = EventLoop()
        self._real = self._open()
        self.disk: Disk = self._real

    def _open(self) -> DirectoryDisk:
        return DirectoryDisk(self._directory, self._loop, segment_size_bytes=SEGMENT_BYTES, workers=self._workers)

    def buffer(self, size_bytes: int) -> memoryview:
        return aligned_buffer(size_bytes)

    def run_until(self, condition: Callable[[], bool]) -> None:
        def stop_when_it_holds() -> None:
            if condition():
                self._loop.stop()
            else:
                # Some conditions, like the existence of a file, come true without an event of the loop.
                self._loop.call_later(1_000_000, lambda: None)

        self._loop.before_sleep.append(stop_when_it_holds)
        self._loop.call_soon(lambda: None)
        self._loop.run()
        self._loop.before_sleep.remove(stop_when_it_holds)

    def reopen(self) -> None:
        self._real.close()
        self._real = self._open()
        self.disk = self._real

    def close(self) -> None:
        self._real.close()
        self._loop.dispose()


class TestDirectoryDisk(DiskConformance):
    @pytest.fixture(params=["threads", "uring"])
    def world(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealWorld]:
        try:
            world = RealWorld(tmp_path / "pool", request.param)
        except RequestError as error:
            pytest.skip(str(error))
        yield world
        world.close()


class TestSharedRing(RingConformance):
    @pytest.fixture
    def open_ring(self, tmp_path: Path) -> OpenRing:
        return lambda size_bytes: SharedRing("test.ring", size_bytes, directories=[tmp_path])

"""The disk that is driven by hand keeps the contract of the port too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.ports import Disk
from tests.conformance.disk_conformance import DiskConformance
from tests.engine.hand_disk import HandDisk


class HandWorld:
    def __init__(self) -> None:
        self._by_hand = HandDisk()
        self.disk: Disk = self._by_hand

    def buffer(self, size_bytes: int) -> memoryview:
        return aligned_buffer(size_bytes)

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._by_hand.complete_one()

    def reopen(self) -> None:
        """There is nothing that a next owner would have to find anew."""


class TestHandDisk(DiskConformance):
    @pytest.fixture
    def world(self) -> HandWorld:
        return HandWorld()

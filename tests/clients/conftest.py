"""A served pool with a disk for each test: one server for all tests of a module, as a server has many clients."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from holdfast.units import MIB
from tests.clients.running import RunningServer

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """One for the module; ended, it must have nothing to complain of but what the module's EXPECTED_LOG matches."""
    running = RunningServer(tmp_path_factory.mktemp("served") / "pool").start()
    yield running
    running.stop(expected=getattr(request.module, "EXPECTED_LOG", None))
    shutil.rmtree(running.pool)


@dataclass(frozen=True)
class Disk:
    """A volume of its own for one test."""

    server: RunningServer
    name: str
    size_bytes: int
    uri: str

    @property
    def mapped_bytes(self) -> int:
        return self.server.show(self.name).mapped_bytes


MakeDisk = Callable[[int], Disk]


@pytest.fixture
def make_disk(server: RunningServer, request: pytest.FixtureRequest) -> MakeDisk:
    """`make_disk(size_bytes)`; over TCP where the test is parametrized with tcp=True."""
    tcp = "tcp" in request.fixturenames and bool(request.getfixturevalue("tcp"))

    def make(size_bytes: int) -> Disk:
        name = f"disk{next(_numbers)}"
        server.create(name, size_bytes)
        return Disk(server, name, size_bytes, server.uri(name, tcp=tcp))

    return make


@pytest.fixture
def disk(make_disk: MakeDisk) -> Disk:
    """64 MiB."""
    return make_disk(64 * MIB)

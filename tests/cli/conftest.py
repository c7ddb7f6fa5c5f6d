"""A served pool with a made-up service behind it, and an idle one with a made-up offline side.

What the commands do with a real server is shown in tests/integration; here it is how they ask, print and fail.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from holdfast.cli.main import holdfast
from holdfast.control.api import Answer, PoolStatus, VolumeInfo
from holdfast.errors import HoldfastError
from tests.control.fake_service import FakeService
from tests.control.socket_server import serve_control


class Run:
    """Runs a command in this process: `run("volume", "list", pool)`."""

    def __call__(self, *arguments: object, input_text: str | None = None) -> Result:
        return CliRunner().invoke(holdfast, [str(argument) for argument in arguments], input=input_text)


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A directory that looks like a pool, served by nobody."""
    directory = tmp_path / "pool"
    directory.mkdir()
    (directory / "superblock").touch()
    return directory


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def served_pool(pool: Path, service: FakeService) -> Iterator[Path]:
    with serve_control(pool / "control.sock", service):
        yield pool


class Offline:
    """The synchronous form of a service."""

    def __init__(self, service: FakeService) -> None:
        self._service = service

    def status(self) -> PoolStatus:
        return self._service.status()

    def volumes(self) -> list[VolumeInfo]:
        return self._service.volumes()

    def volume(self, name: str) -> VolumeInfo:
        return self._service.volume(name)

    def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        answers: list[Answer | HoldfastError] = []
        self._service.create_volume(name, size_bytes, answers.append)
        (answer,) = answers
        if isinstance(answer, HoldfastError):
            raise answer
        assert isinstance(answer, VolumeInfo)
        return answer

    def remove_volume(self, name: str, *, force: bool = False) -> None:
        self._service.remove_volume(name, lambda answer: None, force=force)


@dataclass
class ServeOptions:
    pool: str
    volumes: list[tuple[str, int]]
    listen: list[str]
    memory_bytes: int | None
    capacity_bytes: int | None
    segment_size_bytes: int | None
    preallocate: bool


@dataclass
class Finding:
    kind: str
    where: str
    what: str


@dataclass
class CheckReport:
    damage: list[Finding]
    blocks_checked: int = 100
    segments_checked: int = 3
    volumes_checked: int = 2
    seconds: float = 0.25


@dataclass
class FakeServer:
    """What stands in for `holdfast.server`, and what was asked of it."""

    service: FakeService
    served: list[ServeOptions] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    closed: int = 0
    damage: list[Finding] = field(default_factory=list)
    failure: HoldfastError | None = None

    def serve(self, options: ServeOptions) -> int:
        if self.failure is not None:
            raise self.failure
        self.served.append(options)
        return 0

    @contextmanager
    def offline(self, pool: str) -> Iterator[Offline]:
        if self.failure is not None:
            raise self.failure
        self.opened.append(pool)
        try:
            yield Offline(self.service)
        finally:
            self.closed += 1

    def check(self, pool: str, *, progress: Callable[[int, int], None]) -> CheckReport:
        if self.failure is not None:
            raise self.failure
        progress(1, 3)
        return CheckReport(damage=self.damage)


@pytest.fixture
def server(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer(service)
    module = ModuleType("holdfast.server")
    vars(module).update(serve=fake.serve, offline=fake.offline, check=fake.check, ServeOptions=ServeOptions)
    monkeypatch.setitem(sys.modules, "holdfast.server", module)
    return fake

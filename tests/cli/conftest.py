"""A real pool that nobody serves, and a served one with a made-up service behind its control socket.

The made-up one can have what a real pool takes long to come by, such as damage; what the commands do with a real server
is in test_with_a_real_server.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from holdfast.cli.main import holdfast
from tests.clients.running import RunningServer
from tests.control.fake_service import FakeService
from tests.control.socket_server import serve_control


class Run:
    """Runs a command in this process: `run("volume", "list", pool)`."""

    def __call__(self, *arguments: object, input_text: str | None = None) -> Result:
        return CliRunner().invoke(holdfast, [str(argument) for argument in arguments], input=input_text)


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture(scope="session")
def empty_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pool as a server leaves it that was started and stopped. To be copied, not used."""
    directory = tmp_path_factory.mktemp("empty") / "pool"
    server = RunningServer(directory, memory="16M", capacity="64M", segment_size="1M")
    server.start()
    server.stop()
    return directory


@pytest.fixture
def pool(empty_pool: Path, tmp_path: Path) -> Path:
    """A pool without volumes, served by nobody."""
    return Path(shutil.copytree(empty_pool, tmp_path / "pool"))


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def served_pool(tmp_path: Path, service: FakeService) -> Iterator[Path]:
    """A directory that looks like a pool, served by `service`."""
    directory = tmp_path / "served"
    directory.mkdir()
    (directory / "superblock").touch()
    with serve_control(directory / "control.sock", service):
        yield directory

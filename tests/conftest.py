"""What every test runs under, and what a test asks for when it needs more than Python.

1. `HOLDFAST_VERIFY=1`: the costly internal checks are on in all tests, and in the servers that tests start.
2. A warning is an error (pyproject.toml), and so is a log line of level WARNING or above that nobody looks at: a test
   that expects one takes the `caplog` fixture and says what it expects.
3. What the machine lacks is a skip that names the Debian package, and a failure where CI=true: there, a skipped test
   would be a test that nobody ever runs.
4. On several processors tests run beside each other, unless they need the machine to themselves (`processors.py`).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from tests import processors

# Set before any test imports holdfast, which may read it once.
os.environ["HOLDFAST_VERIFY"] = "1"

# mkfs and fsck live there, and an ordinary user's PATH often lacks it.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

DEBIAN_PACKAGE = {
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "fio": "fio",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "nbdcopy": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "nbdkit": "nbdkit",
    "nbdsh": "python3-libnbd",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "xfs_repair": "xfsprogs",
}

Tool = Callable[[str], str]


def missing(what: str) -> None:
    """End the test: it needs something that this machine has not got."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} (a failure because CI=true)", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session")
def tool() -> Tool:
    """`tool("fio")` is the absolute path of that program, or the end of the test where it is not installed."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            missing(f"{name} is not installed: apt-get install {DEBIAN_PACKAGE[name]}")
        assert path is not None
        return path

    return find


@pytest.fixture(scope="session")
def requires_root() -> None:
    """For fixtures that mount or drop caches; a test itself carries `@pytest.mark.root`."""
    if os.geteuid() != 0:
        missing("needs root")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        missing("needs root")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: processors.place(item.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> processors.Scheduler:
    return processors.Scheduler(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Outside of the time limit: waiting for the others is no hang."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with processors.room_for(item.nodeid):
        return (yield)


class _LoudLines(logging.Handler):
    """Collects what holdfast logs at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def no_unexpected_log_lines(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test during which holdfast warned of something, unless the test takes `caplog` and so looks itself."""
    if "caplog" in request.fixturenames:
        yield
        return
    handler = _LoudLines()
    logger = logging.getLogger("holdfast")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    if handler.lines:
        pytest.fail("unexpected log lines:\n" + "\n".join(handler.lines), pytrace=False)

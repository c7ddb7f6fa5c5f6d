"""A loop that is disposed of, and filesystems that real servers meet: a full one, one without direct I/O."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from holdfast.runtime.loop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.dispose()


Mount = Callable[..., Path]


@pytest.fixture
def mount(requires_root: None, tmp_path: Path) -> Iterator[Mount]:
    """`mount("tmpfs", "size=8m")` is the directory of a new filesystem in memory, unmounted after the test."""
    mounted: list[Path] = []

    def new(kind: str, options: str = "defaults") -> Path:
        where = tmp_path / f"mounted-{len(mounted)}"
        where.mkdir()
        subprocess.run(["mount", "-t", kind, "-o", options, kind, str(where)], check=True)
        mounted.append(where)
        return where

    yield new
    for where in mounted:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@pytest.fixture
def no_free_descriptors() -> Callable[[], AbstractContextManager[None]]:
    """A context in which this process cannot open anything: its limit is the number of the next descriptor."""

    @contextmanager
    def exhausted() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        next_fd = os.open("/dev/null", os.O_RDONLY)
        os.close(next_fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_fd, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return exhausted

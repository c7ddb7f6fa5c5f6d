"""A real ext4 and a real XFS, full of this machine's own files, go into a disk and come out of it byte for byte.

The images are made by mkfs itself (-d, -p), which needs neither root nor a loop device; only the test that mounts what
came out wants both.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from holdfast.units import MIB
from tests.clients.running import RunningServer, holdfast, run
from tests.conftest import Tool, missing

pytestmark = [pytest.mark.clients, pytest.mark.slow]

FILES_BYTES_MAX = 200 * MIB
FILES_MAX = 30_000  # an inode each, and mkfs makes room for so many in an image of this size
IMAGE_BYTES = 512 * MIB  # mkfs.xfs makes none below 300 MiB
SOURCES = (sysconfig.get_path("stdlib"), "/usr/lib/python3", "/usr/share")


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with up to 200 MiB of real files, in real directories."""
    root = tmp_path_factory.mktemp("files") / "tree"
    left_bytes, left_files = FILES_BYTES_MAX, FILES_MAX
    for number, source in enumerate(SOURCES):
        for directory, subdirectories, names in os.walk(source):
            subdirectories.sort()
            for name in sorted(names):
                path = Path(directory, name)
                # The description that mkfs.xfs reads has no way to write a space.
                if path.is_symlink() or not path.is_file() or any(character.isspace() for character in str(path)):
                    continue
                left_bytes -= path.stat().st_size
                left_files -= 1
                if left_bytes < 0 or left_files < 0:
                    return root
                target = root / str(number) / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return root


def describe(directory: Path, output: TextIO) -> None:
    """Write a directory the way `mkfs.xfs -p` wants it."""
    for entry in sorted(directory.iterdir()):
        if entry.is_dir():
            output.write(f"{entry.name} d--755 0 0\n")
            describe(entry, output)
            output.write("$\n")
        else:
            output.write(f"{entry.name} ---644 0 0 {entry}\n")


def make_ext4(tool: Tool, tree: Path, image: Path) -> None:
    run(tool("mkfs.ext4"), "-q", "-N", 2 * FILES_MAX, "-d", tree, image, f"{IMAGE_BYTES // 1024}k")


def make_xfs(tool: Tool, tree: Path, image: Path) -> None:
    description = image.with_suffix(".proto")
    with open(description, "w", encoding="utf-8") as output:
        output.write("none\n0 0\nd--755 0 0\n")
        describe(tree, output)
        output.write("$\n")
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    run(tool("mkfs.xfs"), "-q", "-f", "-p", description, image)


def check(tool: Tool, kind: str, image: Path) -> None:
    if kind == "ext4":
        run(tool("e2fsck"), "-fn", image)
    else:
        run(tool("xfs_repair"), "-n", "-f", image)


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def image(kind: str, tool: Tool, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / f"{kind}.img"
    {"ext4": make_ext4, "xfs": make_xfs}[kind](tool, tree, path)
    check(tool, kind, path)
    return path


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "pool", volumes=[f"disk0={IMAGE_BYTES}"], segment_size="16M").start()
    yield server
    # A server that was killed between says that it found what the one before it left.
    server.stop(expected="the server before this one died")


Copy = Callable[[RunningServer, "Path | None", "Path | None"], None]


def by_holdfast(server: RunningServer, source: Path | None, target: Path | None) -> None:
    volume = server.pool / "disk0"
    holdfast("copy", "--quiet", source or volume, target or volume)


def by_nbdcopy(server: RunningServer, source: Path | None, target: Path | None) -> None:
    uri = server.uri("disk0")
    run("nbdcopy", source or uri, target or uri)


@pytest.fixture(params=[by_holdfast, by_nbdcopy])
def copy(request: pytest.FixtureRequest, tool: Tool) -> Copy:
    tool("nbdcopy")
    chosen: Copy = request.param
    return chosen


def test_a_filesystem_comes_back_as_it_went(
    tool: Tool, kind: str, image: Path, running: RunningServer, copy: Copy, tmp_path: Path
) -> None:
    out = tmp_path / "out.img"
    copy(running, image, None)
    copy(running, None, out)
    assert filecmp.cmp(image, out, shallow=False)
    check(tool, kind, out)
    assert running.show("disk0").mapped_bytes <= image.stat().st_blocks * 512


def test_a_filesystem_outlives_the_server(
    tool: Tool, kind: str, image: Path, running: RunningServer, tmp_path: Path
) -> None:
    """nbdcopy does not ask for a flush unless it is told to: what was acknowledged must be there all the same."""
    tool("nbdcopy")
    out = tmp_path / "out.img"
    by_nbdcopy(running, image, None)
    running.kill()
    running.start()
    by_nbdcopy(running, None, out)
    assert filecmp.cmp(image, out, shallow=False)
    check(tool, kind, out)


@pytest.fixture
def mount(tool: Tool, requires_root: None, tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """`mount(image)`: read-only, through a loop device."""
    mounted: list[Path] = []

    def attach(path: Path) -> Path:
        point = tmp_path / "mounted"
        point.mkdir()
        words = ["mount", "-o", "loop,ro", str(path), str(point)]
        made = subprocess.run(words, capture_output=True, text=True, check=False)
        if made.returncode:
            missing(f"images cannot be mounted here: {made.stderr.strip()}")
        mounted.append(point)
        return point

    yield attach
    for point in mounted:
        run("umount", point)


@pytest.mark.root
def test_the_kernel_finds_every_file_in_what_came_out(
    tree: Path, image: Path, running: RunningServer, mount: Callable[[Path], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.img"
    by_holdfast(running, image, None)
    by_holdfast(running, None, out)
    run("diff", "-r", "--exclude=lost+found", tree, mount(out))

"""Snapshots and clones with real clients: taken under writes, read by nbdcopy and qemu-img, checked by e2fsck, and what
is left of them after a kill -9."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from holdfast.control.api import ChangeVolume, CloneVolume, TakeSnapshots
from holdfast.errors import GoneError, RequestError
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB
from tests.clients.conftest import Disk, MakeDisk
from tests.clients.running import RunningServer, client_environment, holdfast, run
from tests.conftest import Tool

pytestmark = pytest.mark.clients

BLOCKS = 256
SNAPSHOTS = 12

# Writes 1, 2, 3 ... into two disks, one block after the other and round again; each number first into a, then into b.
# How far it got is told in a file once both are answered.
WRITER = """
import os
handles = []
for name in ("a", "b"):
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.connect_unix("{socket}")
    handles.append(handle)
told = os.open("{told}", os.O_RDWR | os.O_CREAT)
number = 0
while not os.path.exists("{stop}"):
    number += 1
    for handle in handles:
        handle.pwrite(number.to_bytes(8, "little") * 512, number % {blocks} * 4096)
    os.pwrite(told, number.to_bytes(8, "little"), 0)
"""


class Writer:
    """The script above, in a process of its own."""

    def __init__(self, program: str, server: RunningServer, directory: Path) -> None:
        self._told, self._stop = directory / "told", directory / "stop"
        script = WRITER.format(socket=server.unix_path, told=self._told, stop=self._stop, blocks=BLOCKS)
        self._process = subprocess.Popen([program, "-c", script], stderr=subprocess.DEVNULL, env=client_environment())

    @property
    def answered(self) -> int:
        return int.from_bytes(self._told.read_bytes(), "little") if self._told.exists() else 0

    def wait_for(self, number: int) -> None:
        """Until so many are answered; pytest's time limit is ours."""
        while self.answered < number:
            assert self._process.poll() is None

    def stop(self) -> int:
        self._stop.touch()
        return self._process.wait(60)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "own", volumes=["a=1M", "b=1M"])
    yield server.start()
    server.end()


def last_number(server: RunningServer, tool: Tool, name: str, directory: Path) -> int:
    """What was written last to a snapshot, all before and nothing behind it being there."""
    image = directory / "image.raw"
    run(tool("nbdcopy"), server.uri(name), image)
    words = np.fromfile(image, np.uint64).reshape(BLOCKS, 512)
    assert (words == words[:, :1]).all()
    numbers = words[:, 0].astype(np.int64)
    last = int(numbers.max())
    places = np.arange(BLOCKS)
    assert (numbers == np.maximum(last - (last - places) % BLOCKS, 0)).all()
    return last


@pytest.mark.parametrize("killed", [False, True], ids=["served", "after kill -9"])
def test_snapshots_of_two_disks_under_writes_are_one_moment_between_two_writes(
    tool: Tool, running: RunningServer, tmp_path: Path, killed: bool
) -> None:
    writer = Writer(tool("nbdsh"), running, tmp_path)
    bounds = []
    with running.control() as client:
        for index in range(SNAPSHOTS):
            before = writer.answered
            writer.wait_for(before + 100)
            before = writer.answered
            client.take_snapshots(TakeSnapshots(names=[f"a@{index}", f"b@{index}"]))
            bounds.append((before, writer.answered + 1))
    writer.wait_for(bounds[-1][1] + 100)
    if killed:
        running.kill()
        writer.stop()
        running.start()
    else:
        assert writer.stop() == 0
    for index, (first, last) in enumerate(bounds):
        of_a, of_b = (last_number(running, tool, f"{name}@{index}", tmp_path) for name in "ab")
        assert first <= of_b <= of_a <= last
        assert of_a - of_b <= 1
    with running.control() as client:
        assert len(client.snapshots()) == 2 * SNAPSHOTS
    running.stop()
    assert "clean" in holdfast("check", running.pool)


def test_a_kill_in_the_middle_of_taking_snapshots_leaves_those_that_were_answered(
    tool: Tool, running: RunningServer, tmp_path: Path
) -> None:
    writer = Writer(tool("nbdsh"), running, tmp_path)
    answered: dict[str, list[str]] = {"a": [], "b": []}

    def ask(name: str) -> None:
        """Take one after the other until the server is gone."""
        with running.control() as client, contextlib.suppress(GoneError):
            while True:
                wanted = f"{name}@{len(answered[name])}"
                client.take_snapshots(TakeSnapshots(names=[wanted]))
                answered[name].append(wanted)

    asking = [threading.Thread(target=ask, args=[name]) for name in answered]
    for thread in asking:
        thread.start()
    while any(len(taken) < 6 for taken in answered.values()):
        assert all(thread.is_alive() for thread in asking)
    running.kill()
    for thread in asking:
        thread.join(60)
    writer.stop()
    running.start()
    for name, taken in answered.items():
        with running.control() as client:
            there = [info.name for info in client.snapshots(name)]
        # One more may be there: durable, and not answered any more.
        assert there[: len(taken)] == taken
        assert len(there) <= len(taken) + 1
        numbers = [last_number(running, tool, each, tmp_path) for each in there[:12]]
        assert numbers == sorted(numbers)
    running.stop()
    assert "clean" in holdfast("check", running.pool)


# ---- one disk


@pytest.fixture
def filesystem(tool: Tool, tmp_path: Path) -> Path:
    """An ext4 of 48 MiB with something in it."""
    tree = tmp_path / "tree"
    for number in range(40):
        (tree / f"directory{number}").mkdir(parents=True)
        (tree / f"directory{number}" / "file").write_bytes(random.Random(number).randbytes(number * 10_000))
    image = tmp_path / "ext4.raw"
    run(tool("mkfs.ext4"), "-q", "-d", tree, image, "48M")
    return image


def take(disk: Disk, label: str) -> str:
    """Take a snapshot; returns its URI."""
    with disk.server.control() as client:
        (info,) = client.take_snapshots(TakeSnapshots(names=[f"{disk.name}@{label}"])).volumes
    return info.uris[0]


def scribble(tool: Tool, uri: str, *, seed: int, size_bytes: int) -> None:
    """Overwrite much of a disk, in 64 KiB here and there."""
    script = f"""
import random
rng = random.Random({seed})
h.connect_uri("{uri}")
for _ in range(300):
    h.pwrite(rng.randbytes({64 * KIB}), rng.randrange({size_bytes // (64 * KIB)}) * {64 * KIB})
h.trim({MIB}, {4 * MIB})
h.flush()
"""
    run(tool("nbdsh"), "-c", script)


def fetch(tool: Tool, uri: str, image: Path) -> bytes:
    run(tool("nbdcopy"), uri, image)
    return image.read_bytes()


def test_a_filesystem_in_a_snapshot_is_whole_whatever_becomes_of_the_disk(
    tool: Tool, make_disk: MakeDisk, filesystem: Path, tmp_path: Path
) -> None:
    size_bytes = filesystem.stat().st_size
    disk = make_disk(size_bytes)
    run(tool("nbdcopy"), filesystem, disk.uri)
    uri = take(disk, "whole")
    scribble(tool, disk.uri, seed=1, size_bytes=size_bytes)
    out = tmp_path / "out.raw"
    run(tool("qemu-img"), "convert", "-f", "raw", "-O", "raw", uri, out)
    assert out.read_bytes() == filesystem.read_bytes()
    run(tool("e2fsck"), "-fn", out)
    assert fetch(tool, uri, out) == filesystem.read_bytes()

    # Back to it: the disk is what the snapshot is.
    disk.server.wait_until_drained(disk.name)
    holdfast("volume", "rollback", f"{disk.server.pool}/{disk.name}@whole", "--yes")
    assert fetch(tool, disk.uri, out) == filesystem.read_bytes()
    scribble(tool, disk.uri, seed=2, size_bytes=size_bytes)
    assert fetch(tool, uri, out) == filesystem.read_bytes()


def test_a_clone_is_written_and_nobody_else_sees_that(
    tool: Tool, make_disk: MakeDisk, filesystem: Path, tmp_path: Path
) -> None:
    size_bytes = filesystem.stat().st_size
    disk = make_disk(size_bytes)
    run(tool("nbdcopy"), filesystem, disk.uri)
    uri = take(disk, "base")
    name = f"{disk.name}-clone"
    with disk.server.control() as client:
        clone = client.clone_volume(f"{disk.name}@base", CloneVolume(name=name))
    assert (clone.origin, clone.mapped_bytes, clone.size_bytes) == (f"{disk.name}@base", 0, size_bytes)
    out = tmp_path / "out.raw"
    assert fetch(tool, clone.uris[0], out) == filesystem.read_bytes()
    scribble(tool, clone.uris[0], seed=3, size_bytes=size_bytes)
    cloned = fetch(tool, clone.uris[0], out)
    assert cloned != filesystem.read_bytes()
    for unchanged in (uri, disk.uri):
        assert fetch(tool, unchanged, out) == filesystem.read_bytes()
    with disk.server.control() as client:
        client.promote_volume(name)
        for uri_of in (disk.name, name):
            disk.server.wait_until_drained(uri_of)
        client.remove_volume(disk.name)
        assert [info.name for info in client.snapshots(name)] == [f"{name}@base"]
    assert fetch(tool, disk.server.uri(f"{name}@base"), out) == filesystem.read_bytes()
    assert fetch(tool, clone.uris[0], out) == cloned


def test_a_snapshot_is_an_export_that_nobody_can_write_to(tool: Tool, disk: Disk) -> None:
    uri = take(disk, "s")
    (export,) = json.loads(run(tool("nbdinfo"), "--json", uri))["exports"]
    assert (export["is_read_only"], export["export-size"]) == (True, disk.size_bytes)
    assert not export["can_trim"]
    script = f"""
import errno
h.set_strict_mode(0)
h.connect_uri("{uri}")
for call in (lambda: h.pwrite(bytes(4096), 0), lambda: h.trim(4096, 0), lambda: h.zero(4096, 0)):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
    else:
        raise AssertionError("no error")
h.flush()
"""
    run(tool("nbdsh"), "-c", script)


def test_who_uses_a_disk_keeps_it_from_being_rolled_back_and_its_snapshot_from_going(tool: Tool, disk: Disk) -> None:
    uri = take(disk, "s")
    script = f'h.connect_uri("{disk.uri}")\ns = nbd.NBD()\ns.connect_uri("{uri}")\nprint("in", flush=True)\n'
    client = subprocess.Popen(
        [tool("nbdsh"), "-c", script + "import sys\nsys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=client_environment(),
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "in\n"
    with disk.server.control() as control:
        with pytest.raises(RequestError, match="in use"):
            control.roll_back_volume(f"{disk.name}@s")
        with pytest.raises(RequestError, match="in use"):
            control.remove_volume(f"{disk.name}@s")
        control.change_volume(f"{disk.name}@s", ChangeVolume(protected=True))
        with pytest.raises(RequestError, match="protected"):
            control.remove_volume(f"{disk.name}@s", force=True)
        assert control.volume(disk.name).connections == 1  # force has cut nobody off for that
        control.change_volume(f"{disk.name}@s", ChangeVolume(protected=False))
        removed = control.remove_volume(disk.name, force=True, snapshots=True)
        assert removed.snapshots == 1
    client.communicate()


def test_the_only_disk_is_found_by_the_empty_name_and_its_newest_snapshots_are_listed(
    tool: Tool, tmp_path: Path
) -> None:
    server = RunningServer(tmp_path / "own", volumes=["only=1M"]).start()
    try:
        with server.control() as client:
            for index in range(120):
                client.take_snapshots(TakeSnapshots(names=[f"only@{index}"]))
        default = f"nbd+unix:///?socket={server.unix_path}"
        assert run(tool("nbdinfo"), "--size", default) == f"{MIB}\n"
        listed = json.loads(run(tool("nbdinfo"), "--list", "--json", default))["exports"]
        names = [export["export-name"] for export in listed]
        assert names == ["only", *(f"only@{index}" for index in range(119, 19, -1))]
        assert run(tool("nbdinfo"), "--size", server.uri("only@3")) == f"{MIB}\n"  # not listed, and there
        server.kill()
        server.start()
        assert [word.partition("?")[0] for word in server.ready.split()[1:]] == [
            "nbd+unix:///only", f"nbd://127.0.0.1:{server.uri('only', tcp=True).split(':')[2]}",
        ]  # fmt: skip
        server.stop()
    finally:
        server.end()


assert BLOCKS * BLOCK_SIZE_BYTES == MIB

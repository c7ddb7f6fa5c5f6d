"""What libnbd's own programs see of a disk, and carry into it and out of it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from holdfast.units import GIB, KIB, MIB, TIB
from tests.clients.conftest import Disk, MakeDisk
from tests.clients.running import holdfast, run
from tests.conftest import Tool

pytestmark = pytest.mark.clients

SIZE_BYTES = 48 * MIB
# What the image below holds, in blocks of the disk: 5000 bytes begin a second block, and the end is not a whole one.
DATA_BYTES = (3 * MIB + 8 * KIB) + (4 * MIB) + 4 * KIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data, holes, written zeroes, single blocks, and an end in the middle of a block's neighbourhood."""
    path = tmp_path / "image.raw"
    data = random.Random(1).randbytes
    with open(path, "wb") as file:
        file.write(data(3 * MIB + 5000))
        file.seek(10 * MIB)
        file.write(bytes(2 * MIB) + data(4 * MIB))
        file.seek(SIZE_BYTES - 512)
        file.write(data(512))
    return path


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_nbdinfo_tells_what_the_disk_can(tool: Tool, make_disk: MakeDisk, tcp: bool) -> None:
    disk = make_disk(5 * GIB + 512)
    assert run(tool("nbdinfo"), "--size", disk.uri) == f"{5 * GIB + 512}\n"
    told = run(tool("nbdinfo"), disk.uri)
    assert "protocol: newstyle-fixed without TLS, using structured packets" in told
    (export,) = json.loads(run(tool("nbdinfo"), "--json", disk.uri))["exports"]
    for ability in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
        assert export[f"can_{ability}"] is True, ability
    assert export["is_read_only"] is False
    assert export["contexts"] == ["base:allocation"]
    assert [export[f"block_size_{kind}"] for kind in ("minimum", "preferred", "maximum")] == [1, 4096, 32 * MIB]


def test_nbdinfo_lists_every_disk_and_says_which_is_not_there(tool: Tool, make_disk: MakeDisk) -> None:
    first, second = make_disk(MIB), make_disk(2 * MIB)
    listed = json.loads(run(tool("nbdinfo"), "--list", "--json", first.uri))["exports"]
    sizes = {export["export-name"]: export["export-size"] for export in listed}
    assert (sizes[first.name], sizes[second.name]) == (MIB, 2 * MIB)
    refused = run(tool("nbdinfo"), first.uri.replace(first.name, "nothing"), code=1)
    assert "No such file or directory for export: nothing" in refused


def test_the_largest_disk_is_all_there(tool: Tool, make_disk: MakeDisk) -> None:
    disk = make_disk(64 * TIB)
    assert run(tool("nbdinfo"), "--size", disk.uri) == f"{64 * TIB}\n"
    run(tool("nbdsh"), "-u", disk.uri, "-c", f"h.pwrite(b'last', {64 * TIB - 4}); h.pwrite(b'mid', {33 * TIB})")
    script = f"assert bytes(h.pread(8, {64 * TIB - 8})) == bytes(4) + b'last'; assert h.pread(3, {33 * TIB}) == b'mid'"
    run(tool("nbdsh"), "-u", disk.uri, "-c", script)
    assert disk.mapped_bytes == 8 * KIB


def test_the_map_shows_data_and_holes_where_they_are(tool: Tool, disk: Disk) -> None:
    run(tool("nbdsh"), "-u", disk.uri, "-c", "h.pwrite(b'a' * 8192, 1 << 20); h.pwrite(b'b', (3 << 20) + 5000)")
    found = json.loads(run(tool("nbdinfo"), "--map", "--json", disk.uri))
    extents = [(part["offset"], part["length"], part["type"]) for part in found]
    assert extents == [
        (0, MIB, 3),
        (MIB, 8192, 0),
        (MIB + 8192, 2 * MIB - 4096, 3),
        (3 * MIB + 4096, 4096, 0),
        (3 * MIB + 8192, disk.size_bytes - 3 * MIB - 8192, 3),
    ]


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_nbdcopy_brings_an_image_there_and_back(
    tool: Tool, make_disk: MakeDisk, image: Path, tmp_path: Path, tcp: bool
) -> None:
    disk = make_disk(SIZE_BYTES)
    out = tmp_path / "out.raw"
    run(tool("nbdcopy"), "--flush", image, disk.uri)
    run(tool("nbdcopy"), disk.uri, out)
    assert out.read_bytes() == image.read_bytes()


def test_holes_stay_holes_on_both_ways(tool: Tool, make_disk: MakeDisk, image: Path, tmp_path: Path) -> None:
    disk = make_disk(SIZE_BYTES)
    out = tmp_path / "out.raw"
    run(tool("nbdcopy"), "--sparse=4096", image, disk.uri)
    assert disk.mapped_bytes == DATA_BYTES
    run(tool("nbdcopy"), disk.uri, out)
    assert out.stat().st_blocks * 512 <= DATA_BYTES + 64 * KIB  # what the filesystem needs for itself


def test_what_was_allocated_on_request_is_not_thin(tool: Tool, make_disk: MakeDisk, image: Path) -> None:
    disk = make_disk(SIZE_BYTES)
    run(tool("nbdcopy"), "--allocated", image, disk.uri)
    assert disk.mapped_bytes == SIZE_BYTES


@pytest.mark.parametrize("request_bytes", [4 * KIB, 32 * MIB])
def test_requests_of_any_size_carry_the_same(
    tool: Tool, make_disk: MakeDisk, image: Path, tmp_path: Path, request_bytes: int
) -> None:
    disk = make_disk(SIZE_BYTES)
    out = tmp_path / "out.raw"
    run(tool("nbdcopy"), f"--request-size={request_bytes}", image, disk.uri)
    run(tool("nbdcopy"), f"--request-size={request_bytes}", "--connections=8", "--requests=16", disk.uri, out)
    assert out.read_bytes() == image.read_bytes()


def test_a_disk_is_copied_to_another_one(tool: Tool, make_disk: MakeDisk, image: Path, tmp_path: Path) -> None:
    source, target = make_disk(SIZE_BYTES), make_disk(SIZE_BYTES)
    out = tmp_path / "out.raw"
    run(tool("nbdcopy"), image, source.uri)
    run(tool("nbdcopy"), source.uri, target.uri)
    run(tool("nbdcopy"), "--synchronous", target.uri, out)
    assert out.read_bytes() == image.read_bytes()
    assert target.mapped_bytes == source.mapped_bytes


def test_the_holes_of_a_provisioned_volume_are_allocated(tool: Tool, disk: Disk) -> None:
    run(tool("nbdsh"), "-u", disk.uri, "-c", "h.pwrite(b'a' * 8192, 1 << 20)")
    holdfast("volume", "set", f"{disk.server.pool}/{disk.name}", "--provision")
    info = disk.server.show(disk.name)
    assert info.provisioned
    assert disk.size_bytes <= info.held_bytes + info.mapped_bytes <= disk.size_bytes + MIB
    found = json.loads(run(tool("nbdinfo"), "--map", "--json", disk.uri))
    extents = [(part["offset"], part["length"], part["type"]) for part in found]
    assert extents == [(0, MIB, 2), (MIB, 8192, 0), (MIB + 8192, disk.size_bytes - MIB - 8192, 2)]
    holdfast("volume", "set", f"{disk.server.pool}/{disk.name}", "--no-provision")
    assert json.loads(run(tool("nbdinfo"), "--map", "--json", disk.uri))[0]["type"] == 3

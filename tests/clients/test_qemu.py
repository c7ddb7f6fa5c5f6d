"""qemu's block layer as the client: what a virtual machine, its backups and its migrations go through."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from holdfast.units import KIB, MIB
from tests.clients.conftest import Disk, MakeDisk
from tests.clients.running import run
from tests.conftest import Tool

pytestmark = pytest.mark.clients

SIZE_BYTES = 64 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data here and there, and much that is a hole."""
    path = tmp_path / "image.raw"
    rng = random.Random(2)
    with open(path, "wb") as file:
        file.truncate(SIZE_BYTES)
        for _ in range(40):
            file.seek(rng.randrange(SIZE_BYTES // 4096 - 64) * 4096)
            file.write(rng.randbytes(rng.randrange(1, 64) * 4096))
    return path


def allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_qemu_img_converts_there_and_back(
    tool: Tool, make_disk: MakeDisk, image: Path, tmp_path: Path, kind: str, tcp: bool
) -> None:
    disk = make_disk(SIZE_BYTES)
    source, out = tmp_path / "source", tmp_path / "out"
    run(tool("qemu-img"), "convert", "-f", "raw", "-O", kind, image, source)
    run(tool("qemu-img"), "convert", "-n", "-f", kind, "-O", "raw", source, disk.uri)
    run(tool("qemu-img"), "compare", "-f", kind, "-F", "raw", source, disk.uri)
    run(tool("qemu-img"), "convert", "-f", "raw", "-O", kind, disk.uri, out)
    run(tool("qemu-img"), "compare", "-f", kind, "-F", "raw", out, image)


def test_what_qemu_img_converts_stays_thin(tool: Tool, disk: Disk, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tool("qemu-img"), "convert", "-n", "-W", "-m", 16, "-f", "raw", "-O", "raw", image, disk.uri)
    assert disk.mapped_bytes <= allocated_bytes(image)
    run(tool("qemu-img"), "convert", "-f", "raw", "-O", "raw", disk.uri, out)
    assert out.read_bytes() == image.read_bytes()
    assert allocated_bytes(out) <= allocated_bytes(image) + 64 * KIB


def test_qemu_img_compare_finds_a_single_byte(tool: Tool, disk: Disk, image: Path) -> None:
    run(tool("qemu-img"), "convert", "-n", "-f", "raw", "-O", "raw", image, disk.uri)
    with open(image, "r+b") as file:
        file.seek(40 * MIB + 77)
        byte = file.read(1)
        file.seek(40 * MIB + 77)
        file.write(bytes([byte[0] ^ 1]))
    told = run(tool("qemu-img"), "compare", "-f", "raw", "-F", "raw", image, disk.uri, code=1)
    assert "Content mismatch" in told


def test_qemu_img_map_agrees_with_what_was_written(tool: Tool, disk: Disk) -> None:
    commands = ("write -P 1 1M 128k", "write -P 2 8M 4k", "write -z -u 16M 1M", "write -z 20M 64k")
    qemu_io(tool, disk, *commands)
    told = json.loads(run(tool("qemu-img"), "map", "--output=json", "-f", "raw", disk.uri))
    data = [(part["start"], part["length"]) for part in told if part["data"] and not part["zero"]]
    assert (MIB, 128 * KIB) in data
    assert (8 * MIB, 4 * KIB) in data
    assert not any(start <= 16 * MIB < start + length for start, length in data)


def test_a_qcow2_image_may_live_on_the_disk_itself(tool: Tool, disk: Disk, image: Path) -> None:
    """The disk as a block device that somebody else's format is kept on, as oVirt does it."""
    small = 16 * MIB
    run(tool("qemu-img"), "create", "-f", "qcow2", disk.uri, small)
    with open(image, "r+b") as file:
        file.truncate(small)
    run(tool("qemu-img"), "convert", "-n", "-f", "raw", "-O", "qcow2", image, disk.uri)
    run(tool("qemu-img"), "check", "-f", "qcow2", disk.uri)
    run(tool("qemu-img"), "compare", "-f", "qcow2", "-F", "raw", disk.uri, image)


@pytest.mark.parametrize("options", [("-w", "--flush-interval=32"), ("-w", "-n"), ()], ids=" ".join)
def test_qemu_img_bench_ends_without_an_error(tool: Tool, disk: Disk, options: tuple[str, ...]) -> None:
    words = ("bench", "-c", 2000, "-d", 32, "-s", "4k", "-f", "raw", *options, disk.uri)
    cache = () if "-n" in options else ("-t", "writeback")
    assert "Run completed" in run(tool("qemu-img"), *words[:-1], *cache, words[-1])


def qemu_io(tool: Tool, disk: Disk, *commands: str, cache: str = "writeback") -> str:
    script = [word for command in commands for word in ("-c", command)]
    told = run(tool("qemu-io"), "-f", "raw", "-t", cache, *script, disk.uri)
    assert "Pattern verification failed" not in told
    assert "rror" not in told, told
    return told


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_qemu_io_verifies_the_patterns_it_wrote(tool: Tool, make_disk: MakeDisk, tcp: bool) -> None:
    disk = make_disk(SIZE_BYTES)
    qemu_io(
        tool, disk,
        "write -P 17 1M 3M", "read -P 17 1M 3M", "write -P 18 1500k 1", "read -P 18 1500k 1", "read -P 17 1501k 100k",
        "read -P 0 0 1M", "write -f -P 19 60M 4M", "read -P 19 60M 4M", "flush",
    )  # fmt: skip
    qemu_io(tool, disk, "read -P 17 1M 400k", "read -P 19 60M 4M", "read -P 0 4M 50M")


def test_qemu_io_finds_zeroes_where_it_zeroed_and_discarded(tool: Tool, disk: Disk) -> None:
    qemu_io(
        tool, disk,
        "write -P 1 0 16M", "write -z 1M 64k", "read -P 0 1M 64k", "write -z -u 2M 1M", "read -P 0 2M 1M",
        "write -z 6000001 7", "read -P 0 6000001 7", "discard 8M 4M", "read -P 0 8M 4M", "read -P 1 12M 4M",
        "write -z -u -n 4M 1M", "read -P 0 4M 1M", "flush",
    )  # fmt: skip
    # What was zeroed without -u stays provisioned; 1 MiB with it, 1 MiB fast and 4 MiB discarded take no space.
    assert disk.mapped_bytes == 16 * MIB - 6 * MIB


def test_qemu_io_is_told_when_zeroes_cannot_be_both_fast_and_provisioned(tool: Tool, disk: Disk) -> None:
    script = ("-c", "write -P 1 0 64k", "-c", "write -z -n 0 64k", "-c", "read -P 1 0 64k")
    told = run(tool("qemu-io"), "-f", "raw", *script, disk.uri, code=1)
    assert "write failed: Operation not supported" in told
    assert "verification failed" not in told


def test_qemu_io_keeps_many_requests_in_flight(tool: Tool, disk: Disk) -> None:
    written = [f"aio_write -P {number + 1} {number * 700}k 650k" for number in range(80)]
    read = [f"aio_read -P {number + 1} {number * 700}k 650k" for number in range(80)]
    qemu_io(tool, disk, *written, "aio_flush", *read, "aio_flush")


def test_qemu_io_writes_through(tool: Tool, disk: Disk) -> None:
    """cache=writethrough: each write carries FUA."""
    qemu_io(tool, disk, "write -P 9 0 1M", "write -P 10 1M 512", "read -P 9 0 1M", cache="writethrough")


def test_qemu_gets_an_error_beyond_the_end_and_goes_on(tool: Tool, disk: Disk) -> None:
    script = ("-c", "read 64M 4k", "-c", "write -P 5 0 4k", "-c", "read -P 5 0 4k")
    told = run(tool("qemu-io"), "-f", "raw", *script, disk.uri, code=1)
    assert "read failed" in told
    assert "read 4096/4096 bytes at offset 0" in told

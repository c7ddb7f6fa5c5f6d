"""Real clients of a volume that grows under them."""

from __future__ import annotations

import subprocess

import pytest

from holdfast.control.space_api import ResizeVolume
from holdfast.units import GIB, MIB
from tests.clients.conftest import Disk
from tests.clients.running import client_environment, run
from tests.conftest import Tool

pytestmark = pytest.mark.clients


def test_a_volume_grows_by_two_levels_while_qemu_writes_to_it(tool: Tool, disk: Disk) -> None:
    """One that is connected goes on; one that connects after it sees the new size, and all data."""
    qemu_io = tool("qemu-io")
    run(qemu_io, "-f", "raw", "-c", "write -P 9 0 1M", disk.uri)
    # Not as many as reach the end of the disk, where it would begin again.
    bench = [tool("qemu-img"), "bench", "-f", "raw", "-w", "-c", "4000", "-d", "1", "-s", "4096", "-o", str(2 * MIB)]
    with subprocess.Popen(
        [*map(str, bench), "-S", "12288", "--pattern=5", "--flush-interval=1", disk.uri],
        env=client_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as load:
        assert load.stdout is not None
        load.stdout.readline()  # "Sending ..."
        with disk.server.control() as control:
            for size in (GIB, 600 * GIB):
                assert control.resize_volume(disk.name, ResizeVolume(size_bytes=size)).size_bytes == size
        output = load.stdout.read()
    assert load.returncode == 0, output
    assert run(tool("nbdinfo"), "--size", disk.uri).strip() == str(600 * GIB)
    script = ["write -P 6 599G 1M", "flush", "read -P 9 0 1M", "read -P 6 599G 1M", "read -P 0 300G 1M"]
    script += [f"read -P 5 {2 * MIB + number * 12288} 4k" for number in (0, 1000, 3999)]
    run(qemu_io, "-f", "raw", *[part for command in script for part in ("-c", command)], disk.uri)

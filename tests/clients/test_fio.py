"""fio writes, then reads back what it wrote and compares checksums: block sizes mixed, trims between, several jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.units import GIB
from tests.clients.conftest import MakeDisk
from tests.clients.running import run
from tests.conftest import Tool

pytestmark = pytest.mark.clients

# Sizes that are whole blocks, halves of them, and odd sectors, at sector-aligned offsets.
MIXED = "--bssplit=4k/40:512/10:16k/20:64k/20:7k/10"


def fio(tool: Tool, directory: Path, uri: str, *options: object) -> list[dict[str, object]]:
    """Run one job to its end, verification included; returns what it tells of each of its processes."""
    words = ["--name=verify", "--ioengine=nbd", f"--uri={uri}", "--output-format=json", "--verify_state_save=0"]
    told = run(tool("fio"), *words, "--verify_fatal=1", *options, directory=directory)
    jobs: list[dict[str, object]] = json.loads(told[told.index("{") : told.rindex("}") + 1])["jobs"]
    assert [job["error"] for job in jobs] == [0] * len(jobs)
    return jobs


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("pattern", ["randwrite", "write", "trimwrite", "randtrimwrite", "randrw"])
def test_fio_verifies_mixed_block_sizes(
    tool: Tool, make_disk: MakeDisk, tmp_path: Path, pattern: str, tcp: bool
) -> None:
    disk = make_disk(GIB)
    options = (f"--rw={pattern}", MIXED, "--bs_unaligned=1", "--size=24M", "--iodepth=16", "--verify=crc32c")
    (job,) = fio(tool, tmp_path, disk.uri, *options)
    read = job["read"]
    assert isinstance(read, dict)
    assert read["io_bytes"] > 0
    if pattern != "randrw":
        assert disk.mapped_bytes <= 26 << 20  # what was trimmed and written again is there once


def test_fio_verifies_what_it_overwrote_many_times(tool: Tool, make_disk: MakeDisk, tmp_path: Path) -> None:
    disk = make_disk(GIB)
    options = ("--rw=randwrite", MIXED, "--norandommap=1", "--size=8M", "--io_size=64M", "--iodepth=1")
    fio(tool, tmp_path, disk.uri, *options, "--verify=crc32c", "--verify_backlog=64")


def test_fio_verifies_with_flushes_between(tool: Tool, make_disk: MakeDisk, tmp_path: Path) -> None:
    disk = make_disk(GIB)
    options = ("--rw=randwrite", "--bs=4k", "--size=8M", "--iodepth=32", "--fsync=8", "--verify=crc32c")
    fio(tool, tmp_path, disk.uri, *options)


def test_several_jobs_on_one_disk_do_not_disturb_each_other(tool: Tool, make_disk: MakeDisk, tmp_path: Path) -> None:
    disk = make_disk(GIB)
    options = ("--rw=randtrimwrite", MIXED, "--bs_unaligned=1", "--size=16M", "--iodepth=8", "--verify=crc32c")
    jobs = fio(tool, tmp_path, disk.uri, *options, "--numjobs=4", "--offset_increment=100M")
    assert len(jobs) == 4


def test_trims_at_random_leave_nothing_behind(tool: Tool, make_disk: MakeDisk, tmp_path: Path) -> None:
    disk = make_disk(1 << 25)
    fio(tool, tmp_path, disk.uri, "--rw=write", "--bs=1M", "--iodepth=4")
    assert disk.mapped_bytes == 1 << 25
    fio(tool, tmp_path, disk.uri, "--rw=randtrim", "--bs=64k", "--iodepth=32")
    assert disk.mapped_bytes == 0


@pytest.mark.slow
def test_a_pool_outlives_a_long_mixed_load(tool: Tool, make_disk: MakeDisk, tmp_path: Path) -> None:
    disk = make_disk(GIB)
    options = ("--rw=randtrimwrite", MIXED, "--bs_unaligned=1", "--size=96M", "--iodepth=32", "--verify=crc32c")
    fio(tool, tmp_path, disk.uri, *options, "--numjobs=3", "--offset_increment=200M")

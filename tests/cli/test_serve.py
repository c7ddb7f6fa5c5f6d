"""`holdfast serve`: what its options become."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast.control.api import PoolStatus
from holdfast.control.client import ControlClient
from holdfast.runtime.lock import PoolLock
from holdfast.units import GIB, MIB

from .conftest import Run


@contextmanager
def serving(*arguments: object) -> Iterator[list[str]]:
    """`holdfast serve` with these arguments, as a process; gives the words of its ready line."""
    words = [sys.executable, "-m", "holdfast.cli.main", "serve", *map(str, arguments)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline().split()
        try:
            yield ready
        finally:
            process.terminate()
            _, said = process.communicate()
        assert (process.returncode, "Traceback" in said) == (0, False), said


def status_of(pool: Path) -> PoolStatus:
    client = ControlClient.connect_if_served(pool)
    assert client is not None
    with client:
        return client.status()


def test_options_reach_the_server(tmp_path: Path) -> None:
    pool = tmp_path / "new"
    with serving(
        pool, "--volume", "disk0=10G", "--volume", "b=1T", "--nbd", f"unix:{tmp_path}/x", "--nbd", "tcp:127.0.0.1:0",
        "--memory", "64M", "--capacity", "64M", "--segment-size", "1M", "--preallocate",
    ) as ready:  # fmt: skip
        status = status_of(pool)
        with ControlClient(pool / "control.sock") as client:
            volumes = client.volumes()
    assert [(volume.name, volume.size_bytes) for volume in volumes] == [("disk0", 10 * GIB), ("b", 1024 * GIB)]
    assert (status.capacity_bytes, status.segment_size_bytes) == (64 * MIB, MIB)
    assert status.memory.budget_bytes == 64 * MIB
    assert status.listening[0] == f"unix:{tmp_path}/x"
    assert status.listening[1].startswith("tcp:127.0.0.1:")
    assert ready == ["ready", *(uri for volume in volumes for uri in volume.uris)]


def test_a_bare_pool_is_enough(tmp_path: Path) -> None:
    with serving(tmp_path / "pool") as ready:
        status = status_of(tmp_path / "pool")
    assert ready == ["ready", f"unix:{tmp_path}/pool/nbd.sock"]
    assert 0 < status.memory.budget_bytes <= 256 * MIB
    assert (status.volumes, status.listening) == (0, [f"unix:{tmp_path}/pool/nbd.sock"])
    assert status.capacity_bytes > 0


def test_a_pool_is_served_again_without_a_word_about_it(pool: Path) -> None:
    with serving(pool, "--volume", "disk0=1G"):
        pass
    with serving(pool) as ready:
        assert ready == ["ready", f"nbd+unix:///disk0?socket={pool}/nbd.sock"]


def test_a_volume_that_has_another_size_is_not_touched(run: Run, pool: Path) -> None:
    with serving(pool, "--volume", "disk0=1G"):
        pass
    words = [sys.executable, "-m", "holdfast.cli.main", "serve", str(pool), "--volume", "disk0=2G"]
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert refused.stderr.startswith("holdfast: volume 'disk0' exists with 1G, not 2G; ")
    assert json.loads(run("volume", "show", pool, "--json").stdout)["size_bytes"] == GIB


def test_options_that_make_no_sense_are_one_line(run: Run, tmp_path: Path) -> None:
    for arguments in (
        ("--volume", "disk0"),
        ("--volume", "a/b=1G"),
        ("--volume", "a=1G", "--volume", "a=2G"),
        ("--nbd", "/x/y"),
        ("--nbd", "unix:"),
        ("--nbd", "unix:/" + "x" * 107),
        ("--nbd", "tcp:127.0.0.1"),
        ("--nbd", "tcp:127.0.0.1:65536"),
        ("--nbd", "tcp::10809"),
        ("--nbd", "tcp:::1:10809"),
        ("--memory", "lots"),
        ("--log-level", "loud"),
        ("--log-format", "xml"),
        ("--metrics", "127.0.0.1:9809"),
        ("--nonsense",),
    ):
        result = run("serve", tmp_path / "new", *arguments)
        assert result.exit_code == 2, arguments
        assert result.stderr.startswith("holdfast: ")
        assert result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_pool_and_has_none_below_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for pool in (tmp_path / "file", tmp_path / "file" / "pool"):
        result = run("serve", pool)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"holdfast: {tmp_path}/file is not a directory; ")
        assert result.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "precious"


def test_a_pool_whose_sockets_nobody_could_reach_is_not_made(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    for options, socket_name in (((), "nbd.sock"), (("--nbd", "tcp:127.0.0.1:0"), "control.sock")):
        result = run("serve", long, *options)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"holdfast: {long}/{socket_name}: the path of this socket has ")
        assert result.stderr.count("\n") == 1
    monkeypatch.chdir(tmp_path)
    assert run("serve", "x" * 100).exit_code == 2  # clients are given the absolute path
    assert not long.exists()


def test_a_second_server_is_told_in_one_line(run: Run, pool: Path) -> None:
    lock = PoolLock(pool)
    result = run("serve", pool)
    lock.release()
    assert result.exit_code == 2
    assert result.stderr.startswith(f"holdfast: pool {pool} is being served by process {os.getpid()}; ")
    assert result.stderr.count("\n") == 1


def test_the_commands_leave_alone_what_they_do_not_need() -> None:
    """The server never carries the table printer, and a list does not wait for numpy."""
    script = (
        "import sys, importlib\n"
        "for name in ('serve', 'volume', 'check', 'copy'): importlib.import_module('holdfast.cli.' + name)\n"
        "print(sorted({'rich', 'numpy', 'h11', 'asyncio', 'prometheus_client'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("nowhere=EIO", "there is no fault point 'nowhere'; there are writeback, flush,"),
        ("writeback=EFOO", "writeback cannot fail with 'EFOO'; it can with EIO,"),
        ("writeback", "write POINT=ERRNO:1/N"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_before_a_pool_is_made(
    run: Run, tmp_path: Path, rule: str, why: str
) -> None:
    result = run("serve", tmp_path / "new", "--fault", rule)
    assert result.exit_code == 2
    assert why in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()

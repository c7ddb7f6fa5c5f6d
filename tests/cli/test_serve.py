"""`holdfast serve`: what its options become."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from holdfast.errors import PoolBusyError
from holdfast.units import GIB, MIB

from .conftest import FakeServer, Run, ServeOptions


def test_options_reach_the_server(run: Run, server: FakeServer, tmp_path: Path) -> None:
    result = run(
        "serve", tmp_path / "new", "--volume", "disk0=10G", "--volume", "b=1T", "--nbd", "unix:/x/y", "--nbd",
        "tcp:[::1]:10809", "--memory", "64M", "--capacity", "1G", "--segment-size", "4M", "--preallocate",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert server.served == [
        ServeOptions(
            pool=str(tmp_path / "new"),
            volumes=[("disk0", 10 * GIB), ("b", 1024 * GIB)],
            listen=["unix:/x/y", "tcp:[::1]:10809"],
            memory_bytes=64 * MIB,
            capacity_bytes=GIB,
            segment_size_bytes=4 * MIB,
            preallocate=True,
        )
    ]


def test_a_bare_pool_is_enough(run: Run, server: FakeServer, tmp_path: Path) -> None:
    assert run("serve", tmp_path).exit_code == 0
    (options,) = server.served
    assert options.memory_bytes is not None
    assert 0 < options.memory_bytes <= 256 * MIB
    assert (options.volumes, options.listen, options.capacity_bytes) == ([], [], None)


def test_options_that_make_no_sense_are_one_line(run: Run, server: FakeServer, tmp_path: Path) -> None:
    for arguments in (
        ("--volume", "disk0"),
        ("--volume", "a/b=1G"),
        ("--volume", "a=1G", "--volume", "a=2G"),
        ("--nbd", "/x/y"),
        ("--memory", "lots"),
        ("--log-level", "loud"),
        ("--nonsense",),
    ):
        result = run("serve", tmp_path, *arguments)
        assert result.exit_code == 2, arguments
        assert result.stderr.startswith("holdfast: ")
        assert result.stderr.count("\n") == 1, result.stderr
    assert not server.served


def test_a_second_server_is_told_in_one_line(run: Run, server: FakeServer, tmp_path: Path) -> None:
    server.failure = PoolBusyError("pool ./pool is being served by process 1234; stop it or use another directory")
    result = run("serve", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == (
        "holdfast: pool ./pool is being served by process 1234; stop it or use another directory\n"
    )


def test_the_commands_leave_alone_what_they_do_not_need() -> None:
    """The server never carries the table printer, and a list does not wait for numpy."""
    script = (
        "import sys, importlib\n"
        "for name in ('serve', 'volume', 'check', 'copy'): importlib.import_module('holdfast.cli.' + name)\n"
        "print(sorted({'rich', 'numpy', 'h11', 'asyncio'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

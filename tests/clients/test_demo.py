"""`./dev demo`: it must show what it claims to show, and say so when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Tool

pytestmark = [pytest.mark.clients, pytest.mark.slow]

DEMO = Path(__file__).parents[2] / "demo" / "demo.sh"


def run_demo(path: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": path, "TMPDIR": str(scratch)}
    return subprocess.run(
        ["/bin/bash", str(DEMO)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
    )


def test_the_demo_shows_the_main_job_and_cleans_up(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> None:
    scratch = tmp_path_factory.mktemp("demo")  # a short name: the path of a socket is limited
    for name in ("fio", "nbdinfo", "nbdcopy", "nbdsh", "mkfs.ext4", "e2fsck", "debugfs"):
        tool(name)
    ours = str(Path(sys.executable).parent)
    finished = run_demo(os.pathsep.join((ours, os.environ["PATH"])), scratch)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Nothing is missing." in finished.stdout.splitlines()[-1]
    assert list(scratch.iterdir()) == []


def test_the_demo_says_what_is_missing(tmp_path: Path) -> None:
    finished = run_demo(str(tmp_path), tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.startswith("demo: holdfast is missing")


def test_the_demo_fails_when_the_server_does(tool: Tool, tmp_path: Path) -> None:
    """A holdfast that does nothing: the demo must not end well."""
    for name in ("fio", "nbdinfo", "nbdcopy", "nbdsh", "mkfs.ext4", "e2fsck", "debugfs"):
        tool(name)
    programs, scratch = tmp_path / "bin", tmp_path / "scratch"
    programs.mkdir()
    scratch.mkdir()
    (programs / "holdfast").symlink_to("/bin/true")
    finished = run_demo(os.pathsep.join((str(programs), os.environ["PATH"])), scratch)
    assert finished.returncode == 1
    assert "demo: WRONG: the server did not start" in finished.stderr
    assert list(scratch.iterdir()) == []

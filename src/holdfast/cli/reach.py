"""A pool whose volumes are connected to: the server that it has, or one of our own for as long as it takes.

An idle pool is served by a child process on a socket of its own, and left as it was found: idle and clean.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

from holdfast.cli.command import CommandError
from holdfast.cli.locate import PoolPath
from holdfast.control.api import VolumeInfo
from holdfast.control.client import ControlClient

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class ReachedPool:
    """A pool whose volumes can be connected to: its control client, and the socket of our own server if it has one."""

    def __init__(self, client: ControlClient, socket_path: Path | None) -> None:
        self.client = client
        self.socket_path = socket_path

    def uri_of(self, where: PoolPath, info: VolumeInfo) -> str:
        if self.socket_path is not None:
            return f"nbd+unix:///{quote(info.name)}?socket={quote(str(self.socket_path))}"
        # The Unix socket is the faster one.
        uris = sorted(info.uris, key=lambda uri: not uri.startswith("nbd+unix:"))
        if not uris:
            raise CommandError(f"{where}: the server of the pool accepts no NBD clients; serve it with --nbd unix:PATH")
        return uris[0]


@contextmanager
def reach_pool(pool: Path) -> Iterator[ReachedPool]:
    client = ControlClient.connect_if_served(pool)
    if client is not None:
        with client:
            yield ReachedPool(client, None)
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-copy-") as directory, _serve(pool, Path(directory)) as path:
        client = ControlClient.connect_if_served(pool)
        if client is None:
            raise CommandError(f"{pool}: the server started for this copy cannot be reached; try holdfast serve {pool}")
        with client:
            yield ReachedPool(client, path)


@contextmanager
def _serve(pool: Path, directory: Path) -> Iterator[Path]:
    """Serve an idle pool by a child process until the end of the block; gives its NBD socket."""
    socket_path = directory / "nbd.sock"
    command_line = [sys.executable, "-m", "holdfast.cli.main", "serve", str(pool), "--nbd", f"unix:{socket_path}"]
    with (
        open(directory / "log", "w+") as log,
        subprocess.Popen(
            [*command_line, "--log-level", "warning"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Killed with SIGKILL we could not stop it: it stops itself then.
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (no thread of ours runs yet)
        ) as server,
    ):
        try:
            assert server.stdout is not None
            _wait_ready(server.stdout, log, pool)
            yield socket_path
        finally:
            server.terminate()


def _wait_ready(output: IO[str], log: IO[str], pool: Path) -> None:
    for line in output:
        if line.startswith("ready "):
            return
    log.seek(0)
    said = log.read().strip().splitlines() or ["it said nothing"]
    raise CommandError(f"{pool}: the pool cannot be served for this copy: {said[-1].removeprefix('holdfast: ')}")


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

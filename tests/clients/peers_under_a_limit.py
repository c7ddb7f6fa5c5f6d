"""Servers of today and ours in a memory control group of 64 MiB, and a client outside of it that writes 256 MiB.

`python -m tests.clients.peers_under_a_limit` prints what became of each as a table in Markdown (docs/shortage.md has
it); `test_peers_under_a_limit.py` holds ours to its promise. As root: it makes a control group and mounts a tmpfs.

Each server gets the same treatment: MiB after MiB is written, with a FLUSH every sixteen, until all are or the server
is gone. If it is not, it is killed (SIGKILL). It is started again in the same group, and what was acknowledged is read.
Should it not live to see the end of that, it is started a last time, without a limit.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from errno import errorcode
from os import uname
from pathlib import Path

from holdfast.units import MIB
from tests.clients.memory_cgroup import MemoryCgroup, memory_cgroup
from tests.crash.harness import ring_path
from tests.crash.oracle import pattern
from tests.nbd.wire import FLUSH, READ, WRITE, option, request

LIMIT_BYTES = 64 * MIB
LIMIT_ON_TMPFS_BYTES = 96 * MIB  # for ours: the process itself takes 55 MiB, and segment files count as well
WRITTEN_MIB = 256
FLUSH_EVERY_MIB = 16
DISK_BYTES = 512 * MIB
# The longest that any one answer, start or end may take: machines that run this share their disks.
PATIENCE_S = 30.0
# Between two looks at whether a server that was just started listens.
LOOK_S = 0.005

Wrap = Callable[[list[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    keeps_on: str  # where the data is: in the server's own "memory", on a "tmpfs", on a "disk"
    export: str
    command: Callable[[Path, Path], list[str]]  # from the directory for its data and the path of its socket


def _nbdkit_memory(_data: Path, path: Path) -> list[str]:
    return ["nbdkit", "--foreground", "--unix", str(path), "memory", f"size={DISK_BYTES}"]


def _nbdkit_file(data: Path, path: Path) -> list[str]:
    return ["nbdkit", "--foreground", "--unix", str(path), "file", str(_image(data))]


def _qemu_nbd(data: Path, path: Path) -> list[str]:
    return ["qemu-nbd", "--persistent", "--format=raw", f"--socket={path}", str(_image(data))]


def _image(data: Path) -> Path:
    path = data / "disk.raw"
    if not path.exists():
        with path.open("wb") as image:
            image.truncate(DISK_BYTES)
    return path


def _holdfast(data: Path, path: Path) -> list[str]:
    command = [sys.executable, "-m", "holdfast.cli.main", "serve", str(data / "pool"), "--nbd", f"unix:{path}"]
    return [*command, "--volume", f"disk={DISK_BYTES}", "--memory", "16M", "--capacity", "1G", "--segment-size", "4M"]


PEERS = (
    Server("nbdkit memory", "memory", "", _nbdkit_memory),
    Server("nbdkit file", "tmpfs", "", _nbdkit_file),
    Server("qemu-nbd", "tmpfs", "", _qemu_nbd),
    Server("nbdkit file", "disk", "", _nbdkit_file),
    Server("qemu-nbd", "disk", "", _qemu_nbd),
)
HOLDFAST = Server("holdfast", "disk", "disk", _holdfast)
HOLDFAST_ON_TMPFS = Server("holdfast", "tmpfs", "disk", _holdfast)


@dataclass(slots=True)
class Outcome:
    server: Server
    acknowledged_mib: int = 0
    flushed_mib: int = 0
    refusal: str = ""  # the errno that ended the writing
    kills: int = 0  # by the kernel, while it was written to
    kills_after: int = 0  # and after it was started again in the same group
    read_back_mib: int = 0  # of what was acknowledged, in the same group
    read_back_without_limit_mib: int = 0
    peak_bytes: int = 0


class Client:
    """One connection. ConnectionError: the server is gone. TimeoutError: it is there, and does not answer."""

    def __init__(self, path: Path, export: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        try:
            self.socket.connect(str(path))
            self._receive(18)
            self.socket.sendall(struct.pack(">I", 3) + option(1, export.encode()))
            self._receive(10)
        except BaseException:
            self.socket.close()
            raise

    def call(self, command: int, offset: int = 0, payload: bytes = b"", length: int = 0) -> tuple[int, bytes]:
        """One request and its answer: errno, data."""
        self.socket.sendall(request(command, offset, length or len(payload)) + payload)
        errno = int.from_bytes(self._receive(16)[4:8], "big")
        return errno, self._receive(length) if command == READ and not errno else b""

    def _receive(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            part = self.socket.recv(count - len(received))
            if not part:
                raise ConnectionResetError("the server hung up")
            received += part
        return bytes(received)


@contextmanager
def running(server: Server, data: Path, wrap: Wrap) -> Iterator[Client]:
    """A client of the server, which is started for it and killed at the end if it has not ended before."""
    path = data.parent / f"{data.name}.sock"
    path.unlink(missing_ok=True)
    with (data.parent / f"{data.name}.log").open("ab") as log:
        process = subprocess.Popen(
            wrap(server.command(data, path)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
        )
    try:
        client = _connect(server, process, path)
        try:
            yield client
        finally:
            client.socket.close()
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def _connect(server: Server, process: subprocess.Popen[bytes], path: Path) -> Client:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return Client(path, server.export)
        except (FileNotFoundError, ConnectionRefusedError):
            pass  # it does not listen yet
        if time.monotonic() > deadline:
            raise TimeoutError(f"{server.name} does not listen")
        try:
            process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            continue
        raise ConnectionRefusedError(f"{server.name} ended with {process.returncode}")


def measure(server: Server, directory: Path, limit_bytes: int = LIMIT_BYTES) -> Outcome:
    """What becomes of the server. `directory` is on a disk, and empty."""
    outcome = Outcome(server)
    with ExitStack() as stack:
        group = stack.enter_context(memory_cgroup(limit_bytes))
        data = directory / "data"
        data.mkdir()
        if server.keeps_on == "tmpfs":
            stack.enter_context(_tmpfs(data))
        stack.callback(_remove_ring, data / "pool")
        _write(server, data, group, outcome)
        outcome.kills = group.kills
        outcome.read_back_mib = _read(server, data, group.wrap, outcome.acknowledged_mib)
        outcome.kills_after = group.kills - outcome.kills
        outcome.peak_bytes = group.peak_bytes
        outcome.read_back_without_limit_mib = outcome.read_back_mib
        if outcome.kills_after:
            outcome.read_back_without_limit_mib = _read(server, data, lambda words: words, outcome.acknowledged_mib)
    return outcome


def _write(server: Server, data: Path, group: MemoryCgroup, outcome: Outcome) -> None:
    try:
        with running(server, data, group.wrap) as client:
            for number in range(WRITTEN_MIB):
                errno, _ = client.call(WRITE, number * MIB, pattern(1, number * MIB, MIB, 1))
                if errno:
                    outcome.refusal = errorcode[errno]
                    break
                outcome.acknowledged_mib += 1
                if outcome.acknowledged_mib % FLUSH_EVERY_MIB == 0 and client.call(FLUSH)[0] == 0:
                    outcome.flushed_mib = outcome.acknowledged_mib
    except ConnectionError:
        pass  # it was killed: the group counts that


def _read(server: Server, data: Path, wrap: Wrap, acknowledged_mib: int) -> int:
    """How many MiB of what was acknowledged read back, until all are read or the server is gone."""
    found = 0
    try:
        with running(server, data, wrap) as client:
            for number in range(acknowledged_mib):
                errno, content = client.call(READ, number * MIB, length=MIB)
                found += errno == 0 and content == pattern(1, number * MIB, MIB, 1)
    except ConnectionError:
        pass
    return found


@contextmanager
def _tmpfs(where: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)


def _remove_ring(pool: Path) -> None:
    if (pool / "superblock").exists():
        ring_path(pool).unlink(missing_ok=True)


def table(outcomes: list[Outcome]) -> str:
    """MiB, in Markdown."""
    columns = "server", "its disk is on", "killed", "acknowledged", "of it flushed", "reads back after a restart"
    lines = [f"| {' | '.join(columns)} | after one without the limit |", "|---|---|---|---:|---:|---:|---:|"]
    for outcome in outcomes:
        killed = "yes" if outcome.kills else "no"
        killed += ", again after the restart" if outcome.kills_after else ""
        written = f"{outcome.acknowledged_mib}{outcome.refusal and ', then ' + outcome.refusal}"
        lines.append(
            f"| {outcome.server.name} | {outcome.server.keeps_on} | {killed} | {written} | {outcome.flushed_mib} "
            f"| {outcome.read_back_mib} | {outcome.read_back_without_limit_mib} |"
        )
    return "\n".join(lines)


def main() -> None:
    outcomes = []
    for server in (*PEERS, HOLDFAST_ON_TMPFS, HOLDFAST):
        with tempfile.TemporaryDirectory(prefix="holdfast-limit-") as directory:
            limit_bytes = LIMIT_ON_TMPFS_BYTES if server is HOLDFAST_ON_TMPFS else LIMIT_BYTES
            outcomes.append(measure(server, Path(directory), limit_bytes))
    kernel = ".".join(uname().release.split(".")[:2])
    print(f"Linux {kernel}, MiB:\n\n{table(outcomes)}")


if __name__ == "__main__":
    main()

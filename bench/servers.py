"""The servers under test: how each is made, started on a Unix socket, waited for and stopped.

Each server keeps its disk in a directory of its own and is a process of its own in the foreground.  Peers run as their
manuals have them for serving a local disk: nbdkit with its default 16 threads, qemu-nbd with cache=writeback (its
default), both with several clients allowed.  All disks are written in full before anything is measured.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from bench.settings import RINGS_NAME, BenchError, remove_disk
from holdfast.units import MIB, format_size

EXPORT = "disk0"
START_TIMEOUT_S = 120.0  # `--preallocate` of a large pool is part of the first start
STOP_TIMEOUT_S = 60.0
CONNECT_RETRY_S = 0.002


@dataclass(frozen=True, slots=True)
class Disk:
    """A server's disk on this machine: a directory with whatever the server keeps there."""

    directory: Path
    size_bytes: int
    # How much may be written to it, in total, during its life.  Only a log-structured server cares: it has no cleaner
    # yet, so its pool must hold every write ever made.
    log_bytes: int = 0


@dataclass(slots=True)
class Running:
    """A server that accepts connections. Ends by `stop` or `kill`."""

    process: subprocess.Popen[bytes]
    socket_path: Path
    log: Path
    ready_s: float  # from its start to its readiness
    ready_line: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def uri(self, export: str = EXPORT) -> str:
        return f"nbd+unix:///{quote(export)}?socket={quote(str(self.socket_path))}"

    def stop(self) -> None:
        """SIGTERM and wait. A server that has died by itself meanwhile is an error."""
        if self.process.poll() is not None:
            self._close()
            raise BenchError(f"the server died: {log_tail(self.log)}")
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise BenchError(f"the server did not stop within {STOP_TIMEOUT_S:.0f} s of SIGTERM") from error
        self._close()
        if self.process.returncode not in (0, -signal.SIGTERM):
            raise BenchError(f"the server ended with {self.process.returncode} on SIGTERM: {log_tail(self.log)}")

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.socket_path.unlink(missing_ok=True)


def log_tail(log: Path, characters: int = 400) -> str:
    """The end of a server's log on one line."""
    text = log.read_text(errors="replace").strip() if log.exists() else ""
    return " | ".join(text[-characters:].splitlines()) or "it left no message"


@dataclass(frozen=True)
class Server:
    """A kind of server. The subclasses say how its disk is made and what its command line is."""

    name: str
    peer: bool = True  # counts when the best peer is sought
    keeps_flushed: bool = True  # a FLUSH makes data durable; others are not compared where flushes are measured
    log_structured: bool = False  # needs a new disk for each row that writes, because its space is used up by writing
    fills_at_start: bool = False  # its writes are lost at each stop, so it is filled after each start

    def make(self, disk: Disk) -> None:
        """Create what `command` needs, in `disk.directory`, which exists."""
        raise NotImplementedError

    def command(self, disk: Disk, socket_path: Path) -> list[str]:
        raise NotImplementedError

    def environment(self, disk: Disk) -> dict[str, str]:
        return {}

    def start(self, disk: Disk, socket_path: Path, extra_environment: Mapping[str, str] | None = None) -> Running:
        """Start it and return when it accepts connections. Raises BenchError with the end of its log if it does not."""
        log = disk.directory / "server.log"
        started = time.monotonic()
        try:
            with log.open("ab") as log_file:
                process = subprocess.Popen(
                    self.command(disk, socket_path),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log_file,
                    env={**os.environ, **self.environment(disk), **(extra_environment or {})},
                    start_new_session=True,  # Ctrl-C is for the benchmark, which then stops its servers
                )
        except OSError as error:
            raise BenchError(f"{self.name} cannot be started: {error}") from error
        running = Running(process, socket_path, log, 0.0)
        try:
            running.ready_line = self._wait_ready(running, started + START_TIMEOUT_S)
        except BaseException:
            running.kill()
            raise
        running.ready_s = time.monotonic() - started
        self._started(running, disk)
        return running

    def _started(self, running: Running, disk: Disk) -> None:
        """Called once it is ready."""

    def _wait_ready(self, running: Running, deadline: float) -> str:
        """Peers say nothing when they are ready: their socket is tried until it answers."""
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(running.socket_path))
                except (FileNotFoundError, ConnectionRefusedError):
                    pass
                else:
                    return ""
            self._check_alive(running, deadline)
            time.sleep(CONNECT_RETRY_S)

    def _check_alive(self, running: Running, deadline: float) -> None:
        if running.process.poll() is not None:
            raise BenchError(f"{self.name} ended with {running.process.returncode}: {log_tail(running.log)}")
        if time.monotonic() > deadline:
            raise BenchError(f"{self.name} was not ready within {START_TIMEOUT_S:.0f} s: {log_tail(running.log)}")


@dataclass(frozen=True)
class Holdfast(Server):
    name: str = "holdfast"
    peer: bool = False
    log_structured: bool = True
    executable: Path = Path("holdfast")
    memory_bytes: int = 256 * MIB
    preallocate: bool = True
    # Volumes beside `disk0` and their sizes, or instead of it if it is among them.
    volumes: Mapping[str, int] = field(default_factory=dict)
    capacity_bytes: int = 0  # 0: room for all that will be written
    segment_bytes: int = 0  # 0: the default

    def make(self, disk: Disk) -> None:
        pass  # the pool is made by the first `serve`

    def command(self, disk: Disk, socket_path: Path) -> list[str]:
        pool = disk.directory / "pool"
        command = [str(self.executable), "serve", str(pool), "--nbd", f"unix:{socket_path}"]
        command += ["--memory", format_size(self.memory_bytes)]
        if not (pool / "superblock").exists():
            for name, size_bytes in (self.volumes or {EXPORT: disk.size_bytes}).items():
                command += ["--volume", f"{name}={size_bytes}"]
            command += ["--capacity", str(self.capacity_bytes or capacity_bytes(disk))]
            command += ["--segment-size", str(self.segment_bytes)] if self.segment_bytes else []
            command += ["--preallocate"] if self.preallocate else []
        return command

    def _wait_ready(self, running: Running, deadline: float) -> str:
        """Holdfast prints one line that starts with `ready `, once it accepts connections."""
        output = running.process.stdout
        assert output is not None
        received = b""
        while True:
            readable, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(output.fileno(), 65536) if readable else b""
            received += chunk
            for line in received.decode(errors="replace").splitlines():
                if line.startswith("ready "):
                    return line
            if not chunk:  # timed out, or at its end: it closed its output, which it does by dying
                if readable:
                    running.process.wait(STOP_TIMEOUT_S)
                self._check_alive(running, deadline)

    def _started(self, running: Running, disk: Disk) -> None:
        """Note where its ring is: it lies outside the disk's directory, and a killed server leaves it there."""
        with (disk.directory / RINGS_NAME).open("a") as rings:
            rings.writelines(f"{path}\n" for path in ring_files(running.pid))


def capacity_bytes(disk: Disk) -> int:
    """A pool for everything that will be written: the data, a quarter more for commit headers, map pages and the ends
    of segments, and half a gibibyte for the segments that are held back.  In whole 32 MiB segments."""
    wanted = (disk.size_bytes if disk.log_bytes == 0 else disk.log_bytes) * 5 // 4 + 512 * MIB
    return -(-wanted // (32 * MIB)) * 32 * MIB


def ring_files(pid: int) -> list[Path]:
    """The shared memory of a running holdfast, by what it has mapped. A power failure takes it away."""
    paths = {
        line.split(maxsplit=5)[5].strip() for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/" in line
    }
    return sorted(Path(path) for path in paths if path.endswith((".ring", "/ring")))


@dataclass(frozen=True)
class NbdkitFile(Server):
    name: str = "nbdkit file"

    def make(self, disk: Disk) -> None:
        with (disk.directory / "disk.raw").open("wb") as image:
            image.truncate(disk.size_bytes)

    def command(self, disk: Disk, socket_path: Path) -> list[str]:
        return ["nbdkit", "--exit-with-parent", "--unix", str(socket_path), "file", str(disk.directory / "disk.raw")]


@dataclass(frozen=True)
class NbdkitCow(NbdkitFile):
    """A copy-on-write overlay in a temporary file over the file: thin, forgotten at the end, and flushes ignored."""

    name: str = "nbdkit cow"
    keeps_flushed: bool = False
    fills_at_start: bool = True

    def command(self, disk: Disk, socket_path: Path) -> list[str]:
        return [*super().command(disk, socket_path), "--filter=cow"]

    def environment(self, disk: Disk) -> dict[str, str]:
        return {"TMPDIR": str(disk.directory)}


@dataclass(frozen=True)
class NbdkitNull(Server):
    """Keeps nothing: not a peer but the ceiling, what fio and the socket alone can do."""

    name: str = "nbdkit null"
    peer: bool = False
    keeps_flushed: bool = False

    def make(self, disk: Disk) -> None:
        pass

    def command(self, disk: Disk, socket_path: Path) -> list[str]:
        return ["nbdkit", "--exit-with-parent", "--unix", str(socket_path), "null", f"size={disk.size_bytes}"]


@dataclass(frozen=True)
class QemuRaw(Server):
    name: str = "qemu-nbd raw"
    image_format: str = "raw"

    def make(self, disk: Disk) -> None:
        command = ["qemu-img", "create", "-q", "-f", self.image_format, str(self._image(disk)), str(disk.size_bytes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"qemu-img failed: {done.stderr.strip()}")

    def command(self, disk: Disk, socket_path: Path) -> list[str]:
        return [
            *("qemu-nbd", "--persistent", "--shared=0", f"--format={self.image_format}", "--cache=writeback"),
            *(f"--export-name={EXPORT}", f"--socket={socket_path}", str(self._image(disk))),
        ]

    def _image(self, disk: Disk) -> Path:
        return disk.directory / f"disk.{self.image_format}"


@dataclass(frozen=True)
class QemuQcow2(QemuRaw):
    name: str = "qemu-nbd qcow2"
    image_format: str = "qcow2"


def peers() -> list[Server]:
    """The four real peers, and the null server as the ceiling."""
    return [NbdkitFile(), NbdkitCow(), QemuRaw(), QemuQcow2(), NbdkitNull()]


@contextmanager
def serving(
    server: Server, disk: Disk, socket_path: Path, extra_environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A running server for the length of the block; killed if the block fails, stopped otherwise."""
    running = server.start(disk, socket_path, extra_environment)
    try:
        yield running
    except BaseException:
        running.kill()
        raise
    running.stop()


def new_disk(server: Server, directory: Path, size_bytes: int, log_bytes: int = 0) -> Disk:
    """An empty disk for `server` in `directory`, which is made anew."""
    if directory.exists():
        remove_disk(directory)
    directory.mkdir(parents=True)
    disk = Disk(directory, size_bytes, log_bytes)
    server.make(disk)
    return disk


def missing_tools(servers: Sequence[Server]) -> list[str]:
    """What is not installed of what these servers and the clients need, as Debian package names."""
    needed = {"fio": "fio", "nbdcopy": "libnbd-bin"}
    for server in servers:
        if isinstance(server, QemuRaw):
            needed |= {"qemu-nbd": "qemu-utils", "qemu-img": "qemu-utils"}
        elif not isinstance(server, Holdfast):
            needed["nbdkit"] = "nbdkit"
    return sorted({package for tool, package in needed.items() if shutil.which(tool) is None})

"""The real server, in a process of its own, and the programs that are tried on it.

What the server says is part of a test: `stop` fails on a traceback, and on a line of level WARNING or above that the
test did not expect.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from holdfast.control.api import CreateVolume, VolumeInfo
from holdfast.control.client import ControlClient
from holdfast.units import MIB

# Generous: the machines that run this share their disks, and a hang is pytest's to end.
_PATIENCE_S = 120
# How full the disk of the machine is that the tests run on is no matter of theirs.
_OF_THE_HOST = r"the host filesystem is over \d+% full"
_LOUD = re.compile(r"^(holdfast: (WARNING|ERROR|CRITICAL)|Traceback|\S*(Error|Exception)\b)")


class RunningServer:
    """A pool that is served. A new object (or `start` once more) on the same directory is a restart."""

    def __init__(
        self,
        pool: Path,
        *,
        volumes: Sequence[str] = (),
        memory: str = "64M",
        capacity: str = "2G",
        segment_size: str = "4M",
        within: Callable[[list[str]], list[str]] = lambda command: command,
    ) -> None:
        """`within`: makes the command one that runs in surroundings of its own."""
        self.pool = pool
        self.memory_bytes = int(memory.removesuffix("M")) * MIB
        self.unix_path = pool.parent / f"{pool.name}.sock"
        self._log_path = pool.parent / f"{pool.name}.log"
        self._command = [sys.executable, "-m", "holdfast.cli.main", "serve", str(pool)]
        self._command += ["--memory", memory, "--capacity", capacity, "--segment-size", segment_size]
        self._command += ["--nbd", f"unix:{self.unix_path}", "--nbd", "tcp:127.0.0.1:0"]
        self._volumes = list(volumes)
        self._within = within
        self._process: subprocess.Popen[str] | None = None
        self.ready = ""

    def start(self) -> RunningServer:
        """Start it, and return once it accepts connections."""
        words = [word for volume in self._volumes for word in ("--volume", volume)]
        command = self._within(self._command + words)
        with open(self._log_path, "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        output = self._output()
        self.ready = output.readline()
        if not self.ready.startswith("ready "):
            self._process.wait(_PATIENCE_S)
            raise AssertionError(f"the server did not start: {self.log()}")
        return self

    def _output(self) -> IO[str]:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return self._log_path.read_text(encoding="utf-8")

    def kill(self) -> None:
        """SIGKILL, and no more of it."""
        self._end(signal.SIGKILL)

    def end(self) -> None:
        """See to it that it does not run any more."""
        if self._process is not None:
            self.kill()

    def stop(self, *, expected: str | None = None) -> None:
        """SIGTERM; it must end well. `expected`: a pattern of loud lines that belong to the test."""
        code = self._end(signal.SIGTERM)
        loud = [line for line in self.log().splitlines() if _LOUD.search(line)]
        expected = f"{_OF_THE_HOST}|{expected}" if expected else _OF_THE_HOST
        unexpected = [line for line in loud if not re.search(expected, line)]
        assert code == 0, f"exit code {code}: {self.log()}"
        assert unexpected == [], "\n".join(unexpected)

    def _end(self, signum: int) -> int:
        assert self._process is not None
        self._process.send_signal(signum)
        code = self._process.wait(_PATIENCE_S)
        self._output().close()
        self._process = None
        return code

    # ---- what it says of itself

    def control(self) -> ControlClient:
        client = ControlClient.connect_if_served(self.pool)
        assert client is not None
        return client

    def create(self, name: str, size_bytes: int) -> VolumeInfo:
        with self.control() as client:
            return client.create_volume(CreateVolume(name=name, size_bytes=size_bytes))

    def show(self, name: str) -> VolumeInfo:
        with self.control() as client:
            return client.volume(name)

    def uri(self, name: str, *, tcp: bool = False) -> str:
        return next(uri for uri in self.show(name).uris if uri.startswith("nbd:") == tcp)

    def wait_until_drained(self, name: str) -> None:
        """Until nobody is connected to the volume. The server is asked again and again; pytest's time limit is ours."""
        with self.control() as client:
            while client.volume(name).connections:
                pass

    def memory_peak_bytes(self) -> int:
        """The most memory that the process has had, shared memory included."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


def client_environment() -> dict[str, str]:
    # nbdsh starts the first python3 on the path, and only the distribution's own has the bindings of libnbd.
    return os.environ | {"PATH": os.pathsep.join(("/usr/bin", "/bin", "/usr/sbin", "/sbin")), "LC_ALL": "C"}


def run(*command: object, code: int = 0, directory: Path | None = None) -> str:
    """Run a program to its end and return what it printed; it must end with `code`."""
    finished = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
        env=client_environment(),
        cwd=directory,
    )
    assert finished.returncode == code, finished.stderr + finished.stdout
    return finished.stdout + finished.stderr


def holdfast(*arguments: object, code: int = 0) -> str:
    """The command `holdfast`, as it is installed with this interpreter."""
    return run(sys.executable, "-m", "holdfast.cli.main", *arguments, code=code)

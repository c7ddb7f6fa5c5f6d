"""Where the server's time goes in one row of the table.

Two instruments.  cProfile counts calls exactly and is built in, but its own cost, paid at each call, makes cheap
functions look dear: use it for counts and for who calls whom.  The server runs its loop under it when HOLDFAST_PROFILE
names a file, which it writes at its end.  py-spy samples from outside and costs the server nothing: use it for shares
of time, where it is installed.
"""

from __future__ import annotations

import collections
import io
import pstats
import shutil
import subprocess
from pathlib import Path

from bench.servers import Holdfast, Running
from bench.settings import BenchError, Settings
from bench.table import Cell, run_cell
from bench.workloads import Row

PROFILE_VARIABLE = "HOLDFAST_PROFILE"
TOP_FUNCTIONS = 40


def profile_row(row: Row, settings: Settings, out: Path, instrument: str) -> Path:
    """Run `row` once on holdfast under `instrument` (`cprofile` or `py-spy`); returns the text file with the result."""
    recorded = settings.scratch / "profile.out"
    recorded.unlink(missing_ok=True)
    server = Holdfast(executable=settings.holdfast, memory_bytes=settings.memory_bytes)
    if instrument == "cprofile":
        cell = run_cell(row, server, settings, {}, extra_environment={PROFILE_VARIABLE: str(recorded)})
    else:
        sampler = _Sampler(recorded, settings.runtime_s)
        cell = run_cell(row, server, settings, {}, before=sampler.start)
        sampler.wait()
    if cell.error:
        raise BenchError(f"{row.name}: {cell.error}")
    if not recorded.exists():
        raise BenchError(f"no profile was left; does this server know {PROFILE_VARIABLE}?")
    text = _cprofile_text(recorded) if instrument == "cprofile" else collapse_text(recorded.read_text())
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"profile-{row.name}.txt"
    path.write_text(_heading(row, cell, instrument) + text)
    return path


class _Sampler:
    """py-spy beside the server, from just before the measured run until its time is over."""

    def __init__(self, recorded: Path, runtime_s: float) -> None:
        if shutil.which("py-spy") is None:
            raise BenchError("py-spy is not installed; use --profiler cprofile")
        self._options = ["--rate", "250", "--format", "raw", "--duration", str(max(1, round(runtime_s)))]
        self._recorded = recorded
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, running: Running) -> None:
        command = ["py-spy", "record", *self._options, "--output", str(self._recorded), "--pid", str(running.pid)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()


def _heading(row: Row, cell: Cell, instrument: str) -> str:
    return (
        f"{row.title}: {cell.value:,.0f} {row.unit} under {instrument}, {cell.cpu_seconds:.2f} CPU seconds "
        f"of the server for {cell.moved_bytes:,} bytes.\n\n"
    )


def _cprofile_text(recorded: Path) -> str:
    """By own time, then by cumulative time; paths cut to their last parts."""
    output = io.StringIO()
    statistics = pstats.Stats(str(recorded), stream=output)
    statistics.strip_dirs().sort_stats("tottime").print_stats(TOP_FUNCTIONS)
    statistics.sort_stats("cumulative").print_stats(TOP_FUNCTIONS)
    # The heading of each table names the scratch file and the time of day: no news.
    lines = [line.rstrip() for line in output.getvalue().splitlines() if str(recorded) not in line]
    return "\n".join(lines) + "\n"


def collapse_text(raw: str) -> str:
    """Own and total samples of each function, out of py-spy's raw stacks (`a;b;c 12` a line)."""
    own: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    samples = 0
    for line in raw.splitlines():
        stack, _, count_text = line.rpartition(" ")
        count = int(count_text)
        frames = [frame.rpartition(":")[0] + ")" if ":" in frame else frame for frame in stack.split(";")]
        samples += count
        own[frames[-1]] += count
        for frame in dict.fromkeys(frames):
            total[frame] += count
    if not samples:
        return "no samples\n"
    lines = [f"{samples} samples", f"{'own %':>7} {'total %':>8}  function"]
    for frame, count in own.most_common(TOP_FUNCTIONS):
        lines.append(f"{100 * count / samples:7.1f} {100 * total[frame] / samples:8.1f}  {frame}")
    return "\n".join(lines) + "\n"

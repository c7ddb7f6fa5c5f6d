"""What a run is told once and every part of it needs: durations, sizes, directories, and the space that it may take."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from holdfast.units import GIB, MIB, format_size

REPOSITORY = Path(__file__).resolve().parent.parent

# The most that all scratch files together may take on the disk.  A developer's machine has that to spare; a run that
# would need more is refused before it starts instead of filling the disk.
SCRATCH_BYTES_MAX = 40 * GIB
# What is left to everybody else on that filesystem.
SCRATCH_MARGIN_BYTES = 4 * GIB


# The address of a Unix socket has 108 bytes, the last of them zero.
SOCKET_PATH_BYTES_MAX = 107
# In a disk's directory: the paths of the rings that its servers had.
RINGS_NAME = "rings"


class BenchError(Exception):
    """The benchmark cannot go on; the message is one line for the person who started it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Immutable; made by the command line."""

    scratch: Path
    holdfast: Path  # the executable
    quick: bool = False
    rounds: int = 3
    runtime_s: float = 4.0
    ramp_s: float = 0.5
    disk_bytes: int = 2 * GIB
    copy_bytes: int = 1 * GIB
    ring_region_bytes: int = 24 * MIB
    memory_bytes: int = 256 * MIB


def without_paths(text: str, settings: Settings) -> str:
    """For results that are kept: where things lay on a developer's machine is no part of them."""
    return text.replace(str(settings.scratch), "scratch").replace(str(REPOSITORY), ".")


def find_holdfast() -> Path:
    """The `holdfast` of this interpreter, of the repository's environment, or of PATH, in this order."""
    candidates = [Path(sys.executable).parent / "holdfast", REPOSITORY / ".venv" / "bin" / "holdfast"]
    found = shutil.which("holdfast")
    if found is not None:
        candidates.append(Path(found))
    for candidate in candidates:
        if candidate.exists():
            return candidate
    return candidates[1]  # starting it fails with its name, in the rows that need it


def check_space(directory: Path, need_bytes: int) -> None:
    """Refuse a run that would take too much, or more than there is."""
    if need_bytes > SCRATCH_BYTES_MAX:
        raise BenchError(
            f"this run would take {format_size(need_bytes)} of scratch space and may take "
            f"{format_size(SCRATCH_BYTES_MAX)}; choose a smaller --size or --runtime"
        )
    directory.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < need_bytes + SCRATCH_MARGIN_BYTES:
        raise BenchError(
            f"{directory} has {format_size(free_bytes)} free, this run needs {format_size(need_bytes)} and leaves "
            f"{format_size(SCRATCH_MARGIN_BYTES)} alone; choose another --scratch or a smaller --size"
        )


def hold_scratch(directory: Path) -> int:
    """Mark a directory as the benchmark's, and in use for as long as the returned descriptor is open.

    Raises BenchError where another run has it, or where there are files in it that nobody said were ours.
    """
    directory.mkdir(parents=True, exist_ok=True)
    marker = directory / "made-by-bench"
    if any(directory.iterdir()) and not marker.exists():
        raise BenchError(f"{directory} exists and was not made by the benchmark; choose another --scratch")
    descriptor = os.open(marker, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BenchError(f"another run is using {directory}; choose another --scratch") from error
    for leftover in directory.iterdir():  # of a run that was killed
        if leftover.is_dir():
            remove_disk(leftover)
        elif leftover != marker:
            leftover.unlink()
    return descriptor


def remove_disk(directory: Path) -> None:
    """Remove a server's directory, and the shared memory that servers in or below it left behind."""
    for rings in directory.rglob(RINGS_NAME):
        for ring in rings.read_text().splitlines():
            Path(ring).unlink(missing_ok=True)
    shutil.rmtree(directory)


def is_root() -> bool:
    return os.geteuid() == 0


def drop_caches() -> None:
    """Everything written, then the page cache empty, so that the next read comes from the disk. Needs root."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as control:
        control.write("3\n")


@contextmanager
def memory_directory(need_bytes: int, fallback: Path) -> Iterator[Path]:
    """A directory on tmpfs for the far side of a copy, so that no second disk is measured; below `fallback` where
    tmpfs is small."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > need_bytes + GIB
    directory = Path(tempfile.mkdtemp(prefix="bench-copy-", dir=shared if roomy else fallback))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)

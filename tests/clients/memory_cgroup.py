"""A memory control group of a test's own, below the one that the test runs in: nothing else can be hit."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager

from holdfast.runtime.host import own_memory_group
from tests.conftest import missing

_numbers = itertools.count()


class MemoryCgroup:
    """Without swap, so that the kernel kills at the limit. Version 1 or 2."""

    def __init__(self, limit_bytes: int) -> None:
        parent, self.version = own_memory_group()
        self.path = parent / f"holdfast-test-{os.getpid()}-{next(_numbers)}"
        self.path.mkdir()
        if self.version == 1:
            self._write("memory.limit_in_bytes", limit_bytes)
            if (self.path / "memory.memsw.limit_in_bytes").exists():
                self._write("memory.memsw.limit_in_bytes", limit_bytes)
        else:
            self._write("memory.max", limit_bytes)
            self._write("memory.swap.max", 0)

    def _write(self, name: str, value: int) -> None:
        (self.path / name).write_text(str(value))

    def wrap(self, command: list[str]) -> list[str]:
        """The command, run inside of the group from its first byte of memory on."""
        return ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(self.path), *command]

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed in the group for want of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        fields = dict(line.split() for line in (self.path / name).read_text().splitlines())
        return int(fields["oom_kill"])

    @property
    def peak_bytes(self) -> int:
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return int((self.path / name).read_text())


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[MemoryCgroup]:
    """The processes in it must have ended by the end of the block."""
    try:
        group = MemoryCgroup(limit_bytes)
    except (OSError, LookupError) as error:
        missing(f"needs root and a memory control group that can be divided ({error})")
        raise
    try:
        yield group
    finally:
        group.path.rmdir()

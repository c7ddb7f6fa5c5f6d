"""Memory limits, read from made-up /proc and control group trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.runtime.host import (
    DEFAULT_MEMORY_BYTES_MAX,
    cgroup_headroom_bytes,
    cgroup_memory_limit_bytes,
    default_memory_bytes,
    host_memory_bytes,
    memory_groups,
)
from holdfast.units import GIB, MIB


class FakeHost:
    """A /proc, and a control group hierarchy of either version beside it."""

    def __init__(self, base: Path, *, memory_bytes: int = 8 * GIB) -> None:
        self.proc = base / "proc"
        self.base = base
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(f"MemTotal: {memory_bytes // 1024} kB\nMemAvailable: 1024 kB\n")
        (self.proc / "self/cgroup").write_text("")
        (self.proc / "self/mountinfo").write_text("22 1 0:20 / /proc rw,nosuid - proc proc rw\n")

    def mount(self, version: int, own_path: str, *, root: str = "/") -> Path:
        """Mount the hierarchy, whose directory `root` is seen at the mount point; gives the mount point."""
        point = self.base / f"cgroup {version}"
        point.mkdir()
        escaped = str(point).replace(" ", "\\040")
        kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", "rw,memory")
        line = f"0::{own_path}\n" if version == 2 else f"4:memory:{own_path}\n3:cpu,cpuacct:/elsewhere\n"
        with (self.proc / "self/cgroup").open("a") as file:
            file.write(line)
        with (self.proc / "self/mountinfo").open("a") as file:
            file.write(f"30 22 0:26 {root} {escaped} rw,relatime shared:4 - {kind} {kind} {options}\n")
        return point


def limit_v2(directory: Path, maximum: str, current: int = 0, stat: str = "") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text(maximum + "\n")
    (directory / "memory.current").write_text(f"{current}\n")
    (directory / "memory.stat").write_text(stat)


def limit_v1(directory: Path, maximum: int, current: int = 0, stat: str = "") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.limit_in_bytes").write_text(f"{maximum}\n")
    (directory / "memory.usage_in_bytes").write_text(f"{current}\n")
    (directory / "memory.stat").write_text(stat)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_a_host_without_control_groups_has_no_limit(host: FakeHost) -> None:
    assert cgroup_memory_limit_bytes(host.proc) is None
    assert cgroup_headroom_bytes(host.proc) is None


def test_the_lowest_limit_of_all_ancestors_counts(host: FakeHost) -> None:
    point = host.mount(2, "/a/b/c")
    limit_v2(point / "a", "1073741824")
    limit_v2(point / "a/b", str(64 * MIB))
    limit_v2(point / "a/b/c", "max")
    assert cgroup_memory_limit_bytes(host.proc) == 64 * MIB
    assert [group.path for group in memory_groups(host.proc)] == ["/a/b", "/a"]


def test_the_least_headroom_need_not_be_at_the_lowest_limit(host: FakeHost) -> None:
    point = host.mount(2, "/a/b")
    limit_v2(point / "a", str(GIB), current=1000 * MIB)
    limit_v2(point / "a/b", str(64 * MIB), current=10 * MIB)
    assert cgroup_headroom_bytes(host.proc) == 24 * MIB


def test_clean_page_cache_counts_as_headroom_and_dirty_does_not(host: FakeHost) -> None:
    point = host.mount(2, "/a")
    stat = f"anon 1\ninactive_file {20 * MIB}\nfile_dirty {5 * MIB}\nfile_writeback {MIB}\n"
    limit_v2(point / "a", str(64 * MIB), current=60 * MIB, stat=stat)
    assert cgroup_headroom_bytes(host.proc) == 18 * MIB


def test_version_1_counts_descendants_in_the_total_fields(host: FakeHost) -> None:
    point = host.mount(1, "/a")
    stat = f"inactive_file 0\ntotal_inactive_file {8 * MIB}\ntotal_dirty {MIB}\ntotal_writeback 0\n"
    limit_v1(point / "a", 64 * MIB, current=60 * MIB, stat=stat)
    assert cgroup_memory_limit_bytes(host.proc) == 64 * MIB
    assert cgroup_headroom_bytes(host.proc) == 11 * MIB


def test_the_largest_number_of_version_1_means_no_limit(host: FakeHost) -> None:
    point = host.mount(1, "/a")
    limit_v1(point / "a", 0x7FFFFFFFFFFFF000)
    assert cgroup_memory_limit_bytes(host.proc) is None


def test_both_versions_are_read_on_a_hybrid_host(host: FakeHost) -> None:
    limit_v2(host.mount(2, "/x") / "x", str(128 * MIB))
    limit_v1(host.mount(1, "/y") / "y", 96 * MIB)
    assert cgroup_memory_limit_bytes(host.proc) == 96 * MIB


@pytest.mark.parametrize(("own_path", "root"), [("/docker/abc", "/docker/abc"), ("/../other", "/"), ("/not/here", "/")])
def test_in_a_container_the_mounted_root_stands_for_its_group(host: FakeHost, own_path: str, root: str) -> None:
    limit_v2(host.mount(2, own_path, root=root), str(32 * MIB))
    assert cgroup_memory_limit_bytes(host.proc) == 32 * MIB


def test_the_default_budget_is_half_the_limit(host: FakeHost) -> None:
    limit_v2(host.mount(2, "/a") / "a", str(100 * MIB))
    assert default_memory_bytes(host.proc) == 50 * MIB


def test_the_default_budget_is_bounded_where_there_is_plenty(host: FakeHost) -> None:
    assert host_memory_bytes(host.proc) == 8 * GIB
    assert default_memory_bytes(host.proc) == DEFAULT_MEMORY_BYTES_MAX


def test_the_real_host_can_be_read() -> None:
    assert default_memory_bytes() > 0
    assert all(group.limit_bytes > 0 for group in memory_groups())

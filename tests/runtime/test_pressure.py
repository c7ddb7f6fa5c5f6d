"""Pressure, read from made-up control groups and PSI files."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.runtime.pressure import Level, PressureWatch
from holdfast.units import MIB
from tests.runtime.test_host import FakeHost, limit_v1, limit_v2

PSI = "some avg10={some} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_without_limits_and_without_stalls_there_is_no_pressure(host: FakeHost) -> None:
    assert PressureWatch(host.proc).level() is Level.NONE


@pytest.mark.parametrize(
    ("used_mib", "level"),
    [(64, Level.NONE), (110, Level.NONE), (119, Level.SOME), (124, Level.HIGH), (128, Level.HIGH)],
)
@pytest.mark.parametrize("version", [1, 2])
def test_little_head_room_in_any_group_around_us_is_pressure(
    host: FakeHost, version: int, used_mib: int, level: Level
) -> None:
    point = host.mount(version, "/a/b")
    if version == 2:
        limit_v2(point / "a", str(128 * MIB), used_mib * MIB)
        limit_v2(point / "a/b", "max")
    else:
        limit_v1(point / "a", 128 * MIB, used_mib * MIB)
        limit_v1(point / "a/b", 1 << 62)
    assert PressureWatch(host.proc).level() is level


def test_clean_page_cache_counts_as_room(host: FakeHost) -> None:
    point = host.mount(2, "/a")
    limit_v2(point / "a", str(128 * MIB), 127 * MIB, f"inactive_file {60 * MIB}\nfile_dirty 0\nfile_writeback 0\n")
    assert PressureWatch(host.proc).level() is Level.NONE


@pytest.mark.parametrize(("some", "level"), [("0.00", Level.NONE), ("12.50", Level.SOME), ("55.00", Level.HIGH)])
def test_tasks_that_stand_still_are_pressure(host: FakeHost, some: str, level: Level) -> None:
    (host.proc / "pressure").mkdir()
    (host.proc / "pressure/memory").write_text(PSI.format(some=some))
    assert PressureWatch(host.proc).level() is level


def test_our_own_group_is_asked_before_the_host(host: FakeHost) -> None:
    (host.proc / "pressure").mkdir()
    (host.proc / "pressure/memory").write_text(PSI.format(some="90.00"))
    point = host.mount(2, "/a")
    limit_v2(point / "a", "max")
    (point / "a/memory.pressure").write_text(PSI.format(some="0.00"))
    assert PressureWatch(host.proc).level() is Level.NONE


def test_pressure_rises_at_once_and_falls_after_a_while(host: FakeHost) -> None:
    point = host.mount(2, "/a")
    limit_v2(point / "a", str(128 * MIB), 10 * MIB)
    watch = PressureWatch(host.proc)
    assert watch.level() is Level.NONE
    limit_v2(point / "a", str(128 * MIB), 127 * MIB)
    assert watch.level() is Level.HIGH
    limit_v2(point / "a", str(128 * MIB), 10 * MIB)
    assert [watch.level() for _ in range(PressureWatch.CALM_LOOKS)][-2:] == [Level.HIGH, Level.NONE]

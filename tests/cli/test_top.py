"""`holdfast top`, on a pool that a made-up service serves, and where nobody does."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from holdfast.cli.top import Screen, rates, waits_screen, watch
from holdfast.control.api import MustSucceedInfo, Statistics, WaitInfo, WaitList
from holdfast.control.group_api import GroupInfo
from holdfast.errors import NotFoundError
from holdfast.units import GIB, MIB
from tests.control.fake_service import FakeService

from .conftest import Run

STUCK = WaitInfo(
    operation="backlog",
    volume="disk0",
    peer="unix",
    since_s=31.25,
    waits_for="room in the ring",
    held=["12 requests not begun"],
    ended_by=["the flusher"],
)
MEANT = WaitInfo(operation="READ", since_s=2.0, waits_for="the client to take its replies", held=["a", "b"], meant=True)


def test_one_picture_of_a_pool(run: Run, served_pool: Path, service: FakeService) -> None:
    service.add("disk0", 10 * GIB, connections=2)
    result = run("top", served_pool, "--once", "--interval", "0.1")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "pool      /pool, served by process 4711, 0 clients"
    assert lines[3].endswith("segments: 5 free, 0 of them held back, 0 to be made")
    assert lines[-2].split()[:3] == ["NAME", "SIZE", "MAPPED"]
    assert lines[-1].split() == ["disk0", "10G", "0", "-", "-", "2", "0", "0"]


def test_groups_come_before_volumes_with_what_was_refused_to_them(
    run: Run, served_pool: Path, service: FakeService
) -> None:
    service.add("disk0", GIB)
    service.known_groups["red"] = GroupInfo(
        name="red", id=1, dirty_bytes=8 * MIB, space_bytes=GIB, usage={"ring": 2 * MIB, "map_pages": MIB},
        mapped_bytes=512 * MIB, throttled_s=2.5, refusals={"ring": 3, "map_pages": 1}, volumes=["disk0"],
    )  # fmt: skip
    lines = run("top", served_pool, "--once", "--interval", "0.1").stdout.splitlines()
    rows = [" ".join(line.split()) for line in lines]
    at = rows.index("GROUP VOLUMES MAPPED DIRTY MEMORY THROTTLED REFUSED")
    assert rows[at + 1 : at + 4] == ["default 0 0 0 0 0.0s 0", "red 1 512M of 1G 2M of 8M 3M 2.5s 4", ""]
    assert rows[at + 4].startswith("NAME SIZE ")


def test_what_is_held_back_is_told_by_caller(run: Run, served_pool: Path, service: FakeService) -> None:
    service.reserved = [
        MustSucceedInfo(name="checkpoint", why="all need it", segments=3, ring_bytes=8192, staging_bytes=4096),
        MustSucceedInfo(name="trims", why="the way out", segments=1),
    ]
    assert (
        "reserve   checkpoint: 3 segments, 8K of the ring, 4K of memory; trims: 1 segments\n"
        in run("top", served_pool, "--once", "--interval", "0.1").stdout
    )


def test_a_server_older_than_groups_can_be_watched(
    run: Run, served_pool: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> list[GroupInfo]:
        raise NotFoundError("there is nothing at /v1/groups")

    monkeypatch.setattr(service, "groups", unknown)
    service.add("disk0", GIB)
    result = run("top", served_pool, "--once", "--interval", "0.1")
    assert result.exit_code == 0, result.stderr
    assert "GROUP" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("disk0 ")
    assert json.loads(run("top", served_pool, "--json").stdout)["groups"] == []


def test_a_snapshot_as_json_has_all_that_the_api_has(run: Run, served_pool: Path, service: FakeService) -> None:
    service.add("disk0", GIB)
    answer = json.loads(run("top", served_pool, "--json").stdout)
    assert answer["pool"]["pid"] == 4711
    assert answer["statistics"]["writes"] == 12
    assert [volume["name"] for volume in answer["volumes"]] == ["disk0"]
    assert [group["name"] for group in answer["groups"]] == ["default"]


def test_who_waits_for_what_is_a_row_each(run: Run, served_pool: Path, service: FakeService) -> None:
    service.waiting = [STUCK, MEANT]
    result = run("top", served_pool, "--waits")
    assert result.exit_code == 0
    assert result.stdout == (
        "waiting   2\n"
        "\n"
        "SINCE  OPERATION  VOLUME  CLIENT  WAITS FOR                               HOLDS                  ENDED BY\n"
        "31.2s  backlog    disk0   unix    room in the ring                        12 requests not begun  the flusher\n"
        " 2.0s  READ       -       -       the client to take its replies (meant)  a, b                   -\n"
    )


def test_nobody_waits(run: Run, served_pool: Path) -> None:
    assert run("top", served_pool, "--waits").stdout == "waiting   0\n"


def test_a_cycle_is_named(run: Run, served_pool: Path, service: FakeService) -> None:
    service.cycles = ["B waits for the lock that A holds, A waits for memory that B holds"]
    assert f"CYCLE     {service.cycles[0]}\n" in run("top", served_pool, "--waits", "--once").stdout


def test_waits_as_json_are_the_api_answer(run: Run, served_pool: Path, service: FakeService) -> None:
    service.waiting = [STUCK]
    answer = json.loads(run("top", served_pool, "--waits", "--json").stdout)
    assert (answer["total"], answer["waits"][0]["ended_by"], answer["cycles"]) == (1, ["the flusher"], [])


def test_a_pool_that_nobody_serves_is_one_line(run: Run, pool: Path, tmp_path: Path) -> None:
    for where, why in ((pool, "nobody serves it"), (tmp_path / "none", "there is no pool here")):
        result = run("top", where, "--waits")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"holdfast: {where}: {why}; `holdfast serve {where}` does\n"


def test_an_interval_that_makes_no_sense_is_refused(run: Run, served_pool: Path) -> None:
    result = run("top", served_pool, "--interval", "0")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_rates_are_differences_and_leave_out_what_one_look_has_not() -> None:
    before: Statistics = {"log_position": 100, "flusher_syncs": 7, "checkpoints": 1}
    after: Statistics = {"log_position": 612, "flusher_syncs": 17, "flusher_writes": 4, "checkpoints": 1}
    assert rates(before, after, 2.0) == pytest.approx({"appended": 256 * 4096, "syncs": 5, "checkpoints": 0})


def test_the_live_view_shows_each_look_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([waits_screen(WaitList(waits=[STUCK], total=1)), waits_screen(WaitList(cycles=["A waits for A"]))])

    def look() -> Screen:
        for screen in looks:
            return screen
        raise KeyboardInterrupt

    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, height=20)
    monkeypatch.setattr("rich.live.get_console", lambda: console)
    watch(look, pause_s=0)
    assert "room in the ring" in shown.getvalue()
    assert "A waits for A" in shown.getvalue()

"""`holdfast check` and `holdfast doctor`: verdicts and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from holdfast.cli.examine import filesystem_type
from holdfast.errors import PoolBusyError

from .conftest import FakeServer, Finding, Run


def test_a_clean_pool_is_0(run: Run, pool: Path, server: FakeServer) -> None:
    result = run("check", pool)
    assert result.exit_code == 0
    assert result.stdout == f"{pool}: clean; 2 volumes, 3 segments and 100 blocks checked in 0.2 s\n"


def test_damage_is_1_and_listed(run: Run, pool: Path, server: FakeServer) -> None:
    server.damage.append(Finding("checksum", "segment 3 block 17", "data of disk0 at offset 4096"))
    result = run("check", pool)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:2] == [
        "DAMAGE    WHERE               WHAT",
        "checksum  segment 3 block 17  data of disk0 at offset 4096",
    ]


def test_damage_as_json_is_1_too(run: Run, pool: Path, server: FakeServer) -> None:
    server.damage.append(Finding("map", "page 1", "points beyond the log"))
    result = run("check", pool, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["damage"] == [{"kind": "map", "where": "page 1", "what": "points beyond the log"}]


def test_a_pool_that_is_served_cannot_be_checked(run: Run, pool: Path, server: FakeServer) -> None:
    server.failure = PoolBusyError("pool is being served; stop the server first")
    assert run("check", pool).exit_code == 2


def test_no_pool_cannot_be_checked(run: Run, tmp_path: Path, server: FakeServer) -> None:
    result = run("check", tmp_path)
    assert result.exit_code == 2
    assert "there is no pool here" in result.stderr


def test_the_doctor_examines_a_pool_that_does_not_exist_yet(run: Run, tmp_path: Path) -> None:
    result = run("doctor", tmp_path / "not" / "yet", "--json")
    assert result.exit_code == 0, result.stdout
    subjects = {found["subject"] for found in json.loads(result.stdout)}
    assert {"Python", "kernel", "/dev/shm", "open files", "memory", "filesystem", "free space"} <= subjects


def test_the_doctor_without_a_pool_leaves_filesystems_alone(run: Run) -> None:
    result = run("doctor")
    assert result.exit_code == 0
    assert "O_DIRECT" not in result.stdout
    assert result.stdout.startswith("STATE  SUBJECT")


def test_the_doctor_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    run("doctor", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_warns_of_a_pool_in_memory(run: Run) -> None:
    assert filesystem_type(Path("/dev/shm")) == "tmpfs"
    found = {row["subject"]: row for row in json.loads(run("doctor", "/dev/shm", "--json").stdout)}
    assert found["filesystem"]["state"] == "warn"
    assert found["filesystem"]["what_to_do"]

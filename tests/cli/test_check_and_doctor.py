"""`holdfast check` and `holdfast doctor`: verdicts and exit codes."""

from __future__ import annotations

import json
import random
from pathlib import Path

from holdfast.cli.examine import filesystem_type
from holdfast.runtime.lock import PoolLock
from holdfast.units import KIB

from .conftest import Run


def pool_with_data(run: Run, pool: Path, tmp_path: Path) -> bytes:
    """Put 64 KiB that are found nowhere else into a volume of the pool."""
    data = random.Random(8).randbytes(64 * KIB)
    (tmp_path / "data").write_bytes(data)
    result = run("copy", tmp_path / "data", f"{pool}/disk0")
    assert result.exit_code == 0, result.stderr
    return data


def flip_a_byte_of(data: bytes, pool: Path) -> None:
    """In the segment file that holds it."""
    for segment in (pool / "segments").iterdir():
        content = bytearray(segment.read_bytes())
        at = content.find(data[:4096])
        if at >= 0:
            content[at + 100] ^= 1
            segment.write_bytes(content)
            return
    raise AssertionError("the data is in no segment")


def test_a_clean_pool_is_0(run: Run, pool: Path, tmp_path: Path) -> None:
    pool_with_data(run, pool, tmp_path)
    result = run("check", pool)
    assert result.exit_code == 0, result.stdout
    assert result.stdout.startswith(f"{pool}: clean; 1 volumes, ")


def test_damage_is_1_and_listed(run: Run, pool: Path, tmp_path: Path) -> None:
    flip_a_byte_of(pool_with_data(run, pool, tmp_path), pool)
    result = run("check", pool)
    assert result.exit_code == 1
    heading, *found, verdict = result.stdout.splitlines()
    assert heading.split() == ["DAMAGE", "WHERE", "WHAT"]
    assert found
    assert verdict.startswith(f"{pool}: {len(found)} damaged; ")


def test_damage_as_json_is_1_too(run: Run, pool: Path, tmp_path: Path) -> None:
    flip_a_byte_of(pool_with_data(run, pool, tmp_path), pool)
    result = run("check", pool, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["volumes_checked"] == 1
    assert all(found.keys() == {"kind", "where", "what"} for found in report["damage"])
    assert report["damage"]


def test_a_check_changes_nothing(run: Run, pool: Path, tmp_path: Path) -> None:
    flip_a_byte_of(pool_with_data(run, pool, tmp_path), pool)
    before = {path: path.read_bytes() for path in pool.rglob("*") if path.is_file() and path.name != "lock"}
    assert run("check", pool).exit_code == 1
    assert {path: path.read_bytes() for path in before} == before


def test_a_pool_that_is_served_cannot_be_checked(run: Run, pool: Path) -> None:
    lock = PoolLock(pool)
    result = run("check", pool)
    lock.release()
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "is being served by process" in result.stderr


def test_no_pool_cannot_be_checked(run: Run, tmp_path: Path) -> None:
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

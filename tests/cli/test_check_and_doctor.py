"""`holdfast check` and `holdfast doctor`: verdicts and exit codes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from uuid import UUID

import pytest

from holdfast.cli.examine import other_rings
from holdfast.control.api import MustSucceedInfo, PoolStatus
from holdfast.errors import RetryError
from holdfast.pool.superblock import SLOT_OFFSETS, decode_superblock
from holdfast.runtime.host import filesystem_type
from holdfast.runtime.lock import PoolLock
from holdfast.runtime.ring_memory import ring_name
from holdfast.units import KIB, MIB
from tests.control.fake_service import FakeService

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
    found = {row["subject"]: row for row in json.loads(result.stdout)}
    assert {"Python", "kernel", "/dev/shm", "open files", "memory", "filesystem", "free space"} <= found.keys()
    assert found["pool"]["found"] == "not there yet"
    assert found["pool"]["why"].endswith("will make it")
    assert not (tmp_path / "not").exists()


def test_the_doctor_finds_a_file_in_the_place_of_a_pool_bad(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for pool in (tmp_path / "file", tmp_path / "file" / "pool"):
        result = run("doctor", pool, "--json")
        assert result.exit_code == 1
        found = {row["subject"]: row for row in json.loads(result.stdout)}
        assert (found["pool"]["state"], found["pool"]["found"]) == ("bad", f"{tmp_path}/file is not a directory")


def test_the_doctor_tells_a_pool_from_a_directory_without_one(run: Run, pool: Path, tmp_path: Path) -> None:
    def pool_found(where: Path) -> str:
        rows = {row["subject"]: row for row in json.loads(run("doctor", where, "--json").stdout)}
        return str(rows["pool"]["found"])

    assert pool_found(pool) == str(pool)
    assert pool_found(tmp_path) == "a directory without one"


def test_rings_of_other_pools_are_counted_and_their_removal_explained(pool: Path, tmp_path: Path) -> None:
    shm = tmp_path / "shm"
    shm.mkdir()
    superblocks = map(decode_superblock, ((pool / "superblock").read_bytes()[at : at + 4096] for at in SLOT_OFFSETS))
    own = next(found.uuid for found in superblocks if found is not None)
    (shm / ring_name(str(UUID(bytes=own)))).write_bytes(bytes(MIB))
    assert list(other_rings(shm, pool)) == []
    for number in range(4):
        (shm / ring_name(str(UUID(int=number)))).write_bytes(bytes(MIB))
    (shm / "another.file").touch()
    (found,) = other_rings(shm, pool)
    assert (found.state, found.found) == ("ok", f"4 in {shm}, 4M")
    assert ring_name(str(UUID(int=0))) in found.why
    assert found.what_to_do.endswith(f"rm {shm}/holdfast-UUID.ring")
    (without,) = other_rings(shm, None)
    assert without.found == f"5 in {shm}, 5M"


def test_a_pool_whose_superblock_is_damaged_has_no_ring_that_the_doctor_knows(pool: Path, tmp_path: Path) -> None:
    (tmp_path / ring_name(str(UUID(int=1)))).write_bytes(bytes(MIB))
    (pool / "superblock").write_bytes(bytes(100))
    (found,) = other_rings(tmp_path, pool)
    assert found.found == f"1 in {tmp_path}, 1M"


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


def test_the_doctor_tells_what_a_served_pool_holds_back_and_for_whom(
    run: Run, served_pool: Path, service: FakeService
) -> None:
    service.reserved = [
        MustSucceedInfo(name="checkpoint", why="all need it", segments=3, ring_bytes=8192, staging_bytes=4096),
        MustSucceedInfo(name="trims", why="the way out", segments=1),
    ]
    result = run("doctor", served_pool, "--json")
    assert result.exit_code == 0, result.stdout
    held = [row for row in json.loads(result.stdout) if row["subject"].startswith("held back: ")]
    assert [(row["subject"], row["found"], row["why"], row["state"]) for row in held] == [
        ("held back: checkpoint", "3 segments, 8K of the ring, 4K of memory", "all need it", "ok"),
        ("held back: trims", "1 segments", "the way out", "ok"),
    ]


def test_of_an_idle_pool_nothing_is_held_back(run: Run, pool: Path) -> None:
    assert "held back" not in run("doctor", pool).stdout


def test_the_doctor_goes_on_where_the_server_does_not_answer(
    run: Run, served_pool: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> PoolStatus:
        raise RetryError("ask later")

    monkeypatch.setattr(service, "status", refuse)
    result = run("doctor", served_pool, "--json")
    assert result.exit_code == 0, result.stdout
    found = {row["subject"]: row for row in json.loads(result.stdout)}
    assert (found["server"]["state"], found["server"]["found"]) == ("warn", "ask later")
    assert "O_DIRECT" in found

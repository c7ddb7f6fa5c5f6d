"""`holdfast volume`, on a pool that is served and on one that is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.control.api import DamagedRange, VolumeInfo
from holdfast.runtime.lock import PoolLock
from holdfast.units import GIB, MIB
from tests.control.fake_service import FakeService

from .conftest import Run

THE_REST = "when write-back fails: retry; group default\n"


def test_a_volume_is_created_in_a_served_pool(run: Run, served_pool: Path, service: FakeService) -> None:
    result = run("volume", "create", f"{served_pool}/disk0", "10G")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"created {served_pool}/disk0 of 10G",
        "nbd+unix:///disk0?socket=/pool/nbd.sock",
    ]
    assert service.known["disk0"].size_bytes == 10 * GIB


def test_a_volume_is_created_in_an_idle_pool(run: Run, pool: Path) -> None:
    result = run("volume", "create", f"{pool}/disk0", "1G")
    assert (result.exit_code, result.stdout) == (0, f"created {pool}/disk0 of 1G\n")
    assert json.loads(run("volume", "show", pool, "--json").stdout)["size_bytes"] == GIB
    assert not (pool / "control.sock").exists()


def test_creating_a_volume_never_makes_a_pool(run: Run, tmp_path: Path) -> None:
    for pool in (tmp_path, tmp_path / "typo"):
        result = run("volume", "create", f"{pool}/disk0", "1G")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"holdfast: {pool}: there is no pool here; `holdfast serve {pool}` makes one\n"
    assert list(tmp_path.iterdir()) == []


def test_a_bare_name_does_not_turn_the_current_directory_into_a_pool(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("volume", "create", "disk0", "1G")
    assert result.exit_code == 2
    assert "'disk0' names no pool; write POOL/NAME" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bare_name_is_a_volume_of_the_pool_that_one_is_in(
    run: Run, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pool)
    assert run("volume", "create", "disk0", "1G").exit_code == 0
    assert json.loads(run("volume", "show", "disk0", "--json").stdout)["name"] == "disk0"


def test_an_idle_pool_forgets_a_removed_volume(run: Run, pool: Path) -> None:
    run("volume", "create", f"{pool}/disk0", "1G")
    run("volume", "create", f"{pool}/disk1", "1G")
    assert run("volume", "remove", f"{pool}/disk0").exit_code == 0
    listed = json.loads(run("volume", "list", pool, "--json").stdout)["volumes"]
    assert [volume["name"] for volume in listed] == ["disk1"]
    assert run("volume", "create", f"{pool}/disk0", "2G").exit_code == 0


def test_volumes_are_listed_in_columns(run: Run, served_pool: Path, service: FakeService) -> None:
    service.add("disk0", 10 * GIB, connections=2)
    service.known["old"] = VolumeInfo(
        name="old", id=7, size_bytes=MIB, damaged=[DamagedRange(offset=0, length=4096, what="checksum")]
    )
    result = run("volume", "list", served_pool)
    assert result.exit_code == 0
    assert result.stdout == (
        "NAME   SIZE  MAPPED  CLIENTS  STATE    SNAPSHOTS  URI\n"
        "disk0   10G       0        2  ok               -  nbd+unix:///disk0?socket=/pool/nbd.sock\n"
        "old      1M       0        0  damaged          -  -\n"
    )


def test_a_list_without_volumes_says_what_to_do_and_prints_nothing(run: Run, served_pool: Path) -> None:
    result = run("volume", "list", served_pool)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "holdfast volume create" in result.stderr


def test_the_list_as_json_is_the_api_answer(run: Run, served_pool: Path, service: FakeService) -> None:
    service.add("disk0", GIB)
    answer = json.loads(run("volume", "list", served_pool, "--json").stdout)
    assert [volume["name"] for volume in answer["volumes"]] == ["disk0"]


def test_the_list_as_json_can_be_piped_into_another_program(pool: Path, run: Run) -> None:
    assert run("volume", "create", f"{pool}/disk0", "1G").exit_code == 0
    listed = subprocess.Popen(
        [sys.executable, "-m", "holdfast.cli.main", "volume", "list", pool, "--json"], stdout=subprocess.PIPE
    )
    read = subprocess.run(
        [sys.executable, "-m", "json.tool"], stdin=listed.stdout, capture_output=True, text=True, check=True
    )
    assert listed.stdout is not None
    listed.stdout.close()
    assert listed.wait() == 0
    assert '"name": "disk0"' in read.stdout


def test_a_long_name_is_shortened_in_a_table_only(run: Run, served_pool: Path, service: FakeService) -> None:
    name = "x" * 255
    service.add("y" * 40, GIB)
    service.known[name] = VolumeInfo(name=name, id=7, size_bytes=MIB)
    lines = run("volume", "list", served_pool).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "y" * 40, "x" * 37 + "..."]
    assert f"name      {name}\n" in run("volume", "show", f"{served_pool}/{name}").stdout
    answer = json.loads(run("volume", "list", served_pool, "--json").stdout)
    assert [volume["name"] for volume in answer["volumes"]] == ["y" * 40, name]


def test_show_tells_what_is_damaged(run: Run, served_pool: Path, service: FakeService) -> None:
    service.known["disk0"] = VolumeInfo(
        name="disk0", id=1, size_bytes=GIB, damaged=[DamagedRange(offset=8192, length=4096, what="checksum mismatch")]
    )
    result = run("volume", "show", f"{served_pool}/disk0")
    assert "damaged   4096 bytes at offset 8192: checksum mismatch\n" in result.stdout


def test_show_needs_no_name_where_there_is_one_volume(run: Run, served_pool: Path, service: FakeService) -> None:
    service.add("disk0", GIB)
    assert json.loads(run("volume", "show", served_pool, "--json").stdout)["name"] == "disk0"
    service.add("disk1", GIB)
    result = run("volume", "show", served_pool)
    assert result.exit_code == 2
    assert "has 2 volumes; name one" in result.stderr


def test_a_volume_is_removed(run: Run, served_pool: Path, service: FakeService) -> None:
    service.add("disk0", GIB)
    result = run("volume", "remove", f"{served_pool}/disk0")
    assert (result.exit_code, result.stdout) == (0, f"removed {served_pool}/disk0\n")
    assert not service.known


def test_a_volume_in_use_is_removed_by_force_only(run: Run, served_pool: Path, service: FakeService) -> None:
    service.add("disk0", GIB, connections=1)
    refused = run("volume", "remove", f"{served_pool}/disk0", "--yes")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert run("volume", "remove", f"{served_pool}/disk0", "--yes", "--force").exit_code == 0


def test_what_the_pool_refuses_is_a_no(run: Run, served_pool: Path, service: FakeService) -> None:
    service.add("disk0", GIB)
    exists = run("volume", "create", f"{served_pool}/disk0", "1G")
    missing = run("volume", "show", f"{served_pool}/nope")
    full = run("volume", "create", f"{served_pool}/big", "2T")
    assert [exists.exit_code, missing.exit_code, full.exit_code] == [1, 1, 1]
    assert exists.stderr == "holdfast: the volume 'disk0' exists already; choose another name\n"


def test_a_directory_without_a_pool_is_told_in_one_line(run: Run, tmp_path: Path) -> None:
    result = run("volume", "list", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == (f"holdfast: {tmp_path}: there is no pool here; `holdfast serve {tmp_path}` makes one\n")


def test_a_pool_that_another_process_has_opened_could_not_be_asked(run: Run, pool: Path) -> None:
    lock = PoolLock(pool)
    result = run("volume", "list", pool)
    lock.release()
    assert result.exit_code == 2
    assert result.stderr.startswith(f"holdfast: pool {pool} is being served by process {os.getpid()}; ")
    assert result.stderr.count("\n") == 1


def test_a_pool_without_a_readable_superblock_could_not_be_asked(run: Run, pool: Path) -> None:
    (pool / "superblock").write_bytes(bytes(69632))
    result = run("volume", "list", pool)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("holdfast: ")


def test_a_name_too_long_for_any_file_is_told_as_a_name(run: Run, served_pool: Path) -> None:
    result = run("volume", "show", f"{served_pool}/{'x' * 300}")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "has 300 characters; at most 255 are allowed" in result.stderr


def test_bad_names_and_sizes_are_usage_errors(run: Run, served_pool: Path) -> None:
    for arguments in (
        ("create", f"{served_pool}/.x", "1G"),
        ("create", f"{served_pool}/x", "1Q"),
        ("create", f"{served_pool}/x", "0"),
        ("create", f"{served_pool}/x", "65T"),
        ("create", served_pool, "1G"),
        ("remove", served_pool),
    ):
        result = run("volume", *arguments)
        assert result.exit_code == 2, arguments
        assert result.stderr.startswith("holdfast: ")
        assert result.stderr.count("\n") == 1, result.stderr


def test_a_quota_is_given_changed_and_taken_away(run: Run, served_pool: Path, service: FakeService) -> None:
    assert run("volume", "create", f"{served_pool}/disk0", "10G", "--quota", "1G").exit_code == 0
    assert service.known["disk0"].quota_bytes == GIB
    result = run("volume", "set", f"{served_pool}/disk0", "--quota", "2G")
    assert (result.exit_code, result.stdout) == (0, f"{served_pool}/disk0: 0 used of 2G; when full: ENOSPC; {THE_REST}")
    assert service.known["disk0"].quota_bytes == 2 * GIB
    assert "quota     2G\n" in run("volume", "show", f"{served_pool}/disk0").stdout
    result = run("volume", "set", f"{served_pool}/disk0", "--quota", "none", "--json")
    assert json.loads(result.stdout)["quota_bytes"] == 0


def test_a_quota_of_an_idle_pool_is_stored(run: Run, pool: Path) -> None:
    assert run("volume", "create", f"{pool}/disk0", "1G").exit_code == 0
    assert run("volume", "set", f"{pool}/disk0", "--quota", "64M").exit_code == 0
    assert json.loads(run("volume", "show", pool, "--json").stdout)["quota_bytes"] == 64 * MIB


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--quota", "1"), "a quota of 1 bytes is less than a block; give at least 4K, or none"),
        (("--quota", "much"), "much"),
        (("--on-full", "wait"), "'wait' is none of error, read-only and wait:SECONDS, such as wait:30"),
        (("--on-full", "wait:0"), "'wait:0' is none of error, read-only and wait:SECONDS"),
        (("--on-full", "wait:-1"), "'wait:-1' is none of error, read-only and wait:SECONDS"),
        (("--on-error", "error"), "'error' is not one of 'retry', 'read-only'"),
        (("--group", ""), "the group name is empty"),
        (("--group", "a/b"), "'a/b' is not a group name"),
        (("--group", "\udcff"), "is not a group name"),
        (("--on-full", "wait:999999"), "a write cannot wait for 999999 s"),
        ((), "give --quota, --on-full, --on-error, --group, --provision, --writable, --protect or --unprotect"),
    ],
)
def test_a_change_that_is_none_is_refused(run: Run, served_pool: Path, words: tuple[str, ...], why: str) -> None:
    result = run("volume", "set", f"{served_pool}/disk0", *words)
    assert result.exit_code == 2
    assert why in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_quota_of_a_volume_that_is_not_there(run: Run, served_pool: Path) -> None:
    result = run("volume", "set", f"{served_pool}/disk9", "--quota", "1G")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no volume 'disk9'" in result.stderr


def test_how_long_a_write_waits_for_space_is_changed_alone(run: Run, served_pool: Path, service: FakeService) -> None:
    assert (
        run("volume", "create", f"{served_pool}/disk0", "10G", "--quota", "1G", "--on-full", "wait:30").exit_code == 0
    )
    assert (service.known["disk0"].quota_bytes, service.known["disk0"].on_full_wait_s) == (GIB, 30)
    result = run("volume", "set", f"{served_pool}/disk0", "--on-full", "error")
    assert result.stdout == f"{served_pool}/disk0: 0 used of 1G; when full: ENOSPC; {THE_REST}"
    assert service.known["disk0"].quota_bytes == GIB


def test_policies_are_given_shown_and_changed_one_at_a_time(run: Run, served_pool: Path, service: FakeService) -> None:
    words = ("--on-full", "read-only", "--on-error", "read-only", "--group", "red")
    assert run("volume", "create", f"{served_pool}/disk0", "10G", *words).exit_code == 0
    shown = run("volume", "show", f"{served_pool}/disk0").stdout
    assert "on full   read-only\non error  read-only, retry\ngroup     red\n" in shown
    result = run("volume", "set", f"{served_pool}/disk0", "--on-full", "wait:30")
    assert result.stdout == (
        f"{served_pool}/disk0: 0 used of what the pool has; when full: wait 30 s, then ENOSPC; "
        "when write-back fails: read-only, retry; group red\n"
    )
    assert run("volume", "set", f"{served_pool}/disk0", "--on-error", "retry").exit_code == 0
    info = service.known["disk0"]
    assert (info.on_full, info.on_full_wait_s, info.on_error, info.group) == ("error", 30, "retry", "red")


def test_a_volume_that_became_read_only_is_made_writable(run: Run, served_pool: Path, service: FakeService) -> None:
    service.known["disk0"] = VolumeInfo(name="disk0", id=1, size_bytes=GIB, read_only=True)
    assert "state     read-only\n" in run("volume", "show", served_pool).stdout
    assert run("volume", "set", f"{served_pool}/disk0", "--on-full", "error").exit_code == 0
    assert service.known["disk0"].read_only, "that is not what was asked"
    assert run("volume", "set", f"{served_pool}/disk0", "--writable").exit_code == 0
    assert "state     ok\n" in run("volume", "show", served_pool).stdout


def test_a_loss_is_shown_with_its_number_and_acknowledged_by_it(
    run: Run, served_pool: Path, service: FakeService
) -> None:
    service.known["disk0"] = VolumeInfo(name="disk0", id=1, size_bytes=GIB, loss_epoch=2, loss_open=True)
    assert "state     loss 2 not acknowledged\n" in run("volume", "show", served_pool).stdout
    assert "loss 2 not acknowledged" in run("volume", "list", served_pool).stdout
    wrong = run("volume", "acknowledge-loss", f"{served_pool}/disk0", "1")
    assert (wrong.exit_code, wrong.stdout, wrong.stderr.count("\n")) == (1, "", 1)
    right = run("volume", "acknowledge-loss", f"{served_pool}/disk0", "2")
    assert right.stdout == f"{served_pool}/disk0: loss 2 is acknowledged; FLUSH succeeds again\n"
    assert run("volume", "acknowledge-loss", f"{served_pool}/disk0", "2").exit_code == 1
    service.known["disk0"] = VolumeInfo(name="disk0", id=1, size_bytes=GIB, loss_epoch=3, loss_open=True)
    answer = json.loads(run("volume", "acknowledge-loss", f"{served_pool}/disk0", "3", "--json").stdout)
    assert (answer["loss_epoch"], answer["loss_open"]) == (3, False)


@pytest.mark.parametrize("loss", ["0", "-1", "65536", "first"])
def test_what_is_no_number_of_a_loss_is_refused(run: Run, served_pool: Path, loss: str) -> None:
    result = run("volume", "acknowledge-loss", f"{served_pool}/disk0", loss)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_policies_of_an_idle_pool_are_stored(run: Run, pool: Path) -> None:
    words = ("--on-full", "wait:60", "--on-error", "read-only")
    assert run("volume", "create", f"{pool}/disk0", "1G", *words).exit_code == 0
    shown = json.loads(run("volume", "show", pool, "--json").stdout)
    assert (shown["on_full"], shown["on_full_wait_s"], shown["on_error"]) == ("error", 60, "read-only")
    assert run("volume", "set", f"{pool}/disk0", "--on-full", "read-only").exit_code == 0
    shown = json.loads(run("volume", "show", pool, "--json").stdout)
    assert (shown["on_full"], shown["on_full_wait_s"], shown["on_error"]) == ("read-only", 0, "read-only")


def test_no_loss_of_an_idle_pool_is_acknowledged(run: Run, pool: Path) -> None:
    assert run("volume", "create", f"{pool}/disk0", "1G").exit_code == 0
    for name in ("disk0", "disk1"):
        result = run("volume", "acknowledge-loss", f"{pool}/{name}", "1")
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)

"""`holdfast volume snapshot|clone|promote|rollback`, and snapshots in the other commands about volumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.control.api import VolumeInfo
from holdfast.units import GIB, KIB, MIB
from tests.control.fake_service import FakeService

from .conftest import Run


def names(run: Run, pool: Path, *options: str) -> list[str]:
    listed = json.loads(run("volume", "list", pool, "--json", *options).stdout)["volumes"]
    return [each["name"] for each in listed]


# ---- an idle pool


def test_snapshots_and_clones_of_an_idle_pool_live_from_one_command_to_the_next(run: Run, pool: Path) -> None:
    for name in ("data", "log"):
        run("volume", "create", f"{pool}/{name}", "8M", "--quota", "4M")
    taken = run("volume", "snapshot", f"{pool}/data@a", f"{pool}/log@a")
    assert (taken.exit_code, taken.stdout) == (0, f"took {pool}/data@a\ntook {pool}/log@a\n")
    assert run("volume", "snapshot", f"{pool}/data@b").exit_code == 0
    cloned = run("volume", "clone", f"{pool}/data@a", f"{pool}/try", "--on-full", "wait:30", "--json")
    made = json.loads(cloned.stdout)
    assert (made["kind"], made["origin"], made["size_bytes"]) == ("volume", "data@a", 8 * MIB)
    assert (made["quota_bytes"], made["on_full_wait_s"]) == (0, 30)  # not the volume's
    assert names(run, pool) == ["data", "log", "try"]
    assert names(run, pool, "-s") == ["data", "data@a", "data@b", "log", "log@a", "try"]

    promoted = run("volume", "promote", f"{pool}/try")
    assert (promoted.exit_code, promoted.stdout) == (0, f"promoted {pool}/try; it has 1 snapshot now\n")
    assert names(run, pool, "-s") == ["data", "data@b", "log", "log@a", "try", "try@a"]
    assert json.loads(run("volume", "show", f"{pool}/data", "--json").stdout)["origin"] == "try@a"

    rolled_back = run("volume", "rollback", f"{pool}/data@b")
    assert rolled_back.exit_code == 0
    assert f"{pool}/data is what {pool}/data@b is, 8M;" in rolled_back.stdout
    assert names(run, pool, "-s") == ["log", "log@a", "try", "try@a", "data", "data@b"]

    refused = run("volume", "remove", f"{pool}/log")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "has a snapshot; remove it first, or all with it: --snapshots" in refused.stderr
    assert run("volume", "remove", f"{pool}/log", "--snapshots").stdout == f"removed {pool}/log and 1 snapshot\n"
    assert run("volume", "remove", f"{pool}/try@a").stdout == f"removed {pool}/try@a\n"
    assert names(run, pool, "-s") == ["try", "data", "data@b"]


def test_a_protected_snapshot_stays(run: Run, pool: Path) -> None:
    run("volume", "create", f"{pool}/data", "8M")
    run("volume", "snapshot", f"{pool}/data@golden")
    set_ = run("volume", "set", f"{pool}/data@golden", "--protect")
    assert (set_.exit_code, set_.stdout) == (0, f"{pool}/data@golden: protected\n")
    for words in ([f"{pool}/data@golden"], [f"{pool}/data", "--snapshots", "--force"]):
        refused = run("volume", "remove", *words)
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
        assert "volume set POOL/data@golden --unprotect" in refused.stderr
    assert run("volume", "set", f"{pool}/data@golden", "--unprotect").exit_code == 0
    assert run("volume", "remove", f"{pool}/data", "--snapshots").exit_code == 0
    assert names(run, pool, "-s") == []


def test_a_snapshot_has_no_quota_and_no_group_of_its_own(run: Run, pool: Path) -> None:
    run("group", "create", f"{pool}/red")
    run("volume", "create", f"{pool}/data", "8M")
    run("volume", "snapshot", f"{pool}/data@a")
    for option in (("--quota", "1M"), ("--group", "red"), ("--writable",)):
        refused = run("volume", "set", f"{pool}/data@a", *option)
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
        assert "is a snapshot" in refused.stderr
    assert run("volume", "set", f"{pool}/data", "--group", "red").exit_code == 0
    assert json.loads(run("volume", "show", f"{pool}/data@a", "--json").stdout)["group"] == "red"
    assert json.loads(run("group", "show", f"{pool}/red", "--json").stdout)["volumes"] == ["data"]


# ---- what is printed


@pytest.fixture
def filled(service: FakeService) -> FakeService:
    service.add("data", GIB, connections=1)
    service.known["data@a"] = VolumeInfo(
        name="data@a", id=8, size_bytes=GIB, mapped_bytes=64 * KIB, kind="snapshot", created="2024-05-06T07:08:09Z",
        protected=True,
    )  # fmt: skip
    service.known["try"] = VolumeInfo(name="try", id=9, size_bytes=GIB, origin="data@a")
    return service


def test_snapshots_are_listed_below_their_volume(run: Run, served_pool: Path, filled: FakeService) -> None:
    assert run("volume", "list", served_pool, "--snapshots").stdout == (
        "NAME      SIZE  MAPPED  CLIENTS  STATE      CREATED               ORIGIN\n"
        "data        1G       0        1  ok         2024-05-06T07:08:09Z  -\n"
        "  data@a    1G     64K        0  protected  2024-05-06T07:08:09Z  -\n"
        "try         1G       0        0  ok         -                     data@a\n"
    )


def test_without_snapshots_the_list_counts_them(run: Run, served_pool: Path, filled: FakeService) -> None:
    lines = run("volume", "list", served_pool).stdout.splitlines()
    assert [line.split()[:6] for line in lines[1:]] == [
        ["data", "1G", "0", "1", "ok", "1"],
        ["try", "1G", "0", "0", "ok", "-"],
    ]


def test_show_tells_what_a_snapshot_has_and_no_more(run: Run, served_pool: Path, filled: FakeService) -> None:
    shown = dict(line.split(maxsplit=1) for line in run("volume", "show", f"{served_pool}/data@a").stdout.splitlines())
    assert shown["mapped"] == "64K (65536 bytes)"
    assert shown["state"] == "protected"
    assert not {"quota", "on"} & shown.keys()
    assert "origin    data@a" in run("volume", "show", f"{served_pool}/try").stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("snapshot", "{pool}/data"), "write data@SNAPSHOT"),
        (("snapshot", "{pool}/data@"), "is empty"),
        (("snapshot", "{pool}/data@a..b"), "no two dots in a row"),
        (("snapshot", "{pool}/data@x", "{pool}2/data@x"), "volumes of one pool"),
        (("snapshot",), "missing argument"),
        (("rollback", "{pool}/data"), "write data@SNAPSHOT"),
        (("clone", "{pool}/data@a", "{pool}/new@b"), "is not a volume name"),
        (("clone", "{pool}/data@a", "{pool}2/new"), "`holdfast copy` copies to another pool"),
        (("promote", "{pool}/data@a"), "is not a volume name"),
        (("create", "{pool}/new@a", "1G"), "is not a volume name"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    run: Run, served_pool: Path, filled: FakeService, words: tuple[str, ...], why: str
) -> None:
    result = run("volume", *(word.format(pool=served_pool) for word in words))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert why in result.stderr
    assert sorted(filled.known) == ["data", "data@a", "try"]


def test_a_rollback_asks_and_says_what_it_replaces(
    run: Run, served_pool: Path, filled: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _self: True, raising=False)
    asked = run("volume", "rollback", f"{served_pool}/data@a", input_text="n\n")
    assert asked.exit_code == 130
    assert "written to it after its newest snapshot is gone for good" in asked.stderr
    assert run("volume", "rollback", f"{served_pool}/data@a", input_text="y\n").exit_code == 0
    assert run("volume", "rollback", f"{served_pool}/data@a", "--yes").exit_code == 0


def test_show_says_what_is_shared_and_what_comes_free(run: Run, pool: Path) -> None:
    run("volume", "create", f"{pool}/data", "1M")
    content = pool.parent / "content"
    content.write_bytes(bytes(range(1, 129)) * 2048)
    run("copy", content, f"{pool}/data")
    run("volume", "snapshot", f"{pool}/data@a")
    shown = dict(line.split(maxsplit=1) for line in run("volume", "show", f"{pool}/data").stdout.splitlines())
    assert shown["mapped"] == "256K (262144 bytes), of which 0 alone and 256K shared with snapshots"
    assert shown["freed"] == "256K, if it is removed with all its snapshots"
    info = json.loads(run("volume", "show", f"{pool}/data@a", "--json").stdout)
    assert (info["mapped_bytes"], info["shared_bytes"], info["freed_bytes"]) == (0, 0, 0)


def test_a_provisioned_volume_says_what_is_held(run: Run, pool: Path) -> None:
    assert run("volume", "create", f"{pool}/thick", "1M", "--provision").exit_code == 0
    info = json.loads(run("volume", "show", f"{pool}/thick", "--json").stdout)
    assert (info["provisioned"], info["held_bytes"]) == (True, (1 << 20) + 4096)
    result = run("volume", "create", f"{pool}/huge", "10T", "--provision")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "'huge' is provisioned: this needs 10.0T of the pool held back" in result.stderr
    assert "0 held back" not in run("volume", "set", f"{pool}/thick", "--provision").stdout
    assert "held back" not in run("volume", "set", f"{pool}/thick", "--no-provision").stdout

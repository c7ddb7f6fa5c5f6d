"""What the paths of the control API mean."""

from __future__ import annotations

import pytest

from holdfast.control.api import VolumeInfo, WaitInfo
from holdfast.control.http import ControlConnection
from holdfast.units import GIB, MIB, TIB

from .fake_service import FakeService
from .http_messages import ask, request


def test_the_pool_tells_its_status() -> None:
    status, answer = ask(FakeService(), request("GET", "/v1/pool"))
    assert status == 200
    assert answer["pid"] == 4711
    assert answer["segments"]["sealed"] == 2


def test_statistics_are_numbers_by_name() -> None:
    assert ask(FakeService(), request("GET", "/v1/statistics")) == (
        200,
        {"writes": 12, "write_bytes": 49152, "fill": 0.25},
    )


def test_who_waits_for_what_is_told_with_the_cycles() -> None:
    service = FakeService()
    service.waiting = [WaitInfo(operation="FLUSH", volume="disk0", since_s=1.5, waits_for="durability")]
    status, answer = ask(service, request("GET", "/v1/waits"))
    assert (status, answer["total"], answer["cycles"]) == (200, 1, [])
    assert answer["waits"] == [
        {"operation": "FLUSH", "volume": "disk0", "peer": "", "since_s": 1.5, "waits_for": "durability"}
        | {"held": [], "ended_by": [], "meant": False}
    ]
    assert ask(service, request("POST", "/v1/waits"))[0] == 405


def test_a_created_volume_is_listed_and_shown() -> None:
    service = FakeService()
    status, created = ask(service, request("POST", "/v1/volumes", {"name": "disk0", "size_bytes": 10 * GIB}))
    assert status == 201
    assert created["size_bytes"] == 10 * GIB
    assert ask(service, request("GET", "/v1/volumes")) == (200, {"volumes": [created]})
    assert ask(service, request("GET", "/v1/volumes/disk0")) == (200, created)


def test_a_removed_volume_is_gone() -> None:
    service = FakeService()
    service.add("disk0", GIB)
    assert ask(service, request("DELETE", "/v1/volumes/disk0")) == (200, {"removed": "disk0", "snapshots": 0})
    status, answer = ask(service, request("GET", "/v1/volumes/disk0"))
    assert (status, answer["error"]["kind"]) == (404, "not_found")


@pytest.mark.parametrize("query", ["?force=true", "?force=1", "?force"])
def test_force_reaches_the_service(query: str) -> None:
    service = FakeService()
    service.add("disk0", GIB, connections=2)
    assert ask(service, request("DELETE", "/v1/volumes/disk0"))[0] == 400
    assert ask(service, request("DELETE", f"/v1/volumes/disk0{query}"))[0] == 200


def test_a_misspelt_parameter_is_refused_rather_than_ignored() -> None:
    service = FakeService()
    service.add("disk0", GIB)
    status, answer = ask(service, request("DELETE", "/v1/volumes/disk0?forse=true"))
    assert status == 400
    assert "forse" in answer["error"]["message"]


def test_shutdown_is_begun_and_answered() -> None:
    service = FakeService()
    assert ask(service, request("POST", "/v1/shutdown")) == (202, {"stopping": True})
    assert service.stopped


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "a%2Fb", "a%20b", "%C3%A4", "x" * 256])
def test_names_that_no_volume_may_have_are_refused(name: str) -> None:
    status, answer = ask(FakeService(), request("GET", f"/v1/volumes/{name}"))
    assert (status, answer["error"]["kind"]) == (400, "request")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "disk0"},
        {"name": "disk0", "size_bytes": "10G"},
        {"name": "disk0", "size_bytes": 0},
        {"name": "disk0", "size_bytes": 65 * TIB},
        {"name": "a/b", "size_bytes": 4096},
        {"name": "disk0", "size_bytes": 4096, "sise": 1},
        [],
        None,
    ],
)
def test_a_volume_to_create_that_makes_no_sense_is_refused(body: object) -> None:
    service = FakeService()
    status, answer = ask(service, request("POST", "/v1/volumes", body))
    assert (status, answer["error"]["kind"], answer["error"]["errno"]) == (400, "request", 22)
    assert not service.known


def test_no_space_has_its_own_status_and_errno() -> None:
    status, answer = ask(FakeService(), request("POST", "/v1/volumes", {"name": "big", "size_bytes": 2 * TIB}))
    assert (status, answer["error"]["kind"], answer["error"]["errno"]) == (507, "no_space", 28)


def test_an_unknown_path_is_not_found() -> None:
    assert ask(FakeService(), request("GET", "/v2/pool"))[0] == 404


def test_a_method_that_does_not_apply_names_those_that_do() -> None:
    connection = ControlConnection(FakeService())
    connection.receive_data(request("DELETE", "/v1/volumes"))
    data = connection.data_to_send()
    assert data.startswith(b"HTTP/1.1 405 ")
    assert b"allow: get, post\r\n" in data.lower()


# --- Groups, and losses


def test_a_created_group_is_listed_and_shown() -> None:
    service = FakeService()
    status, created = ask(service, request("POST", "/v1/groups", {"name": "red", "space_bytes": GIB, "uid": 65534}))
    assert (status, created["space_bytes"], created["uid"]) == (201, GIB, 65534)
    assert ask(service, request("GET", "/v1/groups/red")) == (200, created)
    _status, answer = ask(service, request("GET", "/v1/groups"))
    assert [group["name"] for group in answer["groups"]] == ["default", "red"]


def test_a_change_leaves_alone_what_it_does_not_name() -> None:
    service = FakeService()
    ask(service, request("POST", "/v1/groups", {"name": "red", "space_bytes": GIB, "dirty_bytes": MIB}))
    status, changed = ask(service, request("PATCH", "/v1/groups/red", {"dirty_bytes": 0}))
    assert (status, changed["space_bytes"], changed["dirty_bytes"]) == (200, GIB, 0)


def test_a_removed_group_is_gone() -> None:
    service = FakeService()
    ask(service, request("POST", "/v1/groups", {"name": "red"}))
    assert ask(service, request("DELETE", "/v1/groups/red")) == (200, {"removed": "red"})
    assert ask(service, request("GET", "/v1/groups/red"))[0] == 404


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize("name", ["nope", "a%2Fb", "%C3%A4", "%FF", ".hidden", "", "x" * 256])
def test_a_group_that_is_not_there_is_not_found(method: str, name: str) -> None:
    body = {"dirty_bytes": MIB} if method == "PATCH" else None
    status, answer = ask(FakeService(), request(method, f"/v1/groups/{name}", body))
    assert (status, answer["error"]["kind"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "target", "knows"),
    [
        ("DELETE", "/v1/groups", "GET, POST"),
        ("PATCH", "/v1/groups", "GET, POST"),
        ("POST", "/v1/groups/red", "GET, PATCH, DELETE"),
        ("PUT", "/v1/groups/red", "GET, PATCH, DELETE"),
        ("GET", "/v1/volumes/disk0/acknowledge-loss", "POST"),
        ("DELETE", "/v1/volumes/disk0/acknowledge-loss", "POST"),
        ("POST", "/v1/volumes/acknowledge-loss", "GET, PATCH, DELETE"),
        ("POST", "/v1/volumes/disk0", "GET, PATCH, DELETE"),
        ("GET", "/v1/volumes/disk0/resize", "POST"),
        ("DELETE", "/v1/pool", "GET, PATCH"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(method: str, target: str, knows: str) -> None:
    service = FakeService()
    service.add("disk0", GIB)
    connection = ControlConnection(service)
    connection.receive_data(request(method, target, {}))
    data = connection.data_to_send()
    assert data.startswith(b"HTTP/1.1 405 ")
    assert f"\r\nallow: {knows}\r\n".lower().encode() in data.lower()
    assert service.known.keys() == {"disk0"}


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"name": 7},
        {"name": ""},
        {"name": "a/b"},
        {"name": ".x"},
        {"name": "\udcff"},
        {"name": "x" * 65},
        {"name": "red", "colour": "red"},
        {"name": "red", "space_bytes": "1G"},
        {"name": "red", "space_bytes": None},
        {"name": "red", "space_bytes": -1},
        {"name": "red", "space_bytes": 4095},
        {"name": "red", "memory_bytes": 1 << 60},
        {"name": "red", "dirty_min_bytes": 1 << 200},
        {"name": "red", "uid": -2},
        {"name": "red", "uid": (1 << 32) - 1},
        {"name": "red", "uid": "nobody"},
        {"name": "red", "cgroup": "red.slice"},
        {"name": "red", "cgroup": "/"},
        {"name": "red", "cgroup": "/sys/fs/cgroup/red.slice"},
        {"name": "red", "cgroup": "/" + "x" * 192},
    ],
)
def test_a_group_to_create_that_makes_no_sense_is_refused(body: object) -> None:
    service = FakeService()
    status, answer = ask(service, request("POST", "/v1/groups", body))
    assert (status, answer["error"]["kind"], answer["error"]["errno"]) == (400, "request", 22)
    assert service.known_groups.keys() == {"default"}


@pytest.mark.parametrize("body", [None, [], {"name": "red"}, {"uid": 1 << 32}, {"space_bytes": 1}, {"cgroup": "x"}])
def test_a_change_of_a_group_that_makes_no_sense_is_refused(body: object) -> None:
    service = FakeService()
    status, answer = ask(service, request("PATCH", "/v1/groups/default", body))
    assert (status, answer["error"]["kind"]) == (400, "request")
    assert service.known_groups["default"] == FakeService().known_groups["default"]


def test_a_known_loss_is_acknowledged_once() -> None:
    service = FakeService()
    service.known["disk0"] = VolumeInfo(name="disk0", id=1, size_bytes=GIB, loss_epoch=2, loss_open=True)
    target = "/v1/volumes/disk0/acknowledge-loss"
    assert ask(service, request("POST", target, {"loss_epoch": 1}))[0] == 400
    status, answer = ask(service, request("POST", target, {"loss_epoch": 2}))
    assert (status, answer["loss_open"]) == (200, False)
    assert ask(service, request("POST", target, {"loss_epoch": 2}))[0] == 400


@pytest.mark.parametrize(
    ("target", "body", "status"),
    [
        ("disk9/acknowledge-loss", {"loss_epoch": 1}, 404),
        ("/acknowledge-loss", {"loss_epoch": 1}, 400),
        (".x/acknowledge-loss", {"loss_epoch": 1}, 400),
        ("a/b/acknowledge-loss", {"loss_epoch": 1}, 400),
        ("disk0/acknowledge-loss", None, 400),
        ("disk0/acknowledge-loss", {}, 400),
        ("disk0/acknowledge-loss", {"loss_epoch": "1"}, 400),
    ],
)
def test_what_is_no_loss_is_not_acknowledged(target: str, body: object, status: int) -> None:
    service = FakeService()
    service.known["disk0"] = VolumeInfo(name="disk0", id=1, size_bytes=GIB, loss_epoch=1, loss_open=True)
    assert ask(service, request("POST", f"/v1/volumes/{target}", body))[0] == status
    assert service.known["disk0"].loss_open


@pytest.mark.parametrize("change", [{"on_full": "panic"}, {"on_error": "ignore"}, {"group": 7}, {"writable": "yes"}])
def test_policies_that_do_not_exist_are_refused(change: dict[str, object]) -> None:
    service = FakeService()
    service.add("disk0", GIB)
    assert ask(service, request("PATCH", "/v1/volumes/disk0", change))[0] == 400
    create = {"name": "disk1", "size_bytes": GIB} | change
    assert ask(service, request("POST", "/v1/volumes", create))[0] == 400
    assert service.known.keys() == {"disk0"}


def test_a_volume_is_resized_and_says_what_that_cut_off() -> None:
    service = FakeService()
    service.add("disk0", 4 * GIB)
    target = "/v1/volumes/disk0/resize"
    assert ask(service, request("POST", target, {"size_bytes": 5 * GIB}))[0] == 200
    assert ask(service, request("POST", target, {"size_bytes": GIB}))[0] == 400
    status, answer = ask(service, request("POST", target, {"size_bytes": GIB, "force": True}))
    assert (status, answer["size_bytes"], answer["cut_bytes"]) == (200, GIB, 4 * GIB)
    assert service.known["disk0"].size_bytes == GIB


@pytest.mark.parametrize(
    ("target", "body", "status"),
    [
        ("disk9/resize", {"size_bytes": GIB}, 404),
        ("/resize", {"size_bytes": GIB}, 400),
        ("disk0/resize", None, 400),
        ("disk0/resize", {}, 400),
        ("disk0/resize", {"size_bytes": 0}, 400),
        ("disk0/resize", {"size_bytes": GIB, "force": "yes"}, 400),
    ],
)
def test_what_is_no_size_is_refused(target: str, body: object, status: int) -> None:
    service = FakeService()
    service.add("disk0", GIB)
    assert ask(service, request("POST", f"/v1/volumes/{target}", body))[0] == status


def test_a_pool_gets_another_capacity() -> None:
    service = FakeService()
    status, answer = ask(service, request("PATCH", "/v1/pool", {"capacity_bytes": 5 * GIB}))
    assert (status, answer["capacity_bytes"]) == (200, 5 * GIB)
    for body in (None, {}, {"capacity_bytes": 0}, {"capacity_bytes": "1G"}, {"capacity_bytes": GIB, "more": 1}):
        assert ask(service, request("PATCH", "/v1/pool", body))[0] == 400
    assert service.capacity_bytes == 5 * GIB


# ---- snapshots and clones


def test_snapshots_are_taken_and_listed_apart_from_volumes() -> None:
    service = FakeService()
    service.add("data", GIB)
    service.add("log", MIB)
    status, taken = ask(service, request("POST", "/v1/snapshots", {"names": ["data@a", "log@a"]}))
    assert (status, [each["name"] for each in taken["volumes"]]) == (201, ["data@a", "log@a"])
    assert {each["kind"] for each in taken["volumes"]} == {"snapshot"}
    volumes = ask(service, request("GET", "/v1/volumes"))[1]["volumes"]
    assert [(each["name"], each["kind"], each["snapshots"]) for each in volumes] == [
        ("data", "volume", 1), ("log", "volume", 1),
    ]  # fmt: skip
    listed = ask(service, request("GET", "/v1/snapshots"))[1]
    assert ([each["name"] for each in listed["snapshots"]], listed["next"]) == (["data@a", "log@a"], 0)
    of_one = ask(service, request("GET", "/v1/snapshots?of=log"))[1]
    assert [each["name"] for each in of_one["snapshots"]] == ["log@a"]
    assert ask(service, request("GET", "/v1/volumes/data@a"))[1]["size_bytes"] == GIB


def test_a_long_list_of_snapshots_comes_in_parts() -> None:
    service = FakeService()
    service.add("data", GIB)
    service.snapshots_listed_max = 2
    for name in "abc":
        service.add(f"data@{name}", GIB)
    first = ask(service, request("GET", "/v1/snapshots"))[1]
    assert [each["name"] for each in first["snapshots"]] == ["data@a", "data@b"]
    last = ask(service, request("GET", f"/v1/snapshots?after={first['next']}"))[1]
    assert ([each["name"] for each in last["snapshots"]], last["next"]) == (["data@c"], 0)


def test_a_snapshot_is_cloned_protected_and_rolled_back_to() -> None:
    service = FakeService()
    service.add("data", GIB)
    service.add("data@a", GIB)
    status, made = ask(service, request("POST", "/v1/volumes/data@a/clone", {"name": "new", "quota_bytes": MIB}))
    assert (status, made["name"], made["origin"], made["quota_bytes"]) == (201, "new", "data@a", MIB)
    assert ask(service, request("PATCH", "/v1/volumes/data@a", {"protected": True}))[1]["protected"]
    assert ask(service, request("POST", "/v1/volumes/data@a/roll-back"))[1]["name"] == "data"
    assert ask(service, request("POST", "/v1/volumes/new/promote", {}))[1]["name"] == "new"


def test_a_volume_with_snapshots_goes_with_them_or_not_at_all() -> None:
    service = FakeService()
    service.add("data", GIB)
    service.add("data@a", GIB)
    assert ask(service, request("DELETE", "/v1/volumes/data?force=true"))[0] == 400
    status, gone = ask(service, request("DELETE", "/v1/volumes/data?snapshots=true"))
    assert (status, gone) == (200, {"removed": "data", "snapshots": 1})
    assert service.known == {}


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("POST", "/v1/snapshots", {"names": []}, 400),
        ("POST", "/v1/snapshots", {"names": ["data"]}, 400),
        ("POST", "/v1/snapshots", {"names": ["data@a..b"]}, 400),
        ("POST", "/v1/snapshots", {"name": "data@a"}, 400),
        ("POST", "/v1/snapshots", {"names": ["none@a"]}, 404),
        ("GET", "/v1/snapshots?of=data@a", None, 400),
        ("GET", "/v1/snapshots?of=none", None, 404),
        ("GET", "/v1/snapshots?after=-1", None, 400),
        ("GET", "/v1/snapshots?after=%C2%B2", None, 400),
        ("GET", "/v1/snapshots?limit=3", None, 400),
        ("DELETE", "/v1/snapshots", None, 405),
        ("POST", "/v1/volumes", {"name": "data@a", "size_bytes": 4096}, 400),
        ("POST", "/v1/volumes/data@a/clone", {"name": "new@b"}, 400),
        ("POST", "/v1/volumes/data@a/clone", {"name": "new", "size_bytes": 4096}, 400),
        ("POST", "/v1/volumes/data/roll-back", None, 400),
        ("POST", "/v1/volumes/data/promote", {"force": True}, 400),
        ("GET", "/v1/volumes/data/promote", None, 405),
        ("PATCH", "/v1/volumes/data@a/roll-back", {}, 405),
    ],
)
def test_what_cannot_be_meant_of_snapshots_is_refused(method: str, target: str, body: object, status: int) -> None:
    service = FakeService()
    service.add("data", GIB)
    assert ask(service, request(method, target, body))[0] == status
    assert list(service.known) == ["data"]

"""The control client against a real Unix socket."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import msgspec
import pytest

from holdfast.control.api import ChangeVolume, CloneVolume, CreateVolume, TakeSnapshots, VolumeInfo
from holdfast.control.client import ControlClient, connect_unix
from holdfast.control.group_api import ChangeGroup, CreateGroup, GroupInfo
from holdfast.errors import GoneError, NoSpaceError, NotFoundError, RequestError, RetryError
from holdfast.units import GIB, TIB

from .fake_service import FakeService
from .socket_server import serve_control


def test_a_volume_lives_and_dies_through_one_connection(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with serve_control(path, FakeService()), ControlClient(path) as client:
        created = client.create_volume(CreateVolume(name="disk0", size_bytes=GIB))
        assert client.volumes() == [created]
        assert client.volume("disk0") == created
        assert client.remove_volume("disk0").removed == "disk0"
        assert client.volumes() == []


def test_status_and_statistics_come_back_typed(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    service = FakeService()
    with serve_control(path, service), ControlClient(path) as client:
        assert client.status() == service.status()
        assert client.statistics() == service.statistics()


def test_shutdown_reaches_the_service(tmp_path: Path) -> None:
    service = FakeService()
    with serve_control(tmp_path / "control.sock", service), ControlClient(tmp_path / "control.sock") as client:
        assert client.shutdown().stopping
    assert service.stopped


def test_errors_come_back_as_the_class_that_was_raised(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    service = FakeService()
    service.add("disk0", GIB)
    with serve_control(path, service), ControlClient(path) as client:
        with pytest.raises(NotFoundError, match="no volume 'nope'"):
            client.volume("nope")
        with pytest.raises(RequestError, match="exists already"):
            client.create_volume(CreateVolume(name="disk0", size_bytes=GIB))
        with pytest.raises(NoSpaceError, match="--capacity") as caught:
            client.create_volume(CreateVolume(name="big", size_bytes=2 * TIB))
        assert caught.value.errno == 28


def test_a_pool_without_a_control_socket_is_not_served(tmp_path: Path) -> None:
    assert ControlClient.connect_if_served(tmp_path) is None


def test_a_socket_that_a_killed_server_left_is_not_served(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(tmp_path / "control.sock"))
    assert ControlClient.connect_if_served(tmp_path) is None


def test_a_path_longer_than_a_socket_address_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    monkeypatch.chdir(directory)
    with serve_control(Path("control.sock"), FakeService()):
        client = ControlClient.connect_if_served(directory)
        assert client is not None
        with client:
            assert client.volumes() == []


def test_a_server_that_vanishes_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def hang_up() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)

        thread = threading.Thread(target=hang_up)
        thread.start()
        with ControlClient(path) as client, pytest.raises(GoneError, match="ended the connection"):
            client.status()
        thread.join()


def test_a_server_that_does_not_answer_is_given_up_on(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with ControlClient(path, timeout_s=0.05) as client, pytest.raises(RetryError, match="not answered"):
            client.status()


def test_connecting_where_nobody_listens_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect_unix(tmp_path / "nothing")


def test_a_group_lives_and_dies_through_one_connection(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with serve_control(path, FakeService()), ControlClient(path) as client:
        created = client.create_group(CreateGroup(name="red", space_bytes=GIB))
        assert client.group("red") == created
        changed = client.change_group("red", ChangeGroup(uid=65534))
        assert (changed.uid, changed.space_bytes) == (65534, GIB)
        assert [group.name for group in client.groups()] == ["default", "red"]
        client.create_volume(CreateVolume(name="disk0", size_bytes=GIB, group="red"))
        with pytest.raises(RequestError, match="has volumes"):
            client.remove_group("red")
        client.change_volume("disk0", ChangeVolume(group="default"))
        assert client.remove_group("red").removed == "red"


@pytest.mark.parametrize("name", ["a b", "a/b", "..", "ä", "x?force=1", "x#y", "%41", "red\r\nX: y"])
def test_any_name_of_a_group_reaches_the_server_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / "control.sock"
    service = FakeService()
    service.known_groups[name] = GroupInfo(name=name, id=1)
    with serve_control(path, service), ControlClient(path) as client:
        assert client.group(name).id == 1
        assert client.change_group(name, ChangeGroup(dirty_bytes=GIB)).dirty_bytes == GIB
        assert client.remove_group(name).removed == name
        with pytest.raises(NotFoundError):
            client.group(name)


def test_a_loss_is_acknowledged_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    service = FakeService()
    service.known["disk0"] = VolumeInfo(name="disk0", id=1, size_bytes=GIB, loss_epoch=3, loss_open=True)
    with serve_control(path, service), ControlClient(path) as client:
        with pytest.raises(RequestError, match="no loss 2"):
            client.acknowledge_loss("disk0", 2)
        assert not client.acknowledge_loss("disk0", 3).loss_open


def test_what_a_request_leaves_at_its_default_is_not_sent() -> None:
    """A server of last week refuses fields that it does not know, whatever is in them."""
    assert (
        msgspec.json.encode(CreateVolume(name="disk0", size_bytes=GIB)) == b'{"name":"disk0","size_bytes":1073741824}'
    )
    assert msgspec.json.encode(ChangeVolume(quota_bytes=0)) == b'{"quota_bytes":0}'
    assert msgspec.json.encode(ChangeGroup(uid=-1)) == b'{"uid":-1}'


def test_a_server_older_than_the_question_is_named_as_that(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def know_nothing() -> None:
            peer, _ = listener.accept()
            body = b'{"error":{"kind":"not_found","message":"there is nothing at /v1/groups","errno":2}}'
            with peer:
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 404 \r\nContent-Length: %d\r\n\r\n" % len(body) + body)

        thread = threading.Thread(target=know_nothing)
        thread.start()
        with ControlClient(path) as client, pytest.raises(NotFoundError, match=r"older than this command .*; restart"):
            client.groups()
        thread.join()


def test_snapshots_live_and_die_through_one_connection(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    service = FakeService()
    service.snapshots_listed_max = 2
    with serve_control(path, service), ControlClient(path) as client:
        client.create_volume(CreateVolume(name="data", size_bytes=GIB))
        for name in "abc":
            client.take_snapshots(TakeSnapshots(names=[f"data@{name}"]))
        assert [info.name for info in client.snapshots()] == ["data@a", "data@b", "data@c"]  # of two requests
        assert client.snapshots("data") == client.snapshots()
        assert client.clone_volume("data@b", CloneVolume(name="new")).origin == "data@b"
        assert client.promote_volume("new").name == "new"
        assert client.roll_back_volume("data@a").snapshots == 3
        with pytest.raises(RequestError):
            client.remove_volume("data")
        assert client.remove_volume("data@c").snapshots == 0
        assert client.remove_volume("data", snapshots=True, force=True).snapshots == 2
        with pytest.raises(NotFoundError):
            client.snapshots("data")

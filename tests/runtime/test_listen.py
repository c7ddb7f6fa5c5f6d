"""Addresses and listening sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from holdfast.errors import RequestError
from holdfast.runtime.host import cgroup_of
from holdfast.runtime.listen import Listener, TcpAddress, UnixAddress, parse_address
from holdfast.runtime.loop import EventLoop
from holdfast.runtime.ports import Peer

Connections = list[tuple[socket.socket, Peer]]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/nbd.sock", UnixAddress("/run/nbd.sock")),
        ("unix:relative path.sock", UnixAddress("relative path.sock")),
        ("unix:with:colon", UnixAddress("with:colon")),
        ("tcp:127.0.0.1:10809", TcpAddress("127.0.0.1", 10809)),
        ("tcp:localhost:0", TcpAddress("localhost", 0)),
        ("tcp:[::1]:10809", TcpAddress("::1", 10809)),
    ],
)
def test_an_address_is_understood_and_written_back(text: str, address: UnixAddress | TcpAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/run/nbd.sock",
        "http://host:1",
        "unix:",
        "unix:a\0b",
        "tcp:",
        "tcp:host",
        "tcp:host:",
        "tcp:host:http",
        "tcp:host:65536",
        "tcp:host:-1",
        "tcp::10809",
        "tcp:::1:10809",
    ],
)
def test_what_is_not_an_address_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(RequestError, match=r"write|ambiguous"):
        parse_address(text)


def test_a_path_that_the_kernel_would_cut_off_is_refused() -> None:
    with pytest.raises(RequestError, match="107"):
        parse_address("unix:/" + "x" * 107)


def accept_one(loop: EventLoop, address: str, connect: Callable[[Listener], socket.socket]) -> Connections:
    """Listen, connect once, and return the accepted connection; everything else is closed."""
    connections: Connections = []

    def on_connection(connection: socket.socket, peer: Peer) -> None:
        connections.append((connection, peer))
        loop.stop()

    listener = Listener(loop, address, on_connection)
    client = connect(listener)
    loop.run()
    client.close()
    listener.close()
    return connections


def connect_unix(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


def connect_tcp(listener: Listener) -> socket.socket:
    assert isinstance(listener.address, TcpAddress)
    return socket.create_connection((listener.address.host, listener.address.port))


def test_a_unix_client_is_accepted_without_blocking_and_described(loop: EventLoop, tmp_path: Path) -> None:
    path = tmp_path / "s"
    [(connection, peer)] = accept_one(loop, f"unix:{path}", lambda _: connect_unix(path))
    assert not connection.getblocking()
    assert str(peer) == f"process {os.getpid()} on unix:{path}"
    assert peer.uid == os.getuid()
    assert peer.cgroup == cgroup_of(os.getpid())
    connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_tcp_client_is_accepted_on_the_port_that_the_kernel_chose(loop: EventLoop, host: str) -> None:
    [(connection, peer)] = accept_one(loop, f"tcp:{host}:0", connect_tcp)
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert str(peer).startswith(f"tcp:{host}:")
    assert peer.uid is None
    connection.close()


def test_close_removes_the_socket_file(loop: EventLoop, tmp_path: Path) -> None:
    listener = Listener(loop, f"unix:{tmp_path}/s", lambda connection, peer: connection.close())
    listener.close()
    listener.close()
    assert os.listdir(tmp_path) == []


def test_close_leaves_a_socket_file_that_another_server_put_there(loop: EventLoop, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = Listener(loop, f"unix:{path}", lambda connection, peer: connection.close())
    path.unlink()
    second = Listener(loop, f"unix:{path}", lambda connection, peer: connection.close())
    first.close()
    assert path.is_socket()
    second.close()


def test_the_socket_of_a_dead_server_is_replaced(loop: EventLoop, tmp_path: Path) -> None:
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.listen()
    dead.close()
    [(connection, _)] = accept_one(loop, f"unix:{path}", lambda _: connect_unix(path))
    connection.close()


def test_the_socket_of_a_living_server_is_refused_by_name(loop: EventLoop, tmp_path: Path) -> None:
    path = tmp_path / "s"
    living = socket.socket(socket.AF_UNIX)
    living.bind(str(path))
    living.listen()
    with pytest.raises(RequestError, match=f"{path}: another server answers there"):
        Listener(loop, f"unix:{path}", lambda connection, peer: connection.close())
    assert path.is_socket()
    living.close()


def test_a_file_that_is_no_socket_is_never_removed(loop: EventLoop, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(RequestError, match="not a socket"):
        Listener(loop, f"unix:{path}", lambda connection, peer: connection.close())
    assert path.read_text() == "data"


@pytest.mark.parametrize("address", ["unix:/nonexistent/directory/s", "tcp:192.0.2.1:0"])
def test_an_address_that_cannot_be_bound_is_refused_by_name(loop: EventLoop, address: str) -> None:
    with pytest.raises(RequestError, match="cannot listen on"):
        Listener(loop, address, lambda connection, peer: connection.close())


def test_a_port_in_use_is_refused_by_name(loop: EventLoop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RequestError, match=f"tcp:127.0.0.1:{port}"):
            Listener(loop, f"tcp:127.0.0.1:{port}", lambda connection, peer: connection.close())


def test_a_callback_may_close_the_listener_while_others_wait(loop: EventLoop, tmp_path: Path) -> None:
    path = tmp_path / "s"
    accepted: list[socket.socket] = []

    def on_connection(connection: socket.socket, peer: Peer) -> None:
        accepted.append(connection)
        listener.close()
        loop.stop()

    listener = Listener(loop, f"unix:{path}", on_connection)
    clients = [connect_unix(path) for _ in range(3)]
    loop.run()
    assert len(accepted) == 1
    for end in clients + accepted:
        end.close()


def test_without_descriptors_accepting_waits_and_goes_on_later(
    loop: EventLoop,
    tmp_path: Path,
    no_free_descriptors: Callable[[], AbstractContextManager[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "s"
    accepted: list[socket.socket] = []
    turns: list[None] = []

    def on_connection(connection: socket.socket, peer: Peer) -> None:
        accepted.append(connection)
        loop.stop()

    listener = Listener(loop, f"unix:{path}", on_connection)
    client = connect_unix(path)
    loop.before_sleep.append(lambda: turns.append(None))
    with no_free_descriptors():
        loop.call_later(250_000_000, loop.stop)  # two pauses and a half
        loop.run()
    assert accepted == []
    assert len(turns) < 10, "it spins"
    assert len(caplog.records) == 1
    assert "Too many open files" in caplog.text
    loop.run()
    assert len(accepted) == 1
    listener.close()
    accepted[0].close()
    client.close()

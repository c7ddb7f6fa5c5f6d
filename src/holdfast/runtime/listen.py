"""Listening sockets: where clients and the control connection come in.

Addresses are written `unix:PATH` and `tcp:ADDR:PORT` (IPv6 in brackets, port 0 for any that is free).

1. A socket file that somebody answers on is never taken over; one that a dead server left is removed.  Only sockets are
   removed, never another kind of file.
2. Running out of descriptors or memory in accept is waited out: the connection stays in the kernel's queue, the
   descriptors of those that are served stay untouched, and the loop does not spin.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.errors import ACTIONS, RequestError, Resource, log_fields
from holdfast.runtime.host import cgroup_of
from holdfast.runtime.loop import EventLoop, Timer
from holdfast.runtime.ports import Peer
from holdfast.units import MIB

# The kernel's own bound for the path of a Unix socket, less the closing zero.
UNIX_PATH_BYTES_MAX = 107
# Asked for on Unix sockets, both ways; root may pass net.core.[rw]mem_max, others get what that allows.  Of 1 MiB
# messages 7.8 GB/s arrive with it, 7.1 with the kernel's 208 KiB and 6.9 with 4 MiB, which no longer fits the cache.
SOCKET_BUFFER_BYTES = 1 * MIB
# 100 ms without accepting: long enough not to spin, short enough for a person not to notice.
_ACCEPT_PAUSE_NS = 100_000_000
# One turn of the loop takes at most this many connections, so that those that are served are not held up.
_ACCEPTS_A_TURN = 64
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = logging.getLogger("holdfast.runtime.listen")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """Raises RequestError, with a sentence for the user, on anything that is not an address."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "unix":
        return _parse_unix(rest, text)
    if colon and scheme == "tcp":
        return _parse_tcp(rest, text)
    raise RequestError(f"{text!r} is not an address; write unix:PATH or tcp:ADDR:PORT")


def _parse_unix(path: str, text: str) -> UnixAddress:
    if not path or "\0" in path:
        raise RequestError(f"{text!r} names no socket; write unix:PATH")
    length_bytes = len(os.fsencode(path))
    if length_bytes > UNIX_PATH_BYTES_MAX:
        raise RequestError(
            f"the socket path {path!r} has {length_bytes} bytes and the kernel allows {UNIX_PATH_BYTES_MAX}; "
            "use a shorter or a relative one"
        )
    return UnixAddress(path)


def _parse_tcp(rest: str, text: str) -> TcpAddress:
    host, colon, port_text = rest.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
        raise RequestError(f"{text!r} has no port from 0 to 65535; write tcp:ADDR:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise RequestError(f"{text!r} is ambiguous; put the IPv6 address in brackets: tcp:[{host}]:{port_text}")
    if not host:
        raise RequestError(
            f"{text!r} names no address; write for example tcp:127.0.0.1:{port_text} or tcp:[::]:{port_text}"
        )
    return TcpAddress(host, int(port_text))


class Listener:
    """Accepts on one address until closed, and hands each connection to `on_connection(socket, peer)`.

    The socket is non-blocking and belongs to the callee; `peer` says who it is.  `address` is the real one,
    with the port that the kernel chose.
    """

    def __init__(
        self, loop: EventLoop, address: Address | str, on_connection: Callable[[socket.socket, Peer], object]
    ) -> None:
        wanted = parse_address(address) if isinstance(address, str) else address
        self._loop = loop
        self._on_connection = on_connection
        self._pause: Timer | None = None
        self._exhausted = False
        self._socket, self.address = _listen(wanted)
        self._identity = _identity(self.address)
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting and remove the socket file. Connections that were accepted go on. May be called twice."""
        if self._socket.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.close(self._socket.fileno())
        self._socket.close()
        # Somebody may have removed our file and put theirs in its place; that one is not ours to remove.
        if isinstance(self.address, UnixAddress) and _identity(self.address) == self._identity:
            os.unlink(self.address.path)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            if self._socket.fileno() < 0:
                return  # closed by the callback below
            try:
                connection, peer_address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause_accepting(error)
                    return
                # The rest (ECONNABORTED, EPROTO, a firewall's EPERM) concerns the one connection that is gone.
                _log.info("a connection to %s ended before it was accepted: %s", self.address, error.strerror)
                continue
            self._exhausted = False
            _configure(connection)
            self._on_connection(connection, self._describe(connection, peer_address))

    def _pause_accepting(self, error: OSError) -> None:
        if not self._exhausted:
            self._exhausted = True
            no_descriptor = error.errno in (errno.EMFILE, errno.ENFILE)
            resource = Resource.DESCRIPTORS if no_descriptor else Resource.CONNECTIONS
            _log.warning(
                "cannot accept on %s: %s; connections wait until %s; %s",
                self.address,
                error.strerror,
                "descriptors are free" if no_descriptor else "the kernel has memory for another",
                ACTIONS[resource],
                extra=log_fields(resource, errno=error.errno),
            )
        self._loop.remove_reader(self._socket.fileno())
        self._pause = self._loop.call_later(_ACCEPT_PAUSE_NS, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _describe(self, connection: socket.socket, peer_address: object) -> Peer:
        if isinstance(self.address, TcpAddress) and isinstance(peer_address, tuple):
            return Peer(str(TcpAddress(peer_address[0], peer_address[1])))
        pid, uid, _gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(f"process {pid} on {self.address}", uid, cgroup_of(pid))


def _listen(address: Address) -> tuple[socket.socket, Address]:
    if isinstance(address, UnixAddress):
        return _listen_unix(address), address
    return _listen_tcp(address)


def _listen_unix(address: UnixAddress) -> socket.socket:
    _remove_stale(address)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(address.path)
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        raise RequestError(f"cannot listen on {address}: {error.strerror}; choose another path") from error
    return listener


def _remove_stale(address: UnixAddress) -> None:
    try:
        mode = os.stat(address.path).st_mode
    except OSError:
        return  # Nothing there; what else may be wrong with the path, bind will say.
    if not stat.S_ISSOCK(mode):
        raise RequestError(
            f"cannot listen on {address}: the file there is not a socket; move it, or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(address.path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass  # A socket file that no process listens on: its server is dead.
        except BlockingIOError:
            raise _in_use(address) from None  # Its queue is full, so somebody holds it.
        except OSError as error:
            raise RequestError(f"cannot listen on {address}: {error.strerror}; choose another path") from error
        else:
            raise _in_use(address)
    os.unlink(address.path)


def _in_use(address: UnixAddress) -> RequestError:
    return RequestError(f"cannot listen on {address}: another server answers there; stop it, or choose another path")


def _listen_tcp(address: TcpAddress) -> tuple[socket.socket, TcpAddress]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise RequestError(f"cannot listen on {address}: {error.strerror}; give an address of this host") from error
    family, _, _, _, where = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        raise RequestError(f"cannot listen on {address}: {error.strerror}; choose another address or port") from error
    return listener, TcpAddress(address.host, listener.getsockname()[1])


def _configure(connection: socket.socket) -> None:
    connection.setblocking(False)
    if connection.family == socket.AF_UNIX:
        set_buffers(connection)
    else:
        # Replies are gathered into one send; waiting for more to fill a packet would only add delay.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def set_buffers(connection: socket.socket) -> None:
    """Large buffers on a Unix socket. On TCP the kernel tunes them better than a fixed size does."""
    for forced, option in ((33, socket.SO_RCVBUF), (32, socket.SO_SNDBUF)):  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
        try:
            connection.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
        except PermissionError:
            connection.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)


def _identity(address: Address) -> tuple[int, int] | None:
    if isinstance(address, TcpAddress):
        return None
    try:
        status = os.stat(address.path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino

"""The real server in a process of its own, to be killed, and a small NBD client that survives it.

Everything here is real: files, sockets, signals.  The client is one thread around `select`: it keeps requests in flight
on several connections at once, and after a kill it still takes the replies that the server had sent before it died, for
what was answered is what was promised.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from holdfast.nbd.client import DATA, ERROR, ClientHandshake, Reply, ReplyReader, request
from holdfast.nbd.protocol import CMD_READ, CMD_WRITE
from holdfast.pool.superblock import SLOT_OFFSETS, Superblock, newest_superblock
from holdfast.runtime.ring_memory import SHM_DIRECTORY, ring_name
from holdfast.units import BLOCK_SIZE_BYTES, KIB

RECEIVE_BYTES = 512 * KIB
READ_BYTES = 256 * KIB
REQUESTS_PER_READ_MAX = 8


class Server:
    """`holdfast serve` on one pool. Its standard error is kept in `log_path`, over all starts."""

    def __init__(self, pool: Path, *options: str) -> None:
        self.pool = pool
        self.options = options
        self.log_path = pool.with_name(pool.name + ".log")
        self.process: subprocess.Popen[str] | None = None

    def launch(self) -> subprocess.Popen[str]:
        """Start the process and do not wait for it."""
        assert self.process is None
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "holdfast.cli.main", "serve", str(self.pool), *self.options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self.process

    def start(self) -> None:
        """Start, and return once it is ready."""
        process = self.launch()
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready "):
            code = self._ended()
            raise AssertionError(f"the server ended with {code} instead of getting ready:\n{self.log()}")

    def refuse(self) -> tuple[int, str]:
        """Start where a refusal is expected; returns the exit code and what it said."""
        before = len(self.log())
        process = self.launch()
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            self.kill()
            raise AssertionError(f"the server got ready although it should have refused: {line}")
        return self._ended(), self.log()[before:]

    def kill(self) -> None:
        """kill -9, and wait until the process is gone with all that it held."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        code = self._ended()
        assert code == -signal.SIGKILL, f"the server had ended by itself with {code}:\n{self.log()}"

    def stop(self) -> None:
        """A clean end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self._ended()
        assert code == 0, f"a clean end was code {code}:\n{self.log()}"

    def _ended(self) -> int:
        process, self.process = self.process, None
        assert process is not None
        assert process.stdout is not None
        code = process.wait()
        process.stdout.close()
        return code

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def remove_ring(self) -> None:
        """Leave nothing of the pool outside of its directory."""
        if (self.pool / "superblock").exists():
            ring_path(self.pool).unlink(missing_ok=True)


@contextmanager
def serving(pool: Path, *options: str) -> Iterator[Server]:
    """A server, not started yet, that leaves neither a process nor a ring behind."""
    server = Server(pool, *options)
    try:
        yield server
    finally:
        if server.process is not None:
            server.process.kill()
            server.process.communicate()
        server.remove_ring()


def read_superblock(pool: Path) -> Superblock:
    raw = (pool / "superblock").read_bytes()
    slots = [raw[offset : offset + BLOCK_SIZE_BYTES] for offset in SLOT_OFFSETS]
    return newest_superblock(slots)[0]


def ring_path(pool: Path) -> Path:
    """Where the pool's ring is, or would be."""
    name = ring_name(str(uuid.UUID(bytes=read_superblock(pool).uuid)))
    beside = pool / name
    return beside if beside.exists() else Path(SHM_DIRECTORY) / name


def segment_path(pool: Path, segment: int) -> Path:
    return pool / "segments" / f"{segment:08x}.seg"


@dataclass(slots=True)
class Answer:
    """What came back for a request: `errno` of the whole, data where it was a READ."""

    cookie: int
    errno: int
    data: bytearray | None


class Connection:
    """One connection to an export. Replies are collected in `answers`."""

    def __init__(self, pool: Path, export: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(pool / "nbd.sock"))
        handshake = ClientHandshake(export)
        while handshake.terms is None:
            output = handshake.data_to_send()
            if output:
                self.socket.sendall(output)
            received = self.socket.recv(RECEIVE_BYTES)
            assert received, "the server hung up during the handshake"
            handshake.receive_data(received)
        rest = handshake.data_to_send()
        if rest:
            self.socket.sendall(rest)
        self.size_bytes = handshake.terms.size_bytes
        self.answers: deque[Answer] = deque()
        self.ended = False
        self._reader = ReplyReader(handshake.terms)
        self._waiting: dict[int, tuple[int, Answer]] = {}
        self._output: deque[memoryview] = deque()
        self._input = bytearray(RECEIVE_BYTES)
        self._filled = 0
        self._cookie = 0
        self.socket.setblocking(False)

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, command: int, *, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> int:
        """Queue a request and send what the socket takes; returns its cookie."""
        self._cookie += 1
        cookie = self._cookie
        data = bytearray(length) if command == CMD_READ else None
        self._waiting[cookie] = (offset, Answer(cookie, 0, data))
        if command == CMD_READ:
            self._reader.expect_read(cookie, offset, length)
        self._output.append(memoryview(request(command, flags, cookie, offset, length)))
        if command == CMD_WRITE:
            self._output.append(memoryview(payload))
        self._send()
        return cookie

    def _send(self) -> None:
        try:
            while self._output:
                sent = self.socket.send(self._output[0])
                if sent < len(self._output[0]):
                    self._output[0] = self._output[0][sent:]
                else:
                    self._output.popleft()
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._output.clear()  # the server is dead; what it answered before is still to be read

    def _receive(self) -> None:
        view = memoryview(self._input)
        try:
            count = self.socket.recv_into(view[self._filled :])
        except BlockingIOError:
            return
        except ConnectionResetError:
            count = 0
        if count == 0:
            self.ended = True
            return
        self._filled += count
        events: list[Reply] = []
        consumed = self._reader.parse(view, 0, self._filled, events)
        for event in events:
            self._take(event)
        self._input[: self._filled - consumed] = self._input[consumed : self._filled]
        self._filled -= consumed

    def _take(self, event: Reply) -> None:
        offset, answer = self._waiting[event.cookie]
        if event.kind == ERROR:
            answer.errno = event.errno
        elif event.kind == DATA:
            assert answer.data is not None
            at = event.offset - offset
            answer.data[at : at + event.length] = event.payload
        if event.final:
            del self._waiting[event.cookie]
            self.answers.append(answer)

    def close(self) -> None:
        self.socket.close()


def progress(connections: list[Connection]) -> None:
    """Send and receive on all connections; waits until something moves on one of them."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            if not connection.ended:
                wants = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection._output else 0)
                selector.register(connection.socket, wants, connection)
        if not selector.get_map():
            return
        for key, mask in selector.select():
            if mask & selectors.EVENT_WRITE:
                key.data._send()
            if mask & selectors.EVENT_READ:
                key.data._receive()


def drain(connections: list[Connection]) -> None:
    """Take everything that a server sent before it died, to the end of the stream."""
    while any(not connection.ended for connection in connections):
        progress(connections)


def call(
    connection: Connection, command: int, *, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b""
) -> Answer:
    """One request, and its answer. For connections that have nothing else in flight."""
    connection.submit(command, offset=offset, length=length, flags=flags, payload=payload)
    while not connection.answers:
        assert not connection.ended, "the server hung up"
        progress([connection])
    return connection.answers.popleft()


def read_volume(pool: Path, export: str) -> bytearray:
    """All of a volume. Any error is a failure of the test."""
    connection = Connection(pool, export)
    content = bytearray(connection.size_bytes)
    starts: dict[int, int] = {}
    at = 0
    while at < len(content) or starts:
        while at < len(content) and len(starts) < REQUESTS_PER_READ_MAX:
            count = min(READ_BYTES, len(content) - at)
            starts[connection.submit(CMD_READ, offset=at, length=count)] = at
            at += count
        progress([connection])
        assert not connection.ended, "the server hung up while it was read from"
        while connection.answers:
            answer = connection.answers.popleft()
            start = starts.pop(answer.cookie)
            assert answer.errno == 0, f"volume {export}, offset {start}: {os.strerror(answer.errno)}"
            assert answer.data is not None
            content[start : start + len(answer.data)] = answer.data
    connection.close()
    return content


def read_blocks(pool: Path, export: str) -> tuple[bytearray, list[int]]:
    """All of a volume, block by block where a longer read fails; returns the content and the unreadable lbas."""
    connection = Connection(pool, export)
    content = bytearray(connection.size_bytes)
    bad: list[int] = []
    for start in range(0, len(content), READ_BYTES):
        count = min(READ_BYTES, len(content) - start)
        answer = call(connection, CMD_READ, offset=start, length=count)
        if answer.errno == 0:
            assert answer.data is not None
            content[start : start + count] = answer.data
            continue
        for at in range(start, start + count, BLOCK_SIZE_BYTES):
            single = call(connection, CMD_READ, offset=at, length=BLOCK_SIZE_BYTES)
            if single.errno == 0:
                assert single.data is not None
                content[at : at + BLOCK_SIZE_BYTES] = single.data
            else:
                bad.append(at // BLOCK_SIZE_BYTES)
    connection.close()
    return content, bad

"""Clients that mean ill, or are broken in ways that look like it. Each does its one thing again and again until told.

They use the upper half of the disk, where nobody keeps anything.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast.units import KIB, MIB
from tests.clients.raw_client import RawClient
from tests.nbd.wire import READ, WRITE, go, option, request

# Between two steps of a client that is slow on purpose.
_PAUSE_S = 0.001
# Between two floods: without an end to them any pool fills up.
_FLOOD_PAUSE_S = 1.0
# How long a client that is not read from any more pushes before it looks whether it should end.
_PUSH_S = 0.05


class Target:
    """Where they connect, and when they shall end."""

    def __init__(self, path: Path, name: str, size_bytes: int) -> None:
        self.path = path
        self.name = name
        self.base = size_bytes // 2
        self.end = threading.Event()
        self.struck: set[Hostility] = set()  # those that have done their worst at least once

    def connect(self, *, structured: bool = False) -> RawClient:
        client = RawClient(self.path)
        client.choose(self.name, structured=structured)
        return client

    def pause(self) -> None:
        self.end.wait(_PAUSE_S)


Hostility = Callable[[Target], None]


def never_reads_simple_replies(target: Target) -> None:
    """Asks for gigabytes in requests small and large, and takes none of the answers."""
    _never_read(target, structured=False, struck=never_reads_simple_replies)


def never_reads_structured_replies(target: Target) -> None:
    _never_read(target, structured=True, struck=never_reads_structured_replies)


def _never_read(target: Target, *, structured: bool, struck: Hostility) -> None:
    client = target.connect(structured=structured)
    client.socket.settimeout(_PUSH_S)
    flood = b"".join(request(READ, target.base, length) for length in (4 * KIB, 32 * MIB, 64 * KIB, 512) * 256)
    while not target.end.is_set():
        try:
            client.socket.send(flood)
        except TimeoutError:
            target.struck.add(struck)  # the server has stopped reading: so it should
    client.close()


def sends_a_byte_at_a_time(target: Target) -> None:
    client = RawClient(target.path)
    for byte in option(1, target.name.encode()):
        client.send(bytes([byte]))
        target.pause()
    client.receive(10)
    while not target.end.is_set():
        for byte in request(READ, target.base, 512):
            client.send(bytes([byte]))
            target.pause()
        client.receive(16 + 512)
        target.struck.add(sends_a_byte_at_a_time)
    client.close()


def vanishes_in_the_middle_of_a_payload(target: Target) -> None:
    while not target.end.is_set():
        client = target.connect()
        client.send(request(WRITE, target.base, 32 * MIB) + bytes(MIB + 77))
        client.close()
        target.struck.add(vanishes_in_the_middle_of_a_payload)


def floods_options(target: Target) -> None:
    """Options without end, large ones and unknown ones, the answers unread, until it is thrown out; then again."""
    flood = b"".join((option(3), go("nothing"), option(77, bytes(4000)), option(10, bytes(8)))) * 64
    while not target.end.is_set():
        client = RawClient(target.path)
        client.socket.settimeout(_PUSH_S)
        try:
            while not target.end.is_set():
                client.socket.send(flood)
        except (TimeoutError, ConnectionError):
            target.struck.add(floods_options)  # thrown out, or not read from any more
        client.close()


def lies_about_lengths(target: Target) -> None:
    """Announces what it never sends."""
    lies = [
        b"IHAVEOPT" + struct.pack(">II", 7, 0xFFFFFFFF) + b"x" * 100,
        b"IHAVEOPT" + struct.pack(">III", 7, 8, 0xFFFFFFF0) + b"name",
        option(1, b"disk" * 2000),
    ]
    while not target.end.is_set():
        for lie in lies:
            client = RawClient(target.path)
            try:
                client.send(lie)
            except ConnectionError:
                pass  # thrown out
            client.close()
        for length in (0xFFFFFFFF, 64 * MIB, 33 * MIB):
            client = target.connect()
            client.send(request(WRITE, target.base, length) + bytes(100))
            client.close()
        target.struck.add(lies_about_lengths)


def writes_slowly(target: Target) -> None:
    """Requests of 32 MiB, a few KiB at a time."""
    while not target.end.is_set():
        client = target.connect()
        client.send(request(WRITE, target.base, 32 * MIB))
        piece = b"slow" * KIB
        for _ in range(32 * MIB // len(piece)):
            client.send(piece)
            target.pause()
            target.struck.add(writes_slowly)
            if target.end.is_set():
                break
        client.close()


def writes_as_fast_as_it_can(target: Target) -> None:
    """Nothing wrong with it, but that it takes what it can get."""
    client = target.connect()
    payload = bytes(range(256)) * 4096
    while not target.end.is_set():
        client.send(request(WRITE, target.base, len(payload)) + payload)
        client.receive(16)
        target.struck.add(writes_as_fast_as_it_can)
    client.close()


def floods_with_large_writes(target: Target) -> None:
    """As large as a request may be, one behind the other."""
    client = target.connect()
    payload = bytes(range(256)) * (32 * MIB // 256)
    while not target.end.is_set():
        client.send(request(WRITE, target.base, len(payload)) + payload)
        assert client.receive(16)[4:8] == bytes(4)
        target.struck.add(floods_with_large_writes)
        target.end.wait(_FLOOD_PAUSE_S)
    client.close()


def opens_256_connections(target: Target) -> None:
    """And uses each of them a little."""
    clients = [target.connect() for _ in range(256)]
    while not target.end.is_set():
        for client in clients:
            client.send(request(READ, target.base, 4 * KIB))
        for client in clients:
            client.receive(16 + 4 * KIB)
        target.struck.add(opens_256_connections)
    for client in clients:
        client.close()


@contextmanager
def at_work(target: Target, *hostilities: Hostility) -> Iterator[None]:
    """Each of them in a thread of its own until the end of the block. What goes wrong in one is raised there."""
    failures: list[Exception] = []

    def act(hostility: Hostility) -> None:
        try:
            hostility(target)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=act, args=(hostility,)) for hostility in hostilities]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        target.end.set()
        for thread in threads:
            thread.join()
    if failures:
        raise ExceptionGroup("hostile clients failed", failures)

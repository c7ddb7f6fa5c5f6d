"""Bytes as a client of long ago sends them, and as a careless one does, against the real server.

Written from the protocol's document with literal numbers; the tests of the room `nbd` do the same without a socket.
"""

from __future__ import annotations

import struct

import pytest

from tests.clients.conftest import Disk
from tests.clients.raw_client import RawClient
from tests.nbd.wire import FLUSH, READ, WRITE, option, request, write

pytestmark = pytest.mark.clients

EXPECTED_LOG = "disconnected: a request begins with"


@pytest.mark.parametrize(("flags", "padding"), [(0, 124), (1, 124), (3, 0)], ids=["newstyle", "fixed", "no zeroes"])
def test_export_name_begins_transmission_at_once(disk: Disk, flags: int, padding: int) -> None:
    client = RawClient(disk.server.unix_path, flags=flags)
    client.send(option(1, disk.name.encode()) + write(4096, b"first words", cookie=1))
    size_bytes, _transmission_flags = struct.unpack(">QH", client.receive(10))
    assert size_bytes == disk.size_bytes
    assert client.receive(padding) == bytes(padding)
    assert client.receive(16) == struct.pack(">IIQ", 0x67446698, 0, 1)
    client.send(request(READ, 4096, 11, cookie=2))
    assert client.receive(16 + 11) == struct.pack(">IIQ", 0x67446698, 0, 2) + b"first words"
    client.close()
    disk.server.wait_until_drained(disk.name)


def test_an_export_that_is_not_there_ends_an_old_client(disk: Disk) -> None:
    client = RawClient(disk.server.unix_path, flags=3)
    client.send(option(1, b"nothing"))
    assert client.receive(1) == b""
    client.close()


def test_flags_that_nobody_knows_end_the_connection(disk: Disk) -> None:
    client = RawClient(disk.server.unix_path, flags=0x80)
    assert client.receive(1) == b""
    client.close()


def test_a_wrong_magic_ends_the_connection_after_what_came_before_it(disk: Disk) -> None:
    client = RawClient(disk.server.unix_path, flags=3)
    client.send(option(1, disk.name.encode()) + write(0, b"kept", cookie=5) + b"\xff" * 28)
    assert client.receive(10 + 16)[10:] == struct.pack(">IIQ", 0x67446698, 0, 5)
    assert client.receive(1) == b""
    client.close()
    again = RawClient(disk.server.unix_path, flags=3)
    again.send(option(1, disk.name.encode()) + request(READ, 0, 4, cookie=6))
    assert again.receive(10 + 16 + 4)[26:] == b"kept"
    again.close()


def test_what_is_half_sent_is_not_written(disk: Disk) -> None:
    client = RawClient(disk.server.unix_path, flags=3)
    client.send(option(1, disk.name.encode()) + write(0, b"whole" * 1000, cookie=1) + request(FLUSH, cookie=2))
    assert len(client.receive(10 + 16 + 16)) == 42
    client.send(request(WRITE, 8192, 4096, cookie=3) + b"h" * 4095)
    client.close()
    disk.server.wait_until_drained(disk.name)
    again = RawClient(disk.server.unix_path, flags=3)
    again.send(option(1, disk.name.encode()) + request(READ, 8192, 4096, cookie=4))
    assert again.receive(10 + 16 + 4096)[26:] == bytes(4096)
    again.close()

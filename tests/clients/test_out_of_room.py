"""Rows T3, T4 and T6: the script of 2020. A disk of 512 MiB with room for 64, and 256 MiB written to it.

The loop device over tmpfs of that discussion shot its writer, or a bystander. Here the room is a tmpfs of 64 MiB under
the pool, a quota of 64 MiB, or a group of volumes with 64 MiB of space: the writer is told ENOSPC at the limit, nobody
is killed, what was written reads back, and a trim revives the disk without a restart.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path

import pytest

from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.units import MIB
from tests.clients.running import holdfast
from tests.crash.harness import Connection, Server, call, serving
from tests.crash.oracle import pattern

pytestmark = [pytest.mark.slow]

ROOM_BYTES = 64 * MIB
OPTIONS = ("--volume", "disk=512M", "--memory", "16M", "--capacity", "1G", "--segment-size", "1M")


@pytest.fixture
def small_tmpfs(tmp_path: Path, requires_root: None) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def write_until_full(connection: Connection) -> int:
    """As dd would, a MiB at a time, 256 of them; returns how many were written before the first ENOSPC."""
    written = 256
    for number in range(256):
        payload = pattern(1, number * MIB, MIB, 1)
        errno = call(connection, CMD_WRITE, offset=number * MIB, length=MIB, payload=payload).errno
        assert errno in (0, ENOSPC)
        if errno and written == 256:
            written = number
    return written


def check_what_was_written(connection: Connection, first: int, count: int) -> None:
    for number in range(first, count):
        answer = call(connection, CMD_READ, offset=number * MIB, length=MIB)
        assert answer.errno == 0
        assert answer.data is not None
        assert bytes(answer.data) == pattern(1, number * MIB, MIB, 1)


def play(server: Server, least_bytes: int, most_bytes: int) -> None:
    server.start()
    connection = Connection(server.pool, "disk")
    written = write_until_full(connection)
    assert least_bytes <= written * MIB <= most_bytes
    check_what_was_written(connection, 0, written)
    assert call(connection, CMD_FLUSH).errno == 0
    assert call(connection, CMD_TRIM, offset=0, length=written // 2 * MIB).errno == 0
    # What was trimmed comes free with the checkpoints that the shortage starts.
    back = 0
    for _ in range(10_000):
        payload = pattern(1, (300 + back) * MIB, MIB, 1)
        back += call(connection, CMD_WRITE, offset=(300 + back) * MIB, length=MIB, payload=payload).errno == 0
        if back == written // 4:
            break
    assert back == written // 4, "the disk was revived"
    check_what_was_written(connection, written // 2, written)
    check_what_was_written(connection, 300, 300 + back)
    connection.close()
    server.stop()
    assert "Traceback" not in server.log()


@pytest.mark.root
def test_a_filesystem_below_that_is_full(small_tmpfs: Path) -> None:
    """Some of the room is held back for metadata, more of it the smaller the pool is."""
    with serving(small_tmpfs / "pool", *OPTIONS) as server:
        play(server, ROOM_BYTES // 2, ROOM_BYTES)


def test_a_quota_that_is_used_up(tmp_path: Path) -> None:
    with serving(tmp_path / "pool", *OPTIONS) as server:
        server.start()
        server.stop()
        holdfast("volume", "set", server.pool / "disk", "--quota", str(ROOM_BYTES))
        play(server, ROOM_BYTES, ROOM_BYTES)


def test_a_group_that_is_used_up(tmp_path: Path) -> None:
    """A volume of another group is not told of it."""
    with serving(tmp_path / "pool", *OPTIONS, "--volume", "other=64M") as server:
        server.start()
        holdfast("group", "create", server.pool / "tenant", "--space", "64M")
        holdfast("volume", "set", server.pool / "disk", "--group", "tenant")
        disk, other = Connection(server.pool, "disk"), Connection(server.pool, "other")
        assert write_until_full(disk) * MIB == ROOM_BYTES
        tenant = json.loads(holdfast("group", "show", server.pool / "tenant", "--json"))
        assert (tenant["mapped_bytes"], tenant["space_bytes"]) == (ROOM_BYTES, ROOM_BYTES)
        assert call(other, CMD_WRITE, length=MIB, payload=pattern(1, 0, MIB, 1)).errno == 0
        assert call(disk, CMD_WRITE, length=MIB, payload=pattern(1, 0, MIB, 1)).errno == 0, "it maps nothing new"
        assert call(disk, CMD_TRIM, length=ROOM_BYTES).errno == 0
        disk.close()
        other.close()
        server.stop()
        play(server, ROOM_BYTES, ROOM_BYTES)

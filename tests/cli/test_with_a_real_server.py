"""The commands and a real server, end to end: what one does, the others see, whether the pool is served or idle."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from errno import EIO
from pathlib import Path

import pytest

from holdfast.units import KIB, MIB
from tests.clients.raw_client import RawClient
from tests.clients.running import RunningServer, holdfast
from tests.nbd.wire import FLUSH, READ, request, write

from .conftest import Run

pytestmark = pytest.mark.clients

SIZE_BYTES = 24 * MIB + 512


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "real", memory="16M", capacity="256M", segment_size="1M")
    yield server
    server.end()  # where the test has failed


@pytest.fixture
def served(server: RunningServer) -> Iterator[Path]:
    server.start()
    yield server.pool
    server.stop()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """3 MiB of data in 24."""
    path = tmp_path / "image.raw"
    data = random.Random(3).randbytes
    with open(path, "wb") as file:
        file.write(data(MIB))
        file.seek(8 * MIB)
        file.write(bytes(MIB) + data(2 * MIB - 512))
        file.seek(SIZE_BYTES - 512)
        file.write(data(512))
    return path


def test_a_volume_lives_from_create_to_remove(run: Run, served: Path) -> None:
    assert run("volume", "create", f"{served}/disk0", "1G").exit_code == 0
    assert run("volume", "create", f"{served}/disk0", "1G").exit_code == 1
    assert "disk0" in run("volume", "list", served).stdout
    assert json.loads(run("volume", "show", served, "--json").stdout)["mapped_bytes"] == 0
    assert run("volume", "remove", f"{served}/disk0").exit_code == 0
    assert run("volume", "show", f"{served}/disk0").exit_code == 1


def test_a_volume_with_a_client_is_removed_by_force_only(run: Run, server: RunningServer, served: Path) -> None:
    run("volume", "create", f"{served}/disk0", "1G")
    client = RawClient(server.unix_path)
    client.choose("disk0")
    assert json.loads(run("volume", "show", served, "--json").stdout)["connections"] == 1
    refused = run("volume", "remove", f"{served}/disk0", "--yes")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert run("volume", "remove", f"{served}/disk0", "--yes", "--force").exit_code == 0
    assert client.receive(1) == b""  # cut off
    client.close()


def test_top_shows_what_a_server_does_and_who_waits_in_it(run: Run, served: Path, image: Path) -> None:
    assert run("copy", image, f"{served}/disk0").exit_code == 0
    shown = run("top", served, "--interval", "0.1")
    assert shown.exit_code == 0, shown.stderr
    assert "held back" in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("disk0 ")
    waits = json.loads(run("top", served, "--waits", "--json").stdout)
    assert (waits["total"], waits["cycles"]) == (len(waits["waits"]), []), "it may be preparing segments"


def test_an_image_goes_into_a_served_pool_and_comes_back(run: Run, served: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    into = run("copy", "--verify", image, f"{served}/disk0")
    assert into.exit_code == 0, into.stderr
    assert json.loads(run("volume", "show", served, "--json").stdout)["mapped_bytes"] == 3 * MIB + 4 * KIB
    assert run("copy", "--verify", f"{served}/disk0", out).exit_code == 0
    assert out.read_bytes() == image.read_bytes()
    assert out.stat().st_blocks * 512 <= 4 * MIB


def test_an_image_goes_into_an_idle_pool_and_comes_back(run: Run, pool: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    assert run("copy", image, f"{pool}/disk0").exit_code == 0
    assert run("copy", f"{pool}/disk0", out).exit_code == 0
    assert out.read_bytes() == image.read_bytes()
    assert not (pool / "control.sock").exists()
    checked = run("check", pool)
    assert checked.exit_code == 0, checked.stdout


def test_a_volume_is_copied_to_another_pool(run: Run, served: Path, pool: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    run("copy", image, f"{served}/disk0")
    assert run("copy", "--verify", f"{served}/disk0", f"{pool}/copy").exit_code == 0
    assert run("copy", f"{pool}/copy", out).exit_code == 0
    assert out.read_bytes() == image.read_bytes()


def test_what_was_done_while_served_is_there_when_idle(run: Run, server: RunningServer, image: Path) -> None:
    server.start()
    holdfast("copy", "--quiet", image, server.pool / "disk0")
    server.stop()
    shown = json.loads(run("volume", "show", server.pool, "--json").stdout)
    assert (shown["size_bytes"], shown["mapped_bytes"]) == (SIZE_BYTES, 3 * MIB + 4 * KIB)
    assert run("volume", "remove", f"{server.pool}/disk0").exit_code == 0
    server.start()
    assert run("volume", "list", server.pool).stdout == ""
    server.stop()


def test_a_killed_server_leaves_a_pool_that_commands_open(run: Run, server: RunningServer, image: Path) -> None:
    """With what lay in its ring: the command writes it out as the next server would."""
    server.start()
    holdfast("copy", "--quiet", image, server.pool / "disk0")
    server.kill()
    assert run("check", server.pool).exit_code == 0
    assert json.loads(run("volume", "show", server.pool, "--json").stdout)["mapped_bytes"] == 3 * MIB + 4 * KIB
    assert run("check", server.pool).exit_code == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A served pool that holds some 25 MiB; that it gets full is logged."""
    server = RunningServer(tmp_path / "small", memory="16M", capacity="32M", segment_size="1M").start()
    yield server.pool
    server.stop(expected="the pool is full|space|segment")


def test_a_full_pool_is_one_line_and_stays_usable(run: Run, small: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.raw"
    large.write_bytes(random.Random(4).randbytes(48 * MIB))
    refused = run("copy", large, f"{small}/disk0")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1), refused.stderr
    assert "no space left on device; free space in it, or give it more" in refused.stderr
    assert run("volume", "remove", f"{small}/disk0", "--force").exit_code == 0
    assert run("volume", "create", f"{small}/disk1", "1G").exit_code == 0


def test_a_served_pool_is_not_checked_nor_served_twice(run: Run, served: Path) -> None:
    for words in (("check", served), ("serve", served)):
        result = run(*words)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "is being served by process" in result.stderr


def test_the_doctor_examines_a_served_pool(run: Run, served: Path) -> None:
    result = run("doctor", served, "--json")
    assert result.exit_code == 0, result.stdout
    found = {row["subject"]: row["state"] for row in json.loads(result.stdout)}
    assert found["O_DIRECT"] == "ok"


def call(client: RawClient, data: bytes) -> int:
    """One request without an answer but its errno."""
    client.send(data)
    return int.from_bytes(client.receive(16)[4:8])


def test_a_loss_makes_flush_fail_until_it_is_acknowledged_by_its_number(run: Run, server: RunningServer) -> None:
    data = random.Random(8).randbytes(64 * KIB)
    server.start()
    where = f"{server.pool}/disk0"
    assert run("volume", "create", where, "8M").exit_code == 0
    client = RawClient(server.unix_path)
    client.choose("disk0")
    assert call(client, write(0, data)) == 0
    client.close()
    server.stop()
    for segment in (server.pool / "segments").iterdir():
        content = bytearray(segment.read_bytes())
        at = content.find(data[4096:8192])
        if at >= 0:
            content[at] ^= 1
            segment.write_bytes(content)
    server.start()
    client = RawClient(server.unix_path)
    client.choose("disk0")
    assert call(client, request(FLUSH)) == 0, "nobody has looked"
    assert call(client, request(READ, 4096, 4096)) == EIO
    assert call(client, request(FLUSH)) == EIO
    shown = run("volume", "show", where).stdout
    assert "loss 1 not acknowledged" in shown
    assert "damaged   4096 bytes at offset 4096: " in shown
    wrong = run("volume", "acknowledge-loss", where, "2")
    assert (wrong.exit_code, wrong.stderr) == (1, "holdfast: the loss of volume 'disk0' is number 1, not 2\n")
    assert call(client, request(FLUSH)) == EIO
    right = run("volume", "acknowledge-loss", where, "1")
    assert right.stdout == f"{where}: loss 1 is acknowledged; FLUSH succeeds again\n", right.stderr
    assert call(client, request(FLUSH)) == 0
    assert call(client, request(READ, 4096, 4096)) == EIO, "what is damaged stays so until it is overwritten"
    assert call(client, write(4096, data[4096:8192])) == 0
    assert call(client, request(READ, 4096, 4096)) == 0
    assert client.receive(4096) == data[4096:8192]
    client.close()
    server.stop(
        expected="block 1 of volume disk0 is damaged; overwrite it whole|FLUSH fails because accepted data is lost"
    )

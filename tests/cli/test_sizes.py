"""`holdfast volume resize` and `holdfast pool resize`, on a served pool and on an idle one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.units import GIB, MIB
from tests.clients.raw_client import RawClient
from tests.clients.running import RunningServer
from tests.control.fake_service import FakeService
from tests.nbd.wire import write

from .conftest import Run


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "real", memory="16M", capacity="256M", segment_size="1M")
    server.start()
    yield server
    server.end()  # where the test has failed


def test_an_idle_pools_volume_grows_and_shrinks(run: Run, pool: Path) -> None:
    where = f"{pool}/disk0"
    assert run("volume", "create", where, "1G").exit_code == 0
    grown = run("volume", "resize", where, "2T")
    assert (grown.exit_code, grown.stdout) == (0, f"{where}: 2T\n")
    refused = run("volume", "resize", where, "3M")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "of which 0 hold data" in refused.stderr
    assert json.loads(run("volume", "show", pool, "--json").stdout)["size_bytes"] == 2 << 40
    cut = run("volume", "resize", where, "3M", "--force", "--json")
    assert json.loads(cut.stdout) == {
        "name": "disk0", "size_bytes": 3 * MIB, "cut_bytes": (2 << 40) - 3 * MIB, "cut_data_bytes": 0,
    }  # fmt: skip
    assert run("check", pool).exit_code == 0


def test_an_idle_pool_gets_another_capacity(run: Run, pool: Path) -> None:
    larger = run("pool", "resize", pool, "--capacity", "128M")
    assert (larger.exit_code, larger.stdout.split(",")[0]) == (0, f"{pool}: 128M")
    smaller = run("pool", "resize", pool, "--capacity", "48M", "--json")
    assert json.loads(smaller.stdout)["capacity_bytes"] == 48 * MIB
    for capacity in ("2M", "20000T"):
        refused = run("pool", "resize", pool, "--capacity", capacity)
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
        assert "the capacity of a pool is between 16M and" in refused.stderr
    files = [int(path.stem, 16) for path in (pool / "segments").iterdir()]
    assert max(files) < 48
    assert run("check", pool).exit_code == 0


def test_what_was_removed_of_an_idle_pool_makes_room_for_what_comes_next(run: Run, pool: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(1, 256)) * (24 * MIB // 255))
    assert run("copy", "--quiet", image, f"{pool}/big").exit_code == 0
    refused = run("pool", "resize", pool, "--capacity", "28M")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "; give that, or trim or remove volumes first" in refused.stderr
    assert run("volume", "remove", f"{pool}/big").exit_code == 0
    assert run("pool", "resize", pool, "--capacity", "28M").exit_code == 0
    assert run("check", pool).exit_code == 0


def test_what_cannot_be_meant_is_wrong_usage(run: Run, pool: Path) -> None:
    for words in (
        ("volume", "resize", f"{pool}/disk0"),
        ("volume", "resize", f"{pool}/disk0", "0"),
        ("volume", "resize", f"{pool}/disk0", "many"),
        ("pool", "resize", pool),
        ("pool", "resize", pool, "--capacity", "0"),
    ):
        wrong = run(*words)
        assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1), words
    missing = run("volume", "resize", f"{pool}/disk7", "1G")
    assert (missing.exit_code, missing.stderr.count("\n")) == (1, 1)


def test_a_served_volume_is_resized_through_its_server(run: Run, service: FakeService, served_pool: Path) -> None:
    service.add("disk0", GIB)
    assert run("volume", "resize", f"{served_pool}/disk0", "2G").exit_code == 0
    assert service.known["disk0"].size_bytes == 2 * GIB
    assert run("volume", "resize", f"{served_pool}/disk0", "1G").exit_code == 1
    assert run("pool", "resize", served_pool, "--capacity", "3G").exit_code == 0
    assert service.capacity_bytes == 3 * GIB


@pytest.mark.clients
def test_a_served_volume_shrinks_once_nobody_is_connected(run: Run, server: RunningServer) -> None:
    where = f"{server.pool}/disk0"
    assert run("volume", "create", where, "1G").exit_code == 0
    client = RawClient(server.unix_path)
    client.choose("disk0")
    client.send(write(cookie=1, offset=0, payload=bytes([7]) * 8192))
    client.receive(16)
    client.send(write(cookie=2, offset=512 * MIB, payload=bytes([8]) * 8192))
    client.receive(16)
    assert run("volume", "resize", where, "2G").exit_code == 0
    refused = run("volume", "resize", where, "4K", "--force")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "in use (1 connected)" in refused.stderr
    client.close()
    server.wait_until_drained("disk0")
    refused = run("volume", "resize", where, "1M")
    assert "cuts 2.0G off, of which 8K hold data" in refused.stderr
    assert (
        run("volume", "resize", where, "1M", "--force").stdout == f"{where}: 1M; cut 2.0G off, of which 8K held data\n"
    )
    server.stop()
    assert run("check", server.pool).exit_code == 0


@pytest.mark.clients
def test_serve_takes_a_smaller_capacity_than_before(run: Run, server: RunningServer, tmp_path: Path) -> None:
    assert run("volume", "create", f"{server.pool}/disk0", "1G").exit_code == 0
    server.stop()
    smaller = RunningServer(server.pool, memory="16M", capacity="64M", segment_size="1M")
    smaller.start()
    with smaller.control() as control:
        assert control.status().capacity_bytes == 64 * MIB
    smaller.stop()
    assert max(int(path.stem, 16) for path in (server.pool / "segments").iterdir()) < 64
    assert run("check", server.pool).exit_code == 0

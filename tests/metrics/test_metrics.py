"""What the real server says of itself to Prometheus, read with the library's own parser, against its other answers."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from errno import EINVAL, EIO, ENOSPC
from pathlib import Path

import pytest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from holdfast.control.api import CloneVolume, CreateVolume, TakeSnapshots
from holdfast.control.client import ControlClient
from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.server import METRICS_CONNECTIONS_MAX
from holdfast.units import BLOCK_SIZE_BYTES, GIB, KIB, MIB
from tests.crash.harness import Connection, Server, call, segment_path, serving

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
# All segments are prepared before it is ready: their states change by what the tests do alone.
OPTIONS = ("--volume", "disk0=1G", "--memory", "16M", "--capacity", "96M", "--segment-size", "1M", "--preallocate")


class Metrics:
    """Samples by name and labels: `metrics["holdfast_pool_segments", "free"]`, labels in the order of their names."""

    def __init__(self, text: str) -> None:
        self.families: list[Metric] = list(text_string_to_metric_families(text))
        self.samples: dict[tuple[str, ...], float] = {}
        for family in self.families:
            for sample in family.samples:
                key = (sample.name, *(value for _name, value in sorted(sample.labels.items())))
                assert key not in self.samples
                self.samples[key] = sample.value

    def __getitem__(self, key: str | tuple[str, ...]) -> float:
        name, *labels = (key,) if isinstance(key, str) else key
        return self.samples[f"holdfast_{name}", *labels]

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return (f"holdfast_{key[0]}", *key[1:]) in self.samples


def exchange(sock: socket.socket, request: str) -> tuple[int, dict[str, str], str]:
    """One request on a connected socket; gives status, headers and body."""
    sock.sendall(request.encode())
    with sock.makefile("rb") as answer:
        status = int(answer.readline().split()[1])
        headers = {}
        while line := answer.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        return status, headers, answer.read(int(headers["content-length"])).decode()


def connect_unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    return sock


def get(path: Path, target: str = "/metrics", method: str = "GET") -> tuple[int, dict[str, str], str]:
    with connect_unix(path) as sock:
        return exchange(sock, f"{method} {target} HTTP/1.1\r\nHost: pool\r\n\r\n")


def scrape(server: Server) -> Metrics:
    status, headers, text = get(server.pool / "control.sock")
    assert (status, headers["content-type"]) == (200, CONTENT_TYPE_PLAIN_0_0_4)
    return Metrics(text)


def write(connection: Connection, offset: int, length: int) -> int:
    return call(connection, CMD_WRITE, offset=offset, length=length, payload=b"\x5a" * length).errno


@pytest.fixture
def scraper_path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.sock"


@pytest.fixture
def server(tmp_path: Path, scraper_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "pool", *OPTIONS, "--metrics", f"unix:{scraper_path}") as server:
        server.start()
        yield server
        server.stop()


def test_the_metrics_say_what_the_status_says(server: Server) -> None:
    connection = Connection(server.pool, "disk0")
    assert write(connection, 0, 3 * MIB) == 0
    assert call(connection, CMD_FLUSH).errno == 0
    with ControlClient(server.pool / "control.sock") as client:
        status, volume, statistics = client.status(), client.volume("disk0"), client.statistics()
    metrics = scrape(server)
    assert metrics["pool_capacity_bytes"] == status.capacity_bytes == 96 * MIB
    assert metrics["pool_live_bytes"] == status.live_bytes >= 3 * MIB
    (filled,) = [info for info in status.fill if info.kind == "pool"]  # as it is now, not at the last look
    assert filled.used_bytes == metrics["space_used_bytes", "pool", ""] == metrics["pool_used_bytes"] >= 3 * MIB
    assert metrics["pool_segment_size_bytes"] == status.segment_size_bytes
    assert metrics["pool_segments", "free"] == status.segments.free
    assert metrics["pool_segments", "absent"] == status.segments.unprepared
    assert metrics["pool_segments", "sealed"] + metrics["pool_segments", "dying"] == status.segments.sealed
    assert metrics["pool_reserve_segments"] == status.segments.reserved
    assert metrics["memory_budget_bytes"] == status.memory.budget_bytes
    held_back = sorted(caller.ring_bytes for caller in status.memory.reserved)[-2:]
    assert metrics["memory_limit_bytes", "ring"] == status.memory.ring_bytes - sum(held_back)
    assert [metrics["reserve_segments", caller.name] for caller in status.memory.reserved] == [
        caller.segments for caller in status.memory.reserved
    ]
    assert sum(caller.segments for caller in status.memory.reserved) == status.segments.reserved
    assert metrics["group_mapped_bytes", "default"] == 3 * MIB
    assert metrics["group_memory_used_bytes", "default", "map pages"] == metrics["memory_used_bytes", "map pages"]
    assert metrics["memory_used_bytes", "map pages"] == status.memory.map_pages * BLOCK_SIZE_BYTES > 0
    assert metrics["dirty_bytes"] == status.dirty_bytes == 0
    assert metrics["log_position_blocks"] == metrics["log_durable_position_blocks"] == status.log_position
    assert metrics["writeback_writes_total"] == statistics["flusher_writes"]
    assert metrics["writeback_rounds_total"] == statistics["flusher_rounds"]
    assert metrics["map_dirty_pages"] == statistics["map_pages_dirty"] > 0
    assert metrics["checkpoints_total"] == statistics["checkpoints"]
    assert metrics["connections"] == status.connections == 1
    assert metrics["volumes"] == metrics["volumes_listed"] == 1
    assert metrics["volume_size_bytes", "disk0"] == metrics["volumes_size_bytes"] == volume.size_bytes == GIB
    assert metrics["volume_mapped_bytes", "disk0"] == metrics["volumes_mapped_bytes"] == volume.mapped_bytes == 3 * MIB
    assert metrics["volume_connections", "disk0"] == 1
    assert ("volume_quota_bytes", "disk0") not in metrics
    assert metrics["uptime_seconds"] >= status.uptime_s
    connection.close()


def test_snapshots_are_sums_of_their_volume(server: Server) -> None:
    connection = Connection(server.pool, "disk0")
    with ControlClient(server.pool / "control.sock") as client:
        for label in "abc":
            assert write(connection, 0, MIB) == 0
            client.take_snapshots(TakeSnapshots(names=[f"disk0@{label}"]))
        assert write(connection, 0, MIB) == 0
        # What a clone was made from stays, without a name.
        client.clone_volume("disk0@b", CloneVolume(name="clone"))
        client.remove_volume("disk0@b")
        status, volume = client.status(), client.volume("disk0")
    metrics = scrape(server)
    assert metrics["volumes"] == metrics["volumes_listed"] == status.volumes == 2
    assert metrics["volumes_size_bytes"] == 2 * GIB
    assert metrics["snapshots"] == metrics["volume_snapshots", "disk0"] == status.snapshots == volume.snapshots == 2
    assert metrics["volume_snapshots_mapped_bytes", "disk0"] == volume.snapshots_bytes == 2 * MIB
    assert metrics["removed_nodes"] == status.removed == 1
    assert metrics["removed_mapped_bytes"] == status.removed_bytes == MIB
    assert ("volume_snapshots", "clone") not in metrics
    assert not any("@" in label for _name, *labels in metrics.samples for label in labels)
    connection.close()


def test_memory_that_is_accounted_for_is_about_what_is_resident(server: Server) -> None:
    metrics = scrape(server)
    base = metrics["memory_base_bytes"]
    shared = metrics["memory_accounted_bytes"] - base - 12 * MIB  # beyond the ring and the map
    assert 2 * MIB < shared < 6 * MIB, "the buffers that all connections share, and the cleaner's"
    assert base > 10 * MIB
    assert abs(metrics["memory_resident_bytes"] - metrics["memory_accounted_bytes"]) < 8 * MIB


def test_errors_that_clients_are_answered_are_counted(server: Server) -> None:
    with ControlClient(server.pool / "control.sock") as client:
        client.create_volume(CreateVolume(name="small", size_bytes=64 * MIB, quota_bytes=MIB))
    small = Connection(server.pool, "small")
    before = scrape(server)
    assert before["errors_total", "ENOSPC", "quota"] == 0
    assert before["volume_quota_bytes", "small"] == MIB
    # It arrives in pieces, none of which fits any more after the first: it is one answer all the same.
    assert write(small, 0, 16 * MIB) == ENOSPC
    assert write(small, 32 * MIB, 64 * KIB) == ENOSPC
    assert call(small, CMD_READ, offset=64 * MIB, length=BLOCK_SIZE_BYTES).errno == EINVAL
    after = scrape(server)
    assert after["errors_total", "ENOSPC", "quota"] == 2
    assert after["errors_total", "EINVAL", "request"] == 1
    assert after["errors_total", "ENOSPC", "pool space"] == 0
    assert call(small, CMD_TRIM, length=64 * MIB).errno == 0
    assert write(small, 0, MIB) == 0
    assert scrape(server)["errors_total", "ENOSPC", "quota"] == 2
    small.close()


def test_a_full_pool_and_a_damaged_block_are_counted_apart(server: Server) -> None:
    connection = Connection(server.pool, "disk0")
    written = 0
    while write(connection, written, MIB) == 0:
        written += MIB
        assert written < 96 * MIB
    metrics = scrape(server)
    assert metrics["errors_total", "ENOSPC", "pool space"] == 1
    assert metrics["pool_used_bytes"] >= metrics["pool_usable_bytes"]
    assert call(connection, CMD_FLUSH).errno == 0
    connection.close()
    server.stop()
    with open(segment_path(server.pool, 8), "r+b") as segment:
        segment.seek(100 * BLOCK_SIZE_BYTES)
        segment.write(bytes(2 * BLOCK_SIZE_BYTES))  # one of two neighbours may be the header of a commit
    server.start()
    connection = Connection(server.pool, "disk0")
    failed = [at for at in range(0, written, MIB) if call(connection, CMD_READ, offset=at, length=MIB).errno == EIO]
    with ControlClient(server.pool / "control.sock") as client:
        damaged = client.volume("disk0").damaged
    metrics = scrape(server)
    assert metrics["errors_total", "EIO", "damage"] == len(failed) > 0
    assert metrics["errors_total", "EIO", "disk"] == 0
    assert metrics["volume_damaged_blocks", "disk0"] == metrics["volumes_damaged_blocks"] == len(damaged) > 0
    connection.close()


def test_write_back_that_fails_is_counted_by_errno(tmp_path: Path) -> None:
    faults = ("--fault", "writeback=ENOSPC:1/1,after=8,count=2", "--fault", "flush=EIO:1/1,after=10,count=1")
    with serving(tmp_path / "pool", *OPTIONS, *faults) as server:
        server.start()
        connection = Connection(server.pool, "disk0")
        outcomes = set()
        struck = {"writeback": 0.0, "flush": 0.0}
        for number in range(200):
            assert write(connection, number * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES) == 0
            outcomes.add(call(connection, CMD_FLUSH).errno)
            metrics = scrape(server)
            struck = {point: metrics["faults_struck_total", point] for point in struck}
            if struck == {"writeback": 2, "flush": 1} and not metrics["writeback_paused"]:
                break
        assert struck == {"writeback": 2, "flush": 1}
        assert outcomes >= {0, EIO}
        assert metrics["writeback_failures_total", "ENOSPC"] == 2
        assert metrics["writeback_failures_total", "EIO"] == 1
        assert 1 <= metrics["writeback_retries_total"] <= 3
        assert metrics["writeback_paused_seconds_total"] > 0
        with ControlClient(server.pool / "control.sock") as client:
            assert metrics["volume_writeback_failures_total", "disk0"] == client.volume("disk0").write_back_failures > 0
        answered = metrics["errors_total", "ENOSPC", "host filesystem"] + metrics["errors_total", "EIO", "disk"]
        assert answered >= len(outcomes - {0}) > 0
        connection.close()
        server.stop()


# ---- the listener


def test_a_scraper_gets_the_metrics_and_nothing_else(server: Server, scraper_path: Path) -> None:
    status, headers, text = get(scraper_path)
    assert (status, headers["content-type"]) == (200, CONTENT_TYPE_PLAIN_0_0_4)
    assert Metrics(text)["volumes"] == 1
    for target in ("/", "/v1/pool", "/v1/volumes", "/v1/volumes/disk0", "/v1/shutdown", "/metrics/x", "/metrics%2f"):
        for method in ("GET", "POST", "DELETE", "PATCH"):
            assert get(scraper_path, target, method)[0] == 404
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        status, headers, _ = get(scraper_path, method=method)
        assert (status, headers["allow"]) == (405, "GET")
    assert scrape(server)["volumes"] == 1  # nobody removed anything, nor stopped the server


def test_scrapers_on_tcp_are_told_the_port_in_the_log(tmp_path: Path) -> None:
    with serving(tmp_path / "pool", *OPTIONS, "--metrics", "tcp:127.0.0.1:0") as server:
        server.start()
        found = re.search(r"metrics on tcp:127\.0\.0\.1:(\d+)", server.log())
        assert found is not None
        with socket.create_connection(("127.0.0.1", int(found[1]))) as sock:
            for _ in range(2):  # a scraper keeps its connection
                assert exchange(sock, "GET /metrics HTTP/1.1\r\nHost: pool\r\n\r\n")[0] == 200
        server.stop()


def test_connections_that_are_kept_for_nothing_do_not_shut_the_scraper_out(server: Server, scraper_path: Path) -> None:
    idle = [connect_unix(scraper_path) for _ in range(3 * METRICS_CONNECTIONS_MAX)]
    assert get(scraper_path)[0] == 200
    assert idle[0].recv(1) == b""
    for sock in idle:
        sock.close()


def test_a_metrics_address_that_is_taken_ends_the_start(tmp_path: Path, server: Server, scraper_path: Path) -> None:
    with serving(tmp_path / "other", *OPTIONS, "--metrics", f"unix:{scraper_path}") as second:
        code, said = second.refuse()
    assert code == 1
    assert f"cannot listen on unix:{scraper_path}: another server answers there" in said


# ---- the page


def test_every_metric_is_documented_and_every_documented_one_is_there(server: Server) -> None:
    families = scrape(server).families
    for family in families:
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge"), family.name
    exported = {(family.name + "_total" * (family.type == "counter"), family.type) for family in families}
    table = re.findall(r"^\| `(holdfast_\w+)(?:\{[\w, ]+\})?` \| (gauge|counter) \|", PAGE.read_text(), re.MULTILINE)
    assert len(table) == len(set(table))
    assert set(table) == exported


def test_the_page_names_labels_and_alerts_that_exist(server: Server) -> None:
    text = PAGE.read_text()
    exported = {name for name, *_labels in scrape(server).samples} | {
        "holdfast_faults_struck_total", "holdfast_volume_quota_bytes", "holdfast_writeback_failures_total",
            "holdfast_space_full_in_seconds",
        "holdfast_group_space_limit_bytes", "holdfast_group_memory_minimum_bytes",
        "holdfast_group_dirty_watermark_bytes", "holdfast_group_memory_limit_bytes",
        "holdfast_volume_snapshots", "holdfast_volume_snapshots_mapped_bytes",
    }  # fmt: skip
    assert set(re.findall(r"holdfast_\w+", text)) <= exported

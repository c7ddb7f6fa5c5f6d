"""What changed since a snapshot, as libnbd's programs see it: any backup tool that knows metadata contexts can ask."""

from __future__ import annotations

import json

import pytest

from holdfast.control.api import TakeSnapshots
from holdfast.errors import RequestError
from holdfast.units import KIB, MIB
from tests.clients.conftest import Disk
from tests.clients.raw_client import RawClient
from tests.clients.running import run
from tests.conftest import Tool
from tests.nbd.wire import TRIM, request, write

pytestmark = pytest.mark.clients


def do(disk: Disk, *requests: bytes) -> None:
    client = RawClient(disk.server.unix_path)
    client.choose(disk.name)
    for sent in requests:
        client.send(sent)
        assert client.receive(16)[4:8] == bytes(4)
    client.close()


@pytest.fixture
def aged(disk: Disk) -> Disk:
    """A disk of 64 MiB with snapshots a and b, and changes after each."""
    do(disk, write(0, b"1" * MIB))
    snapshot(disk, "a")
    do(disk, write(8 * KIB, b"2" * 4 * KIB), request(TRIM, 512 * KIB, 64 * KIB), write(32 * MIB, b"2" * 8 * KIB))
    snapshot(disk, "b")
    do(disk, write(MIB, b"3" * 512))
    return disk


def snapshot(disk: Disk, label: str) -> None:
    with disk.server.control() as client:
        client.take_snapshots(TakeSnapshots(names=[f"{disk.name}@{label}"]))


def at(disk: Disk, label: str) -> str:
    return disk.uri.replace(disk.name, f"{disk.name}%40{label}", 1)


def changed(tool: Tool, uri: str, since: str) -> list[tuple[int, int]]:
    told = json.loads(run(tool("nbdinfo"), "--json", f"--map=holdfast:changed-since:{since}", uri))
    return [(extent["offset"], extent["length"]) for extent in told if extent["type"] & 1]


def test_nbdinfo_maps_what_changed_from_one_snapshot_to_the_next(tool: Tool, aged: Disk) -> None:
    first = [(8 * KIB, 4 * KIB), (512 * KIB, 64 * KIB), (32 * MIB, 8 * KIB)]
    assert changed(tool, at(aged, "b"), "a") == first
    assert changed(tool, at(aged, "b"), f"{aged.name}@a") == first
    assert changed(tool, aged.uri, "b") == [(MIB, 4 * KIB)]
    assert changed(tool, aged.uri, "a") == sorted([*first, (MIB, 4 * KIB)])
    assert changed(tool, at(aged, "a"), "a") == []


def test_nbdinfo_lists_the_snapshots_that_can_be_compared_with(tool: Tool, aged: Disk) -> None:
    (export,) = json.loads(run(tool("nbdinfo"), "--json", aged.uri))["exports"]
    since = "holdfast:changed-since:"
    assert export["contexts"] == ["base:allocation", f"{since}a", f"{since}b"]
    assert "does not support" in run(tool("nbdinfo"), f"--map={since}nobody", aged.uri, code=1)


def test_one_request_tells_holes_and_changes_and_the_snapshot_stays_meanwhile(tool: Tool, aged: Disk) -> None:
    run(
        tool("nbdsh"),
        "-c",
        f"""
h.add_meta_context("base:allocation")
h.add_meta_context("holdfast:changed-since:a")
h.connect_uri("{at(aged, "b")}")
found = {{}}
def told(context, offset, entries, error):
    found[context] = list(zip(entries[::2], entries[1::2]))
h.block_status(MIB := 1 << 20, 0, told)
assert found["base:allocation"] == [(524288, 0), (65536, 3), (458752, 0)], found
assert found["holdfast:changed-since:a"] == [(8192, 0), (4096, 1), (512000, 0), (65536, 1), (458752, 0)], found
h.block_status(MIB, 0, told, nbd.CMD_FLAG_REQ_ONE)
assert found == {{"base:allocation": [(524288, 0)], "holdfast:changed-since:a": [(8192, 0)]}}, found
""",
    )


def test_a_snapshot_that_is_compared_with_is_in_use(aged: Disk) -> None:
    from holdfast.cli.nbd_session import NbdAddress, NbdSession

    session = NbdSession(NbdAddress.parse(at(aged, "b")), changed_since="a")
    try:
        with aged.server.control() as control:
            with pytest.raises(RequestError, match="is in use"):
                control.remove_volume(f"{aged.name}@a")
            control.remove_volume(f"{aged.name}@a", force=True)
    finally:
        session.close()

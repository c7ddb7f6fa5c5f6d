"""Row T6 beside today's servers: 256 MiB are written to a server in a memory control group of 64 MiB without swap.

What becomes of the peers is recorded, in the test's output and in docs/shortage.md; of them it is only asserted that
the limit is one. Ours is not killed, and everything that it acknowledged reads back after `kill -9`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.peers_under_a_limit import (
    HOLDFAST,
    HOLDFAST_ON_TMPFS,
    LIMIT_BYTES,
    LIMIT_ON_TMPFS_BYTES,
    PEERS,
    WRITTEN_MIB,
    Server,
    measure,
    table,
)
from tests.conftest import Tool

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.root]

IN_MEMORY = [server for server in PEERS if server.keeps_on != "disk"]


def test_holdfast_is_not_killed_and_has_everything_after_kill_9(tmp_path: Path) -> None:
    outcome = measure(HOLDFAST, tmp_path)
    assert (outcome.kills, outcome.kills_after) == (0, 0)
    assert outcome.acknowledged_mib == outcome.flushed_mib == WRITTEN_MIB
    assert outcome.read_back_mib == WRITTEN_MIB
    assert outcome.peak_bytes > LIMIT_BYTES // 2, "the group was not even used"


def test_holdfast_on_a_disk_in_memory_is_told_that_there_is_no_space(tmp_path: Path) -> None:
    """Its segment files would count in its own group: they stop before the kernel kills (rows T3 and T6)."""
    outcome = measure(HOLDFAST_ON_TMPFS, tmp_path, LIMIT_ON_TMPFS_BYTES)
    assert (outcome.kills, outcome.kills_after) == (0, 0)
    assert outcome.refusal == "ENOSPC"
    assert outcome.read_back_mib == outcome.acknowledged_mib > 0


@pytest.mark.parametrize("server", IN_MEMORY, ids=lambda server: f"{server.name} on {server.keeps_on}")
def test_a_disk_in_memory_ends_at_the_limit(server: Server, tool: Tool, tmp_path: Path) -> None:
    tool("nbdkit")
    tool("qemu-nbd")
    outcome = measure(server, tmp_path)
    print(table([outcome]))
    assert 0 < outcome.acknowledged_mib < LIMIT_BYTES >> 20
    assert outcome.kills or outcome.refusal, "something ended the writing"

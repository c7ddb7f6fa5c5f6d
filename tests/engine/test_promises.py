"""Promises 1 to 7, under hundreds of seeded runs with server deaths, power failures, a failing disk and a full pool.

A failing seed is replayed by its test's own id.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from errno import EIO, ENOMEM, ENOSPC
from pathlib import Path

import pytest

from holdfast.nbd.protocol import CMD_FLUSH, CMD_WRITE
from holdfast.runtime.ports import PREPARE, SYNC, WRITE
from holdfast.units import BLOCK_SIZE_BYTES, MIB
from tests.engine.disk import Fault
from tests.engine.workload import Workload

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    """For runs in which the engine has every reason to complain: that is not what is tested."""
    caplog.set_level(logging.CRITICAL, logger="holdfast")


def one_run(seed: int | str, *, rounds: int = 4, actions: int = 150) -> Workload:
    work = Workload(seed)
    rng = work.rng
    for _ in range(rounds):
        work.run(rng.randrange(actions))
        if rng.random() < 0.4:
            if len(work.volumes) < 4:
                work.create()
            else:
                work.remove(rng.choice(list(work.volumes)))
        if rng.random() < 0.2:
            work.settle()
            work.reopen()
        work.crash(power=rng.random() < 0.6)
    return work


def trace_of(seed: int) -> str:
    """What a run did to the disk and told its clients, in order."""
    return one_run(seed).world.disk.trace.hexdigest()


def test_the_same_seed_has_the_same_effects_to_the_byte_whatever_the_hashes() -> None:
    program = "from tests.engine.test_promises import trace_of; print(trace_of(5))"
    traces = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
        traces.add(run.stdout)
    assert len(traces) == 1
    assert trace_of(5) != trace_of(6)


@pytest.mark.parametrize("seed", range(80))
def test_what_was_promised_survives_deaths_and_power_failures(seed: int, quiet_log: None) -> None:
    one_run(seed)


@pytest.mark.parametrize("seed", range(20))
def test_many_crashes_in_a_row(seed: int, quiet_log: None) -> None:
    work = Workload(f"crashes {seed}", segments=24, weights={"checkpoint": 4, "trim": 10})
    for _ in range(10):
        work.run(work.rng.randrange(40))
        work.crash(power=work.rng.random() < 0.5)


@pytest.mark.parametrize("seed", range(20))
def test_a_full_pool_says_so_stays_readable_and_comes_back(seed: int, quiet_log: None) -> None:
    work = Workload(f"full {seed}", segments=24, sizes=[60 * MIB], weights={"trim": 0, "write": 80, "disconnect": 0})
    while not work.full:
        work.run(50)
    work.run(100)
    work.settle()
    work.check_quiet()
    if seed % 2:
        work.crash(power=seed % 4 == 1)
    for name in list(work.volumes):
        work.trim_all(name)
    work.settle()
    work.world.run(work.world.engine.checkpoint())
    work.world.run(work.world.engine.checkpoint())
    assert work.world.engine.space.room_for_clients()
    work.full = 0
    for name in list(work.volumes):
        work.write(name)
    work.settle()
    assert not work.full
    work.check_quiet()


@pytest.mark.parametrize("seed", range(30))
def test_data_that_cannot_be_written_back_stays_dirty_until_it_can(seed: int, quiet_log: None) -> None:
    work = Workload(f"failing {seed}")
    rng = work.rng
    for _ in range(3):
        work.run(rng.randrange(80))
        work.failing = True
        errno = rng.choice([EIO, ENOSPC, ENOMEM])
        for op in rng.sample([WRITE, SYNC, PREPARE], rng.choice([1, 2, 3])):
            work.world.disk.faults.append(Fault(op, errno, rng.choice([1.0, 0.5, 0.1])))
        work.run(rng.randrange(100))
        if rng.random() < 0.3:
            work.world.disk.faults.clear()
            work.crash(power=rng.random() < 0.5)
        work.world.disk.faults.clear()
        work.settle()
        work.failing = False
        client = work.client(next(iter(work.volumes)))
        work.world.settle()
        assert client.ask(CMD_FLUSH).errno == 0
        work.check_quiet()
    work.crash(power=True)


@pytest.mark.parametrize("errno", [EIO, ENOSPC, ENOMEM])
def test_a_flush_over_a_failing_disk_is_told_why(errno: int, quiet_log: None) -> None:
    work = Workload("told why", sizes=[8 * MIB])
    client = work.client("disk1")
    work.world.disk.faults.append(Fault(WRITE, errno))
    assert client.ask(CMD_WRITE, 0, payload=b"x" * BLOCK_SIZE_BYTES).errno == 0
    assert client.ask(CMD_FLUSH).errno == errno
    assert client.ask(CMD_FLUSH).errno == errno
    work.world.disk.faults.clear()
    assert client.ask(CMD_FLUSH).errno == 0


@pytest.mark.parametrize("seed", range(20))
def test_volumes_come_and_go_and_their_space_with_them(seed: int, quiet_log: None) -> None:
    work = Workload(f"volumes {seed}", segments=24, sizes=[8 * MIB, 60 * MIB])
    rng = work.rng
    for _ in range(12):
        work.run(rng.randrange(30))
        if rng.random() < 0.6 or len(work.volumes) < 2:
            work.create()
        else:
            work.remove(rng.choice(list(work.volumes)))
        if rng.random() < 0.2:
            work.crash(power=rng.random() < 0.5)
    work.settle()
    assert set(work.world.engine.by_name) == set(work.volumes)
    work.check_quiet()

"""One server a pool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.errors import PoolBusyError
from holdfast.runtime.lock import PoolLock


def test_a_second_owner_is_told_who_the_first_is(tmp_path: Path) -> None:
    with (
        PoolLock(tmp_path),
        pytest.raises(PoolBusyError, match=f"{tmp_path} is being served by process {os.getpid()};"),
    ):
        PoolLock(tmp_path)


def test_a_released_pool_can_be_taken_again(tmp_path: Path) -> None:
    first = PoolLock(tmp_path)
    first.release()
    first.release()
    PoolLock(tmp_path).release()


def test_a_refused_owner_does_not_disturb_the_first(tmp_path: Path) -> None:
    with PoolLock(tmp_path):
        for _ in range(2):
            with pytest.raises(PoolBusyError):
                PoolLock(tmp_path)


def test_a_killed_owner_leaves_no_lock_behind(tmp_path: Path) -> None:
    program = f"""
import signal
from holdfast.runtime.lock import PoolLock
lock = PoolLock({str(tmp_path)!r})
print("locked", flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(PoolBusyError, match=f"process {owner.pid};"):
            PoolLock(tmp_path)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    PoolLock(tmp_path).release()


def test_a_program_started_by_the_owner_does_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = PoolLock(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        lock.release()
        PoolLock(tmp_path).release()

"""CPU seconds and memory of a process, as /proc has them; and what the machine is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import machine
from bench.measure import (
    TICKS_PER_SECOND,
    Meter,
    cpu_seconds_per_gib,
    memory,
    parse_stat_cpu_seconds,
    parse_status_memory,
)
from bench.profiling import collapse_text
from holdfast.units import GIB, KIB, MIB


def test_cpu_seconds_are_user_and_system_time_together() -> None:
    stat = "42 (a name) with (parentheses)) S 1 2 3 4 5 6 7 8 9 10 300 200 0 0 20 0 1 0 5 6 7"
    assert parse_stat_cpu_seconds(stat) == 500 / TICKS_PER_SECOND


def test_memory_is_read_in_its_parts() -> None:
    status = (
        "Name:\tserver\nVmHWM:\t  900 kB\nVmRSS:\t  800 kB\nRssAnon:\t 300 kB\nRssFile:\t 100 kB\nRssShmem:\t 400 kB\n"
    )
    parsed = parse_status_memory(status)
    assert (parsed.peak, parsed.resident) == (900 * KIB, 800 * KIB)
    assert (parsed.anonymous, parsed.mapped_files, parsed.shared) == (300 * KIB, 100 * KIB, 400 * KIB)


def test_the_memory_of_this_very_process_adds_up() -> None:
    own = memory(os.getpid())
    assert own.anonymous + own.shared + own.mapped_files == own.resident


def test_nothing_moved_costs_nothing_that_can_be_told() -> None:
    assert cpu_seconds_per_gib(1.0, 0) is None
    assert cpu_seconds_per_gib(1.0, GIB // 2) == 2.0


def test_a_meter_sees_the_work_and_the_memory_of_its_block() -> None:
    program = (
        "import sys; sys.stdin.read(1); data = bytearray(range(256)) * 131072; print(sum(data)); sys.stdin.read(1)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with Meter(process.pid) as meter:
            process.stdin.write(b"x")
            process.stdin.flush()
            process.stdout.readline()
        process.stdin.write(b"x")
    assert meter.cpu_seconds > 0
    assert meter.memory.peak >= 32 * MIB
    assert meter.memory.peak >= meter.memory.resident


def test_a_failure_in_a_metered_block_is_not_hidden_by_the_death_of_the_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:

        def die() -> None:
            with Meter(process.pid):
                process.kill()
                process.wait()
                raise RuntimeError("the reason")

        with pytest.raises(RuntimeError, match="the reason"):
            die()


def test_the_filesystem_is_that_of_the_longest_mount_point() -> None:
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/deep xfs rw 0 0\n"
    assert machine.filesystem_of(Path("/tmp/deep/er"), mounts) == "xfs"
    assert machine.filesystem_of(Path("/tmp/deeper"), mounts) == "tmpfs"
    assert machine.filesystem_of(Path("/home"), mounts) == "ext4"


def test_the_noise_probe_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    noise = machine.measure_noise(tmp_path)
    assert noise.sync_write_4k_p50_us > 0
    assert noise.sync_write_4k_p99_us >= noise.sync_write_4k_p50_us
    assert list(tmp_path.iterdir()) == []


def test_a_tool_that_is_not_there_is_said_to_be_missing() -> None:
    assert machine.tool_version("no-such-tool-anywhere") == "not installed"


def test_samples_are_counted_by_function_once_for_each_stack() -> None:
    raw = "main (a.py:1);work (a.py:5) 3\nmain (a.py:1);work (a.py:6);work (a.py:7) 1\n"
    lines = collapse_text(raw).splitlines()
    assert lines[0] == "4 samples"
    assert lines[2].split() == ["100.0", "100.0", "work", "(a.py)"]

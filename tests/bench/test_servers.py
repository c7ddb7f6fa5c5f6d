"""Servers: started, waited for, stopped; and what a run may take of the disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.__main__ import select, select_peers
from bench.servers import Disk, Holdfast, NbdkitFile, capacity_bytes, new_disk, peers, serving
from bench.settings import RINGS_NAME, BenchError, Settings, check_space, hold_scratch, remove_disk, without_paths
from bench.table import run_cell, scratch_bytes
from bench.workloads import ROWS, State, bytes_max, job, log_bytes
from holdfast.units import GIB, MIB, TIB


def program(path: Path, body: str) -> Path:
    """An executable that stands where holdfast stands: a real process with the lines of `body`."""
    path.write_text(f"#!{sys.executable}\nimport os, signal, sys\n{body}\n")
    path.chmod(0o755)
    return path


def settings(directory: Path) -> Settings:
    return Settings(scratch=directory, holdfast=directory / "holdfast", disk_bytes=64 * MIB, runtime_s=1.0)


def test_holdfast_is_ready_when_it_says_so(tmp_path: Path) -> None:
    body = "print('starting', flush=True)\nprint('ready nbd+unix:///disk0', flush=True)\nsignal.pause()"
    server = Holdfast(executable=program(tmp_path / "holdfast", body))
    with serving(server, new_disk(server, tmp_path / "disk", 64 * MIB), tmp_path / "s") as running:
        assert running.ready_line == "ready nbd+unix:///disk0"
        assert running.process.poll() is None
    assert running.process.returncode == -15


def test_a_server_that_dies_at_its_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    server = Holdfast(executable=program(tmp_path / "holdfast", "sys.exit('holdfast: no room')"))
    with pytest.raises(BenchError, match=r"ended with 1: holdfast: no room"):
        server.start(new_disk(server, tmp_path / "disk", 64 * MIB), tmp_path / "s")


def test_a_server_that_died_meanwhile_does_not_pass_for_stopped(tmp_path: Path) -> None:
    body = "print('ready', 'x', flush=True)\nsys.stderr.write('out of luck')\nsys.exit(3)"
    server = Holdfast(executable=program(tmp_path / "holdfast", body))
    running = server.start(new_disk(server, tmp_path / "disk", 64 * MIB), tmp_path / "s")
    running.process.wait()
    with pytest.raises(BenchError, match="the server died: out of luck"):
        running.stop()


def test_a_missing_executable_is_one_line(tmp_path: Path) -> None:
    server = Holdfast(executable=tmp_path / "nowhere")
    with pytest.raises(BenchError, match="holdfast cannot be started"):
        server.start(new_disk(server, tmp_path / "disk", 64 * MIB), tmp_path / "s")


def test_a_cell_that_fails_says_why_without_paths_of_this_machine(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.state is State.WRITTEN)
    cell = run_cell(row, Holdfast(executable=tmp_path / "nowhere"), settings(tmp_path), {})
    assert "cannot be started" in cell.error
    assert str(tmp_path) not in cell.error


def test_a_pool_is_created_once_and_then_only_served(tmp_path: Path) -> None:
    server = Holdfast()
    disk = new_disk(server, tmp_path / "disk", GIB)
    first = server.command(disk, tmp_path / "s")
    (disk.directory / "pool").mkdir()
    (disk.directory / "pool" / "superblock").touch()
    again = server.command(disk, tmp_path / "s")
    assert f"disk0={GIB}" in first
    assert "--capacity" in first
    assert "--volume" not in again
    assert "--capacity" not in again


def test_a_disk_is_removed_with_the_rings_of_its_servers(tmp_path: Path) -> None:
    ring = tmp_path / "holdfast-1.ring"
    ring.touch()
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / RINGS_NAME).write_text(f"{ring}\n{tmp_path / 'gone.ring'}\n")
    remove_disk(tmp_path / "disk")
    assert list(tmp_path.iterdir()) == []


def test_nbdkit_serves_its_file_and_stops(tmp_path: Path, tool: object) -> None:
    assert callable(tool)
    tool("nbdkit")
    server = NbdkitFile()
    with serving(server, new_disk(server, tmp_path / "disk", 64 * MIB), tmp_path / "s") as running:
        assert (tmp_path / "s").is_socket()
    assert running.process.returncode is not None
    assert not (tmp_path / "s").exists()


def test_a_pool_holds_all_that_is_written_to_it() -> None:
    disk = Disk(Path("disk"), GIB, log_bytes=6 * GIB)
    assert capacity_bytes(disk) >= 7 * GIB
    assert capacity_bytes(disk) % (32 * MIB) == 0


def test_the_log_of_a_row_covers_fill_ramp_and_run(tmp_path: Path) -> None:
    for row in ROWS:
        if row.writes and row.client == "fio":
            told = settings(tmp_path)
            ramp = job(row, told, seed=1, ramp=True)
            assert log_bytes(row, told) >= told.disk_bytes + ramp.bytes_max + bytes_max(row, told)


def test_a_ramp_does_not_visit_the_offsets_of_the_run(tmp_path: Path) -> None:
    seeds = [
        job(ROWS[0], settings(tmp_path), seed=seed, ramp=ramp).seed for seed in (1, 2, 3) for ramp in (True, False)
    ]
    assert len(set(seeds)) == len(seeds)


def test_a_run_with_the_defaults_keeps_to_its_share_of_the_disk(tmp_path: Path) -> None:
    told = Settings(scratch=tmp_path, holdfast=tmp_path)
    assert scratch_bytes(ROWS, [Holdfast(), *peers()], told) <= 40 * GIB


def test_a_run_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="scratch space"):
        check_space(tmp_path, TIB)


def test_two_runs_do_not_share_a_scratch_directory(tmp_path: Path) -> None:
    hold_scratch(tmp_path / "scratch")
    with pytest.raises(BenchError, match="another run"):
        hold_scratch(tmp_path / "scratch")


def test_a_directory_of_somebody_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BenchError, match="not made by the benchmark"):
        hold_scratch(tmp_path)


def test_results_do_not_name_the_scratch_directory(tmp_path: Path) -> None:
    assert without_paths(f"no room in {tmp_path}/disk", settings(tmp_path)) == "no room in scratch/disk"


def test_rows_and_experiments_are_selected_by_pattern() -> None:
    rows, experiments = select(["randread-cold-*", "recovery"])
    assert [row.name for row in rows] == ["randread-cold-d1", "randread-cold-d16", "randread-cold-d64"]
    assert [module.NAME for module in experiments] == ["recovery"]


def test_a_misspelt_row_is_refused() -> None:
    with pytest.raises(BenchError, match="randred"):
        select(["randred-cold-d1"])


def test_peers_are_named_with_dashes_or_spaces() -> None:
    assert [peer.name for peer in select_peers(["qemu-nbd-*", "nbdkit file"])] == [
        "nbdkit file",
        "qemu-nbd raw",
        "qemu-nbd qcow2",
    ]


def test_every_target_of_the_issue_is_in_the_table() -> None:
    targets = {row.name: row.target for row in ROWS}
    assert len(targets) == len(ROWS), "names are unique"
    assert (targets["randwrite-d1"], targets["randwrite-d16"], targets["randwrite-d64"]) == (1.2, 2.5, 2.5)
    assert (targets["randwrite-flush-d1"], targets["randwrite-flush32-d32"]) == (1.4, 2.0)
    assert {targets[f"randread-cached-d{depth}"] for depth in (1, 16, 64)} == {1.0}
    assert {targets[f"randread-ring-d{depth}"] for depth in (1, 16, 64)} == {1.3}
    assert {targets[f"randread-cold-d{depth}"] for depth in (1, 16, 64)} == {0.9}
    assert (targets["write-1m-d4"], targets["read-1m-d4"]) == (1.1, 1.0)
    assert (targets["nbdcopy-in"], targets["nbdcopy-out"]) == (1.0, 1.0)

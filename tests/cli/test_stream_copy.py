"""Streams between real pools: snapshots whole and by increments, refused where they do not fit, gone on with after a
kill of either side."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast.cli.stream_format import StreamReader
from holdfast.control.api import TakeSnapshots
from holdfast.units import GIB, KIB, MIB
from tests.clients.raw_client import RawClient
from tests.clients.running import RunningServer
from tests.nbd.wire import TRIM, request, write

from .conftest import Run

pytestmark = pytest.mark.clients

SIZE_BYTES = 24 * MIB + 512


class Source:
    """A served pool with a volume that is written to, and what it should hold."""

    def __init__(self, server: RunningServer, size_bytes: int = SIZE_BYTES) -> None:
        self.server = server
        self.pool = server.pool
        self.content = bytearray(size_bytes)
        self.at: dict[str, bytes] = {}
        server.create("disk0", size_bytes)
        self._client = RawClient(server.unix_path)
        self._client.choose("disk0")
        self._rng = random.Random(5)

    def write(self, offset: int, length: int) -> None:
        data = self._rng.randbytes(length)
        self._do(write(offset, data))
        self.content[offset : offset + length] = data

    def trim(self, offset: int, length: int) -> None:
        self._do(request(TRIM, offset, length))
        self.content[offset : offset + length] = bytes(length)

    def _do(self, sent: bytes) -> None:
        self._client.send(sent)
        reply = self._client.receive(16)
        assert reply[4:8] == bytes(4), reply

    def snapshot(self, label: str) -> None:
        with self.server.control() as client:
            client.take_snapshots(TakeSnapshots(names=[f"disk0@{label}"]))
        self.at[label] = bytes(self.content)

    def __getitem__(self, span: str) -> str:
        return f"{self.pool}/disk0@{span}"

    def close(self) -> None:
        self._client.close()


def serving(directory: Path) -> RunningServer:
    return RunningServer(directory, memory="16M", capacity="256M", segment_size="1M")


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    server = serving(tmp_path / "from").start()
    source = Source(server)
    source.write(0, MIB + 4096)
    source.write(8 * MIB, 2 * MIB)
    source.write(SIZE_BYTES - 700, 700)
    source.snapshot("a")
    yield source
    source.close()
    if server.is_running:
        server.stop()
    server.end()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[RunningServer]:
    server = serving(tmp_path / "to").start()
    yield server
    if server.is_running:
        server.stop()
    server.end()


@pytest.fixture
def copy(run: Run) -> Callable[..., dict[str, object]]:
    def copy(*words: object) -> dict[str, object]:
        result = run("copy", "--json", *words)
        assert result.exit_code == 0, result.stderr
        report: dict[str, object] = json.loads(result.stdout)
        return report

    return copy


Copy = Callable[..., dict[str, object]]


def content(run: Run, name: str, tmp_path: Path) -> bytes:
    out = tmp_path / "read.raw"
    result = run("copy", name, out)
    assert result.exit_code == 0, result.stderr
    return out.read_bytes()


def change(source: Source, step: int) -> None:
    """A little here and there."""
    source.write(3 * MIB + step * 40960, 8192)
    source.write(9 * MIB + step * 512, 512)
    source.trim(8 * MIB + step * 65536, 32768)
    source.trim(2 * MIB, MIB // 2)  # a hole already


def test_a_snapshot_is_copied_raw_and_stays_as_it_was(source: Source, run: Run, tmp_path: Path) -> None:
    source.write(0, 4096)
    assert content(run, source["a"], tmp_path) == source.at["a"]
    refused = run("copy", tmp_path / "read.raw", source["a"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)


def test_a_chain_of_increments_arrives_snapshot_by_snapshot(
    source: Source, target: RunningServer, copy: Copy, run: Run, tmp_path: Path
) -> None:
    copy("--stream", source["a"], tmp_path / "a.hfs")
    for step, label in enumerate(("b", "c", "d")):
        change(source, step)
        source.snapshot(label)
    for span in ("a..b", "b..c", "c..d"):
        made = copy(source[span], tmp_path / f"{span}.hfs")
        assert made["data_bytes"] == 12 * KIB
        assert int(str(made["stream_bytes"])) < 20 * KIB
    for name in ("a", "a..b", "b..c", "c..d"):
        received = copy(tmp_path / f"{name}.hfs", f"{target.pool}/disk0")
        assert received["identical"]
    for label in "abcd":
        assert content(run, f"{target.pool}/disk0@{label}", tmp_path) == source.at[label], label
    assert content(run, f"{target.pool}/disk0", tmp_path) == source.at["d"]


def test_an_increment_over_a_growth_fits_once_the_volume_has_grown(
    source: Source, target: RunningServer, copy: Copy, run: Run, tmp_path: Path
) -> None:
    disk = f"{target.pool}/disk0"
    copy("--stream", source["a"], tmp_path / "a.hfs")
    copy(tmp_path / "a.hfs", disk)
    assert run("volume", "resize", f"{source.pool}/disk0", "2G").exit_code == 0
    image = tmp_path / "image.raw"
    image.write_bytes(b"grown" * 8192)
    with open(image, "r+b") as file:
        file.truncate(2 * GIB - 4096)
        file.seek(2 * GIB - 8192)
        file.write(b"e" * 4096)
    assert run("copy", image, f"{source.pool}/disk0").exit_code == 0
    source.snapshot("b")
    copy(source["a..b"], tmp_path / "b.hfs")
    refusal = refused(run, tmp_path / "b.hfs", disk)
    assert f"`holdfast volume resize {disk} {2 * GIB}`" in refusal
    assert run("volume", "resize", disk, str(2 * GIB)).exit_code == 0
    copy(tmp_path / "b.hfs", disk)
    compared = run("copy", "--verify", f"{disk}@b", tmp_path / "back.raw")
    assert compared.exit_code == 0, compared.stderr
    for offset in (0, SIZE_BYTES - 4096, 2 * GIB - 8192):
        with open(tmp_path / "back.raw", "rb") as ours, open(image, "rb") as theirs:
            ours.seek(offset)
            theirs.seek(offset)
            assert ours.read(4096) == theirs.read(4096), offset


def test_an_increment_over_several_snapshots_is_one_stream(
    source: Source, target: RunningServer, copy: Copy, run: Run, tmp_path: Path
) -> None:
    for step, label in enumerate(("b", "c")):
        change(source, step)
        source.snapshot(label)
    copy("--stream", source["a"], tmp_path / "a.hfs")
    copy(source["a..c"], tmp_path / "a..c.hfs")
    copy(tmp_path / "a.hfs", f"{target.pool}/other")
    copy(tmp_path / "a..c.hfs", f"{target.pool}/other@evening")
    assert content(run, f"{target.pool}/other@evening", tmp_path) == source.at["c"]


def test_what_was_received_can_go_back_and_on(
    source: Source, target: RunningServer, copy: Copy, run: Run, tmp_path: Path
) -> None:
    """The identity of a snapshot travels: an increment made where it was received fits where it came from."""
    copy("--stream", source["a"], tmp_path / "a.hfs")
    copy(tmp_path / "a.hfs", f"{target.pool}/disk0")
    image = tmp_path / "image.raw"
    image.write_bytes(random.Random(8).randbytes(MIB))
    copy(image, f"{target.pool}/disk0")
    with target.control() as client:
        client.take_snapshots(TakeSnapshots(names=["disk0@there"]))
    copy(f"{target.pool}/disk0@a..there", tmp_path / "back.hfs")
    copy(tmp_path / "back.hfs", f"{source.pool}/disk0")
    assert content(run, source["there"], tmp_path) == image.read_bytes() + source.at["a"][MIB:]


def test_a_stream_goes_through_a_pipe(source: Source, target: RunningServer, run: Run, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "holdfast.cli.main", "copy"]
    with subprocess.Popen([*words, "--stream", source["a"], "-"], stdout=subprocess.PIPE) as out:
        into = subprocess.run([*words, "-", f"{target.pool}/disk0"], stdin=out.stdout, capture_output=True, check=False)
    assert (out.returncode, into.returncode) == (0, 0), into.stderr
    assert content(run, f"{target.pool}/disk0@a", tmp_path) == source.at["a"]


def test_idle_pools_are_served_for_it(
    source: Source, copy: Copy, run: Run, empty_pool: Path, pool: Path, tmp_path: Path
) -> None:
    copy("--stream", source["a"], tmp_path / "a.hfs")
    copy(tmp_path / "a.hfs", f"{pool}/disk0")
    assert content(run, f"{pool}/disk0@a", tmp_path) == source.at["a"]
    copy("--stream", f"{pool}/disk0@a", tmp_path / "again.hfs")
    assert run("check", pool).exit_code == 0


# --- What does not fit ------------------------------------------------------------------------------------------------


@pytest.fixture
def streams(source: Source, copy: Copy, tmp_path: Path) -> dict[str, Path]:
    """The streams of a chain a, b, c."""
    for step, label in enumerate("bc"):
        change(source, step)
        source.snapshot(label)
    files = {}
    for name in ("a", "a..b", "b..c"):
        files[name] = tmp_path / f"{name}.hfs"
        copy(*(["--stream"] if name == "a" else []), source[name], files[name])
    return files


def refused(run: Run, *words: object) -> str:
    result = run("copy", *words)
    assert result.exit_code == 1, (result.stdout, result.stderr)
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_an_increment_needs_what_it_begins_with(
    streams: dict[str, Path], source: Source, target: RunningServer, copy: Copy, run: Run, tmp_path: Path
) -> None:
    disk = f"{target.pool}/disk0"
    assert "there is no such volume" in refused(run, streams["a..b"], disk)
    copy(streams["a"], disk)
    assert "has no snapshot with the content of disk0@b" in refused(run, streams["b..c"], disk)
    assert "there already" in refused(run, streams["a"], disk)
    copy("--resume", streams["a"], disk)
    assert "a whole stream makes a new one" in refused(run, streams["a"], f"{disk}@other")
    copy(streams["a..b"], disk)
    assert content(run, disk, tmp_path) == source.at["b"]
    assert "another snapshot of this name" in refused(run, streams["b..c"], f"{disk}@a")


def test_a_volume_that_was_written_to_is_refused_before_it_is_touched(
    streams: dict[str, Path], source: Source, target: RunningServer, copy: Copy, run: Run, tmp_path: Path
) -> None:
    disk = f"{target.pool}/disk0"
    copy(streams["a"], disk)
    image = tmp_path / "image.raw"
    image.write_bytes(b"x" * 4096)
    copy(image, disk)
    assert "was written to since disk0@a, at offset 0 first" in refused(run, streams["a..b"], disk)
    assert "where the stream has nothing" in refused(run, "--resume", streams["a..b"], disk)
    forced = run("copy", "--force", streams["a..b"], disk)
    assert forced.exit_code == 0
    assert "applied by force" in forced.stderr
    assert "has no snapshot with the content of disk0@b" in refused(run, streams["b..c"], disk)
    assert content(run, disk, tmp_path) == b"x" * 4096 + source.at["b"][4096:]


def test_what_begins_nearly_as_a_stream_is_not_taken_for_the_content_of_a_disk(
    streams: dict[str, Path], target: RunningServer, copy: Copy, run: Run, tmp_path: Path
) -> None:
    disk = f"{target.pool}/disk0"
    whole = streams["a"].read_bytes()
    copy(streams["a"], disk)
    before = content(run, disk, tmp_path)
    damaged, empty = tmp_path / "damaged", tmp_path / "empty"
    for raw in (b"X" + whole[1:], whole[:1], whole[:7], b"\0" * 8 + whole[8:]):
        damaged.write_bytes(raw)
        assert "a stream whose beginning is damaged or cut off" in refused(run, damaged, disk)
    for raw in (whole[:8], whole[:15], whole[:40]):
        damaged.write_bytes(raw)
        refused(run, damaged, disk)
    empty.touch()
    result = run("copy", empty, disk)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "is empty; is it the right SRC?" in result.stderr
    assert content(run, disk, tmp_path) == before
    damaged.write_bytes(b"HFSTREAD" + bytes(4096 - 8))  # begins alike, and is something else
    copy(damaged, disk)
    assert content(run, disk, tmp_path)[:4096] == damaged.read_bytes()


def test_what_makes_no_sense_is_one_line(source: Source, run: Run, tmp_path: Path) -> None:
    words: list[tuple[object, ...]] = [
        (source["a.."], tmp_path / "out"),
        (source["..a"], tmp_path / "out"),
        ("--stream", f"{source.pool}/disk0", tmp_path / "out"),
        ("--stream", tmp_path / "out", f"{source.pool}/disk0"),
        (source["a..a"], f"{source.pool}/disk1"),
        ("--verify", "--stream", source["a"], tmp_path / "out"),
        ("--resume", f"{source.pool}/disk0", tmp_path / "out"),
        (f"{source.pool}/disk0", "-"),
    ]
    for each in words:
        result = run("copy", *each)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), (each, result.stderr)
    assert "take one with" in run("copy", source["a.."], tmp_path / "out").stderr
    assert run("copy", source["a..nobody"], tmp_path / "out").exit_code == 1
    assert not (tmp_path / "out").exists()


def test_a_stream_as_it_is_can_be_the_content_of_a_disk(
    streams: dict[str, Path], target: RunningServer, run: Run, tmp_path: Path
) -> None:
    assert run("copy", "--raw", streams["a..b"], f"{target.pool}/image").exit_code == 0
    assert content(run, f"{target.pool}/image", tmp_path) == streams["a..b"].read_bytes()
    assert run("copy", streams["a..b"], tmp_path / "elsewhere").exit_code == 2


# --- Broken off -------------------------------------------------------------------------------------------------------


def record_ends(stream: Path) -> list[int]:
    with open(stream, "rb") as file:
        reader = StreamReader(file.readinto, str(stream))
        ends = [reader.totals.stream_bytes]
        while reader.record() is not None:
            ends.append(reader.totals.stream_bytes)
    return ends


def test_an_import_that_was_cut_off_anywhere_is_gone_on_with(
    streams: dict[str, Path], source: Source, target: RunningServer, copy: Copy, run: Run, tmp_path: Path
) -> None:
    disk = f"{target.pool}/disk0"
    for name in ("a", "a..b"):
        whole = streams[name].read_bytes()
        part = tmp_path / "part.hfs"
        ends = record_ends(streams[name])
        for length in (ends[len(ends) // 2], ends[len(ends) // 2] + 20, ends[-1]):
            part.write_bytes(whole[:length])
            first = length == ends[len(ends) // 2]
            assert "cut off" in refused(run, *([] if first else ["--resume"]), part, disk)
            with target.control() as client:
                assert f"disk0@{name[-1]}" not in [info.name for info in client.snapshots()]
        done = copy("--resume", streams[name], disk)
        assert int(str(done["kept_bytes"])) > 0
        assert content(run, f"{disk}@{name[-1]}", tmp_path) == source.at[name[-1]]


def test_an_import_goes_on_after_kills_of_the_client_and_of_the_server(
    source: Source, target: RunningServer, copy: Copy, run: Run, tmp_path: Path
) -> None:
    """The stream is fed through a pipe, so it is known how far the client has got."""
    disk = f"{target.pool}/disk0"
    stream = tmp_path / "a.hfs"
    copy("--stream", source["a"], stream)
    whole = stream.read_bytes()
    words = [sys.executable, "-m", "holdfast.cli.main", "copy"]
    for victim in ("client", "server"):
        resume = ["--resume"] if victim == "server" else []
        with subprocess.Popen([*words, *resume, "-", disk], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            assert client.stdin is not None
            client.stdin.write(whole[: len(whole) - 200 * KIB])
            client.stdin.flush()  # all but what fits into a pipe was read
            if victim == "client":
                client.send_signal(signal.SIGKILL)
            else:
                target.kill()
                with suppress(BrokenPipeError):  # it may end before it has read this
                    client.stdin.write(whole[-200 * KIB :])
                    client.stdin.flush()
            client.communicate()
            assert client.returncode in (-signal.SIGKILL, 2)
    target.start()
    with target.control() as control:
        assert control.snapshots() == []
    done = copy("--resume", stream, disk)
    assert int(str(done["kept_bytes"])) > MIB
    assert content(run, f"{disk}@a", tmp_path) == source.at["a"]


def test_an_export_goes_on_behind_the_last_whole_record(
    streams: dict[str, Path], source: Source, copy: Copy, run: Run, tmp_path: Path
) -> None:
    for name in ("a", "a..b"):
        options = ["--stream"] if name == "a" else []
        whole = streams[name].read_bytes()
        part = tmp_path / "part.hfs"
        ends = record_ends(streams[name])
        for length in (0, 10, ends[0], ends[0] + 5, ends[1], ends[-1] - 1, ends[-1], len(whole) - 1, len(whole)):
            part.write_bytes(whole[:length])
            copy("--resume", *options, source[name], part)
            assert part.read_bytes() == whole, length
        damaged = bytearray(whole)
        damaged[ends[1] + 3] ^= 1
        part.write_bytes(damaged)
        copy("--resume", *options, source[name], part)
        assert part.read_bytes() == whole
    refusal = run("copy", "--resume", source["b..c"], part)
    assert (refusal.exit_code, refusal.stderr.count("\n")) == (2, 1)
    assert os.path.getsize(part) == len(whole)
    fresh = copy("--resume", source["b..c"], tmp_path / "fresh.hfs")
    assert not fresh["resumed"]

"""`holdfast copy` against NBD servers that nobody here wrote, and against one that never answers."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.cli.command import CommandError
from holdfast.cli.nbd_session import NbdAddress
from holdfast.cli.places import FilePlace
from holdfast.cli.transfer import DifferentError, compare
from holdfast.nbd.handshake import Handshake
from holdfast.nbd.negotiated import Export
from holdfast.runtime.lock import PoolLock
from holdfast.units import MIB
from tests.conftest import Tool
from tests.control.fake_service import FakeService

from .conftest import Run

pytestmark = pytest.mark.clients

Serve = Callable[..., str]

# LISTEN_FDS is for the process that LISTEN_PID names, and the sockets begin at descriptor 3.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def serve(tmp_path: Path, tool: Tool) -> Iterator[Serve]:
    """`serve("nbdkit", "memory", "1M")` starts a server and gives its URI.

    The listening socket is made here and handed over (LISTEN_FDS), so that there is no moment to wait for.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def start(program: str, *arguments: object) -> str:
        path = tmp_path / f"nbd{len(processes)}.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(64)
            fd = listener.fileno()
            words = [tool(program), *map(str, arguments)]
            processes.append(subprocess.Popen([sys.executable, "-c", HAND_OVER, str(fd), *words], pass_fds=[fd]))
        return f"nbd+unix:///?socket={path}"

    yield start
    for process in processes:
        process.terminate()
        process.wait()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """6 MiB and 777 bytes: data, a hole, written zeroes, a short end."""
    path = tmp_path / "image.raw"
    data = random.Random(6).randbytes
    with open(path, "wb") as file:
        file.write(data(2 * MIB + 5000))
        file.seek(4 * MIB)
        file.write(bytes(MIB) + data(MIB + 777))
    return path


def allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def make_target(path: Path, size_bytes: int) -> Path:
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return path


SERVERS = [
    ("nbdkit", "file", "{}"),
    ("nbdkit", "--no-sr", "file", "{}"),
    ("nbdkit", "--filter=multi-conn", "file", "{}", "multi-conn-mode=disable"),
    ("nbdkit", "--filter=nozero", "file", "{}"),
    ("nbdkit", "--filter=noextents", "file", "{}"),
    ("qemu-nbd", "--persistent", "-f", "raw", "{}"),
]


@pytest.mark.parametrize("words", SERVERS, ids=" ".join)
def test_a_file_goes_to_a_server_and_comes_back_the_same(
    run: Run, serve: Serve, image: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    size_bytes = image.stat().st_size
    served = tmp_path / "served.raw"
    served.write_bytes(b"\xff" * (-(-size_bytes // 512) * 512))  # what was there must not shine through the holes
    uri = serve(*(word.format(served) for word in words))
    into = run("copy", "--verify", image, uri)
    assert into.exit_code == 0, into.stderr
    assert into.stdout.endswith(", verified\n")
    out = tmp_path / "out.raw"
    assert run("copy", "--verify", uri, out).exit_code == 0
    assert out.read_bytes()[:size_bytes] == image.read_bytes()
    assert allocated_bytes(out) < 4 * MIB


def test_one_connection_with_one_request_is_enough(run: Run, serve: Serve, image: Path, tmp_path: Path) -> None:
    uri = serve("nbdkit", "file", image)
    out = tmp_path / "out.raw"
    assert run("copy", uri, out, "--connections", 1, "--requests", 1).exit_code == 0
    assert out.read_bytes() == image.read_bytes()


def test_a_server_is_copied_to_a_server(run: Run, serve: Serve, image: Path, tmp_path: Path) -> None:
    target = make_target(tmp_path / "target.raw", 8 * MIB)
    result = run("copy", "--verify", serve("nbdkit", "file", image), serve("nbdkit", "file", target))
    assert result.exit_code == 0, result.stderr
    assert target.read_bytes() == image.read_bytes().ljust(8 * MIB, b"\0")


def test_what_lies_behind_the_source_is_kept(run: Run, serve: Serve, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"a" * 5000)
    target.write_bytes(b"b" * 9000)
    assert run("copy", source, serve("nbdkit", "file", target)).exit_code == 0
    assert target.read_bytes() == b"a" * 5000 + b"b" * 4000


def test_a_large_hole_costs_no_reading(run: Run, serve: Serve, tmp_path: Path) -> None:
    source = make_target(tmp_path / "huge", 1 << 40)
    with open(source, "r+b") as file:
        file.seek(1 << 39)
        file.write(b"needle")
    out = tmp_path / "out"
    report = json.loads(run("copy", "--json", "--verify", serve("nbdkit", "file", source), out).stdout)
    assert report["size_bytes"] == 1 << 40
    assert report["data_bytes"] < MIB
    assert report["identical"]
    with open(out, "rb") as file:
        file.seek(1 << 39)
        assert file.read(6) == b"needle"


def test_the_report_as_json(run: Run, serve: Serve, image: Path, tmp_path: Path) -> None:
    result = run("copy", "--json", serve("nbdkit", "file", image), tmp_path / "out")
    report = json.loads(result.stdout)
    assert report["size_bytes"] == image.stat().st_size
    assert (report["verified"], report["different_at"]) == (False, None)
    assert 3 * MIB < report["data_bytes"] < 6 * MIB


def test_quiet_is_quiet(run: Run, serve: Serve, image: Path, tmp_path: Path) -> None:
    result = run("copy", "--quiet", serve("nbdkit", "file", image), tmp_path / "out")
    assert (result.exit_code, result.output) == (0, "")


# --- Volumes of a pool ------------------------------------------------------------------------------------------------


def test_a_missing_volume_is_created_with_the_size_of_the_source(
    run: Run, serve: Serve, image: Path, served_pool: Path, service: FakeService, tmp_path: Path
) -> None:
    target = make_target(tmp_path / "volume", image.stat().st_size)
    service.uri = serve("nbdkit", "file", target)
    result = run("copy", image, f"{served_pool}/disk0")
    assert result.exit_code == 0, result.stderr
    assert service.known["disk0"].size_bytes == image.stat().st_size
    assert target.read_bytes() == image.read_bytes()


def test_a_volume_is_copied_out_through_its_uri(
    run: Run, serve: Serve, image: Path, served_pool: Path, service: FakeService, tmp_path: Path
) -> None:
    service.add("disk0", image.stat().st_size, uris=["nbd://nowhere.invalid/", serve("nbdkit", "file", image)])
    assert run("copy", f"{served_pool}/disk0", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_no_create_leaves_the_pool_alone(run: Run, image: Path, served_pool: Path, service: FakeService) -> None:
    result = run("copy", "--no-create", image, f"{served_pool}/disk0")
    assert (result.exit_code, service.known) == (1, {})
    assert "there is no volume 'disk0'" in result.stderr


def test_an_empty_source_makes_no_volume(run: Run, served_pool: Path, service: FakeService, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    check_one_line(run, empty, f"{served_pool}/disk0", f"holdfast: {empty} is empty; is it the right SRC?")
    assert service.known == {}


def test_a_name_that_no_volume_can_have_is_refused_before_anything_is_looked_for(
    run: Run, image: Path, served_pool: Path
) -> None:
    check_one_line(run, image, f"{served_pool}/{'x' * 300}", "has 300 characters; at most 255 are allowed")
    check_one_line(run, image, f"{served_pool}/a b", "'a b' is not a volume name")


def test_a_pool_that_cannot_be_served_says_why(run: Run, image: Path, pool: Path) -> None:
    lock = PoolLock(pool)
    result = run("copy", image, f"{pool}/disk0")
    lock.release()
    assert result.exit_code == 2
    assert result.stderr.startswith(f"holdfast: {pool}: the pool cannot be served for this copy: ")
    assert result.stderr.count("\n") == 1


# --- Block devices ----------------------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path, requires_root: None) -> Iterator[Path]:
    """A block device of 8 MiB, full of ones."""
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xff" * (8 * MIB))
    made = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@pytest.mark.root
def test_a_device_gets_the_zeroes_and_keeps_what_lies_behind(
    run: Run, serve: Serve, image: Path, device: Path, tmp_path: Path
) -> None:
    result = run("copy", "--verify", serve("nbdkit", "file", image), device)
    assert result.exit_code == 0, result.stderr
    size_bytes = image.stat().st_size
    assert device.read_bytes() == image.read_bytes() + b"\xff" * (8 * MIB - size_bytes)
    out = tmp_path / "back"
    target = serve("nbdkit", "file", make_target(out, 8 * MIB))
    assert run("copy", device, target).exit_code == 0
    assert out.read_bytes() == device.read_bytes()


@pytest.mark.root
def test_a_device_that_is_too_small_is_left_alone(run: Run, serve: Serve, device: Path) -> None:
    check_one_line(run, serve("nbdkit", "memory", "9M"), device, "8M (8388608 bytes) cannot hold")
    assert device.read_bytes() == b"\xff" * (8 * MIB)


# --- Refusals ---------------------------------------------------------------------------------------------------------


def check_one_line(run: Run, source: object, target: object, said: str, *, code: int = 2) -> None:
    result = run("copy", source, target)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stderr.startswith("holdfast: ")
    assert result.stderr.count("\n") == 1, result.stderr


def test_a_source_that_does_not_fit_changes_nothing(run: Run, serve: Serve, image: Path, tmp_path: Path) -> None:
    target = make_target(tmp_path / "small", MIB)
    check_one_line(run, image, serve("nbdkit", "file", target), "1M (1048576 bytes) cannot hold")
    assert target.read_bytes() == bytes(MIB)


def test_a_read_only_export_is_no_target(run: Run, serve: Serve, image: Path) -> None:
    check_one_line(run, image, serve("nbdkit", "-r", "memory", "8M"), "the export is read-only")


def test_two_files_are_the_business_of_cp(run: Run, image: Path, tmp_path: Path) -> None:
    check_one_line(run, image, tmp_path / "out", "are both files")
    assert not (tmp_path / "out").exists()


def test_a_missing_source_is_named(run: Run, tmp_path: Path) -> None:
    check_one_line(run, tmp_path / "nothing", "nbd://localhost/x", f"{tmp_path}/nothing: no such file")


def test_a_directory_is_no_source(run: Run, tmp_path: Path) -> None:
    check_one_line(run, tmp_path, "nbd://localhost/x", "neither a regular file nor a block device")


def test_a_pool_without_a_name_is_no_source(run: Run, pool: Path, tmp_path: Path) -> None:
    check_one_line(run, pool, tmp_path / "out", f"names no volume; write {pool}/NAME")


def test_a_server_that_is_not_there_is_named(run: Run, image: Path, tmp_path: Path) -> None:
    check_one_line(run, image, f"nbd+unix:///x?socket={tmp_path}/none", "is the server running?")


def test_an_unknown_export_is_named(run: Run, image: Path, serve: Serve) -> None:
    uri = serve("qemu-nbd", "-f", "raw", "-x", "known", image).replace("///?", "///unknown?")
    check_one_line(run, uri, image.with_name("out"), "unknown")


def test_a_write_error_is_told_with_its_place(run: Run, image: Path, serve: Serve) -> None:
    uri = serve("nbdkit", "--filter=error", "memory", "8M", "error-pwrite=ENOSPC", "error-pwrite-rate=1")
    check_one_line(run, image, uri, "no space left on device", code=1)


@pytest.mark.parametrize("structured", [(), ("--no-sr",)], ids=["structured", "simple"])
def test_a_read_error_is_told_with_its_place(
    run: Run, image: Path, serve: Serve, tmp_path: Path, structured: tuple[str, ...]
) -> None:
    uri = serve("nbdkit", *structured, "--filter=error", "file", image, "error-pread=EIO", "error-pread-rate=1")
    check_one_line(run, uri, tmp_path / "out", "input/output error")


@pytest.mark.parametrize("uri", ["nbds://host/x", "nbd+unix:///x", "http://host/x", "nbd://host:99999/x"])
def test_addresses_that_cannot_be_used_are_explained(uri: str) -> None:
    with pytest.raises(CommandError, match="nbd"):
        NbdAddress.parse(uri)


# --- Comparing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 3 * MIB, 5 * MIB - 1, 6 * MIB + 776])
def test_a_single_different_byte_is_found(image: Path, tmp_path: Path, offset: int) -> None:
    other = tmp_path / "other"
    other.write_bytes(image.read_bytes())
    with open(other, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    left, right = FilePlace(image), FilePlace(other)
    with pytest.raises(DifferentError) as caught:
        compare(left, right, connections=2, progress=lambda done: None)
    assert caught.value.offset <= offset < caught.value.offset + MIB
    left.close()
    right.close()


# --- Interruption -----------------------------------------------------------------------------------------------------


class OneExport:
    def names(self) -> list[str]:
        return [""]

    def find(self, name: str) -> Export | None:
        return Export(name=name, size_bytes=MIB)

    def base(self, export: Export, snapshot: str) -> str | None:
        return None

    def bases(self, export: Export) -> list[str]:
        return []


def shake_hands_then_hang(listener: socket.socket, asked: threading.Event, end: threading.Event) -> None:
    """Accept two connections and negotiate; tell when the first one asks something; answer nothing."""
    peers = []
    for _ in range(2):
        peer, _address = listener.accept()
        peers.append(peer)
        handshake = Handshake(OneExport())
        while handshake.negotiated is None:
            peer.sendall(handshake.data_to_send())
            handshake.receive_data(peer.recv(65536))
        peer.sendall(handshake.data_to_send())
    peers[0].recv(1)
    asked.set()
    end.wait()
    for peer in peers:
        peer.close()


def test_ctrl_c_ends_a_copy_that_waits_for_a_silent_server(tmp_path: Path) -> None:
    asked, end = threading.Event(), threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        thread = threading.Thread(target=shake_hands_then_hang, args=(listener, asked, end))
        thread.start()
        uri = f"nbd+unix:///?socket={tmp_path}/s"
        # A shell without job control lets what it starts in the background ignore SIGINT.
        heed = ["env", "--default-signal=INT"]
        words = [
            *heed,
            sys.executable,
            "-m",
            "holdfast.cli.main",
            "copy",
            "--connections",
            "1",
            uri,
            str(tmp_path / "out"),
        ]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"})
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        end.set()
        thread.join()
    assert process.returncode == 130
    assert said.strip() == b""

"""What only the real disk can show: full filesystems, no direct I/O, no descriptors, the page cache, interrupted work.
Its contract as a port is in tests/conformance."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from holdfast.errors import RequestError
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.disk import DirectoryDisk
from holdfast.runtime.loop import EventLoop
from holdfast.runtime.ports import PREPARE, READ, SUPERBLOCK, SYNC, WRITE, Io
from holdfast.units import MIB

from .conftest import Mount

SEGMENT_BYTES = 1 * MIB


@pytest.fixture(params=["threads", "uring"])
def workers(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    loop = EventLoop()
    try:
        DirectoryDisk(tmp_path / "probe", loop, segment_size_bytes=SEGMENT_BYTES, workers=request.param).close()
    except RequestError as error:
        pytest.skip(str(error))
    finally:
        loop.dispose()
    return str(request.param)


@pytest.fixture
def open_disk(workers: str, loop: EventLoop) -> Iterator[Callable[[Path], DirectoryDisk]]:
    disks: list[DirectoryDisk] = []

    def open_it(directory: Path) -> DirectoryDisk:
        disks.append(DirectoryDisk(directory, loop, segment_size_bytes=SEGMENT_BYTES, workers=workers))
        return disks[-1]

    yield open_it
    for disk in disks:
        disk.close()


OpenDisk = Callable[[Path], DirectoryDisk]


@pytest.fixture
def disk(open_disk: OpenDisk, tmp_path: Path) -> DirectoryDisk:
    disk = open_disk(tmp_path / "pool")
    assert disk.run(Io(PREPARE, 0, length=SEGMENT_BYTES)) == 0
    return disk


def complete(loop: EventLoop, disk: DirectoryDisk, *operations: Io) -> list[int]:
    left = len(operations)

    def done(io: Io) -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    for io in operations:
        io.done = done
        disk.start(io)
    loop.run()
    return [io.result for io in operations]


def block(value: int) -> memoryview:
    view = aligned_buffer(4096)
    view[:] = bytes([value]) * 4096
    return view


def open_files(directory: str) -> list[str]:
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    targets = [os.readlink(link) for link in links if os.path.islink(link)]
    return [target for target in targets if target.startswith(directory)]


def test_the_directories_are_made(open_disk: OpenDisk, tmp_path: Path) -> None:
    open_disk(tmp_path / "pool")
    assert (tmp_path / "pool" / "segments").is_dir()


def test_files_have_the_names_of_the_format(disk: DirectoryDisk) -> None:
    disk.run(Io(PREPARE, 0x1A2B, length=SEGMENT_BYTES))
    disk.run(Io(WRITE, SUPERBLOCK, 0, block(1), durable=True))
    assert sorted(os.listdir(disk.directory)) == ["segments", "superblock"]
    assert sorted(os.listdir(os.path.join(disk.directory, "segments"))) == ["00000000.seg", "00001a2b.seg"]


def test_strange_files_are_no_segments(disk: DirectoryDisk) -> None:
    for name in ("00000001.seg.new", "1.seg", "0000000G.seg", "notes.txt", "00000ABC.seg"):
        Path(disk.directory, "segments", name).touch()
    assert disk.segments() == [0]


def test_a_prepared_segment_has_all_its_space(disk: DirectoryDisk) -> None:
    status = os.stat(os.path.join(disk.directory, "segments", "00000000.seg"))
    assert status.st_size == SEGMENT_BYTES
    assert status.st_blocks * 512 >= SEGMENT_BYTES


def test_a_segment_of_another_size_is_made_again(disk: DirectoryDisk, loop: EventLoop) -> None:
    path = Path(disk.directory, "segments", "00000007.seg")
    path.write_bytes(b"x" * 4096)
    assert disk.run(Io(READ, 7, 0, aligned_buffer(4096))) == 0
    assert complete(loop, disk, Io(PREPARE, 7, length=SEGMENT_BYTES)) == [0]
    view = aligned_buffer(SEGMENT_BYTES)
    assert disk.run(Io(READ, 7, 0, view)) == 0
    assert view == bytes(SEGMENT_BYTES)


def test_what_an_interrupted_prepare_left_is_overwritten(disk: DirectoryDisk) -> None:
    Path(disk.directory, "segments", "00000007.seg.new").write_bytes(b"half of it")
    assert disk.run(Io(PREPARE, 7, length=SEGMENT_BYTES)) == 0
    assert sorted(os.listdir(os.path.join(disk.directory, "segments"))) == ["00000000.seg", "00000007.seg"]


@pytest.mark.root
def test_a_full_filesystem_is_an_answer_and_leaves_nothing_behind(
    mount: Mount, open_disk: OpenDisk, loop: EventLoop
) -> None:
    disk = open_disk(mount("tmpfs", "size=4m"))
    assert complete(loop, disk, Io(PREPARE, 0, length=16 * MIB)) == [-errno.ENOSPC]
    assert os.listdir(os.path.join(disk.directory, "segments")) == []
    assert complete(loop, disk, Io(PREPARE, 0, length=SEGMENT_BYTES)) == [0]


@pytest.mark.root
def test_without_direct_io_writes_are_synced_and_it_is_said_once(
    mount: Mount, open_disk: OpenDisk, loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    disk = open_disk(mount("ramfs"))
    prepares = [Io(PREPARE, file, length=SEGMENT_BYTES) for file in (0, 1)]
    assert complete(loop, disk, *prepares) == [0, 0]
    writes = [Io(WRITE, file, 0, block(file + 1), durable=True) for file in (0, 1)]
    assert complete(loop, disk, *writes) == [0, 0]
    assert complete(loop, disk, Io(SYNC, 0)) == [0]
    view = aligned_buffer(4096)
    assert complete(loop, disk, Io(READ, 1, 0, view)) == [0]
    assert view == block(2)
    assert [record.getMessage() for record in caplog.records if "refuses direct I/O" in record.getMessage()] == [
        f"{disk.directory} refuses direct I/O; every write is synced at once, which is slower"
    ]


@pytest.mark.root
def test_without_nowait_reads_go_to_a_worker(
    mount: Mount, open_disk: OpenDisk, caplog: pytest.LogCaptureFixture
) -> None:
    disk = open_disk(mount("ramfs"))
    disk.run(Io(PREPARE, 0, length=SEGMENT_BYTES))
    disk.run(Io(READ, 0, 0, aligned_buffer(4096)))
    assert not disk.read_now(0, 0, aligned_buffer(4096))


def test_what_was_just_read_needs_no_waiting(disk: DirectoryDisk) -> None:
    disk.run(Io(WRITE, 0, 0, block(9), durable=True))
    disk.run(Io(READ, 0, 0, aligned_buffer(4096)))
    view = aligned_buffer(4096)
    assert disk.read_now(0, 0, view)
    assert view == block(9)


def test_direct_writes_leave_nothing_dirty_in_the_page_cache(disk: DirectoryDisk) -> None:
    disk.run(Io(READ, 0, 0, aligned_buffer(4096)))
    disk.run(Io(WRITE, 0, 0, block(3)))
    path = os.path.join(disk.directory, "segments", "00000000.seg")
    fd = os.open(path, os.O_RDONLY)
    assert os.pread(fd, 4096, 0) == bytes(block(3))
    os.close(fd)


def test_read_descriptors_stay_within_their_limit(disk: DirectoryDisk, loop: EventLoop) -> None:
    for file in range(1, 8):
        disk.run(Io(PREPARE, file, length=4096))
    disk._read_files_max = 3
    reads = [Io(READ, file, 0, aligned_buffer(4096)) for file in range(8)]
    assert complete(loop, disk, *reads) == [0] * 8
    # The turn that completed the last of them evicted after it.
    assert len(open_files(disk.directory)) == 3
    assert complete(loop, disk, *reads) == [0] * 8


def test_without_descriptors_an_idle_one_is_given_up(
    disk: DirectoryDisk, loop: EventLoop, no_free_descriptors: Callable[[], AbstractContextManager[None]]
) -> None:
    disk.run(Io(PREPARE, 1, length=4096))
    disk.run(Io(READ, 0, 0, aligned_buffer(4096)))
    with no_free_descriptors():
        assert complete(loop, disk, Io(READ, 1, 0, aligned_buffer(4096))) == [0]


def test_without_any_descriptor_to_give_up_it_is_an_answer(
    disk: DirectoryDisk, loop: EventLoop, no_free_descriptors: Callable[[], AbstractContextManager[None]]
) -> None:
    with no_free_descriptors():
        assert complete(loop, disk, Io(READ, 0, 0, aligned_buffer(4096))) == [-errno.EMFILE]


def test_without_threads_the_loop_does_the_work(
    loop: EventLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The one thing that cannot be had for real: a limit on threads would hold for the whole test run's user.
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    disk = DirectoryDisk(tmp_path, loop, segment_size_bytes=SEGMENT_BYTES)
    assert complete(loop, disk, Io(PREPARE, 0, length=SEGMENT_BYTES)) == [0]
    assert complete(loop, disk, Io(WRITE, 0, 0, block(1), durable=True), Io(SYNC, 0)) == [0, 0]
    assert "can't start new thread" in caplog.text
    disk.close()


def test_a_mistake_of_ours_in_a_worker_is_raised_in_the_loop_and_ends_the_operation(
    workers: str, tmp_path: Path
) -> None:
    errors: list[Exception] = []
    loop = EventLoop(on_error=errors.append)
    other = DirectoryDisk(tmp_path / "other", loop, segment_size_bytes=SEGMENT_BYTES, workers=workers)
    assert complete(loop, other, Io(READ, 0, 0, None)) == [-errno.EIO]
    assert [type(error) for error in errors] == [AssertionError]
    other.close()
    loop.dispose()


def test_a_done_that_raises_does_not_take_the_others_with_it(workers: str, tmp_path: Path) -> None:
    errors: list[Exception] = []
    loop = EventLoop(on_error=errors.append)
    other = DirectoryDisk(tmp_path / "other", loop, segment_size_bytes=SEGMENT_BYTES, workers=workers)
    other.run(Io(PREPARE, 0, length=SEGMENT_BYTES))
    other.run(Io(READ, 0, 0, aligned_buffer(4096)))
    finished: list[Io] = []

    def fail(io: Io) -> None:
        finished.append(io)
        if len(finished) == 20:
            loop.stop()
        raise LookupError("done failed")

    for _ in range(20):
        other.start(Io(READ, 0, 0, aligned_buffer(4096), done=fail))
    loop.run()
    assert len(finished) == 20
    other.close()
    loop.dispose()


def test_close_finishes_what_was_started_and_calls_done_from_the_loop(
    workers: str, loop: EventLoop, tmp_path: Path
) -> None:
    disk = DirectoryDisk(tmp_path, loop, segment_size_bytes=SEGMENT_BYTES, workers=workers)
    disk.run(Io(PREPARE, 0, length=SEGMENT_BYTES))
    disk.run(Io(WRITE, 0, 0, block(99)))
    finished: list[Io] = []
    for n in range(32):
        disk.start(Io(WRITE, 0, n * 4096, block(n), done=finished.append))
    disk.close()
    assert finished == []
    data = Path(tmp_path, "segments", "00000000.seg").read_bytes()
    assert data[: 32 * 4096] == b"".join(bytes([n]) * 4096 for n in range(32))
    assert open_files(str(tmp_path)) == []
    loop.post(loop.stop)
    loop.run()
    assert len(finished) == 32


def test_more_operations_than_a_ring_holds_all_complete(disk: DirectoryDisk, loop: EventLoop) -> None:
    assert disk.run(Io(READ, 0, 0, aligned_buffer(4096))) == 0
    reads = [Io(READ, 0, n % 256 * 4096, aligned_buffer(4096)) for n in range(1500)]
    assert complete(loop, disk, *reads) == [0] * 1500


def test_a_read_across_the_end_of_an_open_file_is_an_error(disk: DirectoryDisk, loop: EventLoop) -> None:
    assert disk.run(Io(READ, 0, 0, aligned_buffer(4096))) == 0
    read = Io(READ, 0, SEGMENT_BYTES - 4096, aligned_buffer(8192))
    assert complete(loop, disk, read) == [-errno.EIO]


def test_a_write_from_read_only_memory_is_carried_out(disk: DirectoryDisk, loop: EventLoop) -> None:
    disk.run(Io(WRITE, 0, 0, block(1)))
    assert complete(loop, disk, Io(WRITE, 0, 4096, block(2).toreadonly())) == [0]


def test_an_unknown_kind_of_workers_is_refused_in_a_sentence(loop: EventLoop, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="set it to threads, uring or auto"):
        DirectoryDisk(tmp_path, loop, segment_size_bytes=SEGMENT_BYTES, workers="magic")


def test_where_a_ring_is_refused_it_is_an_error_only_if_it_was_asked_for(tmp_path: Path) -> None:
    # The kernel's refusal that can be had without a container: no descriptor for the ring.  In a process of its own,
    # because a hard limit that was lowered stays so.
    program = f"""
import os, resource
from holdfast.errors import RequestError
from holdfast.runtime.disk import DirectoryDisk
from holdfast.runtime.loop import EventLoop
loop = EventLoop()
def open_with(workers):
    return DirectoryDisk({str(tmp_path)!r}, loop, segment_size_bytes=1 << 20, workers=workers)
open_with("threads").close()
next_fd = os.dup(0)
os.close(next_fd)
resource.setrlimit(resource.RLIMIT_NOFILE, (next_fd, next_fd))
open_with("auto").close()
print("auto works")
try:
    open_with("uring")
except RequestError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.splitlines()[0] == "auto works"
    assert "HOLDFAST_IO=uring, and this system refuses io_uring" in output

"""The pool's directory as a `Disk`: segment files and the superblock, through io_uring and worker threads.

    DIRECTORY/superblock
    DIRECTORY/segments/%08x.seg

Reads go through the page cache: `read_now` asks whether it holds the range, and a READ waits for it in a worker.
Writes go past it (O_DIRECT), so that no dirty page of ours ever exists in the kernel, where it could be marked clean
behind our back when the device fails.  Worker threads make system calls and nothing else; results come back to the loop
in batches.  Where the kernel permits io_uring, reads and direct writes of files that are open already go there instead:
it was faster at both, and at nothing else (docs/decisions/0002-io-workers.md).  HOLDFAST_IO=threads|uring|auto chooses.

1. The loop's thread never waits for the device: it opens no file while serving, and reads only with RWF_NOWAIT.
2. A descriptor in use by an operation is not closed: evicting is the loop's work, and it passes over busy files.
3. A file has its final name only when it is written through and durable; PREPARE that is interrupted leaves a
   temporary name, which the next one overwrites.
4. A SYNC that failed has failed for good: the kernel may report the error once and then success over lost data.  Who
   asked must write again what the SYNC was to cover, before asking anew.
5. Progress: threads are started when the disk is opened.  If the system has none to give, the work is done by those of
   another class, or in the last resort by the loop itself: slower, never stuck.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import queue
import threading
from collections import deque
from collections.abc import Callable, MutableMapping
from functools import cached_property
from pathlib import Path

from holdfast.errors import ACTIONS, RequestError, Resource, log_fields
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.files import (
    SEGMENTS_NAME,
    SUPERBLOCK_NAME,
    has_size,
    make_directory,
    open_direct,
    raise_descriptor_limit,
    remove_if_there,
    segment_name,
    segment_number,
    sync_directory,
    write_all,
    write_through,
)
from holdfast.runtime.host import IN_MEMORY, filesystem_type, left_for_files_bytes
from holdfast.runtime.loop import EventLoop
from holdfast.runtime.ports import READ, SUPERBLOCK, WRITE, Io
from holdfast.runtime.uring import OP_READ, OP_WRITE, Uring
from holdfast.units import BLOCK_SIZE_BYTES, MIB

# Read descriptors kept open: at 32 MiB a segment 4096 of them cover 128 GiB of hot data.  The rest of the limit is for
# connections.
_READ_FILES_MAX = 4096
# Segments being written at a time are a handful (data, map, cleaner); the superblock is one more.
_WRITE_FILES_MAX = 16
# Two, so that a write does not wait behind a sync, nor a sync behind a write.
_WRITE_THREADS = 2
_PREPARE_CHUNK_BYTES = MIB
# Errors by which a filesystem or kernel says that it does not know RWF_NOWAIT, and not that the data are not there.
_NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_NO_DESCRIPTOR = frozenset({-errno.EMFILE, -errno.ENFILE})
# Results of the ring after which a thread does the operation again, from the start: it knows how to go on in parts.
_REPEAT = frozenset({-errno.EAGAIN, -errno.EINTR})
_RWF_NOWAIT = os.RWF_NOWAIT
_RWF_DSYNC = os.RWF_DSYNC

_log = logging.getLogger("holdfast.runtime.disk")


class DirectoryDisk:
    """`Disk` over a directory, which is made if it does not exist.

    `workers` is "threads", "uring" (RequestError where that is forbidden) or "auto"; None takes it from HOLDFAST_IO.
    `refuses_thread` says of a thread that it cannot be had, for `--fault`.
    """

    # I: fixed at open. L: loop thread only. A: any thread, by single dict, set or deque operations.
    def __init__(
        self,
        directory: str | os.PathLike[str],
        loop: EventLoop,
        *,
        threads: int = 4,
        segment_size_bytes: int,
        workers: str | None = None,
        refuses_thread: Callable[[str], object] = lambda _name: False,
        memory_margin_bytes: int = 0,
    ) -> None:
        """`memory_margin_bytes`: where the files are in memory (tmpfs), so much of it is left to other things."""
        assert threads > 0, threads
        assert segment_size_bytes % BLOCK_SIZE_BYTES == 0, segment_size_bytes
        self.directory = os.fspath(directory)  # I
        self.segment_size_bytes = segment_size_bytes  # I
        self._segments_directory = os.path.join(self.directory, SEGMENTS_NAME)  # I
        make_directory(self.directory)
        make_directory(self._segments_directory)
        self._loop = loop
        self._refuses_thread = refuses_thread  # I
        self._memory_margin_bytes = memory_margin_bytes  # I
        self._memory_short = False  # A: it was said that there is none left
        self._read_files_max = min(_READ_FILES_MAX, raise_descriptor_limit() // 2)  # I
        self._read_fds: dict[int, int] = {}  # A: added by workers, in the order of opening; taken out by the loop
        self._write_fds: dict[int, int] = {}  # A: the same
        self._busy: dict[int, int] = {}  # L: operations in flight, by file
        loop.disk_at_work = self._busy.__len__
        self._read_now_works = True  # L
        self._buffered_files: set[int] = set()  # A: files on which O_DIRECT was refused
        self._buffered_lock = threading.Lock()
        self._completed: deque[Io] = deque()  # A
        self._reap_posted = False  # A
        self._closing = False  # L: no `done` is called from inside `close`
        self._zeroes = aligned_buffer(_PREPARE_CHUNK_BYTES)  # I
        self._perform_by_op: tuple[Callable[[Io], None], ...] = (
            self._read, self._write, self._sync, self._prepare, self._remove,
        )  # fmt: skip
        self._threads: list[threading.Thread] = []
        self._ring = self._open_ring(workers or os.environ.get("HOLDFAST_IO", "auto"))  # I
        self._queues = self._start_workers(reads=threads)  # I

    # The port.

    def read_now(self, file: int, offset: int, view: memoryview) -> bool:
        fd = self._read_fds.get(file)
        if fd is None or not self._read_now_works:
            return False
        try:
            return os.preadv(fd, (view,), offset, _RWF_NOWAIT) == len(view)
        except BlockingIOError:
            return False
        except OSError as error:
            # A real error comes again, with an answer, in the READ that follows.
            if error.errno in _NOT_SUPPORTED:
                self._read_now_works = False
                _log.info("%s cannot tell what is cached; every read goes to a worker", self.directory)
            return False

    def will_read(self, file: int, offset: int, length: int) -> None:
        fd = self._read_fds.get(file)
        if fd is not None:
            try:
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)
            except OSError:
                return  # A hint that is not taken changes nothing; the READ itself will report what is wrong.

    def drop_cached(self, file: int, offset: int, length: int) -> None:
        fd = self._read_fds.get(file)
        if fd is not None:
            try:
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
            except OSError:
                return  # As above: the READ that follows finds out.

    def start(self, io: Io) -> None:
        file = io.file
        busy = self._busy
        busy[file] = busy.get(file, 0) + 1
        ring = self._ring
        if ring is not None and io.view and ring.has_room():
            # Only what needs no opening: that is a thread's work, once a file, and puts the descriptor where it is
            # found here the next time.
            if io.op == READ:
                fd = self._read_fds.get(file)
                if fd is not None:
                    ring.start(OP_READ, fd, io)
                    return
            elif io.op == WRITE and not io.view.readonly and file not in self._buffered_files:
                fd = self._write_fds.get(file)
                if fd is not None:
                    ring.start(OP_WRITE, fd, io, _RWF_DSYNC if io.durable else 0)
                    return
        self._enqueue(io)

    def run(self, io: Io) -> int:
        try:
            self._perform_by_op[io.op](io)
        except OSError as error:
            io.result = -(error.errno or errno.EIO)
        self._evict()
        return io.result

    def segments(self) -> list[int]:
        numbers = map(segment_number, os.listdir(self._segments_directory))
        return sorted(number for number in numbers if number is not None)

    def exists(self, file: int) -> bool:
        return os.path.exists(self._path(file))

    def close(self) -> None:
        """Finish what was started, end the workers and close every file.

        Completions of operations that were still running are called by the loop if it runs again.
        """
        self._closing = True
        if self._ring is not None:
            self._ring.close()
        for work in {id(work): work for work in self._queues if work is not None}.values():
            for _ in self._threads:
                work.put(None)
        for thread in self._threads:
            thread.join()
        for fds in (self._read_fds, self._write_fds):
            for fd in fds.values():
                os.close(fd)
            fds.clear()

    # Workers.

    def _open_ring(self, workers: str) -> Uring | None:
        if workers not in ("threads", "uring", "auto"):
            raise RequestError(f"HOLDFAST_IO={workers} is unknown; set it to threads, uring or auto")
        # On other processors the ring is right in practice and not by promise; see the module.
        if workers == "threads" or (workers == "auto" and platform.machine() != "x86_64"):
            return None
        try:
            return Uring(self._loop, self._ring_completed)
        except OSError as error:
            if workers == "uring":
                raise RequestError(
                    f"HOLDFAST_IO=uring, and this system refuses io_uring: {error.strerror}; use threads or auto"
                ) from error
            _log.info("no io_uring here (%s); threads do all input and output", error.strerror)
            return None

    def _ring_completed(self, io: Io, result: int) -> None:
        if 0 <= result < io.length or result in _REPEAT:
            self._enqueue(io)
            return
        io.result = min(result, 0)
        self._completed.append(io)
        if self._closing:
            self._loop.post(self._reap)
        else:
            self._reap()

    def _enqueue(self, io: Io) -> None:
        work = self._queues[io.op]
        if work is None:
            self._loop.call_soon(lambda: self._perform(io))
        else:
            work.put(io)

    def _start_workers(self, *, reads: int) -> tuple[queue.SimpleQueue[Io | None] | None, ...]:
        """The queue of each operation, in the order of the numbers READ, WRITE, SYNC, PREPARE, REMOVE."""
        writing = self._start_class("write", _WRITE_THREADS)
        reading = self._start_class("read", reads) or writing
        preparing = self._start_class("prepare", 1) or reading
        return reading, writing, writing, preparing, preparing

    def _start_class(self, name: str, count: int) -> queue.SimpleQueue[Io | None] | None:
        work: queue.SimpleQueue[Io | None] = queue.SimpleQueue()
        started = 0
        for number in range(count):
            thread = threading.Thread(target=self._work, args=(work,), name=f"disk-{name}-{number}", daemon=True)
            try:
                if self._refuses_thread(thread.name):
                    raise RuntimeError("refused on purpose")
                thread.start()
            except RuntimeError as error:
                _log.warning(
                    "only %d of %d threads for %ss (%s): slower, and nothing is lost; %s",
                    started,
                    count,
                    name,
                    error,
                    ACTIONS[Resource.THREADS],
                    extra=log_fields(Resource.THREADS),
                )
                break
            started += 1
            self._threads.append(thread)
        return work if started else None

    def _work(self, work: queue.SimpleQueue[Io | None]) -> None:
        get = work.get
        perform = self._perform
        while (io := get()) is not None:
            perform(io)

    def _perform(self, io: Io) -> None:
        """Carry `io` out and hand it to the loop. In a worker; for want of one, in the loop."""
        try:
            self._perform_by_op[io.op](io)
        except OSError as error:
            io.result = -(error.errno or errno.EIO)
        except Exception as error:
            # A mistake of ours. The operation must end all the same, and the loop's owner must hear of it.
            io.result = -errno.EIO
            self._loop.post(_raiser(error))
        self._completed.append(io)
        # The loop clears the flag before it empties the queue: one post for each batch, and none is missed.
        if not self._reap_posted:
            self._reap_posted = True
            self._loop.post(self._reap)

    def _reap(self) -> None:
        self._reap_posted = False
        completed = self._completed
        busy = self._busy
        try:
            while completed:
                io = completed.popleft()
                file = io.file
                left = busy[file] - 1
                if left:
                    busy[file] = left
                else:
                    del busy[file]
                if io.result in _NO_DESCRIPTOR and self._evict(at_least_one=True):
                    self.start(io)
                    continue
                done = io.done
                if done is not None:
                    done(io)
        finally:
            if completed and not self._reap_posted:
                # A `done` raised; the others get their call all the same.
                self._reap_posted = True
                self._loop.post(self._reap)
        if len(self._read_fds) > self._read_files_max or len(self._write_fds) > _WRITE_FILES_MAX:
            self._evict()

    # Operations, in a worker. Each sets `io.result` to 0, or to -EIO for what is no OSError, or raises OSError.

    def _read(self, io: Io) -> None:
        view = io.view
        assert view is not None
        fd = self._read_fds.get(io.file)
        if fd is None:
            fd = self._open(io.file, self._read_fds, os.O_RDONLY)
        count = os.preadv(fd, (view,), io.offset)
        at = count
        while at < len(view) and count:
            count = os.preadv(fd, (view[at:],), io.offset + at)
            at += count
        io.result = 0 if at == len(view) else -errno.EIO

    def _write(self, io: Io) -> None:
        view = io.view
        assert view is not None
        file = io.file
        fd = self._write_fds.get(file)
        if fd is None:
            fd = self._open_for_writing(file)
        if file in self._buffered_files:
            # Dirty pages exist here after all, and the kernel tells of their fate once: whoever syncs first.  One
            # write at a time, synced before the next, is told its own.
            with self._buffered_lock:
                io.result = write_all(fd, view, io.offset, 0)
                os.fdatasync(fd)
        else:
            io.result = write_all(fd, view, io.offset, _RWF_DSYNC if io.durable else 0)

    def _sync(self, io: Io) -> None:
        fd = self._write_fds.get(io.file)
        if fd is None:
            fd = self._open_for_writing(io.file)
        os.fdatasync(fd)
        io.result = 0

    @cached_property
    def _is_in_memory(self) -> bool:
        return filesystem_type(Path(self.directory).resolve()) in IN_MEMORY

    def _prepare(self, io: Io) -> None:
        """Write the file through under a temporary name: allocated, converted to written extents, durable, renamed."""
        assert io.length > 0, io.length
        assert io.length % BLOCK_SIZE_BYTES == 0, io.length
        path = self._path(io.file)
        if not has_size(path, io.length):
            if self._is_in_memory and left_for_files_bytes() < io.length + self._memory_margin_bytes:
                # The kernel would not refuse: in a control group without swap it kills.
                if not self._memory_short:
                    self._memory_short = True
                    _log.warning(
                        "the pool is in memory (%s), and no more of that is left for another segment file; put the "
                        "pool on a disk, or give the control group a higher limit",
                        self.directory,
                        extra=log_fields(Resource.MEMORY),
                    )
                raise OSError(errno.ENOSPC, "no memory is left for another segment file")
            temporary = path + ".new"
            try:
                write_through(temporary, io.length, self._zeroes)
                os.rename(temporary, path)
            except OSError:
                # What was allocated is given back: the reason may have been that there is no space.
                remove_if_there(temporary)
                raise
            # Of a file of another size that had the name until now; nobody uses one that is being prepared.
            self._close_descriptors(io.file)
        sync_directory(self._segments_directory)
        io.result = 0

    def _remove(self, io: Io) -> None:
        self._close_descriptors(io.file)
        remove_if_there(self._path(io.file))
        sync_directory(self._segments_directory)
        io.result = 0

    def _close_descriptors(self, file: int) -> None:
        for fds in (self._read_fds, self._write_fds):
            stale = fds.pop(file, None)
            if stale is not None:
                os.close(stale)

    # Files.

    def _path(self, file: int) -> str:
        if file == SUPERBLOCK:
            return os.path.join(self.directory, SUPERBLOCK_NAME)
        assert file >= 0, file
        return os.path.join(self._segments_directory, segment_name(file))

    def _open(self, file: int, fds: MutableMapping[int, int], flags: int) -> int:
        return _keep(fds, file, os.open(self._path(file), flags | os.O_CLOEXEC))

    def _open_for_writing(self, file: int) -> int:
        path = self._path(file)
        # Only the superblock is made by writing to it; segments are made by PREPARE.
        fd, direct = open_direct(path, os.O_RDWR | (os.O_CREAT if file == SUPERBLOCK else 0))
        if not direct:
            if not self._buffered_files:
                _log.warning("%s refuses direct I/O; every write is synced at once, which is slower", self.directory)
            self._buffered_files.add(file)
        if file == SUPERBLOCK:
            try:
                # At each opening, not only at the first: the process that made the name may have died before this.
                sync_directory(self.directory)
            except OSError:
                os.close(fd)
                raise
        return _keep(self._write_fds, file, fd)

    def _evict(self, *, at_least_one: bool = False) -> bool:
        """Close descriptors beyond the limits, the longest open first, passing over files in use. True if any was."""
        evicted = _evict_from(self._write_fds, _WRITE_FILES_MAX, self._busy)
        reads_max = self._read_files_max
        if at_least_one and not evicted:
            reads_max = min(reads_max, len(self._read_fds) - 1)
        return _evict_from(self._read_fds, reads_max, self._busy) or evicted


def _evict_from(fds: dict[int, int], limit: int, busy: dict[int, int]) -> bool:
    excess = len(fds) - limit
    if excess <= 0:
        return False
    # By order of opening: noting each use would cost every read more than opening again costs a few.
    idle = [file for file in list(fds) if file not in busy][:excess]
    for file in idle:
        os.close(fds.pop(file))
    return bool(idle)


def _keep(fds: MutableMapping[int, int], file: int, fd: int) -> int:
    """The descriptor to use: ours, or the one of another worker that was quicker."""
    kept = fds.setdefault(file, fd)
    if kept != fd:
        os.close(fd)
    return kept


def _raiser(error: Exception) -> Callable[[], None]:
    def raise_in_loop() -> None:
        raise error

    return raise_in_loop

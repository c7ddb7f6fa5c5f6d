"""The two kinds of place that a copy goes from or to: a file or block device of this host, and an NBD export.

A `Place` is opened once for a copy; `open_worker` gives each of its threads a `Worker` of its own.  Reads go to a sink
(`data`, `zeros`), and a worker is such a sink itself: a copy is a read with the other side's worker as the sink.

Holes and zeroes are the same thing here: `extents` tells what reads as zeroes without reading it, `zeros` makes the
target read as zeroes in the cheapest way that it has, none at all where it was empty to begin with.
"""

from __future__ import annotations

import ctypes
import errno as errno_codes
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from holdfast.cli.command import CommandError, describe_os_error
from holdfast.cli.nbd_session import CONTROL_BYTES_MAX, TRANSFER_BYTES_MAX, NbdAddress, NbdSession, Sink
from holdfast.cli.zeros import split_zeros
from holdfast.units import BLOCK_SIZE_BYTES, format_size

Extent = tuple[int, int, bool]  # offset, length, reads as zeroes

_ZEROS: Final = memoryview(bytes(TRANSFER_BYTES_MAX))

_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2


class Worker(Protocol):
    """One thread's access to a place."""

    transfer_bytes_max: int

    def read(self, offset: int, length: int, sink: Sink) -> None:
        """Bring these bytes to `sink`, now or by the time `drain` returns. At most `transfer_bytes_max`."""
        ...

    def data(self, offset: int, view: memoryview) -> None: ...

    def zeros(self, offset: int, length: int) -> None: ...

    def drain(self) -> None: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


class Place(Protocol):
    size_bytes: int

    @property
    def parallel(self) -> bool:
        """False where only one worker may be open at a time."""
        ...

    def open_worker(self) -> Worker: ...

    def extents(self, end: int) -> Iterator[Extent]:
        """What is zero and what may not be, from 0 to `end`, in order and complete."""
        ...

    def flush(self) -> None: ...

    def interrupt(self) -> None:
        """Make a call that is blocked in `extents` fail, in whatever thread it is."""
        ...

    def close(self) -> None: ...


# --- Files ------------------------------------------------------------------------------------------------------------


class FilePlace:
    """A regular file or a block device."""

    parallel = True

    def __init__(self, path: Path, *, write_size_bytes: int | None = None) -> None:
        """Open to read, or, with the size of what is to come, to write: then a file is emptied, a device must be big
        enough."""
        self.path = path
        self.known_zero = False
        writing = write_size_bytes is not None
        try:
            self.fd = os.open(path, (os.O_RDWR | os.O_CREAT if writing else os.O_RDONLY) | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CommandError(describe_os_error(error)) from error
        try:
            mode = os.fstat(self.fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise CommandError(f"{path}: neither a regular file nor a block device; only these can be copied")
            if write_size_bytes is not None and stat.S_ISREG(mode):
                os.ftruncate(self.fd, 0)
                os.ftruncate(self.fd, write_size_bytes)
                self.known_zero = True
            self.size_bytes = os.lseek(self.fd, 0, os.SEEK_END)
        except OSError as error:
            os.close(self.fd)
            raise self.failed("opening", error) from error
        except CommandError:
            os.close(self.fd)
            raise

    def open_worker(self) -> Worker:
        return _FileWorker(self)

    def extents(self, end: int) -> Iterator[Extent]:
        offset = 0
        while offset < end:
            try:
                data = os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno_codes.ENXIO:
                    # A device or filesystem that knows no holes.
                    yield offset, end - offset, False
                    return
                data = end
            # Cuts at multiples of a block, whatever the filesystem below counts in.
            data = min(data // BLOCK_SIZE_BYTES * BLOCK_SIZE_BYTES, end) if data < end else end
            if data > offset:
                yield offset, data - offset, True
                offset = data
            if offset < end:
                hole = os.lseek(self.fd, offset, os.SEEK_HOLE)
                hole = min(-(-hole // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES, end)
                yield offset, hole - offset, False
                offset = hole

    def flush(self) -> None:
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise self.failed("flushing", error) from error

    def interrupt(self) -> None:
        pass  # the kernel answers

    def close(self) -> None:
        os.close(self.fd)

    def failed(self, what: str, error: OSError) -> CommandError:
        hint = "; free space there" if error.errno in (errno_codes.ENOSPC, errno_codes.EDQUOT) else ""
        return CommandError(f"{self.path}: {what}: {(error.strerror or str(error)).lower()}{hint}")


class _FileWorker:
    """Position-independent system calls on the shared descriptor."""

    transfer_bytes_max = TRANSFER_BYTES_MAX

    def __init__(self, place: FilePlace) -> None:
        self._place = place
        self._fd = place.fd
        self._buffer = memoryview(bytearray(TRANSFER_BYTES_MAX))
        self._can_punch = True

    def read(self, offset: int, length: int, sink: Sink) -> None:
        view = self._buffer[:length]
        filled = 0
        try:
            while filled < length:
                count = os.preadv(self._fd, [view[filled:]], offset + filled)
                if not count:
                    raise CommandError(f"{self._place.path}: it became shorter while it was read; copy it again")
                filled += count
        except OSError as error:
            raise self._place.failed(f"reading at offset {offset}", error) from error
        sink.data(offset, view)

    def data(self, offset: int, view: memoryview) -> None:
        for begin, end, zero in split_zeros(view):
            if zero:
                self.zeros(offset + begin, end - begin)
            else:
                self._write(offset + begin, view[begin:end])

    def zeros(self, offset: int, length: int) -> None:
        if self._place.known_zero or (self._can_punch and self._punch(offset, length)):
            return
        while length:
            step = min(length, len(_ZEROS))
            self._write(offset, _ZEROS[:step])
            offset += step
            length -= step

    def _write(self, offset: int, view: memoryview) -> None:
        try:
            while view:
                written = os.pwrite(self._fd, view, offset)
                offset += written
                view = view[written:]
        except OSError as error:
            raise self._place.failed(f"writing at offset {offset}", error) from error

    def _punch(self, offset: int, length: int) -> bool:
        """Have the device zero the range. False where it cannot, then and from then on it is written."""
        libc = ctypes.CDLL(None, use_errno=True)
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        self._can_punch = libc.fallocate64(self._fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0
        return self._can_punch

    def drain(self) -> None:
        pass  # every call above is done when it returns

    def interrupt(self) -> None:
        pass  # the kernel answers

    def close(self) -> None:
        pass  # the descriptor is the place's


# --- NBD exports ------------------------------------------------------------------------------------------------------


class NbdPlace:
    """An export of any NBD server.

    The connection that asks for its size is used for extents and the final flush, and, where the server does not
    promise that several connections see each other's writes, as the only worker too.
    """

    def __init__(self, address: NbdAddress, *, depth: int, write_size_bytes: int | None = None) -> None:
        self.address = address
        self.known_zero = False
        self._depth = depth
        self._session = NbdSession(address, depth=depth)
        self.size_bytes = self._session.terms.size_bytes
        try:
            if write_size_bytes is not None and self._session.read_only:
                raise CommandError(f"{address.uri}: the export is read-only; nothing can be copied to it")
        except CommandError:
            self._session.close()
            raise

    @property
    def parallel(self) -> bool:
        return self._session.multi_conn

    @property
    def minimum_block_bytes(self) -> int:
        return self._session.terms.minimum_block_bytes

    def open_worker(self) -> Worker:
        session = NbdSession(self.address, depth=self._depth) if self.parallel else self._session
        return _NbdWorker(self, session, owned=session is not self._session)

    def extents(self, end: int) -> Iterator[Extent]:
        offset = 0
        known = self._session.terms.base_allocation_context is not None
        block = max(self.minimum_block_bytes, 1)
        while known and offset < end:
            # The last question may have to reach beyond `end`, to the end of a block.
            asked = min(-(-(end - offset) // block) * block, CONTROL_BYTES_MAX)
            for length, zero in self._session.block_status(offset, asked):
                run = min(length, end - offset)
                if run:
                    yield offset, run, zero
                    offset += run
        if offset < end:
            yield offset, end - offset, False

    def flush(self) -> None:
        self._session.flush()

    def interrupt(self) -> None:
        self._session.interrupt()

    def close(self) -> None:
        self._session.close()


class _NbdWorker:
    def __init__(self, place: NbdPlace, session: NbdSession, *, owned: bool) -> None:
        self._place = place
        self._session = session
        self._owned = owned
        self._block_bytes = place.minimum_block_bytes
        self.transfer_bytes_max = session.transfer_bytes_max
        self.drain = session.drain
        self.interrupt = session.interrupt

    def read(self, offset: int, length: int, sink: Sink) -> None:
        excess = -length % self._block_bytes
        if excess:
            # Compared with a source that is no multiple of our blocks.
            sink = _Trimmed(sink, offset + length)
        self._session.read(offset, length + excess, sink)

    def data(self, offset: int, view: memoryview) -> None:
        remainder = len(view) % self._block_bytes
        if remainder:
            # The end of a source that is no multiple of the target's blocks: filled up with zeroes.
            view = memoryview(bytes(view) + bytes(self._block_bytes - remainder))
        for begin, end, zero in split_zeros(view):
            if zero and (self._place.known_zero or self._session.can_zero):
                self.zeros(offset + begin, end - begin)
            else:
                self._session.write(offset + begin, view[begin:end])

    def zeros(self, offset: int, length: int) -> None:
        if self._place.known_zero:
            return
        length = -(-length // self._block_bytes) * self._block_bytes
        while length:
            if self._session.can_zero:
                step = min(length, CONTROL_BYTES_MAX)
                self._session.write_zeroes(offset, step)
            else:
                step = min(length, self.transfer_bytes_max)
                self._session.write(offset, _ZEROS[:step])
            offset += step
            length -= step

    def close(self) -> None:
        if self._owned:
            self._session.close()


class _Trimmed:
    """A sink that passes on what lies before `end`."""

    def __init__(self, sink: Sink, end: int) -> None:
        self._sink = sink
        self._end = end

    def data(self, offset: int, view: memoryview) -> None:
        if offset < self._end:
            self._sink.data(offset, view[: self._end - offset])

    def zeros(self, offset: int, length: int) -> None:
        if offset < self._end:
            self._sink.zeros(offset, min(length, self._end - offset))


def check_fits(source: Place, source_name: str, target: Place, target_name: str) -> None:
    """Raise CommandError unless the source fits into the target."""
    if source.size_bytes > target.size_bytes:
        raise CommandError(
            f"{target_name}: {format_size(target.size_bytes)} ({target.size_bytes} bytes) cannot hold {source_name} of "
            f"{format_size(source.size_bytes)} ({source.size_bytes} bytes); copy to a larger or to a new one"
        )

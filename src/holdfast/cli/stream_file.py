"""Where streams are read from and written to: files, pipes, standard input and output (`-`)."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from holdfast.cli.command import CommandError, describe_os_error
from holdfast.cli.stream_format import (
    HEADER_BYTES_MAX,
    MAGIC,
    StreamError,
    StreamReader,
    Totals,
    is_header_but_for_magic,
)

STANDARD = "-"
HEADER_READ_BYTES = HEADER_BYTES_MAX + 64  # with what is before and behind it


class StreamFile:
    """A file, a pipe, or standard input, read from the beginning."""

    def __init__(self, name: str) -> None:
        self._name = name
        if name == STANDARD:
            self._fd = sys.stdin.fileno()
            if os.isatty(self._fd):
                raise CommandError("there is no stream on standard input; name a file, or redirect the input")
        else:
            try:
                self._fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CommandError(describe_os_error(error)) from error

    def fill(self, view: memoryview) -> int:
        """Fill `view`; returns how many bytes there were, fewer only at the end."""
        filled = 0
        try:
            while filled < len(view):
                count = os.readv(self._fd, [view[filled:]])
                if not count:
                    break
                filled += count
        except OSError as error:
            raise CommandError(f"{self._name}: reading: {describe_os_error(error)}") from error
        return filled

    def close(self) -> None:
        if self._name != STANDARD:
            os.close(self._fd)

    def __enter__(self) -> StreamFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_stream(name: str) -> bool:
    """Whether a file begins as a stream does."""
    if name == STANDARD:
        return True  # nothing else is read from there
    try:
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode):
            return stat.S_ISFIFO(mode)  # a pipe gives nothing else that could be copied
        with open(name, "rb", buffering=0) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False  # whoever opens it to read it says what is wrong


def is_damaged_stream(name: str) -> bool:
    """Whether a file is a stream but for its first bytes, or cut off within these."""
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            return False
        with open(name, "rb", buffering=0) as file:
            return is_header_but_for_magic(file.read(HEADER_READ_BYTES))
    except OSError:
        return False  # whoever opens it to read it says what is wrong


class StreamTarget:
    """A file that is replaced, or goes on where it was broken off; or standard output."""

    def __init__(self, target: str, header: bytes, *, resume: bool) -> None:
        self.totals = Totals(header)
        self.complete = False
        self._name = target
        self._path = None if target == STANDARD else Path(target)
        if self._path is None:
            if resume:
                raise CommandError("what was written to standard output cannot be gone on with; leave out --resume")
            self._fd = sys.stdout.fileno()
            if os.isatty(self._fd):
                raise CommandError("a stream is nothing for a terminal; name a file, or redirect the output")
        else:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise CommandError(describe_os_error(error)) from error
        try:
            if self._path is not None:
                self._begin(header, resume=resume)
            else:
                self.write(header)
        except BaseException:
            self._close()
            raise

    def _begin(self, header: bytes, *, resume: bool) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            if resume:
                raise CommandError(f"{self._name}: no regular file, so it cannot be gone on with; leave out --resume")
            self.write(header)
            return
        there = os.pread(self._fd, len(header), 0) if resume else b""
        if there != header:
            if not header.startswith(there):
                self._refuse_other()
            os.ftruncate(self._fd, 0)
            self.write(header)
            return
        self._read_again()
        os.ftruncate(self._fd, self.totals.stream_bytes)
        os.lseek(self._fd, 0, os.SEEK_END)

    def _refuse_other(self) -> None:
        raise CommandError(
            f"{self._name}: it is not the beginning of this stream; name another file, or leave out --resume to "
            "replace it"
        )

    def _read_again(self) -> None:
        """Find the last whole record."""
        with StreamFile(self._name) as file:
            reader = StreamReader(file.fill, self._name)
            self.totals = reader.totals
            try:
                while reader.record() is not None:
                    pass
                self.complete = True
            except StreamError:
                return  # from here on it is written anew

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BrokenPipeError:
            raise CommandError("the reader of the stream has ended; look at what it said") from None
        except OSError as error:
            raise CommandError(f"{self._name}: writing: {describe_os_error(error)}; free space there") from error

    def finish(self) -> None:
        """Make it durable, where that means something."""
        if self._path is not None and stat.S_ISREG(os.fstat(self._fd).st_mode):
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise CommandError(f"{self._name}: flushing: {describe_os_error(error)}") from error

    def _close(self) -> None:
        if self._path is not None:
            os.close(self._fd)

    def __enter__(self) -> StreamTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

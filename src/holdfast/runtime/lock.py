"""One server a pool: an advisory lock on `lock` in the pool's directory.

The lock is the kernel's (`flock`), so it goes with the process however that ends: there is no stale lock to clean up
after a crash.  The process id in the file is only there for the message that the second owner gets.
"""

from __future__ import annotations

import fcntl
import os
from types import TracebackType

from holdfast.errors import PoolBusyError

LOCK_NAME = "lock"


class PoolLock:
    """Held from construction to `release` or the end of the process. Not inherited by programs started later.

    Raises PoolBusyError if another process (or another PoolLock of this one) holds it, and OSError if the file cannot
    be opened.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = os.fspath(directory)
        fd = os.open(os.path.join(self.directory, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Between taking the lock and writing the number the owner's file is empty for a moment.
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            who = f"process {owner}" if owner.isdigit() else "another process"
            os.close(fd)
            raise PoolBusyError(
                f"pool {self.directory} is being served by {who}; stop that process, or use its control socket"
            ) from None
        except OSError:
            os.close(fd)
            raise
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._fd = fd

    def release(self) -> None:
        """Give the pool up. May be called twice."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> PoolLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

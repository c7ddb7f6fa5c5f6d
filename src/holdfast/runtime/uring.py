"""A raw io_uring: reads and direct writes without a thread, where the kernel permits it.

No binding takes aligned memoryviews, so the ring is driven with two system calls and two mappings.  It is worth it:
a cold read costs a third to a half of the processor time that handing it to a thread does, and a durable write comes
back a fifth sooner (docs/decisions/0002-io-workers.md).  Many containers forbid io_uring; threads work there instead.

Submission queue: the loop's thread writes entries and the new tail, then enters the kernel once for all of a turn.
Completion queue: the kernel writes entries and the new tail, and the ring's descriptor becomes readable.

1. Never more in flight than the completion queue holds, so that it cannot overflow.
2. No barriers: the submission tail is read inside the system call that follows the write.  For the completion tail that
   relies on loads that are not reordered, which x86 promises; elsewhere the ring is used only when asked for by name.
3. An entry that the kernel did not take stays in the queue and is offered again.  One that it finished in part, or
   wants repeated, is the owner's to repeat by other means.

Layout and numbers: <linux/io_uring.h>.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable

from holdfast.runtime.loop import EventLoop
from holdfast.runtime.ports import Io

# The same numbers on every architecture.
_SYS_SETUP = 425
_SYS_ENTER = 426
_ENTER_GETEVENTS = 1
_OFFSET_ENTRIES = 0x10000000
OP_READ = 22
OP_WRITE = 23
# One mapping for both queues (5.4), and a feature of 5.11 that stands for "READ and WRITE exist and buffered reads wait
# without a thread".
_FEATURES_NEEDED = (1 << 0) | (1 << 8)

# struct io_uring_params: sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, resv[3]; then
# sq_off and cq_off, eight 32-bit offsets and a 64-bit one each.
_PARAMS_BYTES = 120
_PARAMS = struct.Struct("<10I 8IQ 8IQ")
# struct io_uring_sqe: opcode, flags, ioprio, fd, offset, address, length, rw_flags, user_data; the rest stays zero.
_ENTRY = struct.Struct("<BBHiQQIIQ24x")
_ENTRY_BYTES = 64
# struct io_uring_cqe: user_data, res, flags.
_COMPLETION = struct.Struct("<QiI")
_COMPLETION_BYTES = 16
_UINT32_MASK = 0xFFFFFFFF

# Errors of the system call itself that pass: no memory for the requests at this moment.
_TRANSIENT = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM})
_RETRY_DELAY_NS = 1_000_000

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_addressof = ctypes.addressof
_first_byte_of = ctypes.c_char.from_buffer


class Uring:
    """One ring on the loop. `completed` is called, in the loop, with each Io and the kernel's result for it.

    Raises OSError if the kernel refuses: ENOSYS, EPERM (forbidden), EOPNOTSUPP (too old), EMFILE, ENOMEM.
    """

    # L: loop thread only, all of it.
    def __init__(self, loop: EventLoop, completed: Callable[[Io, int], None], *, entries: int = 256) -> None:
        self._loop = loop
        self._completed = completed
        self._fd, params = _setup(entries)
        try:
            self._map(params)
        except OSError:
            os.close(self._fd)
            raise
        self._tail = 0
        self._pending = 0  # entries written and not yet taken by the kernel
        self._submit_scheduled = False
        # By the number that comes back with the completion; keeps the Io and so its memory alive.
        self._in_flight: dict[int, Io] = {}
        self._sequence = 0
        loop.add_reader(self._fd, self._reap)

    def _map(self, params: tuple[int, ...]) -> None:
        self._entry_count, self._completion_count = params[0], params[1]
        sq_tail, sq_array = params[11], params[16]
        cq_head, cq_tail, cqes = params[19], params[20], params[24]
        size_bytes = max(sq_array + 4 * self._entry_count, cqes + _COMPLETION_BYTES * self._completion_count)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        queues = memoryview(mmap.mmap(self._fd, size_bytes, flags=flags))
        entries_bytes = _ENTRY_BYTES * self._entry_count
        self._entries = memoryview(mmap.mmap(self._fd, entries_bytes, flags=flags, offset=_OFFSET_ENTRIES))
        self._completions = queues[cqes : cqes + _COMPLETION_BYTES * self._completion_count]
        self._sq_tail = queues[sq_tail : sq_tail + 4].cast("I")
        self._cq_head = queues[cq_head : cq_head + 4].cast("I")
        self._cq_tail = queues[cq_tail : cq_tail + 4].cast("I")
        # The indirection from queue to entries is not needed: slot n of the queue is entry n, for good.
        array = queues[sq_array : sq_array + 4 * self._entry_count].cast("I")
        for index in range(self._entry_count):
            array[index] = index

    def has_room(self) -> bool:
        return self._pending < self._entry_count and len(self._in_flight) < self._completion_count

    def start(self, op: int, fd: int, io: Io, rw_flags: int = 0) -> None:
        """Queue OP_READ or OP_WRITE of `io` on `fd`; submitted in this turn of the loop, or first thing in the next.

        Only with `has_room()`.  The view must be writable memory, also for a write: its address is taken that way.
        """
        assert self.has_room()
        view = io.view
        assert view is not None
        sequence = self._sequence = self._sequence + 1
        self._in_flight[sequence] = io
        tail = self._tail
        _ENTRY.pack_into(
            self._entries,
            (tail & (self._entry_count - 1)) * _ENTRY_BYTES,
            op,
            0,
            0,
            fd,
            io.offset,
            _addressof(_first_byte_of(view)),
            len(view),
            rw_flags,
            sequence,
        )
        self._tail = (tail + 1) & _UINT32_MASK
        self._pending += 1
        if self._pending == self._entry_count:
            self._submit()
        elif not self._submit_scheduled:
            self._submit_scheduled = True
            self._loop.call_last(self._submit)

    def _submit(self) -> None:
        self._submit_scheduled = False
        if not self._pending:
            return
        self._sq_tail[0] = self._tail
        try:
            self._pending -= self._enter(self._pending)
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
        if self._pending and not self._submit_scheduled:
            self._submit_scheduled = True
            self._loop.call_later(_RETRY_DELAY_NS, self._submit)

    def _enter(self, submit: int, wait: int = 0) -> int:
        taken = int(_syscall(_SYS_ENTER, self._fd, submit, wait, _ENTER_GETEVENTS if wait else 0, None, 0))
        if taken < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return taken

    def _reap(self) -> None:
        in_flight = self._in_flight
        completions = self._completions
        completed = self._completed
        mask = self._completion_count - 1
        head = self._cq_head[0]
        tail = self._cq_tail[0]
        while head != tail:
            sequence, result, _ = _COMPLETION.unpack_from(completions, (head & mask) * _COMPLETION_BYTES)
            head = (head + 1) & _UINT32_MASK
            # One by one, so that an exception out of the callback loses no completion and repeats none.
            self._cq_head[0] = head
            completed(in_flight.pop(sequence), result)

    def close(self) -> None:
        """Wait for everything in flight, reporting it as completed, and give the ring back."""
        while self._in_flight:
            self._sq_tail[0] = self._tail
            try:
                self._pending -= self._enter(self._pending, wait=1)
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    raise
            self._reap()
        self._loop.close(self._fd)
        os.close(self._fd)


def _setup(entries: int) -> tuple[int, tuple[int, ...]]:
    buffer = (ctypes.c_char * _PARAMS_BYTES)()
    fd = int(_syscall(_SYS_SETUP, ctypes.c_uint(entries), ctypes.byref(buffer)))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    params = _PARAMS.unpack(bytes(buffer))
    if params[5] & _FEATURES_NEEDED != _FEATURES_NEEDED:
        os.close(fd)
        raise OSError(errno.EOPNOTSUPP, "this kernel's io_uring is too old")
    os.set_inheritable(fd, False)
    return fd, params

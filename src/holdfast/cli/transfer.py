"""Moving all of one place to another with several threads, and comparing two places.

Each thread owns a worker at either end and takes the next piece of work from a shared plan.  The threads spend their
time in system calls, which drop the GIL; the plan is a generator behind a lock, so that a volume of 64 TiB costs no
list of its extents.

1. The first failure ends the plan; the other threads finish their piece and end; the failure is raised to the caller.
2. Interruption closes the connections under the threads, so that none stays blocked.
3. `transfer` returns after everything is answered, and flushed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from holdfast.cli.places import Extent, Place, Worker

# How often the progress is told.
_PROGRESS_INTERVAL_S = 0.1

Progress = Callable[[int], None]  # bytes done so far, of data and of zeroes


@dataclass(slots=True)
class Moved:
    """What a thread has done. Written by that thread only, read by the one that shows progress."""

    data_bytes: int = 0
    zero_bytes: int = 0


class Plan:
    """The extents of a generator, cut into pieces, to be taken by several threads."""

    def __init__(self, extents: Iterator[Extent], *, data_bytes_max: int, zero_bytes_max: int) -> None:
        self._pieces = _cut(extents, data_bytes_max=data_bytes_max, zero_bytes_max=zero_bytes_max)
        self._lock = threading.Lock()
        self._ended = False

    def take(self) -> Extent | None:
        with self._lock:
            return None if self._ended else next(self._pieces, None)

    def end(self) -> None:
        """No more work for anyone. Needs no lock: a thread may hold it while it waits for a server."""
        self._ended = True


def _cut(extents: Iterator[Extent], *, data_bytes_max: int, zero_bytes_max: int) -> Iterator[Extent]:
    """Cut at multiples of the maximum, so that a target sees aligned requests whatever the extents are."""
    for begin, length, zero in extents:
        step_max = zero_bytes_max if zero else data_bytes_max
        offset, end = begin, begin + length
        while offset < end:
            step = min(end - offset, step_max - offset % step_max)
            yield offset, step, zero
            offset += step


# --- Copying ----------------------------------------------------------------------------------------------------------

_ZERO_PIECE_BYTES = 1 << 30


def transfer(source: Place, target: Place, *, connections: int, progress: Progress) -> Moved:
    """Copy all of `source` to the beginning of `target` and make it durable."""

    def work(workers: tuple[Worker, Worker], plan: Plan, moved: Moved) -> None:
        reader, writer = workers
        while (piece := plan.take()) is not None:
            offset, length, zero = piece
            if zero:
                writer.zeros(offset, length)
                moved.zero_bytes += length
            else:
                reader.read(offset, length, writer)
                moved.data_bytes += length
        reader.drain()
        writer.drain()

    total = _run(work, source, target, source.extents(source.size_bytes), connections=connections, progress=progress)
    target.flush()
    return total


# --- Comparing --------------------------------------------------------------------------------------------------------


class DifferentError(Exception):
    """The two places differ, first seen at this offset."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class Collector:
    """A sink that puts together one piece in memory."""

    def __init__(self, size_bytes: int) -> None:
        self.buffer = bytearray(size_bytes)
        self._view = memoryview(self.buffer)
        self._offset = 0

    def fetch(self, worker: Worker, offset: int, length: int) -> memoryview:
        self._offset = offset
        worker.read(offset, length, self)
        worker.drain()
        return self._view[:length]

    def data(self, offset: int, view: memoryview) -> None:
        begin = offset - self._offset
        self._view[begin : begin + len(view)] = view

    def zeros(self, offset: int, length: int) -> None:
        begin = offset - self._offset
        self._view[begin : begin + length] = bytes(length)


def compare(source: Place, target: Place, *, connections: int, progress: Progress) -> None:
    """Raise DifferentError unless `target` begins with all of `source`. What is zero on both sides is not read."""

    def work(workers: tuple[Worker, Worker], plan: Plan, moved: Moved) -> None:
        left, right = workers
        size_bytes = min(left.transfer_bytes_max, right.transfer_bytes_max)
        left_piece, right_piece = Collector(size_bytes), Collector(size_bytes)
        while (piece := plan.take()) is not None:
            offset, length, both_zero = piece
            if both_zero:
                moved.zero_bytes += length
                continue
            ours = left_piece.fetch(left, offset, length)
            theirs = right_piece.fetch(right, offset, length)
            if left_piece.buffer != right_piece.buffer and not _equal(ours, theirs):
                raise DifferentError(offset)
            moved.data_bytes += length

    end = source.size_bytes
    extents = _both_zero(source.extents(end), target.extents(end))
    _run(work, source, target, extents, connections=connections, progress=progress)


def _equal(ours: memoryview, theirs: memoryview) -> bool:
    """As bytes: comparing memoryviews goes element by element."""
    return bytes(ours) == bytes(theirs)


def _both_zero(left: Iterator[Extent], right: Iterator[Extent]) -> Iterator[Extent]:
    """The extents of two places laid over each other, zero where both are."""
    offset = 0
    left_end = right_end = 0
    left_zero = right_zero = False
    while True:
        if left_end == offset:
            found = next(left, None)
            if found is None:
                return
            left_end, left_zero = found[0] + found[1], found[2]
        if right_end == offset:
            found = next(right, None)
            if found is None:
                return
            right_end, right_zero = found[0] + found[1], found[2]
        end = min(left_end, right_end)
        yield offset, end - offset, left_zero and right_zero
        offset = end


# --- Threads ----------------------------------------------------------------------------------------------------------


def _run(
    work: Callable[[tuple[Worker, Worker], Plan, Moved], None],
    source: Place,
    target: Place,
    extents: Iterator[Extent],
    *,
    connections: int,
    progress: Progress,
) -> Moved:
    """Let `work` run in as many threads as both places allow, each with workers of its own at both of them."""
    count = connections if source.parallel and target.parallel else 1
    failures: list[BaseException] = []
    # Waited for in place of the threads: an interrupted join() leaves a thread marked as ended that is not.
    ended = threading.Semaphore(0)
    moved = [Moved() for _ in range(count)]
    with ExitStack() as stack:
        workers: list[tuple[Worker, Worker]] = []
        for _ in range(count):
            reader = source.open_worker()
            stack.callback(reader.close)
            writer = target.open_worker()
            stack.callback(writer.close)
            workers.append((reader, writer))
        piece_bytes_max = min(worker.transfer_bytes_max for pair in workers for worker in pair)
        plan = Plan(extents, data_bytes_max=piece_bytes_max, zero_bytes_max=_ZERO_PIECE_BYTES)

        def run(pair: tuple[Worker, Worker], own: Moved) -> None:
            try:
                work(pair, plan, own)
            except BaseException as error:  # raised again by the thread that waits for this one
                failures.append(error)
                plan.end()
            finally:
                ended.release()

        threads = [
            threading.Thread(target=run, args=(pair, own), name=f"copy-{index}")
            for index, (pair, own) in enumerate(zip(workers, moved, strict=True))
        ]
        try:
            # Within the try: an interruption may come as soon as the first thread runs.
            for thread in threads:
                thread.start()
            for _ in threads:
                while not ended.acquire(timeout=_PROGRESS_INTERVAL_S):
                    progress(sum(own.data_bytes + own.zero_bytes for own in moved))
        except BaseException:
            plan.end()
            source.interrupt()
            target.interrupt()
            for pair in workers:
                for worker in pair:
                    worker.interrupt()
            raise
        finally:
            for thread in threads:
                if thread.ident is not None:  # it was started
                    thread.join()
        if failures:
            raise failures[0]
    return Moved(sum(own.data_bytes for own in moved), sum(own.zero_bytes for own in moved))

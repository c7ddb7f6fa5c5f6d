"""The preparation of segment files: each is written through once before the log's head comes to it.

It is done in the background, so that no write waits for one to be made. It always advances: it holds
nothing that anybody waits for but the segment itself, and waits for the disk alone. Where the filesystem below is full,
it is tried again from time to time; until then writes that need a new segment get ENOSPC.

A file gets its name once it is whole: after a crash, one that was half made counts as absent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.errors import ACTIONS, errno_name, log_fields, resource_of
from holdfast.pool.space import SpaceTable
from holdfast.runtime.ports import PREPARE, Io
from holdfast.work.task import Scheduler
from holdfast.work.waits import DISK, Wait

log_output = logging.getLogger("holdfast.engine")

# Segments kept prepared ahead of the log's head, besides those held back, so that no write waits for a new file to be
# written through.
PREPARED_AHEAD = 4
HOST_FULL_RETRY_NS = 2_000_000_000
# Ends waits, and is no task.
PREPARATION = "the preparation of segments"


class Preparation:
    """Fields: I fixed when made, L loop thread."""

    def __init__(
        self,
        space: SpaceTable,
        scheduler: Scheduler,
        *,
        segment_size_bytes: int,
        preallocate: bool,
        ended: Callable[[], None],
    ) -> None:
        """preallocate: prepare all segments, not only a few ahead
        ended: called when an attempt is over and the space table says how it went"""
        self._space = space  # I
        self._scheduler = scheduler  # I
        self._segment_size_bytes = segment_size_bytes  # I
        self._preallocate = preallocate  # I
        self._ended = ended  # I
        self._since_ns: dict[int, int] = {}  # L: segments whose files are being made, since when
        self._host_full_until_ns = 0  # L: no other attempt before that

    def keep_ahead(self) -> None:
        """Begin the next file if one is wanted and none is being made."""
        space = self._space
        wanted = len(space.free) < space.reserve_segments + PREPARED_AHEAD or self._preallocate
        if wanted and space.absent and not space.preparing and not space.host_full:
            self._prepare()

    def tick(self) -> None:
        """Try again, now and then, whether the filesystem below has room."""
        now_ns = self._scheduler.now_ns
        if self._space.host_full and now_ns >= self._host_full_until_ns:
            self._host_full_until_ns = now_ns + HOST_FULL_RETRY_NS
            self._prepare()

    def waits(self) -> list[Wait]:
        """The files that are being made, for the picture of who waits for what."""
        return [
            Wait(PREPARATION, f"{DISK}: preparation of segment {segment:08x}", since_ns, ended_by=(DISK,))
            for segment, since_ns in self._since_ns.items()
        ]

    def _prepare(self) -> None:
        segment = self._space.take_absent()
        if segment is not None:
            self._since_ns[segment] = self._scheduler.now_ns
            io = Io(PREPARE, segment, length=self._segment_size_bytes, done=self._prepared)
            self._scheduler.disk.start(io)

    def _prepared(self, io: Io) -> None:
        del self._since_ns[io.file]
        if io.result < 0:
            if not self._space.host_full:
                resource = resource_of(-io.result)
                log_output.error(
                    "segment file %08x cannot be made (%s: %s): writes that need it get ENOSPC until it can; %s",
                    io.file,
                    resource,
                    errno_name(-io.result),
                    ACTIONS[resource],
                    extra=log_fields(resource, errno=-io.result),
                )
            self._space.preparation_failed(io.file)
        else:
            self._space.prepared(io.file)
        self._ended()

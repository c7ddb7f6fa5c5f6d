"""What is said when write-back fails: whose blocks they are, and what there is to do.

What failed stays in the ring, dirty, and is written again (`writeback/flusher.py`). Each volume that has blocks in it
is told, and decides by its policy whether it takes further writes; what was accepted is written all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from holdfast.errors import ACTIONS, errno_name, log_fields, resource_of
from holdfast.volume.volume import Volume
from holdfast.writeback.log import Log
from holdfast.writeback.owners import owned_blocks


class WriteBackFailures:
    """All fields are fixed when made."""

    def __init__(self, log: Log, volumes: Mapping[int, Volume], say: Callable[[str, dict[str, str]], None]) -> None:
        """say: takes a complaint and the fields of its log line"""
        self._log = log
        self._volumes = volumes
        self._say = say

    def failed(self, start: int, end: int, errno: int) -> None:
        """Log positions [start, end) could not be written."""
        met = []
        names: dict[str, None] = {}
        for blocks in owned_blocks(self._log, start, end):
            volume = self._volumes.get(blocks.volume_id)
            if volume is not None:
                volume.write_back_failures += 1
                volume.write_back_errno = errno
                volume.write_back_has_failed()
                met.append(blocks.describe(volume.name))
                names[volume.name] = None
        resource = resource_of(errno)
        self._say(
            f"write-back failed ({errno_name(errno)}) for {', '.join(met) or 'metadata alone'}; "
            f"it stays in the ring and is written again; {ACTIONS[resource]}",
            log_fields(resource, volume=", ".join(names) or None, errno=errno),
        )

"""What clients are told besides success: counted always, logged a bounded number of times a second.

Clients repeat what fails, and a log that is written to without bound fills the next thing. So of the lines of a tick a
few are written, and how many more there were; the counts, which are what metrics show, leave nothing out. Nothing here
is touched by a request that succeeds.
"""

from __future__ import annotations

import logging
from collections import Counter

from holdfast.errors import HoldfastError, Resource, errno_name, log_fields

log_output = logging.getLogger("holdfast.engine")

COMPLAINTS_A_TICK_MAX = 5
OTHER = "other"  # counted as the resource where an error names none


class Complaints:
    """All fields: loop thread."""

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str]] = Counter()  # errors that clients were answered, (errno, resource)
        self.suppressed = 0  # lines that were not logged
        self._this_tick = 0
        self._last = ""

    def answer(self, error: HoldfastError, volume: str) -> None:
        """A client of this volume is being told of `error`: count it and log it."""
        self.count(error.errno, error.resource)
        self.say(f"volume {volume}: {error}", log_fields(error.resource, volume=volume, errno=error.errno))

    def count(self, errno: int, resource: Resource | None) -> None:
        """A client is answered with an errno whose reason was logged already, or is the client's own affair."""
        self.answered[errno_name(errno), resource.value if resource is not None else OTHER] += 1

    def say(self, text: str, fields: dict[str, str] | None = None) -> None:
        """Log a warning, with `errors.log_fields`, unless there were too many in this tick."""
        self._this_tick += 1
        self._last = text
        if self._this_tick <= COMPLAINTS_A_TICK_MAX:
            log_output.warning("%s", text, extra=fields)

    def tick(self) -> None:
        """Some times a second."""
        if self._this_tick > COMPLAINTS_A_TICK_MAX:
            more = self._this_tick - COMPLAINTS_A_TICK_MAX
            self.suppressed += more
            log_output.warning("... and %d more of these, the last: %s", more, self._last)
        self._this_tick = 0

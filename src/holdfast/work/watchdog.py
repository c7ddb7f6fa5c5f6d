"""The stall watchdog: says which waits last too long, who could end them, and why he does not.

It is driven by the engine's tick and looks at the engine's clock; it ends nothing and changes nothing. A wait is told
of once when it reaches `STALL_NS`, and again whenever it has become twice as long. A wait that is meant (a client that
does not read; a volume that waits for space by its owner's wish) is told of as that, and is no alarm. A cycle is told
of at the first look: it does not end by itself.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.work.waits import Picture, Wait, Waits

# Longer than a disk takes that recovers from an error of its own (SCSI's command timeout is 30 s as well), and shorter
# than the patience of most clients.
STALL_NS = 30_000_000_000
LOOK_NS = 5_000_000_000

SECOND_NS = 1_000_000_000


class Watchdog:
    """All fields: loop thread. `alarm` and `note` get a line each: what is wrong, and what is meant."""

    def __init__(self, waits: Waits, *, alarm: Callable[[str], None], note: Callable[[str], None]) -> None:
        self._waits = waits
        self._alarm = alarm
        self._note = note
        self._next_look_ns = 0
        self._due: dict[tuple[str, str, int], int] = {}  # wait -> how long it is when it is told of again
        self._cycles: list[str] = []

    def tick(self, now_ns: int) -> None:
        """To be called some times a second; looks every `LOOK_NS`."""
        if now_ns < self._next_look_ns:
            return
        self._next_look_ns = now_ns + LOOK_NS
        oldest_ns = self._waits.oldest_ns()
        if oldest_ns is None or now_ns - oldest_ns < LOOK_NS:
            # What began since the last look needs no picture yet: most looks end here.
            self._due.clear()
            self._cycles.clear()
            return
        picture = self._waits.picture()
        cycles = picture.cycles()
        for cycle in cycles:
            if cycle not in self._cycles:
                self._alarm(f"nobody of these can go on: {cycle}")
        self._cycles = cycles
        due: dict[tuple[str, str, int], int] = {}
        for wait in picture.waiting:
            waited_ns = now_ns - wait.since_ns
            if waited_ns < STALL_NS:
                break
            # Without the words for what is waited for: with I/O they change while nothing gets on.
            key = (wait.name, wait.resource.name if wait.resource is not None else "", wait.since_ns)
            if key in due:
                continue  # one line for many that wait for the same
            due[key] = self._due.get(key, STALL_NS)
            if waited_ns >= due[key]:
                while due[key] <= waited_ns:
                    due[key] *= 2
                self._tell(picture, wait, waited_ns)
        self._due = due

    def _tell(self, picture: Picture, wait: Wait, waited_ns: int) -> None:
        line = f"{wait.name} has waited {waited_ns // SECOND_NS} s for {wait.waits_for}"
        if wait.held:
            line += f", holding {', '.join(map(str, wait.held))}"
        if wait.meant:
            self._note(f"{line}: that is meant")
            return
        enders = picture.why_not_yet(wait)
        self._alarm(f"{line}; it ends with: {', '.join(enders) or 'nobody that is known'}")

"""Verify mode: the order in which waits are entered, checked while they are (the idea of the kernel's lockdep).

Whoever waits for B while it holds A has shown that A comes before B. Should anybody ever wait for A while it holds B,
the two can meet in a cycle, some day, under some schedule. So the order of kinds is recorded for as long as the engine
lives, and the wait that would close a cycle is reported when it is entered, with the first witness of each step,
although nobody need be stuck yet.

Invariants of the engine that this checks at each wait:

 1. A kind is never waited for by who holds it, nor by who holds what is taken after it.
 2. What a list names as ending its waits (`Waitlist.ended_by`) counts as held: a checkpoint ends the wait for a clean
    page, so no checkpoint may wait for one.
 3. Nothing that others may wait for is held while a client's doing is waited for (`Waitlist.meant`): one client would
    stop the others.

On in tests and in the simulator; production has no `WaitOrder`.
"""

from __future__ import annotations

from holdfast.work.task import Task, Waitlist


class WaitOrderError(AssertionError):
    """A wait that could become a part of a cycle: a mistake in the program."""


class WaitOrder:
    """Kinds of waits, with what was held when they were entered. All fields belong to the loop thread."""

    def __init__(self) -> None:
        self._after: dict[str, dict[str, str]] = {}  # kind -> kinds that come after it -> the first witness

    def entering(self, task: Task, waitlist: Waitlist) -> None:
        """`task` is about to wait for `waitlist`. Raises WaitOrderError where that is against the order."""
        for ender in waitlist.ended_by:
            if isinstance(ender, Waitlist) and ender.kind not in self._after.get(waitlist.kind, {}):
                self._add(waitlist.kind, ender.kind, f"{waitlist.kind} comes with {ender.held_as}")
        for hold in task.held:
            held = hold.resource
            if held is None:
                continue
            if waitlist.meant:
                raise WaitOrderError(
                    f"{task.name} waits for {waitlist.name} and holds {hold}: a client could stop all others with it"
                )
            if waitlist.kind not in self._after.get(held.kind, {}):
                self._add(held.kind, waitlist.kind, f"{task.name} waits for {waitlist.name} and holds {hold}")

    def _add(self, before: str, after: str, witness: str) -> None:
        way_back = self._way(after, before)
        if way_back is not None:
            earlier = "; ".join(way_back) or "it is the same"
            raise WaitOrderError(f"the order of waits is a cycle: {witness}; but before: {earlier}")
        self._after.setdefault(before, {})[after] = witness

    def _way(self, start: str, end: str) -> list[str] | None:
        """The witnesses of the steps from one kind to another, or None if there is no way."""
        if start == end:
            return []
        came_by: dict[str, list[str]] = {start: []}
        pending = [start]
        for kind in pending:
            for after, witness in self._after.get(kind, {}).items():
                if after in came_by:
                    continue
                came_by[after] = [*came_by[kind], witness]
                if after == end:
                    return came_by[after]
                pending.append(after)
        return None

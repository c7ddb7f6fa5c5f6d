"""Who waits for what, holding what: a picture of one moment, and the cycles in it.

Nothing here is in the way of anybody: a picture is put together when someone asks, from the tasks (`work.task`) and
from what waits without one (`sources`: the flusher, clients that do not read, sessions that stand still).

A wait ends when one of those who can end it does so: whoever holds what is waited for, or an actor that the list names.
One who does not wait for anything, and everybody outside of the engine (the disk, the clock, clients), is free; so is
whoever waits for someone free. Who is left is stuck for good, and among those there is a cycle. So a cycle that is
named here is a deadlock, not a suspicion; `work.order` is for suspicions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from holdfast.runtime.ports import SUPERBLOCK, Io
from holdfast.work.task import Hold, Scheduler, Task, Waitlist

# Of those who can end a wait, so many are named.
NAMED_MAX = 3
DISK = "the disk"
CLIENT = "the client"
_OPERATIONS = ("read", "write", "sync", "preparation")


@dataclass(frozen=True, slots=True)
class Wait:
    """One operation, or one actor of the engine.

    operation  what it is; an actor's is the name that `Waitlist.ended_by` has for it
    waits_for  in words; "" if it waits for nothing: it is listed for what it holds
    resource   the list that it waits in, if it does: its holders can end the wait
    ended_by   who else can
    """

    operation: str
    waits_for: str = ""
    since_ns: int = 0
    volume: str = ""
    peer: str = ""
    resource: Waitlist | None = None
    ended_by: tuple[str | Waitlist, ...] = ()
    held: tuple[Hold, ...] = ()
    meant: bool = False

    @property
    def name(self) -> str:
        of = f" of {self.volume}" if self.volume else ""
        by = f" for {self.peer}" if self.peer else ""
        return self.operation + of + by


Source = Callable[[], Iterable[Wait]]


def _wait_of_task(task: Task) -> Wait:
    owner = task.owner
    volume, peer = (owner.volume_name, owner.peer) if owner is not None else ("", "")
    awaited = task.waits_for
    held = tuple(task.held)
    if awaited is None:
        return Wait(task.name, volume=volume, peer=peer, held=held)
    if isinstance(awaited, Waitlist):
        return Wait(
            task.name,
            awaited.name,
            task.since_ns,
            volume,
            peer,
            resource=awaited,
            ended_by=awaited.ended_by,
            held=held,
            meant=awaited.meant,
        )
    ios = [awaited] if isinstance(awaited, Io) else awaited
    assert isinstance(ios, list)
    return Wait(task.name, _describe_ios(ios), task.since_ns, volume, peer, ended_by=(DISK,), held=held)


def _describe_ios(ios: list[Io]) -> str:
    first = ios[0]
    where = "the superblock" if first.file == SUPERBLOCK else f"segment {first.file:08x}"
    more = f" and {len(ios) - 1} more" if len(ios) > 1 else ""
    return f"{DISK}: {_OPERATIONS[first.op]} of {where} at {first.offset}{more}"


class Waits:
    """Makes pictures. `sources` tell of what waits without a task."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.sources: list[Source] = []
        self._scheduler = scheduler

    def picture(self) -> Picture:
        waits = [_wait_of_task(task) for task in self._scheduler.tasks]
        for source in self.sources:
            waits += source()
        return Picture(waits)

    def oldest_ns(self) -> int | None:
        """When the longest wait began, without a picture; None if nobody waits."""
        began = [task.since_ns for task in self._scheduler.tasks if task.waits_for is not None]
        for source in self.sources:
            began += [wait.since_ns for wait in source() if wait.waits_for]
        return min(began, default=None)


class Picture:
    """All that wait, or hold something, at one moment."""

    def __init__(self, waits: list[Wait]) -> None:
        self._all = waits
        self._actors: dict[str, list[int]] = {}
        self._holders: dict[Waitlist, list[tuple[int, Hold]]] = {}
        for number, wait in enumerate(waits):
            self._actors.setdefault(wait.operation, []).append(number)
            for hold in wait.held:
                if hold.resource is not None:
                    self._holders.setdefault(hold.resource, []).append((number, hold))
        self._ends: dict[tuple[Waitlist | None, tuple[str | Waitlist, ...]], list[tuple[int, str]]] = {}

    @property
    def waiting(self) -> list[Wait]:
        """Those that wait, the longest wait first."""
        return sorted((wait for wait in self._all if wait.waits_for), key=lambda wait: wait.since_ns)

    def ended_by(self, wait: Wait) -> list[str]:
        """The names of those who can end a wait, each once, and no more than some of them."""
        names = list(dict.fromkeys(name for _, name in self._enders(wait)))
        if len(names) > NAMED_MAX:
            names[NAMED_MAX:] = [f"{len(names) - NAMED_MAX} more"]
        return names

    def why_not_yet(self, wait: Wait) -> list[str]:
        """The same, each with what it waits for itself."""
        told = []
        for number, name in self._enders(wait)[:NAMED_MAX]:
            busy = self._all[number].waits_for if number >= 0 else ""
            told.append(f"{name} (waits for {busy})" if busy else name)
        return list(dict.fromkeys(told))

    def _enders(self, wait: Wait) -> list[tuple[int, str]]:
        """(number, name) of each who can end a wait; the number is -1 for who is not in the picture."""
        key = (wait.resource, wait.ended_by)
        found = self._ends.get(key)
        if found is None:
            found = self._ends[key] = []
            for ender in (wait.resource, *wait.ended_by):
                if isinstance(ender, Waitlist):
                    holders = [(number, self._all[number].name) for number, _ in self._holders.get(ender, ())]
                    found += holders or ([(-1, ender.held_as)] if ender is not wait.resource else [])
                elif ender is not None:
                    found += [(number, ender) for number in self._actors.get(ender, [-1])]
        return found

    # ---- cycles

    def cycles(self) -> list[str]:
        """Each cycle of those that wait for each other and for nobody else, in a sentence."""
        stuck = self._stuck()
        sentences = []
        seen: dict[int, int] = {}  # number of a wait -> the walk on which it was met
        for start in stuck:
            path: list[int] = []
            at = start
            while at not in seen:
                seen[at] = start
                path.append(at)
                at = self._enders(self._all[at])[0][0]
            if seen[at] == start:
                sentences.append(self._sentence(path[path.index(at) :]))
        return sentences

    def _stuck(self) -> list[int]:
        """Those that nobody free can end the wait of."""
        stuck = {number: None for number, wait in enumerate(self._all) if wait.waits_for and self._enders(wait)}
        while True:
            verdicts: dict[tuple[Waitlist | None, tuple[str | Waitlist, ...]], bool] = {}
            freed = []
            for number in stuck:
                wait = self._all[number]
                key = (wait.resource, wait.ended_by)
                if key not in verdicts:
                    verdicts[key] = any(ender not in stuck for ender, _ in self._enders(wait))
                if verdicts[key]:
                    freed.append(number)
            if not freed:
                return list(stuck)
            for number in freed:
                del stuck[number]

    def _sentence(self, cycle: list[int]) -> str:
        parts = []
        for at, ender in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            wait, other = self._all[at], self._all[ender].name
            if any(hold.resource is wait.resource for hold in self._all[ender].held):
                parts.append(f"{wait.name} waits for {wait.waits_for} that {other} holds")
            else:
                parts.append(f"{wait.name} waits for {wait.waits_for}, {wait.waits_for} waits for {other}")
        return ", ".join(parts)

"""The stall watchdog: what it tells of, when, and how often."""

from __future__ import annotations

import pytest

from holdfast.work.task import Scheduler, Waitlist, Work
from holdfast.work.waits import Wait, Waits
from holdfast.work.watchdog import LOOK_NS, SECOND_NS, STALL_NS, Watchdog
from tests.engine.hand_disk import HandDisk


class Watched:
    def __init__(self) -> None:
        self.scheduler = Scheduler(HandDisk())
        self.waits = Waits(self.scheduler)
        self.alarms: list[str] = []
        self.notes: list[str] = []
        self.dog = Watchdog(self.waits, alarm=self.alarms.append, note=self.notes.append)

    def spawn(self, waitlist: Waitlist, name: str = "WRITE") -> None:
        def work() -> Work:
            yield waitlist

        self.scheduler.spawn(work(), name)

    def pass_until(self, seconds: int) -> None:
        while self.scheduler.now_ns < seconds * SECOND_NS:
            self.scheduler.now_ns += SECOND_NS
            self.dog.tick(self.scheduler.now_ns)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_long_wait_is_told_of_once_and_again_when_it_has_doubled(watched: Watched) -> None:
    ring = Waitlist(watched.scheduler, "room in the ring", ended_by=("the flusher",))
    watched.waits.sources.append(
        lambda: [Wait("the flusher", "the disk: 4 writes", 0, ended_by=("the disk",), meant=True)]
    )
    watched.spawn(ring)
    watched.pass_until(29)
    assert watched.alarms == []
    watched.pass_until(59)
    (line,) = watched.alarms
    assert line.startswith("WRITE has waited 3")
    assert line.endswith("s for room in the ring; it ends with: the flusher (waits for the disk: 4 writes)")
    watched.pass_until(250)
    assert [line.split()[3] for line in watched.alarms] == ["31", "61", "121", "241"]


def test_many_that_wait_for_the_same_are_one_line(watched: Watched) -> None:
    ring = Waitlist(watched.scheduler, "room in the ring")
    for _ in range(50):
        watched.spawn(ring)
    watched.pass_until(40)
    assert len(watched.alarms) == 1
    assert "nobody that is known" in watched.alarms[0]


def test_what_is_meant_is_said_to_be_so(watched: Watched) -> None:
    watched.spawn(Waitlist(watched.scheduler, "the client to take its replies", meant=True))
    watched.pass_until(40)
    assert watched.alarms == []
    (line,) = watched.notes
    assert line.endswith("for the client to take its replies: that is meant")


def test_what_went_on_in_between_is_not_a_stall(watched: Watched) -> None:
    turn = Waitlist(watched.scheduler, "the next turn", passing=True)
    for seconds in range(20, 200, 20):
        watched.spawn(turn)
        watched.pass_until(seconds)
        turn.wake()
        watched.scheduler.run_ready()
    assert watched.alarms == []


def test_a_cycle_is_told_of_at_the_first_look_and_once(watched: Watched) -> None:
    lock = Waitlist(watched.scheduler, "the lock")

    def work() -> Work:
        watched.scheduler.hold(lock)
        yield lock

    watched.scheduler.spawn(work(), "A")
    watched.pass_until((STALL_NS - LOOK_NS) // SECOND_NS)
    assert watched.alarms == ["nobody of these can go on: A waits for the lock that A holds"]

"""The picture of who waits for what: what it shows, and which cycles it names."""

from __future__ import annotations

import pytest

from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.ports import PREPARE, READ, Io
from holdfast.units import MIB
from holdfast.work.task import Scheduler, Waitlist, Work
from holdfast.work.waits import Wait, Waits
from tests.engine.hand_disk import HandDisk


@pytest.fixture
def disk() -> HandDisk:
    disk = HandDisk()
    disk.run(Io(PREPARE, 0, length=MIB))
    return disk


@pytest.fixture
def scheduler(disk: HandDisk) -> Scheduler:
    return Scheduler(disk)


@pytest.fixture
def waits(scheduler: Scheduler) -> Waits:
    return Waits(scheduler)


def holds_and_waits(scheduler: Scheduler, held: Waitlist, awaited: Waitlist) -> Work:
    hold = scheduler.hold(held)
    try:
        yield awaited
    finally:
        hold.release()


def test_a_task_shows_what_it_waits_for_since_when_and_what_it_holds(scheduler: Scheduler, waits: Waits) -> None:
    lock = Waitlist(scheduler, "the lock")
    memory = Waitlist(scheduler, "memory", ended_by=("the shrinker",))
    scheduler.now_ns = 5
    scheduler.spawn(holds_and_waits(scheduler, lock, memory), "A")
    (wait,) = waits.picture().waiting
    assert (wait.name, wait.waits_for, wait.since_ns, [str(hold) for hold in wait.held]) == (
        "A",
        "memory",
        5,
        ["the lock"],
    )
    assert waits.picture().ended_by(wait) == ["the shrinker"]
    assert waits.oldest_ns() == 5


def test_what_was_let_go_of_is_not_shown(scheduler: Scheduler, waits: Waits) -> None:
    lock, memory = Waitlist(scheduler, "the lock"), Waitlist(scheduler, "memory")
    task = scheduler.spawn(holds_and_waits(scheduler, lock, memory), "A")
    memory.wake()
    scheduler.run_ready()
    assert task.held == []
    assert waits.picture().waiting == []
    assert waits.oldest_ns() is None


def test_whoever_is_cancelled_lets_go(scheduler: Scheduler) -> None:
    task = scheduler.spawn(holds_and_waits(scheduler, Waitlist(scheduler, "the lock"), Waitlist(scheduler, "m")), "A")
    task.cancel()
    scheduler.run_ready()
    assert task.held == []


def test_io_says_which_file_it_is_for(scheduler: Scheduler, waits: Waits, disk: HandDisk) -> None:
    def work() -> Work:
        yield Io(READ, 0, 4096, aligned_buffer(4096))

    scheduler.spawn(work(), "READ")
    (wait,) = waits.picture().waiting
    assert wait.waits_for == "the disk: read of segment 00000000 at 4096"
    disk.complete_one()
    scheduler.run_ready()
    assert waits.picture().waiting == []


def test_who_wakes_to_find_that_it_must_wait_on_has_waited_all_the_while(scheduler: Scheduler, waits: Waits) -> None:
    memory = Waitlist(scheduler, "memory")
    turn = Waitlist(scheduler, "the next turn", passing=True)

    def work(waitlist: Waitlist) -> Work:
        while True:
            yield waitlist

    scheduler.spawn(work(memory), "A")
    scheduler.spawn(work(turn), "B")
    scheduler.now_ns = 7
    memory.wake()
    turn.wake()
    scheduler.run_ready()
    assert [(wait.name, wait.since_ns) for wait in waits.picture().waiting] == [("A", 0), ("B", 7)]


def test_a_cycle_of_two_is_named_once(scheduler: Scheduler, waits: Waits) -> None:
    lock, memory = Waitlist(scheduler, "the lock"), Waitlist(scheduler, "memory")
    scheduler.spawn(holds_and_waits(scheduler, lock, memory), "A")
    scheduler.spawn(holds_and_waits(scheduler, memory, lock), "B")
    scheduler.spawn(holds_and_waits(scheduler, Waitlist(scheduler, "nothing"), lock), "C")  # stuck, in no cycle
    assert waits.picture().cycles() == ["A waits for memory that B holds, B waits for the lock that A holds"]


def test_a_cycle_through_what_is_no_task_is_named(scheduler: Scheduler, waits: Waits) -> None:
    """As in the discussion of 2015: the flusher is to make room, and needs memory for it."""
    ring = Waitlist(scheduler, "room in the ring", ended_by=("the flusher",))
    memory = Waitlist(scheduler, "memory")
    scheduler.spawn(holds_and_waits(scheduler, memory, ring), "WRITE")
    waits.sources.append(lambda: [Wait("the flusher", "memory", resource=memory)])
    (cycle,) = waits.picture().cycles()
    assert cycle == (
        "WRITE waits for room in the ring, room in the ring waits for the flusher, "
        "the flusher waits for memory that WRITE holds"
    )


def test_one_way_out_is_enough_for_there_to_be_no_cycle(scheduler: Scheduler, waits: Waits) -> None:
    lock = Waitlist(scheduler, "the lock")
    memory = Waitlist(scheduler, "memory", ended_by=("the clock",))
    scheduler.spawn(holds_and_waits(scheduler, lock, memory), "A")
    scheduler.spawn(holds_and_waits(scheduler, memory, lock), "B")
    assert waits.picture().cycles() == []


def test_one_holder_that_can_go_on_is_enough(scheduler: Scheduler, waits: Waits, disk: HandDisk) -> None:
    lock, memory = Waitlist(scheduler, "the lock"), Waitlist(scheduler, "memory")

    def reads() -> Work:
        hold = scheduler.hold(memory, 3)
        yield Io(READ, 0, 0, aligned_buffer(4096))
        hold.release()

    scheduler.spawn(holds_and_waits(scheduler, lock, memory), "A")
    scheduler.spawn(holds_and_waits(scheduler, memory, lock), "B")
    scheduler.spawn(reads(), "READ")
    picture = waits.picture()
    assert picture.cycles() == []
    assert picture.ended_by(picture.waiting[0]) == ["B", "READ"]
    disk.complete_one()
    scheduler.run_ready()
    assert len(waits.picture().cycles()) == 1, "the way out is gone"


def test_who_waits_for_what_it_holds_itself_is_a_cycle(scheduler: Scheduler, waits: Waits) -> None:
    lock = Waitlist(scheduler, "the lock")
    scheduler.spawn(holds_and_waits(scheduler, lock, lock), "A")
    assert waits.picture().cycles() == ["A waits for the lock that A holds"]


def test_of_many_who_can_end_a_wait_some_are_named(scheduler: Scheduler, waits: Waits) -> None:
    memory, end = Waitlist(scheduler, "memory"), Waitlist(scheduler, "the end", ended_by=("the clock",))
    for number in range(10):
        scheduler.spawn(holds_and_waits(scheduler, memory, end), f"task {number}")
    scheduler.spawn(holds_and_waits(scheduler, end, memory), "A")
    picture = waits.picture()
    assert picture.ended_by(picture.waiting[-1]) == ["task 0", "task 1", "task 2", "7 more"]

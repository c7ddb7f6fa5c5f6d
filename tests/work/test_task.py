"""Generators that wait: what resumes them, in which order, and how they end before their end."""

from __future__ import annotations

import pytest

from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.ports import PREPARE, READ, WRITE, Io
from holdfast.units import MIB
from holdfast.work.task import Scheduler, Task, Waitlist, Work, run_to_end
from tests.engine.hand_disk import HandDisk


@pytest.fixture
def disk() -> HandDisk:
    disk = HandDisk()
    disk.run(Io(PREPARE, 0, length=MIB))
    return disk


@pytest.fixture
def scheduler(disk: HandDisk) -> Scheduler:
    return Scheduler(disk)


def settle(scheduler: Scheduler, disk: HandDisk) -> None:
    scheduler.run_ready()
    while disk.in_flight:
        disk.complete_one()
        scheduler.run_ready()


def test_a_task_runs_its_first_step_at_once_and_tells_its_result(scheduler: Scheduler) -> None:
    outcome: list[int] = []

    def work() -> Work:
        yield from ()
        return 7

    scheduler.spawn(work(), "seven", outcome.append)
    assert outcome == [7]
    assert not len(scheduler.tasks)


def test_it_is_resumed_with_the_io_it_waited_for(scheduler: Scheduler, disk: HandDisk) -> None:
    outcome: list[tuple[int, int]] = []

    def work() -> Work:
        written = yield Io(WRITE, 0, 0, aligned_buffer(4096))
        beyond = yield Io(READ, 0, MIB, aligned_buffer(4096))
        return written.result, beyond.result

    scheduler.spawn(work(), "io", outcome.append)
    settle(scheduler, disk)
    assert outcome == [(0, -5)]


def test_many_ios_are_started_together_and_waited_for_together(scheduler: Scheduler, disk: HandDisk) -> None:
    outcome: list[list[int]] = []

    def work() -> Work:
        ios = yield [Io(READ, 0, at * 4096, aligned_buffer(4096)) for at in range(5)]
        return [io.offset for io in ios]

    scheduler.spawn(work(), "ios", outcome.append)
    assert len(disk.in_flight) == 5
    disk.complete_one()
    scheduler.run_ready()
    assert outcome == []
    settle(scheduler, disk)
    assert outcome == [[at * 4096 for at in range(5)]]


def test_waking_a_list_wakes_all_in_the_order_in_which_they_came_and_never_inside_the_call(
    scheduler: Scheduler,
) -> None:
    waitlist = Waitlist(scheduler, "a test")
    order: list[int] = []

    def work(number: int) -> Work:
        yield waitlist
        order.append(number)

    for number in range(4):
        scheduler.spawn(work(number), f"{number}")
    waitlist.wake()
    assert order == []
    scheduler.run_ready()
    assert order == [0, 1, 2, 3]


def test_who_waits_again_while_the_list_is_woken_is_not_woken_twice(scheduler: Scheduler) -> None:
    waitlist = Waitlist(scheduler, "a test")
    turns: list[int] = []

    def work() -> Work:
        for turn in range(3):
            yield waitlist
            turns.append(turn)

    scheduler.spawn(work(), "again")
    waitlist.wake()
    scheduler.run_ready()
    assert turns == [0]
    assert len(waitlist.tasks) == 1


def cancelled(scheduler: Scheduler, awaited: object, log: list[str]) -> Task:
    def work() -> Work:
        try:
            yield awaited
            log.append("went on")
        finally:
            log.append("cleaned up")

    task = scheduler.spawn(work(), "cancelled", lambda _outcome: log.append("finished"))
    task.cancel()
    return task


def test_a_task_that_is_cancelled_while_it_waits_cleans_up_and_does_not_finish(scheduler: Scheduler) -> None:
    waitlist = Waitlist(scheduler, "a test")
    log: list[str] = []
    task = cancelled(scheduler, waitlist, log)
    task.cancel()
    waitlist.wake()
    scheduler.run_ready()
    assert log == ["cleaned up"]
    assert not len(scheduler.tasks)


@pytest.mark.parametrize("count", [0, 3])
def test_a_task_that_is_cancelled_during_io_keeps_its_buffers_until_that_is_over(
    scheduler: Scheduler, disk: HandDisk, count: int
) -> None:
    log: list[str] = []
    one = Io(READ, 0, 0, aligned_buffer(4096))
    cancelled(scheduler, [Io(READ, 0, 0, aligned_buffer(4096)) for _ in range(count)] if count else one, log)
    scheduler.run_ready()
    assert log == []
    settle(scheduler, disk)
    assert log == ["cleaned up"]
    assert not len(scheduler.tasks)


def test_a_task_that_became_ready_and_is_cancelled_before_its_turn_does_not_run(scheduler: Scheduler) -> None:
    waitlist = Waitlist(scheduler, "a test")
    log: list[str] = []

    def work() -> Work:
        yield waitlist
        log.append("ran")

    task = scheduler.spawn(work(), "late")
    waitlist.wake()
    task.cancel()
    scheduler.run_ready()
    assert log == []
    assert not len(scheduler.tasks)


def test_tasks_are_listed_in_the_order_of_their_beginning(scheduler: Scheduler) -> None:
    waitlist = Waitlist(scheduler, "a test")

    def work() -> Work:
        yield waitlist

    for number in range(20):
        scheduler.spawn(work(), f"{number}")
    assert [task.name for task in scheduler.tasks] == [f"{number}" for number in range(20)]


def test_a_generator_can_be_driven_without_a_loop(disk: HandDisk) -> None:
    def work() -> Work:
        view = aligned_buffer(4096)
        view[:3] = b"abc"
        yield [Io(WRITE, 0, 4096, view)]
        back = aligned_buffer(4096)
        yield Io(READ, 0, 4096, back)
        return bytes(back[:3])

    assert run_to_end(work(), disk.run) == b"abc"

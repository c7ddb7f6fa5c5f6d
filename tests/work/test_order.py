"""The order of waits is checked while it is established: what could become a deadlock is found without one."""

from __future__ import annotations

import pytest

from holdfast.work.order import WaitOrder, WaitOrderError
from holdfast.work.task import Scheduler, Waitlist, Work
from tests.engine.hand_disk import HandDisk


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(HandDisk(), WaitOrder())


def waits_holding(scheduler: Scheduler, held: Waitlist, awaited: Waitlist) -> Work:
    hold = scheduler.hold(held)
    try:
        yield awaited
    finally:
        hold.release()


def end(scheduler: Scheduler, *waitlists: Waitlist) -> None:
    for waitlist in waitlists:
        waitlist.wake()
    scheduler.run_ready()
    assert not len(scheduler.tasks)


def test_the_other_order_is_reported_although_nobody_is_stuck(scheduler: Scheduler) -> None:
    lock, memory = Waitlist(scheduler, "the lock"), Waitlist(scheduler, "memory")
    scheduler.spawn(waits_holding(scheduler, lock, memory), "A")
    end(scheduler, memory)
    with pytest.raises(WaitOrderError) as raised:
        scheduler.spawn(waits_holding(scheduler, memory, lock), "B")
    assert "B waits for the lock and holds memory; but before: A waits for memory and holds the lock" in str(
        raised.value
    )


def test_the_same_order_again_is_none_of_its_business(scheduler: Scheduler) -> None:
    lock, memory = Waitlist(scheduler, "the lock"), Waitlist(scheduler, "memory")
    for _ in range(3):
        scheduler.spawn(waits_holding(scheduler, lock, memory), "A")
        end(scheduler, memory)


def test_a_cycle_of_three_steps_is_found_with_all_its_witnesses(scheduler: Scheduler) -> None:
    a, b, c = (Waitlist(scheduler, name) for name in "abc")
    scheduler.spawn(waits_holding(scheduler, a, b), "first")
    scheduler.spawn(waits_holding(scheduler, b, c), "second")
    end(scheduler, b, c)
    with pytest.raises(WaitOrderError, match=r"third.*before: first waits for b and holds a; second waits for c"):
        scheduler.spawn(waits_holding(scheduler, c, a), "third")


def test_who_ends_a_wait_counts_as_holding_it(scheduler: Scheduler) -> None:
    checkpoint = Waitlist(scheduler, "the end of a checkpoint", held_as="the checkpoint")
    clean = Waitlist(scheduler, "fewer dirty pages", ended_by=(checkpoint,))
    with pytest.raises(WaitOrderError, match="fewer dirty pages comes with the checkpoint"):
        scheduler.spawn(waits_holding(scheduler, checkpoint, clean), "checkpoint")


def test_lists_of_one_kind_are_one_class(scheduler: Scheduler) -> None:
    pages = [Waitlist(scheduler, f"page {number}", kind="a map page") for number in range(2)]
    with pytest.raises(WaitOrderError, match="page 1 and holds page 0; but before: it is the same"):
        scheduler.spawn(waits_holding(scheduler, pages[0], pages[1]), "A")


def test_nobody_waits_for_a_client_with_what_others_need(scheduler: Scheduler) -> None:
    buffers = Waitlist(scheduler, "a read buffer", held_as="bytes of read buffers")
    room = Waitlist(scheduler, "the client to take its replies", meant=True)
    with pytest.raises(WaitOrderError, match="a client could stop all others"):
        scheduler.spawn(waits_holding(scheduler, buffers, room), "READ")


def test_nothing_is_checked_without_an_order() -> None:
    scheduler = Scheduler(HandDisk())
    lock = Waitlist(scheduler, "the lock")
    task = scheduler.spawn(waits_holding(scheduler, lock, lock), "A")
    assert task in scheduler.tasks

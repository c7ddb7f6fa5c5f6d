"""Which tests run beside each other where there are several processors, and which have the machine to themselves.

`./dev test` starts a worker for each processor (pytest-xdist, with the scheduler below). The tests of a module stay
together and in order, because they share a server or what was costly to make, but for those of `SPREAD`. What must not
be disturbed, or would disturb, is `ALONE`: it comes last and is held back by a lock until nothing else runs.

Without workers, as when pytest is called by hand, only the order is different, and the lock is always free.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]

# Their cases need nothing of each other, and take long: each goes to the worker that is free. The longest first, so
# that none of them is begun when the others have nothing left to do.
SPREAD = (
    "tests/clients/test_hard_limit.py",
    "tests/crash/test_server_death.py",
    "tests/crash/test_power_loss.py",
    "tests/crash/test_failing_writeback.py",
    "tests/crash/test_full_pool.py",
    "tests/sim/test_mutants.py",
)
# They use all processors by themselves, or look at the time.
ALONE = (
    "tests/sim/test_campaign.py",
    "tests/clients/test_hostile_clients.py",
    "tests/clients/test_isolation.py",
)


def module_of(node: str) -> str:
    """The file of a test, from its name as pytest prints it."""
    return node.partition("::")[0]


def place(node: str) -> int:
    """Sorted by this, tests are in the order in which they should begin."""
    module = module_of(node)
    if module in SPREAD:
        return SPREAD.index(module)
    return len(SPREAD) + (module in ALONE)


@contextmanager
def room_for(node: str) -> Iterator[None]:
    """Wait until the test may run: beside others, or alone. The workers share a lock on this very file."""
    with open(__file__, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if module_of(node) in ALONE else fcntl.LOCK_SH)
        yield


class Scheduler(LoadScopeScheduling):
    """Hands out what belongs together as one; all that runs alone goes to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        module = module_of(nodeid)
        if module in ALONE:
            return "alone"
        return nodeid if module in SPREAD else module

"""The accounts of one server: the tree of groups, what reclaims for it, and how much of it all is resident.

all                 the budget, `--memory`, a limit for each kind of memory
├── server          what serves everybody: tables, checkpoints, what no request asked for
├── default         volumes that are in no other group
└── NAME ...        groups of tenants (volume/groups.py)
"""

from __future__ import annotations

from holdfast.memory.group import Group, Kind, Refuses
from holdfast.memory.plan import MemoryPlan
from holdfast.memory.reclaim import Reclaimer

# Kinds whose memory is allocated and touched at start, used or not. Of the others only what is in use is resident.
SET_ASIDE = (Kind.RING, Kind.MAP_PAGES)


class Accounts:
    """Fields: I fixed when made, L loop thread."""

    def __init__(self, plan: MemoryPlan, *, refuses: Refuses | None = None) -> None:
        self.plan = plan  # I
        self.reclaimer = Reclaimer()  # I
        self.root = Group("all", refuses=refuses, shortage=self.reclaimer.note_shortage)  # I
        limits = self.root.limits
        limits[Kind.MAP_PAGES] = plan.page_bytes
        limits[Kind.READ_BUFFERS] = plan.read_buffer_bytes
        limits[Kind.CONNECTIONS] = plan.connection_bytes
        limits[Kind.STATE] = plan.state_bytes
        # The ring's limit is set by the log, which leaves room for those that must not fail.
        self.fixed_bytes = 0  # L: buffers that all share, allocated at start
        self.base_bytes = 0  # L: resident when the server was ready, beyond what the accounts say
        self._next_number = 1  # L
        self.system = self.make_group("server")  # I

    def make_group(self, name: str) -> Group:
        group = Group(name, self.root, number=self._next_number)
        self._next_number += 1
        return group

    @property
    def accounted_bytes(self) -> int:
        """What should be resident by these accounts: the base, what was set aside, and what is in use of the rest."""
        plan = self.plan
        used = sum(self.root.usage[kind] for kind in Kind if kind not in SET_ASIDE)
        set_aside = plan.ring_bytes + plan.page_bytes - self.reclaimer.given_back_bytes
        return self.base_bytes + self.fixed_bytes + set_aside + used

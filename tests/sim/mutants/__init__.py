"""Planted bugs: realistic mistakes in the engine that the simulator must find, or it is not good enough.

Each is a change of one place of the source. It is found within `SEEDS` seeds from 0 on, of `OPERATIONS` requests each,
the `RARE` ones within `SEEDS_RARE`. The bounds are multiples of what was needed when the mutant was added, because
every change of the simulator or the engine draws other runs from the same seeds.

A module for each room of the engine; `recovery` is spread over several of them, and `mended` is what was found.
"""

from __future__ import annotations

from tests.sim.mutants.cleaning import CLEANING
from tests.sim.mutants.filling import FILLING
from tests.sim.mutants.memory import GROUPS
from tests.sim.mutants.mended import FOUND_AND_MENDED
from tests.sim.mutants.mutant import Mutant
from tests.sim.mutants.pool import CHECKPOINT_AND_SPACE
from tests.sim.mutants.recovery import RECOVERY
from tests.sim.mutants.serving import SERVING
from tests.sim.mutants.sharing import SHARING
from tests.sim.mutants.sizes import SIZES
from tests.sim.mutants.versions import VERSIONS
from tests.sim.mutants.volume import VOLUMES
from tests.sim.mutants.work import ORDER_OF_WAITS, WAITING
from tests.sim.mutants.writeback import FLUSHER, RING_AND_LOG

SEEDS = 250
SEEDS_RARE = 1000
OPERATIONS = 300

MUTANTS = [
    *RING_AND_LOG,
    *FLUSHER,
    *RECOVERY,
    *CHECKPOINT_AND_SPACE,
    *CLEANING,
    *VOLUMES,
    *VERSIONS,
    *SHARING,
    *WAITING,
    *SERVING,
    *GROUPS,
    *SIZES,
    *FILLING,
    *ORDER_OF_WAITS,
    *FOUND_AND_MENDED,
]


# Found, but not within the bound of the others: what they break needs several rare things at once.
RARE = {
    "buffer-of-a-cancelled-read-freed",
    "buffer-room-lost-wake-up",
    "changed-while-read",
    "cold-read-not-checked",
    "cold-segment-retired",
    "damage-copied-along",
    "durable-write-covers-the-earlier-ones",
    "epoch-not-renewed",
    "error-of-a-piece-overwritten",
    "failed-sync-is-forgotten",
    "frozen-page-evicted",
    "holes-not-published",
    "last-block-not-cleared",
    "log-in-a-dead-segment-not-found",
    "log-cut-after-one-look",
    "no-dying",
    "nothing-held-for-a-snapshot",
    "old-commits-count",
    "old-summaries-count",
    "page-room-lost-wake-up",
    "reserve-for-metadata-ignored",
    "seams-within-blocks",
    "sharing-stays-when-a-snapshot-goes",
    "tables-looked-at-once",
    "torn-summary-called-damage",
    "trim-gives-up",
    "unreadable-called-damaged",
    "write-back-not-tried-again",
}

# Not found within a thousand seeds: why, and which test finds it.
SURVIVORS = {
    "mark-of-the-ground-overlooked": "a clone must be rolled back to its only snapshot, which has to have marks, and "
    "what it was made from be gone: tests/engine/test_version_stories.py",
    "level-added-while-a-checkpoint-runs": "a volume must get its level just while a checkpoint writes its root: "
    "tests/engine/test_resize.py",
    "new-segments-before-the-checkpoint": "the log must enter a new segment before the checkpoint ends, and the server "
    "die before it does: tests/engine/test_capacity.py",
    "open-privilege-forgotten": "it uses up a reserve, which the cleaner soon fills again: tests/writeback/test_log.py",
    "ring-of-the-victim": "a segment must come free and be filled again while the ring still has room for what was in "
    "it: tests/cleaning/test_cleaning.py",
    "nothing-spared-for-the-cleaner": "who overwrites may be refused where the cleaner finds nothing to gain, and the "
    "simulator cannot know better: tests/cleaning/test_cleaning.py",
    "sync-covers-later-writes": "a power failure must come between two syncs, with writes that ended then: "
    "tests/writeback/test_flusher.py",
    "backlog-of-the-gone": "a client must vanish at the one send that a request of the backlog makes at once: it was "
    "found by an earlier swarm, and not again",
    "requests-of-the-gone": "a client must vanish between two parts of one batch: one in some thousand seeds",
    "first-superblock-trusted": "two deaths within a few effects of a pool's making, one in 100,000 seeds: "
    "tests/engine/test_lost_slot.py",
    "acknowledgement-destroys": "a block must be found damaged that is not, and be acknowledged before it is read "
    "again: tests/engine/test_losses_and_policies.py",
    "dead-is-not-free-for-recovery": "a server must die just after a checkpoint in both slots, with hardly anything "
    "free before it: two of 100 seeds of pools that are filled, and others with each change: "
    "tests/cleaning/test_cleaning.py",
    "building-not-told": "a clone must be written just while its view waits for a page of memory: "
    "tests/engine/test_snapshots.py",
    "snapshot-taken-while-a-view-is-put-together": "a snapshot and a write must come between two pages "
    "of a view, one in some thousand seeds: tests/engine/test_snapshots.py",
    "dirt-of-the-payer-before": "that a group has enough is all that the simulator sees, not whose each block is: "
    "tests/engine/test_groups.py",
    "withdrawn-slots-still-counted": "the maps of a run must need every page just while the host has some of them: "
    "tests/volume/test_page_cache.py",
    "written-before-it-is-published": "a death between two steps of one turn, one in 100,000 seeds: "
    "tests/writeback/test_flusher.py",
}


def find(name: str) -> Mutant:
    """The mutant of that name. KeyError where there is none."""
    return {mutant.name: mutant for mutant in MUTANTS}[name]

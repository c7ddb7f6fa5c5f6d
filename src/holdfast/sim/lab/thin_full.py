"""T: 256 MiB are written into thin storage that has 64 MiB.

The **writer** is `dd if=/dev/zero bs=1M count=256`: it stops at the first error. The **bystander** is a small server
with a mebibyte on a disk of its own, from which it reads all the time. It takes records from its users, and saves them
every 100 ms, on a disk elsewhere. A **newcomer** comes when the writer is gone, and writes 4 MiB; where it is told that
there is no space, it trims 8 MiB of what the writer wrote, and tries again.

Today the storage is that of the script of 2020: a loop device over a file on a tmpfs, and everybody is in a memory
cgroup of 64 MiB. Ours is a pool of 64 MiB.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.sim.lab.actor import Script
from holdfast.sim.lab.ours import Ours
from holdfast.sim.lab.scenario import Play, Policy, Promises, hold_to
from holdfast.sim.lab.stack import ELSEWHERE, LogLines, Stack
from holdfast.sim.lab.theirs import Theirs
from holdfast.sim.lab.today import WritebackLimits
from holdfast.sim.prng import stream
from holdfast.sim.world import WorldConfig
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB

THIN, OWN = "thin", "own"  # the disks of the writer and of the bystander
DISK_BYTES = 512 * MIB
STORAGE_BYTES = 64 * MIB
REQUEST_BLOCKS = MIB // BLOCK_SIZE_BYTES
REQUESTS = 256
OWN_BLOCKS = MIB // BLOCK_SIZE_BYTES
TRIM_BLOCKS = 8 * REQUEST_BLOCKS
NEWCOMER_REQUESTS = 4
BYSTANDER_PACE_NS = 2_000_000
RECORDS_A_SAVING = 50
WRITE_PACE_NS = 1_000_000  # a dd that does nothing else would be through before the reader has blinked
AFTERWARDS_NS = 50_000_000
DURATION_NS_MAX = 30_000_000_000
AGAIN_NS = 100_000_000
TRIES_MAX = 50

# Memory of the processes themselves: dd with a buffer of 1 MiB, a small server, dd again.
RSS_BYTES = {"writer": 2560 * KIB, "bystander": 16 * MIB, "newcomer": 2560 * KIB}
# A group's share of vm.dirty_ratio 20 and vm.dirty_background_ratio 10.
LIMITS = WritebackLimits(background_bytes=6 * MIB, dirty_bytes=12 * MIB, at_last_close=True)

LANES = ("writer", "bystander", "newcomer", "memory")
PROMISES: Promises = (
    ("a shortage is an answer: nobody is killed", lambda r: not r.killed),
    ("the one who asked for too much is told ENOSPC", lambda r: r.was_told("writer", "ENOSPC")),
    ("everything acknowledged can be read", lambda r: not r.lost_bytes),
    (
        "the bystander is served all the time, each request within 1 s",
        lambda r: (
            "bystander" not in r.killed
            and not any(told.who == "bystander" for told in r.told)
            and r.longest_wait_by_ns["bystander"] < 1_000_000_000
        ),
    ),
    (
        "a trim revives the storage, with no restart",
        lambda r: r.acknowledged_by.get("newcomer", 0) == NEWCOMER_REQUESTS * MIB,
    ),
)


def play(policy: Policy, seed: int, write: Callable[[str], None] | None = None) -> Play:
    if policy == "holdfast":
        ours = Ours(seed, WorldConfig(segments=STORAGE_BYTES // MIB, ring_blocks=512), write)
        with LogLines(ours):
            ours.create(THIN, DISK_BYTES)
            ours.create(OWN, 2 * MIB)
            ours.begin_counting()
            return _play(ours, seed)
    theirs = Theirs(seed, write, memory_bytes=STORAGE_BYTES, rss_bytes=RSS_BYTES)
    theirs.create_on_tmpfs(THIN, LIMITS)
    theirs.create(OWN, 2 * MIB, WritebackLimits())
    theirs.journal.begin()
    return _play(theirs, seed)


def _play(stack: Stack, seed: int) -> Play:
    leaving: list[bool] = []
    stack.begin("bystander", _bystander(stack, seed, leaving))
    stack.go_on(AFTERWARDS_NS, lambda: False)
    stack.begin("writer", _writer(stack, seed))
    stack.go_on(DURATION_NS_MAX, lambda: stack.actors["writer"].over)
    stack.go_on(AFTERWARDS_NS, lambda: False)
    stack.begin("newcomer", _newcomer(stack))
    stack.go_on(DURATION_NS_MAX, lambda: stack.actors["newcomer"].over)
    stack.go_on(AFTERWARDS_NS, lambda: False)
    leaving.append(True)
    stack.go_on(DURATION_NS_MAX, stack.over)
    return hold_to(stack.finish("thin-full", seed, LANES), PROMISES)


def _writer(stack: Stack, seed: int) -> Script:
    rng = stream(seed, "writer")
    party = yield from stack.party("writer", THIN)
    for index in range(REQUESTS):
        if (yield from party.write(index * REQUEST_BLOCKS, REQUEST_BLOCKS)):
            break
        yield stack.sleep(rng.randrange(2 * WRITE_PACE_NS))
    party.leave()


def _bystander(stack: Stack, seed: int, leaving: list[bool]) -> Script:
    rng = stream(seed, "bystander")
    party = yield from stack.party("bystander", OWN)
    yield from party.write(0, OWN_BLOCKS)
    yield from party.flush()
    journal = stack.journal
    records: dict[int, bytes] = {}  # in its memory
    accepted = 0
    while not leaving:
        stamps = journal.new_stamps(1)
        records[accepted] = journal.content(stamps[0])
        journal.acknowledged("bystander", ELSEWHERE, accepted, stamps)
        accepted += 1
        yield from party.read(rng.randrange(OWN_BLOCKS), 1)
        yield stack.sleep(rng.randrange(2 * BYSTANDER_PACE_NS))
        if accepted % RECORDS_A_SAVING == 0:
            _save(stack, records)
    _save(stack, records)
    party.leave()


def _save(stack: Stack, records: dict[int, bytes]) -> None:
    stack.elsewhere.update(records)
    stack.journal.flushed(ELSEWHERE, stack.journal.moment)
    records.clear()


def _newcomer(stack: Stack) -> Script:
    party = yield from stack.party("newcomer", THIN)
    trimmed = False
    for index in range(NEWCOMER_REQUESTS):
        for _ in range(TRIES_MAX):
            if not (yield from party.write((REQUESTS + index) * REQUEST_BLOCKS, REQUEST_BLOCKS)):
                break
            if not trimmed:
                trimmed = True
                yield from party.trim(0, TRIM_BLOCKS)
            yield stack.sleep(AGAIN_NS)
    party.leave()

"""W: 1 in 16 write-backs fails with ENOMEM.

Three people use one disk. The **writer** writes and leaves without a flush. The **careful** one flushes as he goes, and
flushes again where a flush fails. The **latecomer** opens the disk when both have left, flushes until that succeeds,
and leaves. Then the power fails. What was acknowledged to the first two is covered by the flush of the third.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.sim.lab.actor import Party, Script
from holdfast.sim.lab.ours import Ours
from holdfast.sim.lab.scenario import Play, Policy, Promises, hold_to
from holdfast.sim.lab.stack import LogLines, Stack
from holdfast.sim.lab.theirs import Theirs
from holdfast.sim.lab.today import WritebackLimits
from holdfast.sim.prng import stream
from holdfast.sim.world import WorldConfig
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB

DISK = "disk0"
DISK_BYTES = 40 * MIB
EACH_BYTES = 16 * MIB
REQUEST_BLOCKS = 64 * KIB // BLOCK_SIZE_BYTES
REQUESTS_A_FLUSH = 32
PACE_NS = 2_000_000
RING_BYTES = 16 * MIB  # what `holdfast serve --memory 64M` has
FAILURE_RATE = 1 / 16
TRIES_MAX = 50
AGAIN_NS = 100_000_000
DURATION_NS_MAX = 60_000_000_000

LANES = ("writer", "careful", "latecomer", "write-back", "disk", "memory")
PROMISES: Promises = (
    ("what was written is there, though its writer left without a flush", lambda r: not r.lost_by.get("writer")),
    ("a flush that succeeds tells the truth, the second one too", lambda r: not r.lost_flushed_bytes),
    ("nothing acknowledged is lost", lambda r: not r.lost_bytes),
    ("the latecomer's flush succeeds in the end", lambda r: r.answered.get("latecomer", 0) > 0),
    ("nobody waits longer than 10 s", lambda r: r.longest_wait_ns < 10_000_000_000 and not r.unanswered),
)


def play(policy: Policy, seed: int, write: Callable[[str], None] | None = None) -> Play:
    if policy == "holdfast":
        ours = Ours(seed, WorldConfig(segments=64, ring_blocks=RING_BYTES // BLOCK_SIZE_BYTES), write)
        with LogLines(ours):
            ours.create(DISK, DISK_BYTES)
            ours.begin_counting()
            return _play(ours, seed)
    theirs = Theirs(seed, write)
    theirs.create(DISK, DISK_BYTES, WritebackLimits())
    theirs.journal.begin()
    return _play(theirs, seed)


def _play(stack: Stack, seed: int) -> Play:
    stack.fail_writes("ENOMEM", FAILURE_RATE)
    stack.begin("writer", _writer(stack, seed))
    stack.begin("careful", _careful(stack, seed))
    if stack.go_on(DURATION_NS_MAX, stack.over):
        stack.begin("latecomer", _latecomer(stack))
        stack.go_on(DURATION_NS_MAX, stack.over)
    stack.fail_writes("ENOMEM", 0)
    play = stack.finish("writeback-error", seed, LANES, before_reading=stack.lose_power)
    return hold_to(play, PROMISES)


def _writer(stack: Stack, seed: int) -> Script:
    rng = stream(seed, "writer")
    party = yield from stack.party("writer", DISK)
    for first in range(0, EACH_BYTES // BLOCK_SIZE_BYTES, REQUEST_BLOCKS):
        yield from party.write(first, REQUEST_BLOCKS)
        yield stack.sleep(rng.randrange(2 * PACE_NS))
    party.leave()


def _careful(stack: Stack, seed: int) -> Script:
    rng = stream(seed, "careful")
    party = yield from stack.party("careful", DISK)
    begin = DISK_BYTES // 2 // BLOCK_SIZE_BYTES
    for index in range(EACH_BYTES // BLOCK_SIZE_BYTES // REQUEST_BLOCKS):
        yield from party.write(begin + index * REQUEST_BLOCKS, REQUEST_BLOCKS)
        if (index + 1) % REQUESTS_A_FLUSH == 0:
            yield from _flush_until_it_succeeds(stack, party)
        yield stack.sleep(rng.randrange(2 * PACE_NS))
    party.leave()


def _latecomer(stack: Stack) -> Script:
    yield stack.sleep(AGAIN_NS)
    party = yield from stack.party("latecomer", DISK)
    yield from _flush_until_it_succeeds(stack, party)
    party.leave()


def _flush_until_it_succeeds(stack: Stack, party: Party) -> Script:
    for _ in range(TRIES_MAX):
        if not (yield from party.flush()):
            return
        yield stack.sleep(AGAIN_NS)

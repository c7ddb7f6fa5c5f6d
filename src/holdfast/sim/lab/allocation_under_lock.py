"""A: an allocation that must not fail, made under a lock, while no memory is left.

The **first** and the **second** write single blocks to one disk, and meet in its metadata: to change it there is one
lock today, and with us the maps share what memory there is for them. A **third** reads. Memory runs out: today because
the third keeps what it reads; with us because the maps that the two change are many times larger than the memory for
maps, the third's reads need more buffers than there are, and besides, every second charge for either is refused.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.sim.lab.actor import Script
from holdfast.sim.lab.must_succeed import MustSucceed
from holdfast.sim.lab.ours import Ours
from holdfast.sim.lab.scenario import Play, Policy, Promises, hold_to
from holdfast.sim.lab.stack import LogLines, Stack
from holdfast.sim.prng import stream
from holdfast.sim.world import WorldConfig
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB

DISK = "disk0"
PLACES = 2048  # where the two write, each by itself a block
PLACE_BLOCKS = 512  # ours are so far apart that each needs a map page of its own
WRITES = {"first": 1000, "second": 300}
READS = 600
READ_BLOCKS = 8
PACE_NS = {"first": 200_000, "second": 2_000_000, "third": 200_000}  # from one request to the next
REFUSED = 0.02
DURATION_NS_MAX = 20_000_000_000

# Today: the machine, and what its processes have before they begin.
MEMORY_BYTES = 32 * MIB
RSS_BYTES = {"first": 4 * MIB, "second": 16 * MIB, "third": 2 * MIB}

LANES = ("first", "second", "third", "disk", "memory")
PROMISES: Promises = (
    ("everybody is answered", lambda r: not r.unanswered),
    ("nobody is chosen to be killed", lambda r: not r.killed),
    ("nobody waits longer than 10 s", lambda r: r.longest_wait_ns < 10_000_000_000),
    ("nothing acknowledged is lost", lambda r: not r.lost_bytes),
)


def play(policy: Policy, seed: int, write: Callable[[str], None] | None = None) -> Play:
    if policy == "holdfast":
        config = WorldConfig(segments=64, ring_blocks=512, pages=64, read_buffer_bytes=64 * KIB)
        ours = Ours(seed, config, write)
        with LogLines(ours):
            ours.create(DISK, PLACES * PLACE_BLOCKS * BLOCK_SIZE_BYTES)
            ours.begin_counting()
            for point in ("map pages", "read buffers"):
                ours.world.faults.turn_on(point, "refuse", REFUSED)
            return _play(ours, seed, PLACE_BLOCKS)
    theirs = MustSucceed(seed, write, memory_bytes=MEMORY_BYTES, rss_bytes=RSS_BYTES)
    theirs.journal.begin()
    return _play(theirs, seed, 1)


def _play(stack: Stack, seed: int, place_blocks: int) -> Play:
    stack.begin("first", _writer(stack, seed, "first", 0, place_blocks))
    stack.begin("second", _writer(stack, seed, "second", 1, place_blocks))
    stack.begin("third", _reader(stack, seed, place_blocks))
    stack.go_on(DURATION_NS_MAX, stack.over)
    stack.fail_writes("ENOMEM", 0)
    return hold_to(stack.finish("allocation-under-lock", seed, LANES), PROMISES)


def _writer(stack: Stack, seed: int, who: str, parity: int, place_blocks: int) -> Script:
    rng = stream(seed, who)
    party = yield from stack.party(who, DISK)
    places = rng.sample(range(parity, PLACES, 2), WRITES[who])
    for place in places:
        yield from party.write(place * place_blocks, 1)
        yield stack.sleep(rng.randrange(2 * PACE_NS[who]))
    party.leave()


def _reader(stack: Stack, seed: int, place_blocks: int) -> Script:
    rng = stream(seed, "third")
    party = yield from stack.party("third", DISK)
    for _ in range(READS):
        yield from party.read(rng.randrange(PLACES - READ_BLOCKS) * place_blocks, READ_BLOCKS)
        yield stack.sleep(rng.randrange(2 * PACE_NS["third"]))
    party.leave()

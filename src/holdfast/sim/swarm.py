"""What a run is like: each seed draws which commands and which faults there are, how often, and in what surroundings.

Swarm testing: a run that leaves out half of everything gets deeper into the other half than one that has a little of
all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from holdfast.sim.disk import DiskCharacter
from holdfast.sim.faults import DAMAGE, FAILURES, FLIP, POINTS, VANISH
from holdfast.sim.prng import stream
from holdfast.sim.world import WorldConfig
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB

# Requests, and what else may happen between two of them, with how often at most.
ACTIONS = {
    "write": 60, "read": 40, "trim": 8, "zero": 10, "flush": 10, "status": 4, "cache": 3, "nonsense": 1,
    "stop_reading": 1, "hang_up": 2, "say_goodbye": 1, "checkpoint": 2, "create": 1, "remove": 1,
    "snapshot": 2, "look": 6, "compare": 2, "clone": 1, "remove_snapshot": 2, "roll_back": 1,
}  # fmt: skip
SIZES = [1 * MIB + 1234, 8 * MIB, 60 * MIB, 700 * MIB, 3 << 40]


@dataclass(slots=True)
class Swarm:
    """The character of a run. Rates are per call, chances per phase."""

    world: WorldConfig
    operations: int
    actions: dict[str, int]
    volumes: int
    clients: int
    depth: int
    sizes: list[int]
    places: int  # most requests go to so many places all over a volume, each in a leaf of its own; 0: to none
    region_blocks: int  # the others go to so many blocks in a few regions of each volume
    length_max: int
    large: float  # how many requests are longer than four blocks
    unaligned: float
    overlap: float  # how often a change may meet another one of the same block that is under way
    phases: int
    crash: float  # how often a phase ends with the death of the server, or
    power: float  # ... of these, with the power
    reopen: float
    crash_effects: int
    busy_crash: float  # how often a death comes while or soon after a checkpoint is written
    cold: float  # how often a phase begins without a page of the maps in memory
    storm: bool  # many deaths, with few requests between them
    slot_loss: float  # how often a death takes the newer superblock slot with it
    faulty: float  # how often a phase has faults
    faults: list[tuple[str, str, float]] = field(default_factory=list)
    damage: bool = False  # the medium lies: what it holds may be wrong
    tenants: int = 0  # so many changes of groups begin with each phase
    resizes: int = 0  # and so many changes of sizes
    pool_resizes: float = 0.25  # so many of these are of the pool


def draw_swarm(seed: int | str, operations: int) -> Swarm:
    rng = stream(seed, "swarm")
    actions = {"write": 60}
    for action, often in ACTIONS.items():
        if rng.random() < 0.7 or action == "write":
            actions[action] = max(1, int(often * rng.choice([0.3, 1, 1, 3])))
    damage = rng.random() < 0.1
    segment_blocks = rng.choice([64, 64, 256])
    swarm = Swarm(
        world=WorldConfig(
            segments=rng.choice([24, 48, 64, 128] if segment_blocks == 64 else [16, 20, 24, 32, 64]),
            segment_blocks=segment_blocks,
            ring_blocks=rng.choice([256, 300, 391, 512]),
            pages=rng.choice([64, 64, 128]),
            pages_per_turn=rng.choice([1, 5, 64]),
            read_buffer_bytes=rng.choice([1, 2]) * MIB,
            connection_bytes=rng.choice([256 * KIB, MIB]),
            disk=DiskCharacter(
                cached=rng.choice([0.0, 0.5, 0.9, 1.0]),
                latency_ns=rng.choice([10_000, 100_000, 1_000_000]),
                slow=rng.choice([0.0, 0.0, 0.01]),
                workers=rng.choice([1, 4, 16]),
            ),
            room_bytes=rng.choice([4 * KIB, 64 * KIB, 208 * KIB]),
            portions=rng.choice([0.0, 0.1, 0.5]),
            wake_ns=rng.choice([5_000, 50_000, 500_000]),
            batch_ns=rng.choice([0, 200_000, 1_000_000, 3_000_000]),
        ),
        operations=operations,
        actions=actions,
        volumes=rng.choice([1, 1, 2, 3]),
        clients=rng.choice([1, 2, 3, 5]),
        depth=rng.choice([1, 4, 16, 32, 32]),
        sizes=rng.sample(SIZES, rng.choice([1, 2, 3])),
        places=rng.choice([0, 0, 0, 0, 0, 0, 20, 60]),
        region_blocks=rng.choice([8, 8, 40, 40, 120, 200]),
        length_max=rng.choice([4, 16, 64, 400]) * BLOCK_SIZE_BYTES,
        large=0.1,
        unaligned=rng.choice([0.0, 0.1, 0.5]),
        overlap=rng.choice([0.0, 0.1, 0.5]),
        phases=min(rng.choice([2, 2, 3, 3, 5, 8]), max(2, operations // 60)),
        crash=rng.choice([0.0, 0.5, 1.0]),
        power=rng.choice([0.0, 0.5, 1.0]),
        reopen=rng.choice([0.0, 0.2]),
        crash_effects=rng.choice([10, 60, 400]),
        busy_crash=rng.choice([0.0, 0.5, 1.0]),
        cold=rng.choice([0.0, 0.5, 1.0]),
        storm=rng.random() < 0.15,
        slot_loss=rng.choice([0.0, 0.0, 0.3]),
        faulty=rng.choice([0.0, 0.5, 1.0]),
        damage=damage,
    )
    if rng.random() < 0.15:
        # A small pool, written over again and again: segments are emptied, freed and reused all the time.
        swarm.world.segments, swarm.world.segment_blocks = rng.choice([40, 128, 128]), 64
        swarm.large, swarm.length_max, swarm.region_blocks = 0.7, 48 * BLOCK_SIZE_BYTES, 40
        swarm.places = 0
        if swarm.world.segments == 128:
            # What comes free is in use again before the next checkpoint, if nobody asks for one earlier, and a life
            # lasts for a few of them.
            swarm.length_max, swarm.busy_crash, swarm.phases, swarm.storm = 128 * BLOCK_SIZE_BYTES, 0.0, 1, False
            actions.pop("checkpoint", None)
        swarm.crash, swarm.slot_loss = 1.0, 0.5
    elif rng.random() < 0.2:
        # A pool that is filled, and written over for ever after: only the cleaner makes room in it.
        swarm.world.segments, swarm.world.segment_blocks = rng.choice([20, 24, 32]), 64
        swarm.large, swarm.length_max = rng.choice([0.3, 0.7]), 48 * BLOCK_SIZE_BYTES
        swarm.region_blocks, swarm.places = rng.choice([120, 200, 400]), rng.choice([0, 0, 20])
        swarm.phases = min(swarm.phases, 3)
    if rng.random() < 0.4:
        swarm.tenants = rng.choice([1, 2, 5])
        swarm.world.uids = rng.choice([(None,), (None, 1000), (1000, 1001)])
    rude = False
    if rng.random() < 0.08:
        # Clients that send a lot, and are gone before it is answered, or while it is.
        actions["hang_up"] = 10
        swarm.depth, swarm.large, swarm.length_max = rng.choice([32, 200]), 0.3, 400 * BLOCK_SIZE_BYTES
        rude = True
    if swarm.faulty or damage:
        swarm.faults = _draw_faults(rng, damage=damage)
    if swarm.large > 0.5 and not damage and rng.random() < 0.5:
        # ... while no checkpoint gets to its end.
        swarm.faulty, swarm.slot_loss, swarm.busy_crash = 1.0, 0.0, 0.5
        swarm.faults = [("write superblock", rng.choice(FAILURES), 1.0)]
    elif rude and not damage:
        swarm.faulty = 0.7
        swarm.faults = [*swarm.faults[:2], ("send", VANISH, 0.05)]
    elif not damage and rng.random() < 0.06:
        # What is read is wrong now and then, above all when a pool is opened again.
        swarm.faulty, swarm.crash, swarm.power = 1.0, 1.0, 0.7
        rate = rng.choice([0.1, 0.3])
        swarm.faults = [("read", FLIP, rate), ("read cached", FLIP, rate / 4)]
    # From numbers of its own: so the other runs are what they were before there was this.
    rng = stream(seed, "swarm of sizes")
    if rng.random() < 0.35:
        swarm.resizes = rng.choice([1, 1, 3])
        if swarm.faults and not damage and rng.random() < 0.6:
            swarm.faults = [*swarm.faults, ("remove", rng.choice(POINTS["remove"]), 0.5)]
            swarm.pool_resizes = 0.8  # or hardly any file would ever be removed
    return swarm


def _draw_faults(rng: Random, *, damage: bool) -> list[tuple[str, str, float]]:
    chosen = []
    for point, kinds in POINTS.items():
        if point == "remove":
            continue  # drawn with the changes of sizes
        for kind in kinds:
            if kind in DAMAGE:
                if damage and rng.random() < 0.5:
                    chosen.append((point, kind, rng.choice([0.01, 0.1])))
            elif rng.random() < 0.15:
                chosen.append(
                    (point, kind, rng.choice([0.02, 0.2] if kind in (FLIP, VANISH) else [0.01, 0.1, 0.5, 1.0]))
                )
    return chosen

"""Promise 2: what was acknowledged survives the death of the server, flushed or not.

Each round starts the server, compares every byte with what the oracles allow, puts load on it from several connections
and kills it with SIGKILL at a random moment; in some rounds while it is still starting, so recovery is cut off, too.

A round takes about half a second; half of that is the start of a Python with numpy (0.2 s of 0.27 s until `ready`).
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random

import pytest

from holdfast.units import MIB
from tests.crash.harness import Server, read_volume, serving
from tests.crash.load import Load, Target
from tests.crash.oracle import VolumeOracle

ROUNDS = 50
SEEDS = (1, 2, 3, 4)
START_SECONDS = 0.3
OPTIONS = ("--volume", "a=4M", "--volume", "b=64M", "--capacity", "256M", "--segment-size", "1M", "--memory", "16M")


def new_targets() -> list[Target]:
    """A small volume whose segments die young, and a sparse one with a map of several pages."""
    return [Target("a", VolumeOracle(1, 4 * MIB)), Target("b", VolumeOracle(2, 64 * MIB), stride_bytes=6 * MIB)]


def die_while_starting(server: Server, seconds: float) -> None:
    """Start, and kill before or shortly after it is ready."""
    process = server.launch()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass  # as it should be: still alive at the moment of the kill
    server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_acknowledged_survives_kill_9(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    targets = new_targets()
    generation = 0
    with serving(tmp_path / "pool", *OPTIONS) as server:
        for number in range(ROUNDS):
            try:
                while number and random.random() < 0.15:
                    die_while_starting(server, START_SECONDS * random.random())
                server.start()
                for target in targets:
                    found = read_volume(server.pool, target.name)
                    target.oracle.check_acknowledged(found)
                    target.oracle.adopt(found)
                depth = random.choice((1, 4, 16))
                with Load(server.pool, targets, random, connections=3, depth=depth, generation=generation) as load:
                    if random.random() < 0.2:
                        load.wipe(random.choice(targets))
                    load.run(random.randrange(1, 200))
                    server.kill()
                    load.after_death()
                    generation = load.generation
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, round {number}: {error}\n{server.log()[-2000:]}") from error
        assert "Traceback" not in server.log()

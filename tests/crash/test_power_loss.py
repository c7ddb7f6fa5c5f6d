"""Promises 1 and 3: after a power failure all that was flushed is there, and a volume is a prefix of its changes.

As in test_server_death.py, but after the kill the ring is thrown away, and what the server had not made durable is torn
(`power_failure`).  With one change in flight at a time the order of the changes of a volume is known, and the volume
must be as it was after some number of them.  With many in flight the check is per cell.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.crash.harness import Server, read_volume, serving
from tests.crash.load import Load
from tests.crash.power import Snapshot, power_failure, snapshot
from tests.crash.test_server_death import OPTIONS, START_SECONDS, die_while_starting, new_targets

ROUNDS = 25


def die_while_recovering(server: Server, before: Snapshot, random: Random) -> None:
    """A second power failure while the server recovers from the first."""
    die_while_starting(server, START_SECONDS * random.random())
    power_failure(server.pool, before, random)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("strict", [True, False], ids=("one_in_flight", "many_in_flight"))
def test_flushed_survives_and_the_rest_is_a_prefix(strict: bool, seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    targets = new_targets()
    generation = 0
    at_risk = 0
    before: Snapshot = {}
    with serving(tmp_path / "pool", *OPTIONS) as server:
        for number in range(ROUNDS):
            try:
                while number and random.random() < 0.15:
                    die_while_recovering(server, before, random)
                server.start()
                for target in targets:
                    found = read_volume(server.pool, target.name)
                    if strict:
                        target.oracle.check_prefix(found)
                    else:
                        target.oracle.check_flushed(found)
                    target.oracle.adopt(found)
                connections, depth = (1, 1) if strict else (3, random.choice((1, 4, 16)))
                with Load(
                    server.pool, targets, random, connections=connections, depth=depth, generation=generation
                ) as load:
                    if random.random() < 0.2:
                        load.wipe(random.choice(targets))
                    load.run(random.randrange(1, 200))
                    server.kill()
                    load.after_death()
                    generation = load.generation
                at_risk += power_failure(server.pool, before, random)
                before = snapshot(server.pool)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, round {number}: {error}\n{server.log()[-2000:]}") from error
        assert "Traceback" not in server.log()
    assert at_risk > 10 * ROUNDS, "hardly anything was torn: this test shows nothing"

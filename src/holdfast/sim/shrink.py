"""Making a failing run short: fewer requests, commands, faults and clients, as long as it goes on failing.

A shrunken run is its seed with edits, each a short text that the command line takes as well, so that it can be replayed
(`--edit operations=60 --edit -read`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum

from holdfast.sim.filling import FillingRun, draw_filling
from holdfast.sim.run import Outcome, Run
from holdfast.sim.swarm import Swarm, draw_swarm

_NUMBERS = ("operations", "clients", "depth", "volumes", "phases", "region_blocks", "crash_effects")
_RATES = ("unaligned", "overlap", "crash", "power", "reopen", "faulty")
TRIES_MAX = 200


class Kind(Enum):
    """What a seed is a seed of."""

    MIXED = "mixed"  # `run.py`
    FILLING = "filling"  # `filling.py`


def edited_swarm(seed: int | str, operations: int, edits: list[str], *, kind: Kind = Kind.MIXED) -> Swarm:
    """The swarm of a seed with these edits. Raises ValueError for an edit that is none."""
    swarm = draw_filling(seed, operations) if kind is Kind.FILLING else draw_swarm(seed, operations)
    for edit in edits:
        name, equals, value = edit.partition("=")
        if edit.startswith("-") and edit[1:] in swarm.actions and edit != "-write":
            del swarm.actions[edit[1:]]
        elif any(edit == f"-{point}/{kind}" for point, kind, _rate in swarm.faults):
            swarm.faults = [fault for fault in swarm.faults if f"-{fault[0]}/{fault[1]}" != edit]
        elif equals and name in _NUMBERS and value.isascii() and value.isdecimal() and int(value) > 0:
            setattr(swarm, name, int(value))
        elif equals and name in _RATES and re.fullmatch(r"0(\.\d+)?|1(\.0+)?", value):
            setattr(swarm, name, float(value))
        else:
            raise ValueError(f"{edit!r} changes nothing of this seed")
    return swarm


def run_edited(
    seed: int | str,
    operations: int,
    edits: list[str],
    *,
    kind: Kind = Kind.MIXED,
    write: Callable[[str], None] | None = None,
) -> Outcome:
    make = FillingRun if kind is Kind.FILLING else Run
    run = make(seed, operations, swarm=edited_swarm(seed, operations, edits, kind=kind), write=write)
    try:
        run.run()
    except AssertionError as error:
        run.outcome.failure = str(error) or "an assertion without a message"
    except Exception as error:  # the engine's own mistakes are failures like any other
        run.outcome.failure = f"{type(error).__name__}: {error}"
    return run.outcome


def shrink(
    seed: int | str,
    operations: int,
    run: Callable[[int | str, int, list[str]], Outcome] = run_edited,
    *,
    kind: Kind = Kind.MIXED,
) -> tuple[list[str], Outcome]:
    """Edits that make a failing run shorter, and how it then fails. Edits that end the failing are left out. `run`: in
    place of `run_edited`, of seeds of this kind."""
    edits: list[str] = []
    best = run(seed, operations, edits)
    assert best.failure, "a run that holds cannot be shrunk"
    tries = 0
    progress = True
    while progress and tries < TRIES_MAX:
        progress = False
        for edit in _candidates(edited_swarm(seed, operations, edits, kind=kind)):
            tries += 1
            outcome = run(seed, operations, [*edits, edit])
            if outcome.failure:
                name = edit.partition("=")[0]
                edits = [earlier for earlier in edits if earlier.partition("=")[0] != name] + [edit]
                best = outcome
                progress = True
            if tries >= TRIES_MAX:
                break
    return edits, best


def _candidates(swarm: Swarm) -> Iterator[str]:
    """The next smaller things to try, those that save most first."""
    for name in _NUMBERS:
        value = getattr(swarm, name)
        if value > 1:
            yield f"{name}={value // 2}"
            yield f"{name}={value - max(1, value // 10)}"
    for point, kind, _rate in swarm.faults:
        yield f"-{point}/{kind}"
    for action in swarm.actions:
        if action != "write":
            yield f"-{action}"
    for name in _RATES:
        if getattr(swarm, name):
            yield f"{name}=0"

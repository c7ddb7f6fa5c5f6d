"""Runs the simulator over an engine with a planted bug: `python -m tests.sim.mutant_runner NAME --seeds N`.

The mutant's text replaces the engine's while the module is loaded, in a process of its own; the files stay as they are.
Seeds are tried from 0 on until one fails. What came of it is printed as one line of JSON:

    mutant, seed (that failed, or null), seeds_tried, failure (what was broken, or ""), seconds

An exception that is no AssertionError counts as found, too: the engine of that seed did not survive.

An empty name plants nothing: for the proof that the same seeds pass without a bug.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from tests.sim.mutants import find
from tests.sim.mutants.mutant import Mutant


class MutatedLoader(SourceFileLoader):
    """Loads one module from its source, with the mutant's text in it; never from or into a cache."""

    def __init__(self, name: str, path: str, mutant: Mutant) -> None:
        super().__init__(name, path)
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return compile(planted(self.mutant, self.get_data(self.path).decode()), self.path, "exec")


class Planter(MetaPathFinder):
    """Finds the mutant's module in place of the ordinary finders."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.planted = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None, f"there is no module {fullname}"
        assert spec.origin is not None
        spec.loader = MutatedLoader(fullname, spec.origin, self.mutant)
        self.planted = True
        return spec


def planted(mutant: Mutant, source: str) -> str:
    """The source of the mutant's module with the bug in it. ValueError: the catalogue is not up to date."""
    count = source.count(mutant.old)
    if count != 1:
        raise ValueError(f"mutant {mutant.name}: its text is in {mutant.module} {count} times, not once")
    return source.replace(mutant.old, mutant.new)


def try_seeds(seeds: range, operations: int, *, filling: bool) -> tuple[int | None, str]:
    """The first seed that fails, and how; or None. Any exception is a failure."""
    from holdfast.sim.shrink import Kind, run_edited

    for seed in seeds:
        failure = run_edited(seed, operations, [], kind=Kind.FILLING if filling else Kind.MIXED).failure
        if failure:
            return seed, failure
    return None, ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Run seeds over a planted bug until one fails.")
    parser.add_argument("mutant", help="a name out of tests/sim/mutants/, or an empty one: no bug")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--operations", type=int, default=400)
    parser.add_argument("--full", action="store_true", help="seeds of pools that are filled, also without a bug")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    planter = None
    if options.mutant:
        planter = Planter(find(options.mutant))
        assert planter.mutant.module not in sys.modules
        sys.meta_path.insert(0, planter)
    started = time.perf_counter()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    filling = options.full or (planter is not None and planter.mutant.filling)
    seed, failure = try_seeds(seeds, options.operations, filling=filling)
    assert planter is None or planter.planted, f"no run loads {options.mutant}'s module"
    tried = options.seeds if seed is None else seed - options.first_seed + 1
    result = {"mutant": options.mutant, "seed": seed, "seeds_tried": tried, "failure": failure}
    print(json.dumps(result | {"seconds": round(time.perf_counter() - started, 2)}))


if __name__ == "__main__":
    main()

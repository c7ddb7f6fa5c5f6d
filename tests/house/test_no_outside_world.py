"""One room touches the world: no clock, randomness, thread, process, file or socket outside runtime/ and the edges.

The engine is a deterministic state machine that a simulator can drive and replay only as long as this holds.  ruff's
TID251 says the same while one types; this test reads ruff's own list from pyproject.toml, so that there is one, and
adds what ruff does not look at: built-in functions, star imports, imports put together at run time.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "holdfast"
RUFF = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
BANNED: dict[str, str] = {name: entry["msg"] for name, entry in RUFF["flake8-tidy-imports"]["banned-api"].items()}
BANNED_BUILTINS = {
    "__import__": "hides an import from this test",
    "input": "the terminal belongs to cli/",
    "open": "take a Disk (runtime/ports.py)",
    "print": "the terminal belongs to cli/ and server.py",
}

# The edges.  Each entry is a decision; a longer list is a hole in the simulator.
MAY_TOUCH_THE_WORLD = {
    "runtime/**",
    "cli/**",
    "control/client.py",
    "server.py",
    "serving/control_connection.py",
    "serving/pool.py",
    "serving/check.py",
    "sim/__main__.py",
    "sim/campaign.py",  # runs by the hundred, each in one of several processes
}

# What a room that is no edge may use all the same, and nothing else that is banned.
MAY_USE = {
    "sim/**": {"random.Random"},  # with a seed: everything that the simulated world decides is drawn from it
}


def dotted(node: ast.expr) -> str | None:
    """`a.b.c` for such an expression, None for any other."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(names)])


def names_used(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Each imported or used name of another module, as `numpy.random.default_rng`, aliases resolved, with its line."""
    full_name: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
                head = alias.name.split(".")[0]
                full_name[alias.asname or head] = alias.name if alias.asname else head
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
                full_name[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name is not None:
                head, _, rest = name.partition(".")
                if head in full_name:
                    yield node.lineno, f"{full_name[head]}.{rest}"


def outside_world(source: Path) -> list[str]:
    """Every use of the outside world below `source` (the package itself) where it is banned, as a line to read."""
    found = set()
    for path in source.rglob("*.py"):
        relative = path.relative_to(source)
        if any(fnmatch(str(relative), pattern) for pattern in MAY_TOUCH_THE_WORLD):
            continue
        tree = ast.parse(path.read_text(), str(path))
        lets_use = set().union(*(names for pattern, names in MAY_USE.items() if fnmatch(str(relative), pattern)))
        for line, name in names_used(tree):
            if name in lets_use:
                continue
            for banned, reason in BANNED.items():
                if name == banned or name.startswith(banned + "."):
                    found.add((str(relative), line, f"{banned}: {reason}"))
            if name.endswith(".*"):
                found.add((str(relative), line, f"{name}: a star import hides what is used"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in BANNED_BUILTINS:
                found.add((str(relative), node.lineno, f"{node.id}(): {BANNED_BUILTINS[node.id]}"))
    return [f"{file}:{line}: {what}" for file, line, what in sorted(found)]


def findings_in(tmp_path: Path, text: str, *, name: str = "pool/commit.py") -> list[str]:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return outside_world(tmp_path)


def test_only_the_edges_touch_the_outside_world() -> None:
    assert outside_world(SOURCE) == []


def test_the_list_names_what_makes_a_run_unrepeatable() -> None:
    assert {"asyncio", "os", "random", "secrets", "select", "socket", "subprocess", "threading", "time"} <= set(BANNED)


def test_ruff_and_this_test_let_the_same_files_through() -> None:
    ignoring = {pattern for pattern, rules in RUFF["per-file-ignores"].items() if "TID251" in rules}
    assert ignoring == {"!src/**"} | {f"src/holdfast/{pattern}" for pattern in MAY_TOUCH_THE_WORLD | MAY_USE.keys()}


def test_a_clock_is_found(tmp_path: Path) -> None:
    assert findings_in(tmp_path, "import time\n") == ["pool/commit.py:1: time: take a Clock (runtime/ports.py)"]


def test_a_single_function_taken_from_a_banned_module_is_found(tmp_path: Path) -> None:
    assert len(findings_in(tmp_path, "from os.path import exists\n")) == 1


def test_a_banned_name_behind_an_alias_is_found(tmp_path: Path) -> None:
    text = "import numpy as np\nx = np.zeros(3)\ny = np.random.default_rng()\n"
    assert findings_in(tmp_path, text) == ["pool/commit.py:3: numpy.random: take a Prng (runtime/ports.py)"]


def test_the_time_of_day_is_found(tmp_path: Path) -> None:
    assert len(findings_in(tmp_path, "from datetime import datetime\nnow = datetime.now()\n")) == 1


def test_the_builtin_open_is_found(tmp_path: Path) -> None:
    assert len(findings_in(tmp_path, "def load(name):\n    return open(name).read()\n")) == 1


def test_a_field_that_is_called_open_is_no_file(tmp_path: Path) -> None:
    assert findings_in(tmp_path, "class SegmentCounts:\n    open: int = 0\n") == []


def test_a_star_import_is_found(tmp_path: Path) -> None:
    assert len(findings_in(tmp_path, "from math import *\n")) == 1


def test_the_runtime_may_touch_the_world(tmp_path: Path) -> None:
    assert findings_in(tmp_path, "import os, time\n", name="runtime/disk.py") == []


def test_the_simulator_may_draw_from_a_seed_and_nothing_else(tmp_path: Path) -> None:
    text = "from random import Random\nimport time\n"
    assert findings_in(tmp_path, text, name="sim/world.py") == ["sim/world.py:2: time: take a Clock (runtime/ports.py)"]


def test_the_simulator_may_not_draw_without_a_seed(tmp_path: Path) -> None:
    text = "import random\nfrom random import SystemRandom\nx = random.random()\n"
    assert len(findings_in(tmp_path, text, name="sim/world.py")) == 3

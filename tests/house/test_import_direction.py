"""Imports point the way that data flows: nbd, volume, writeback, pool, tier; and the edges only inwards.

Who has read only the tree of files then knows where a write goes, the wire knows nothing of the engine, and the engine
nothing of the process around it.  The simulator is above all that it simulates, and what it runs reaches the real world
nowhere.  The modules are parsed, not imported: a wrong arrow is found even where importing it would work, under
`if TYPE_CHECKING` and inside functions too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from .test_no_outside_world import MAY_TOUCH_THE_WORLD

SOURCE = Path(__file__).parents[2] / "src" / "holdfast"

FLOW = ("volume", "writeback", "pool", "tier")
GROUND = ("units", "errors")
PORTS = "runtime.ports"
BUFFERS = "runtime.buffers"  # memory that a disk accepts, which is the same in the simulated world
WORK = "work"  # generators that wait, and the scheduler that resumes them: used by every room of the engine
MEMORY = "memory"  # budgets: used by every room that holds memory
ANYTHING = ""

# A room or top-level module, and what it may import of holdfast besides itself.  A name covers all that is below it.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "__init__": (),
    "units": (),
    "errors": ("units",),
    "complaints": GROUND,
    "nbd": GROUND,
    **{room: (*FLOW[position + 1 :], *GROUND, PORTS, WORK, MEMORY) for position, room in enumerate(FLOW)},
    "memory": (*GROUND, PORTS),
    "work": (*GROUND, PORTS),
    "runtime": GROUND,
    "control": GROUND,
    "engine_parts": ("complaints", "volume", "writeback", "pool", "memory", *GROUND, PORTS, WORK),
    "engine": ("engine_parts", "volume", "writeback", "pool", "memory", *GROUND, PORTS, WORK),
    "scrub": ("volume", "pool", *GROUND, PORTS, WORK),
    "serving": (*FLOW, "nbd", "memory", "runtime", "control", "engine", "engine_parts", "scrub", *GROUND, WORK),
    "server": (*FLOW, "nbd", "memory", "runtime", "control", "engine", "serving", *GROUND, WORK),
    "sim": (*FLOW, "nbd", "memory", "engine", "engine_parts", "serving", "scrub", *GROUND, PORTS, BUFFERS, WORK),
    "cli": (ANYTHING,),
    "__main__": ("cli",),
}


def imported_names(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[int, str, str]]:
    """Each import of holdfast in a module of `package`: line, the module named, and the name taken from it, dotted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "holdfast":
                    path = alias.name.removeprefix("holdfast").removeprefix(".")
                    yield node.lineno, path, path
        elif isinstance(node, ast.ImportFrom):
            if node.level > 0:
                parents = package[: len(package) - (node.level - 1)]
                base = ".".join((*parents, *filter(None, [node.module])))
            elif node.module is not None and node.module.split(".")[0] == "holdfast":
                base = node.module.removeprefix("holdfast").removeprefix(".")
            else:
                continue
            for alias in node.names:
                yield node.lineno, base, f"{base}.{alias.name}".removeprefix(".")


def covers(allowed: str, name: str) -> bool:
    return allowed in (ANYTHING, name) or name.startswith(allowed + ".")


def wrong_arrows(source: Path) -> list[str]:
    """Every import below `source` (the package itself) that MAY_IMPORT does not allow, as a line for the reader."""
    found = []
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source)
        room = relative.parts[0].removesuffix(".py")
        if room not in MAY_IMPORT:
            found.append(f"{relative}: room {room!r} has no row in MAY_IMPORT: say what it may import")
            continue
        allowed = (*MAY_IMPORT[room], *([room] if len(relative.parts) > 1 else []))
        for line, base, name in imported_names(ast.parse(path.read_text(), str(path)), relative.parts[:-1]):
            if not any(covers(entry, base) or covers(entry, name) for entry in allowed):
                found.append(f"{relative}:{line}: {room} -> {name}: {room} may import only {', '.join(allowed) or '-'}")
    return found


def module_of(source: Path, name: str) -> Path | None:
    """The file of a dotted name below `source`, or of the module that it is taken from."""
    parts = name.split(".")
    while parts:
        path = source.joinpath(*parts)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
        parts.pop()
    return None


def is_edge(module: str) -> bool:
    return any(fnmatch(module, pattern) for pattern in MAY_TOUCH_THE_WORLD)


def reached_from_simulator(source: Path) -> dict[str, str]:
    """What the simulated world imports, and what that imports in turn: relative path -> who imports it."""
    modules = sorted((source / "sim").rglob("*.py"))
    pending = [path for path in modules if not is_edge(str(path.relative_to(source)))]
    reached = {str(path.relative_to(source)): "" for path in pending}
    while pending:
        path = pending.pop()
        relative = path.relative_to(source)
        for _, base, name in imported_names(ast.parse(path.read_text(), str(path)), relative.parts[:-1]):
            imported = module_of(source, name) or module_of(source, base)
            if imported is not None and str(imported.relative_to(source)) not in reached:
                reached[str(imported.relative_to(source))] = str(relative)
                pending.append(imported)
    return reached


def edges_in_the_simulation(source: Path) -> list[str]:
    """The modules that touch the real world and are reached by the simulated one, however indirectly, to be read."""
    harmless = {"runtime/__init__.py", "runtime/ports.py", "runtime/buffers.py"}
    return [
        f"{importer} -> {module}: what is simulated would not be in the seed's hands any more"
        for module, importer in sorted(reached_from_simulator(source).items())
        if is_edge(module) and module not in harmless
    ]


def tree_with(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_imports_point_the_way_that_data_flows() -> None:
    assert wrong_arrows(SOURCE) == []


def test_an_import_against_the_flow_is_found(tmp_path: Path) -> None:
    source = tree_with(tmp_path, {"pool/commit.py": "import struct\nfrom holdfast.volume.map import PageTable\n"})
    (finding,) = wrong_arrows(source)
    assert finding.startswith("pool/commit.py:2: pool -> volume.map.PageTable: pool may import only tier, units")


def test_the_wire_may_not_know_the_engine(tmp_path: Path) -> None:
    source = tree_with(tmp_path, {"nbd/transmission.py": "import holdfast.engine\nfrom holdfast.units import KIB\n"})
    assert len(wrong_arrows(source)) == 1


def test_the_engine_may_take_the_ports_and_nothing_else_of_the_runtime(tmp_path: Path) -> None:
    lines = (
        "from holdfast.runtime import ports\nfrom holdfast.runtime.ports import Io\nfrom holdfast.runtime import disk\n"
    )
    (finding,) = wrong_arrows(tree_with(tmp_path, {"engine.py": lines}))
    assert finding.startswith("engine.py:3: engine -> runtime.disk:")


def test_a_relative_import_is_an_import(tmp_path: Path) -> None:
    source = tree_with(tmp_path, {"volume/map.py": "from . import names\nfrom ..nbd import replies\n"})
    (finding,) = wrong_arrows(source)
    assert finding.startswith("volume/map.py:2: volume -> nbd.replies")


def test_an_import_inside_a_function_is_an_import(tmp_path: Path) -> None:
    source = tree_with(tmp_path, {"server.py": "def serve():\n    from holdfast.cli import main\n"})
    assert len(wrong_arrows(source)) == 1


def test_a_new_room_has_to_be_given_a_place(tmp_path: Path) -> None:
    (finding,) = wrong_arrows(tree_with(tmp_path, {"attic/chest.py": ""}))
    assert "'attic' has no row" in finding


def test_only_the_command_line_knows_the_simulator(tmp_path: Path) -> None:
    line = "from holdfast.sim.world import World\n"
    source = tree_with(tmp_path, {"cli/sim.py": line, "serving/pool.py": line, "engine.py": line, "server.py": line})
    assert [finding.split(":")[0] for finding in wrong_arrows(source)] == ["engine.py", "server.py", "serving/pool.py"]


def test_what_the_simulator_runs_reaches_the_real_world_nowhere() -> None:
    assert edges_in_the_simulation(SOURCE) == []


def test_the_simulator_runs_what_serves() -> None:
    """From the wire to the disk's port: were one of these replaced by a double, a run would show little."""
    reached = reached_from_simulator(SOURCE).keys()
    served = {"nbd/handshake.py", "nbd/transmission.py", "serving/bring_up.py", "serving/clients.py", "engine.py"}
    assert served | {"serving/connection.py", "serving/session.py", "serving/heartbeat.py"} <= reached


def test_a_roundabout_way_to_the_real_world_is_found(tmp_path: Path) -> None:
    files = {
        "sim/world.py": "from holdfast.serving.clients import Clients\n",
        "serving/clients.py": "from holdfast.runtime import buffers, ports\nfrom . import sockets\n",
        "serving/sockets.py": "def accept():\n    from holdfast.runtime.listen import Listener\n",
        **dict.fromkeys(["runtime/listen.py", "runtime/ports.py", "runtime/buffers.py"], ""),
    }
    (finding,) = edges_in_the_simulation(tree_with(tmp_path, files))
    assert finding.startswith("serving/sockets.py -> runtime/listen.py:")

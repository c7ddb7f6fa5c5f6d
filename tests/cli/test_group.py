"""`holdfast group`, on a pool that is served and on one that is not."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.cli.group import command
from holdfast.control.group_api import GroupInfo
from holdfast.units import GIB, MIB
from tests.clients.running import RunningServer
from tests.control.fake_service import FakeService

from .conftest import Run

Serve = Callable[..., RunningServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(pool, memory="16M")`: what still runs when the test has failed is ended."""
    servers: list[RunningServer] = []

    def start(pool: Path, *, memory: str = "16M") -> RunningServer:
        servers.append(RunningServer(pool, memory=memory, capacity="128M", segment_size="1M"))
        return servers[-1].start()

    yield start
    for server in servers:
        server.end()


def group_of(run: Run, where: object) -> GroupInfo:
    result = run("group", "show", where, "--json")
    assert result.exit_code == 0, result.stderr
    return GroupInfo(**json.loads(result.stdout))


def test_a_group_is_created_in_a_served_pool(run: Run, served_pool: Path, service: FakeService) -> None:
    result = run("group", "create", f"{served_pool}/red", "--space", "100G", "--dirty", "16M", "--uid", "0")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (
        f"created {served_pool}/red\n"
        "name       red\n"
        "memory     0\n"
        "dirty      0 of 16M\n"
        "map        0\n"
        "space      0 of 100G\n"
        "peers      uid 0\n"
        "throttled  0.0 s\n"
        "refused    nothing\n"
        "volumes    none\n"
    )
    info = service.known_groups["red"]
    assert (info.space_bytes, info.dirty_bytes, info.memory_bytes, info.uid) == (100 * GIB, 16 * MIB, 0, 0)


def test_show_tells_what_is_used_of_what_and_by_whom(run: Run, served_pool: Path, service: FakeService) -> None:
    service.known_groups["red"] = GroupInfo(
        name="red", id=1, memory_bytes=32 * MIB, dirty_bytes=8 * MIB, space_bytes=GIB, dirty_min_bytes=4 * MIB,
        map_min_bytes=MIB, uid=33, cgroup="/red.slice", usage={"ring": 2 * MIB, "map_pages": MIB, "state": 0},
        mapped_bytes=512 * MIB, throttled_s=1.25, refusals={"ring": 3}, volumes=["disk0", "disk1"],
    )  # fmt: skip
    assert run("group", "show", f"{served_pool}/red").stdout == (
        "name       red\n"
        "memory     3M of 32M (ring 2M, map_pages 1M)\n"
        "dirty      2M of 8M, sure of 4M\n"
        "map        1M, sure of 1M\n"
        "space      512M of 1G\n"
        "peers      uid 33, control group /red.slice\n"
        "throttled  1.2 s\n"
        "refused    ring 3\n"
        "volumes    disk0, disk1\n"
    )
    listed = run("group", "list", served_pool).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["NAME", "default", "red"]
    assert " ".join(listed[2].split()) == "red 2 512M of 1G 2M of 8M 3M of 32M 1.2s"


def test_a_minimum_that_the_server_has_not_got_is_told(run: Run, served_pool: Path, service: FakeService) -> None:
    service.known_groups["red"] = GroupInfo(name="red", id=1, dirty_min_bytes=GIB, minimums_held=False)
    shown = run("group", "show", f"{served_pool}/red").stdout
    assert "dirty      0, sure of 1G once the pool is served with more --memory\n" in shown


def test_limits_change_one_at_a_time_and_none_takes_them_away(
    run: Run, served_pool: Path, service: FakeService
) -> None:
    assert run("group", "create", f"{served_pool}/red", "--space", "1G", "--cgroup", "/red.slice/").exit_code == 0
    assert service.known_groups["red"].cgroup == "/red.slice"
    for option, value, field, stored in (
        ("--memory", "32M", "memory_bytes", 32 * MIB),
        ("--dirty", "8M", "dirty_bytes", 8 * MIB),
        ("--dirty-min", "4M", "dirty_min_bytes", 4 * MIB),
        ("--map-min", "1M", "map_min_bytes", MIB),
        ("--uid", "nobody", "uid", pwd.getpwnam("nobody").pw_uid),
        ("--cgroup", "none", "cgroup", ""),
    ):
        result = run("group", "set", f"{served_pool}/red", option, value)
        assert result.exit_code == 0, result.stderr
        assert getattr(service.known_groups["red"], field) == stored
    assert service.known_groups["red"].space_bytes == GIB, "nobody spoke of it"
    names = ("--memory", "--dirty", "--space", "--dirty-min", "--map-min", "--uid")
    assert (
        run("group", "set", f"{served_pool}/red", *(word for name in names for word in (name, "none"))).exit_code == 0
    )
    assert service.known_groups["red"] == GroupInfo(name="red", id=1)


def test_everything_that_prints_knows_json(run: Run, served_pool: Path) -> None:
    created = json.loads(run("group", "create", f"{served_pool}/red", "--space", "1G", "--json").stdout)
    changed = json.loads(run("group", "set", f"{served_pool}/red", "--dirty", "8M", "--json").stdout)
    shown = json.loads(run("group", "show", f"{served_pool}/red", "--json").stdout)
    listed = json.loads(run("group", "list", served_pool, "--json").stdout)
    assert created | {"dirty_bytes": 8 * MIB} == changed == shown == listed["groups"][1]


def test_what_the_pool_refuses_is_a_no(run: Run, served_pool: Path, service: FakeService) -> None:
    service.add("disk0", GIB)
    for words in (
        ("create", f"{served_pool}/default"),
        ("show", f"{served_pool}/nope"),
        ("set", f"{served_pool}/nope", "--space", "1G"),
        ("remove", f"{served_pool}/nope"),
        ("remove", f"{served_pool}/default"),
    ):
        result = run("group", *words)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), words


NONSENSE = [
    (("create", "POOL"), "names no group; write"),
    (("create", "POOL/.x"), "'.x' is not a group name"),
    (("create", "POOL/" + "x" * 65), "has 65 characters; at most 64 are allowed"),
    (("create", "POOL/" + "x" * 300), "has 300 characters"),
    (("create", "POOL/\udcff"), "is not a group name"),
    (("create", "POOL/red", "--space", "much"), "'much' is not a size; write for example 512M, 10G or 1T"),
    (("create", "POOL/red", "--space", "-5"), "'-5' is not a size"),
    (("create", "POOL/red", "--space", "4095"), "less than a block; give at least 4K"),
    (("create", "POOL/red", "--memory", "1024P"), "give less than 1024P, or none"),
    (("create", "POOL/red", "--dirty-min", "99999999999999P"), "give less than 1024P, or none"),
    (("create", "POOL/red", "--uid", "no-such-user"), "there is no user 'no-such-user'; give a name or a number"),
    (("create", "POOL/red", "--uid", "-1"), "there is no user '-1'"),
    (("create", "POOL/red", "--uid", "4294967295"), "is not a uid; give 0 to 4294967294, or none"),
    (("create", "POOL/red", "--cgroup", ""), "give one, or none"),
    (("create", "POOL/red", "--cgroup", "red.slice"), "it begins with a slash"),
    (("create", "POOL/red", "--cgroup", "/"), "name one below"),
    (("create", "POOL/red", "--cgroup", "/\udcff"), "is not UTF-8"),
    (("create", "POOL/red", "--cgroup", "/" + "x" * 192), "has 193 bytes; at most 192 are allowed"),
    (("create", "POOL/red", "--cgroup", "/sys/fs/cgroup/red.slice"), "as /proc/PID/cgroup has it, such as /red.slice"),
    (("set", "POOL/default"), "nothing to change; give one of --memory, --dirty, --space"),
    (("list", "POOL/nope"), "there is no pool here; `holdfast serve"),
    (("show", "POOL/nope/red"), "there is no pool here; `holdfast serve"),
    (("show", "red"), "'red' names no pool; write POOL/NAME"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "why"), NONSENSE, ids=lambda value: ascii(value)[:60])
@pytest.mark.parametrize("served", [True, False], ids=["served", "idle"])
def test_nonsense_is_one_line_and_could_not_run(
    run: Run, served_pool: Path, pool: Path, words: tuple[str, ...], why: str, served: bool
) -> None:
    where = str(served_pool if served else pool)
    result = run("group", *(re.sub("^POOL(?=/|$)", where, word) for word in words))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
    assert why in result.stderr


# --- A real pool that nobody serves -----------------------------------------------------------------------------------


def test_an_idle_pool_remembers_a_group(run: Run, pool: Path) -> None:
    limits = ("--space", "64M", "--dirty", "4M", "--dirty-min", "1M", "--map-min", "64K")
    assert run("group", "create", f"{pool}/red", *limits, "--uid", "12", "--cgroup", "/r").exit_code == 0
    red = group_of(run, f"{pool}/red")
    assert (red.space_bytes, red.dirty_bytes, red.dirty_min_bytes, red.map_min_bytes) == (64 * MIB, 4 * MIB, MIB, 65536)
    assert (red.uid, red.cgroup, red.volumes, red.minimums_held) == (12, "/r", [], True)
    assert run("group", "remove", f"{pool}/red").stdout == f"removed {pool}/red\n"
    assert [line.split()[0] for line in run("group", "list", pool).stdout.splitlines()] == ["NAME", "default"]


def test_a_volume_moves_from_group_to_group(run: Run, pool: Path) -> None:
    for name in ("red", "blue"):
        assert run("group", "create", f"{pool}/{name}").exit_code == 0
    assert run("volume", "create", f"{pool}/disk0", "1G", "--group", "red").exit_code == 0
    assert group_of(run, f"{pool}/red").volumes == ["disk0"]
    assert run("volume", "set", f"{pool}/disk0", "--group", "blue").stdout.endswith("; group blue\n")
    assert (group_of(run, f"{pool}/red").volumes, group_of(run, f"{pool}/blue").volumes) == ([], ["disk0"])
    refused = run("group", "remove", f"{pool}/blue")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "put them into another one with `holdfast volume set --group`" in refused.stderr
    assert run("group", "remove", f"{pool}/red").exit_code == 0
    assert run("volume", "remove", f"{pool}/disk0").exit_code == 0
    assert run("group", "remove", f"{pool}/blue").exit_code == 0


def test_a_group_that_is_not_there_holds_no_volume(run: Run, pool: Path) -> None:
    assert run("volume", "create", f"{pool}/disk0", "1G").exit_code == 0
    assert run("group", "create", f"{pool}/red").exit_code == 0
    assert run("group", "remove", f"{pool}/red").exit_code == 0
    for words in (("create", f"{pool}/disk1", "1G"), ("set", f"{pool}/disk0")):
        result = run("volume", *words, "--group", "red")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == ("holdfast: there is no group 'red'; `holdfast group list` shows those that exist\n")
    listed = json.loads(run("volume", "list", pool, "--json").stdout)["volumes"]
    assert [(volume["name"], volume["group"]) for volume in listed] == [("disk0", "default")]


@pytest.mark.parametrize("peer", [("--uid", "12"), ("--cgroup", "/red.slice")], ids=["uid", "cgroup"])
def test_a_peer_is_charged_to_one_group(run: Run, pool: Path, peer: tuple[str, str]) -> None:
    assert run("group", "create", f"{pool}/red", *peer).exit_code == 0
    assert run("group", "create", f"{pool}/blue").exit_code == 0
    for words in (("create", f"{pool}/green"), ("set", f"{pool}/blue")):
        result = run("group", *words, *peer)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert "is charged to group 'red' already" in result.stderr
    assert run("group", "set", f"{pool}/red", *peer).exit_code == 0, "it is its own"
    assert run("group", "remove", f"{pool}/red").exit_code == 0
    assert run("group", "set", f"{pool}/blue", *peer).exit_code == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--memory", "4K"), "is too little for a group; 1M is the least"),
        (("--dirty", "4K"), "is too little for a group; 256K is the least"),
        (("--dirty", "1M", "--dirty-min", "2M"), "its limit is 1M"),
        (("--memory", "4M", "--dirty-min", "3M", "--map-min", "3M"), "sure of 6M of dirty data and map pages"),
        (("--dirty-min", "1P"), "; ask for less, or serve the pool with more --memory first"),
        (("--map-min", "1P"), "; ask for less, or serve the pool with more --memory first"),
    ],
)
def test_limits_that_do_not_go_together_are_a_no_and_change_nothing(
    run: Run, pool: Path, words: tuple[str, ...], why: str
) -> None:
    for what in (("create", f"{pool}/red"), ("set", f"{pool}/default")):
        result = run("group", *what, *words)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.stderr
        assert why in result.stderr
    (default,) = json.loads(run("group", "list", pool, "--json").stdout)["groups"]
    assert GroupInfo(**default) == GroupInfo(
        name="default", id=0, usage=dict.fromkeys(default["usage"], 0), refusals=dict.fromkeys(default["refusals"], 0)
    )


# --- A real server ----------------------------------------------------------------------------------------------------


@pytest.mark.clients
def test_groups_survive_a_restart_and_a_kill(run: Run, serve: Serve, tmp_path: Path) -> None:
    server = serve(tmp_path / "real", memory="16M")
    words = ("--space", "64M", "--dirty", "2M", "--dirty-min", "1M", "--memory", "8M", "--uid", str(os.getuid() + 1))
    assert run("group", "create", f"{server.pool}/red", *words).exit_code == 0
    assert (
        run("volume", "create", f"{server.pool}/disk0", "1G", "--group", "red", "--on-error", "read-only").exit_code
        == 0
    )
    before = group_of(run, f"{server.pool}/red")
    assert (before.volumes, before.space_bytes, before.minimums_held) == (["disk0"], 64 * MIB, True)
    server.stop()
    assert group_of(run, f"{server.pool}/red") == before
    server.start()
    assert group_of(run, f"{server.pool}/red") == before
    assert run("volume", "set", f"{server.pool}/disk0", "--group", "default", "--on-full", "read-only").exit_code == 0
    assert run("group", "set", f"{server.pool}/default", "--space", "32M").exit_code == 0
    server.kill()
    server.start()
    assert group_of(run, f"{server.pool}/red").volumes == []
    assert group_of(run, f"{server.pool}/default").space_bytes == 32 * MIB
    shown = server.show("disk0")
    assert (shown.group, shown.on_full, shown.on_error) == ("default", "read-only", "read-only")
    server.stop()


@pytest.mark.clients
def test_a_minimum_outlives_a_server_that_has_not_got_it(run: Run, serve: Serve, tmp_path: Path) -> None:
    """Looked at with little memory, it is not held; other limits can be changed; and with more it is held again."""
    large = serve(tmp_path / "real", memory="64M")
    assert run("group", "create", f"{large.pool}/red", "--dirty-min", "12M").exit_code == 0
    large.stop()
    small = serve(tmp_path / "real", memory="16M")
    red = group_of(run, f"{small.pool}/red")
    assert (red.dirty_min_bytes, red.minimums_held) == (12 * MIB, False)
    assert "once the pool is served with more --memory" in run("group", "show", f"{small.pool}/red").stdout
    assert run("group", "set", f"{small.pool}/red", "--space", "64M").exit_code == 0
    assert run("group", "set", f"{small.pool}/red", "--dirty-min", "13M").exit_code == 1
    small.stop(expected="is sure of nothing until a server with more --memory has the pool")
    large.start()
    red = group_of(run, f"{large.pool}/red")
    assert (red.dirty_min_bytes, red.space_bytes, red.minimums_held) == (12 * MIB, 64 * MIB, True)
    large.stop(expected="is sure of nothing until a server with more --memory has the pool")  # in the log before


@pytest.mark.clients
def test_a_limit_below_what_is_used_takes_nothing_away(run: Run, serve: Serve, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(os.urandom(3 * MIB))
    server = serve(tmp_path / "real", memory="16M")
    assert run("group", "create", f"{server.pool}/red").exit_code == 0
    assert run("volume", "create", f"{server.pool}/disk0", "8M", "--group", "red").exit_code == 0
    assert run("copy", data, f"{server.pool}/disk0").exit_code == 0
    changed = run("group", "set", f"{server.pool}/red", "--space", "1M", "--memory", "1M", "--dirty", "256K")
    assert changed.exit_code == 0, changed.stderr
    assert "space      3M of 1M\n" in changed.stdout
    assert run("copy", "--verify", f"{server.pool}/disk0", tmp_path / "back").exit_code == 0
    assert (tmp_path / "back").read_bytes()[: 3 * MIB] == data.read_bytes()
    assert run("copy", data, f"{server.pool}/disk0").exit_code == 0, "what is overwritten takes no more space"
    data.write_bytes(os.urandom(5 * MIB))
    refused = run("copy", data, f"{server.pool}/disk0")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1), refused.stderr
    assert run("group", "set", f"{server.pool}/red", "--space", "none").exit_code == 0
    assert run("copy", data, f"{server.pool}/disk0").exit_code == 0
    server.stop(expected="group space|space of group|group 'red'")


# A client that becomes another user before it connects: it writes and never flushes, until its input ends.
_WRITER = """
import os, sys
from pathlib import Path
from tests.clients.raw_client import RawClient
from tests.nbd.wire import write

uid, gid = map(int, sys.argv[2:])
os.chdir(sys.argv[1])  # as nobody it may not come through all that is above
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
client = RawClient(Path("pool.sock"))
client.choose("disk0")
print("connected", flush=True)
os.set_blocking(0, False)
number = 0
while sys.stdin.buffer.read(1) is None:
    for _ in range(8):
        client.send(write(number % 64 * 65536, bytes([number % 255 + 1]) * 65536))
        number += 1
    assert len(client.receive(8 * 16)) == 8 * 16
"""


@pytest.mark.clients
@pytest.mark.root
def test_whoever_connects_as_the_user_of_a_group_is_charged_to_it(run: Run, serve: Serve, tmp_path: Path) -> None:
    """And not to the group of the volume that he uses, but for the space."""
    nobody = pwd.getpwnam("nobody")
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o755)
    server = serve(place / "pool", memory="32M")
    server.unix_path.chmod(0o666)
    assert run("group", "create", f"{server.pool}/batch", "--uid", "nobody").exit_code == 0
    assert run("group", "create", f"{server.pool}/owner").exit_code == 0
    assert run("volume", "create", f"{server.pool}/disk0", "16M", "--group", "owner").exit_code == 0
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(place), str(nobody.pw_uid), str(nobody.pw_gid)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == b"connected\n"
        ring_bytes = mapped_bytes = 0
        while not (ring_bytes and mapped_bytes):  # what is durable is charged no longer, so it goes on writing
            assert writer.poll() is None
            batch, owner = (group_of(run, f"{server.pool}/{name}") for name in ("batch", "owner"))
            assert batch.usage["state"] > 0
            assert batch.mapped_bytes == 0
            assert (owner.usage["ring"], owner.usage["state"], owner.usage["connections"]) == (0, 0, 0)
            ring_bytes, mapped_bytes = max(ring_bytes, batch.usage["ring"]), owner.mapped_bytes
        writer.stdin.close()
    assert writer.returncode == 0
    server.wait_until_drained("disk0")
    assert group_of(run, f"{server.pool}/batch").usage["state"] == 0
    server.stop()


def test_every_command_about_groups_has_examples_that_parse() -> None:
    for name, found in command.commands.items():
        examples = getattr(found, "examples", ())
        assert examples, name
        for _purpose, typed in examples:
            words = typed.split(" | ")[0].split()
            assert words[0] == "holdfast"
            if words[1:3] == ["group", name]:
                options = {option for param in found.params for option in param.opts}
                assert {word for word in words if word.startswith("--")} <= options, typed

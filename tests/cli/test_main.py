"""The frame around all commands: help, version, errors, interruption, completion."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from holdfast.cli.command import LazyGroup
from holdfast.cli.locate import complete_groups, complete_pool_path
from holdfast.cli.main import holdfast
from holdfast.control.group_api import GroupInfo
from holdfast.units import GIB
from tests.control.fake_service import FakeService

from .conftest import Run

COMMANDS = [
    ("serve",), ("volume", "create"), ("volume", "list"), ("volume", "show"), ("volume", "remove"),
    ("volume", "set"), ("volume", "resize"), ("volume", "acknowledge-loss"), ("pool", "resize"),
    ("volume", "snapshot"), ("volume", "clone"), ("volume", "promote"), ("volume", "rollback"),
    ("group", "create"), ("group", "list"), ("group", "show"), ("group", "set"), ("group", "remove"),
    ("copy",), ("top",), ("check",), ("doctor",), ("lab", "list"), ("lab", "run"), ("completion",),
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_is_a_small_manual(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    for part in ("Usage: holdfast " + " ".join(words), "Exit codes:", "Examples:", "could not run"):
        assert part in result.stdout


def test_the_help_of_the_whole_lists_the_commands_without_importing_them(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for words in COMMANDS:
        assert f"  {words[0]} " in result.stdout


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version").stdout == f"holdfast {version('holdfast')}\n"


def test_an_unknown_command_is_one_line(run: Run) -> None:
    result = run("sevre")
    assert result.exit_code == 2
    assert result.stderr.startswith("holdfast: no such command 'sevre'")
    assert result.stderr.count("\n") == 1


def _group_that_raises(error: BaseException) -> click.Group:
    @click.group(cls=LazyGroup)
    def group() -> None:
        pass

    @group.command()
    def go() -> None:
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (PermissionError(13, "Permission denied", "/pool/lock"), 2, "holdfast: /pool/lock: permission denied\n"),
        (click.ClickException("two\nlines"), 1, "holdfast: two lines\n"),
    ],
    ids=["interrupt", "permission", "lines"],
)
def test_what_ends_a_command_becomes_one_line_and_a_code(error: BaseException, exit_code: int, said: str) -> None:
    result = click.testing.CliRunner().invoke(_group_that_raises(error), ["go"])
    assert result.exit_code == exit_code
    assert result.stderr.strip() == said.strip()


def test_a_bug_is_not_dressed_up_as_an_error_of_the_user() -> None:
    result = click.testing.CliRunner().invoke(_group_that_raises(ZeroDivisionError()), ["go"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_output_that_nobody_reads_to_the_end_is_no_traceback() -> None:
    script = "from holdfast.cli.main import main; import sys; sys.argv = ['holdfast', 'doctor', '--json']; main()"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_us_back(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_HOLDFAST_COMPLETE" in result.stdout


def test_volume_names_complete(served_pool: Path, service: FakeService) -> None:
    for name in ("disk0", "disk1", "other"):
        service.add(name, GIB)
    found = [item.value for item in complete_pool_path(f"{served_pool}/di")]
    assert found == [f"{served_pool}/disk0", f"{served_pool}/disk1"]


def test_nothing_completes_where_nobody_serves(pool: Path) -> None:
    assert complete_pool_path(f"{pool}/di") == []
    assert complete_pool_path("di") == []


def completions(line: str) -> list[str]:
    """What a shell is told for this line, whose last word is begun."""
    result = click.testing.CliRunner().invoke(
        holdfast,
        env={
            "_HOLDFAST_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(line.count(" ")),
        },
    )
    return [word.partition(",")[2] for word in result.stdout.splitlines() if word]


def test_a_shell_gets_volume_names_through_the_command(served_pool: Path, service: FakeService) -> None:
    service.add("disk0", GIB)
    assert completions(f"holdfast volume show {served_pool}/") == [f"{served_pool}/disk0"]


@pytest.mark.parametrize("command", ["show", "set", "remove"])
def test_a_shell_gets_groups_where_a_group_is_meant(served_pool: Path, service: FakeService, command: str) -> None:
    service.add("disk0", GIB)
    service.known_groups["red"] = GroupInfo(name="red", id=1)
    assert completions(f"holdfast group {command} {served_pool}/") == [f"{served_pool}/default", f"{served_pool}/red"]
    assert completions(f"holdfast group {command} {served_pool}/r") == [f"{served_pool}/red"]


def test_a_shell_gets_the_groups_of_the_pool_of_a_volume(served_pool: Path, service: FakeService) -> None:
    service.known_groups["red"] = GroupInfo(name="red", id=1)
    assert completions(f"holdfast volume set {served_pool}/disk0 --group ") == ["default", "red"]
    assert completions(f"holdfast volume create {served_pool}/disk0 1G --group r") == ["red"]
    assert completions("holdfast volume set --group r") == []


def test_policies_complete() -> None:
    assert completions("holdfast volume set pool/disk0 --on-full ") == ["error", "wait:30", "read-only"]
    assert completions("holdfast volume set pool/disk0 --on-error re") == ["retry", "read-only"]


def test_groups_complete_where_somebody_serves(pool: Path) -> None:
    assert complete_groups(pool, "") == []


def test_snapshot_names_complete_where_snapshots_are_meant(served_pool: Path, service: FakeService) -> None:
    for name in ("disk0", "disk0@monday", "disk0@tuesday", "disk1", "disk1@monday"):
        service.add(name, GIB)
    at = f"{served_pool}/disk0@"
    assert completions(f"holdfast volume show {at}") == [f"{at}monday", f"{at}tuesday"]
    assert completions(f"holdfast volume remove {at}m") == [f"{at}monday"]
    assert completions(f"holdfast volume clone {at}tu") == [f"{at}tuesday"]
    assert completions(f"holdfast volume rollback {served_pool}/disk0") == [f"{at}monday", f"{at}tuesday"]
    assert completions(f"holdfast volume rollback {served_pool}/") == [at, f"{served_pool}/disk1@"]
    assert completions(f"holdfast volume snapshot {served_pool}/disk0") == [at]
    assert completions(f"holdfast volume show {served_pool}/disk0") == [f"{served_pool}/disk0"]


def test_bash_takes_a_snapshot_for_one_word(run: Run) -> None:
    script = run("completion", "bash").stdout + '\necho "$COMP_WORDBREAKS"'
    done = subprocess.run(["bash", "-i", "-c", script], capture_output=True, text=True, check=False)
    assert "=" in done.stdout
    assert "@" not in done.stdout

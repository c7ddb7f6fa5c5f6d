"""`holdfast lab`: what it prints, its exit codes, and the pages of the documents that hold what it prints.

`python -m tests.cli.test_lab` writes the pictures and tables in docs/lab/ anew.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from holdfast.cli.main import holdfast
from holdfast.sim.lab.catalog import CATALOG, PLAYABLE
from holdfast.sim.lab.plays import PLAYS
from holdfast.sim.lab.scenario import Play, Policy, Promise

from .conftest import Run

DOCS = Path(__file__).parents[2] / "docs" / "lab"
SIDES = ("today", "holdfast")


@cache
def printed(name: str) -> str:
    result = CliRunner().invoke(holdfast, ["lab", "run", name])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list_names_all_five_and_says_which_can_be_played(run: Run) -> None:
    result = run("lab", "list")
    assert result.exit_code == 0
    _, *lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [entry.name for entry in CATALOG]
    assert sorted(line.split()[1] for line in lines) == ["A", "N", "R", "T", "W"]
    for line in lines:
        assert line.endswith("can be played" if line.split()[0] in PLAYABLE else "comes with a later version")


def test_the_list_as_json(run: Run) -> None:
    entries = json.loads(run("lab", "list", "--json").stdout)
    assert [entry["name"] for entry in entries if entry["playable"]] == list(PLAYABLE)
    assert all(entry.keys() == {"name", "rows", "title", "playable"} for entry in entries)


@pytest.mark.parametrize("words", [("lab", "list"), ("lab", "run")], ids=" ".join)
def test_the_help_is_a_small_manual(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    for part in ("Usage: holdfast " + " ".join(words), "Exit codes:", "Examples:", "    holdfast lab "):
        assert part in result.stdout


def test_both_sides_stand_beside_each_other() -> None:
    output = printed("writeback-error")
    assert output.startswith("writeback-error, seed 1: ")
    heading = output.splitlines()[2]
    assert heading.split() == ["TODAY", "HOLDFAST"]
    assert re.search(r"^lost  +1\.\dM \(.*\)  +0$", output, re.MULTILINE)
    assert re.search(r"^nothing acknowledged is lost  +broken  kept$", output, re.MULTILINE)


def test_one_side_alone(run: Run) -> None:
    result = run("lab", "run", "thin-full", "--policy", "today")
    assert result.exit_code == 0  # holdfast has broken nothing: it was not played
    assert result.stdout.splitlines()[2].split() == ["TODAY"]


def test_the_result_as_json(run: Run) -> None:
    result = run("lab", "run", "thin-full", "--json", "--seed", "1")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report.keys() == {"scenario", "rows", "title", "seed", "kept", "results"}
    assert (report["scenario"], report["rows"], report["seed"], report["kept"]) == ("thin-full", "T", 1, True)
    assert [result["policy"] for result in report["results"]] == list(SIDES)
    documented = (DOCS.parent / "lab.md").read_text()
    for result in report["results"]:
        assert all(f"`{key}`" in documented for key in result.keys() - {"scenario", "seed"})
    assert {told["error"] for told in report["results"][1]["told"]} == {"ENOSPC"}


def test_kept_is_null_where_holdfast_was_not_played(run: Run) -> None:
    report = json.loads(run("lab", "run", "thin-full", "--policy", "today", "--json").stdout)
    assert report["kept"] is None
    assert len(report["results"]) == 1


def test_a_promise_that_holdfast_breaks_is_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PLAYS["thin-full"]

    def worse(policy: Policy, seed: int, write: object) -> Play:
        play = real(policy, seed, None)
        return replace(play, result=replace(play.result, promises=(Promise("the impossible", False),)))

    monkeypatch.setitem(PLAYS, "thin-full", worse)
    result = run("lab", "run", "thin-full", "--policy", "holdfast")
    assert result.exit_code == 1
    assert re.search(r"^the impossible  broken$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", [entry.name for entry in CATALOG if not entry.playable])
def test_what_comes_later_is_2_and_one_line(run: Run, name: str) -> None:
    result = run("lab", "run", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"holdfast: {name}: comes with a later version")
    assert result.stderr.count("\n") == 1


def test_an_unknown_situation_is_2_and_one_line(run: Run) -> None:
    result = run("lab", "run", "full-thin")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert all(name in result.stderr for name in PLAYABLE)


def test_the_trace_comes_before_the_tables_side_by_side_by_name(run: Run) -> None:
    output = run("lab", "run", "thin-full", "--trace").stdout
    today, ours = output.index("--- today\n"), output.index("--- holdfast\n")
    assert today == 0
    assert re.search(r" ms  bystander  killed ", output[:ours])
    assert re.search(r" ms  writer     told an error WRITE ENOSPC", output[ours:])
    assert "the pool is full: " in output[ours:]  # what the engine logs, is in it
    assert output.rpartition("\n---\n")[2] == printed("thin-full")


def test_a_trace_is_no_json(run: Run) -> None:
    result = run("lab", "run", "thin-full", "--trace", "--json")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_a_picture_that_cannot_be_written_is_one_line(run: Run, tmp_path: Path) -> None:
    result = run("lab", "run", "thin-full", "--policy", "today", "--picture", tmp_path / "nowhere" / "x.svg")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "no such file or directory" in result.stderr


def test_the_same_seed_prints_the_same_to_the_byte(run: Run) -> None:
    assert run("lab", "run", "writeback-error").stdout == printed("writeback-error")


def test_another_seed_prints_something_else(run: Run) -> None:
    other = run("lab", "run", "writeback-error", "--seed", "3").stdout
    assert other.replace("seed 3", "seed 1") != printed("writeback-error")


@pytest.mark.parametrize(
    ("begin", "found"), [("", list(PLAYABLE)), ("thi", ["thin-full"]), ("nested", [])], ids=["nothing", "thi", "later"]
)
def test_names_complete(begin: str, found: list[str]) -> None:
    result = CliRunner().invoke(
        holdfast,
        env={"_HOLDFAST_COMPLETE": "bash_complete", "COMP_WORDS": f"holdfast lab run {begin}", "COMP_CWORD": "3"},
    )
    assert [line.partition(",")[2] for line in result.stdout.splitlines() if line] == found


# ---- the documents


def page_of(name: str) -> Path:
    return DOCS / f"{name}.md"


def with_table(page: str, name: str) -> str:
    """The page with what the command prints now, behind its marker."""
    marker = f"<!-- lab run {name} -->\n"
    assert marker in page, f"docs/lab/{name}.md has no line {marker!r}"
    before, _, after = page.partition(marker)
    if after.startswith("```"):
        after = after.partition("\n```\n")[2]
    return f"{before}{marker}```console\n$ holdfast lab run {name}\n{printed(name)}```\n{after}"


def draw(name: str, path: Path) -> None:
    assert CliRunner().invoke(holdfast, ["lab", "run", name, "--picture", str(path)]).exit_code == 0


@pytest.mark.parametrize("name", PLAYABLE)
def test_the_table_on_its_page_is_what_the_command_prints(name: str) -> None:
    page = page_of(name).read_text()
    assert page == with_table(page, name), "write the pages anew: python -m tests.cli.test_lab"


@pytest.mark.parametrize("name", PLAYABLE)
def test_the_picture_in_the_documents_is_what_the_command_draws(tmp_path: Path, name: str) -> None:
    draw(name, tmp_path / "now.svg")
    now = (tmp_path / "now.svg").read_bytes()
    assert now == (DOCS / f"{name}.svg").read_bytes(), "draw the pictures anew: python -m tests.cli.test_lab"
    assert ElementTree.fromstring(now).tag == "{http://www.w3.org/2000/svg}svg"


def test_every_situation_has_its_line_in_the_index() -> None:
    index = (DOCS.parent / "lab.md").read_text()
    for entry in CATALOG:
        assert f"[{entry.name}](lab/{entry.name}.md)" in index if entry.playable else f"| {entry.name} |" in index


def refresh() -> None:
    for name in PLAYABLE:
        page_of(name).write_text(with_table(page_of(name).read_text(), name))
        draw(name, DOCS / f"{name}.svg")


if __name__ == "__main__":
    refresh()

"""What no file of the repository may contain: the names of package registries' hosts, and paths of somebody's machine.

The first would tie everyone who installs to one registry, where pip's own configuration should decide; the second
works on one machine and tells strangers about it.  The lock file is held to its own rules besides: every package
pinned, every pin with hashes, nothing that says where to fetch from.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Put together from their parts, or this file would be the first finding.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("pypi", "python", "org"),
        ("npmjs", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
        ("anaconda", "org"),
    )
]
FORBIDDEN = re.compile(
    "|".join(map(re.escape, REGISTRY_HOSTS)) + r"|(?<![\w.}\-])/(?:root|work|Users/\w+|home/\w+)/", re.IGNORECASE
)


def forbidden_words(root: Path) -> list[str]:
    """Findings in the files below `root` that git tracks or would track; files with a zero byte are not text."""
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
    found = []
    for name in sorted(set(filter(None, names))):
        path = root / name
        if not path.is_file():
            continue  # tracked, and deleted in the work tree
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            found += [f"{name}:{number}: {match.group()}" for match in FORBIDDEN.finditer(line)]
    return found


def lock_faults(lock: str, wanted: list[str]) -> list[str]:
    """What is wrong with the text of a lock file that has to pin the packages `wanted`."""
    found = []
    if "://" in lock or re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links)\b", lock, re.MULTILINE):
        found.append("says where to fetch from")
    entries = re.findall(r"^([A-Za-z0-9_.-]+)==\S+((?:.*\\\n)*.*)", lock, re.MULTILINE)
    pinned = {name.lower() for name, _ in entries}
    found += [f"{name} has no hashes" for name, rest in entries if "--hash=sha256:" not in rest]
    found += [f"{name} is not pinned" for name in wanted if name not in pinned]
    return found


def test_no_file_names_a_registry_host_or_a_path_of_somebodys_machine() -> None:
    assert forbidden_words(ROOT) == []


def test_the_lock_pins_all_that_pyproject_asks_for_with_hashes_and_without_addresses() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [project["project"]["dependencies"], *project["dependency-groups"].values()]
    wanted = [re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for group in groups for requirement in group]
    assert lock_faults((ROOT / "requirements.lock").read_text(), wanted) == []


@pytest.mark.parametrize("line", [f"see {REGISTRY_HOSTS[0]}", "cd /" + "home/ada/src", 'open("/' + 'root/x")'])
def test_a_forbidden_word_is_found(tmp_path: Path, line: str) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "notes.md").write_text("harmless: src/holdfast/" + f"work/queue.py\n{line}\n")
    (finding,) = forbidden_words(tmp_path)
    assert finding.startswith("notes.md:2: ")


def test_faults_of_a_lock_are_found() -> None:
    lock = "--index-url x\nfine==1 \\\n    --hash=sha256:00\nbare==2\n"
    assert lock_faults(lock, ["fine", "gone"]) == [
        "says where to fetch from",
        "bare has no hashes",
        "gone is not pinned",
    ]

"""The ring's file: where it is put, what it survives, and what happens when there is no room. Its contract as a port is
in tests/conformance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.errors import NoSpaceError
from holdfast.runtime.ring_memory import SharedRing, ring_name
from holdfast.units import MIB

from .conftest import Mount

SIZE_BYTES = 1 * MIB


def test_it_survives_the_death_of_its_owner(tmp_path: Path) -> None:
    program = f"""
import os, signal
from holdfast.runtime.ring_memory import SharedRing
ring = SharedRing("r.ring", {SIZE_BYTES}, directories=[{str(tmp_path)!r}])
ring.view[5000:5005] = b"dirty"
os.kill(os.getpid(), signal.SIGKILL)
"""
    owner = subprocess.run([sys.executable, "-c", program], check=False)
    assert owner.returncode == -signal.SIGKILL
    ring = SharedRing("r.ring", SIZE_BYTES, directories=[tmp_path])
    assert ring.found
    assert bytes(ring.view[5000:5005]) == b"dirty"


def test_all_of_it_is_allocated_before_it_is_used(tmp_path: Path) -> None:
    ring = SharedRing("r.ring", SIZE_BYTES, directories=[tmp_path])
    assert os.stat(ring.path).st_blocks * 512 >= SIZE_BYTES


def test_the_first_directory_with_room_is_taken(tmp_path: Path) -> None:
    ring = SharedRing("r.ring", SIZE_BYTES, directories=["/nonexistent", tmp_path])
    assert ring.path == str(tmp_path / "r.ring")


def test_an_existing_ring_is_found_in_a_later_directory(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    SharedRing("r.ring", SIZE_BYTES, directories=[second])
    ring = SharedRing("r.ring", SIZE_BYTES, directories=[first, second])
    assert ring.found
    assert ring.path == str(second / "r.ring")


def test_an_empty_file_of_that_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "r.ring").touch()
    ring = SharedRing("r.ring", SIZE_BYTES, directories=[tmp_path])
    assert not ring.found
    assert len(ring.view) == SIZE_BYTES


def test_what_an_interrupted_start_left_is_no_ring(tmp_path: Path) -> None:
    (tmp_path / "r.ring.new").write_bytes(b"half")
    ring = SharedRing("r.ring", SIZE_BYTES, directories=[tmp_path])
    assert not ring.found
    assert os.listdir(tmp_path) == ["r.ring"]


def test_close_leaves_the_file_and_discard_removes_it(tmp_path: Path) -> None:
    ring = SharedRing("r.ring", SIZE_BYTES, directories=[tmp_path])
    ring.close()
    assert os.listdir(tmp_path) == ["r.ring"]
    ring.discard()
    ring.discard()
    assert os.listdir(tmp_path) == []


def test_views_outlive_discard(tmp_path: Path) -> None:
    ring = SharedRing("r.ring", SIZE_BYTES, directories=[tmp_path])
    part = ring.view[4096:8192]
    ring.discard()
    ring.close()
    part[:5] = b"alive"
    assert bytes(part[:5]) == b"alive"


def test_the_name_carries_the_pool() -> None:
    assert ring_name("1234") == "holdfast-1234.ring"


@pytest.mark.root
def test_without_room_the_error_names_directories_and_sizes(mount: Mount) -> None:
    small = mount("tmpfs", "size=8m")
    with pytest.raises(NoSpaceError, match=f"a ring of 1M .*{small} has 8M free.*/nonexistent has 0 free"):
        SharedRing("r.ring", SIZE_BYTES, directories=[small, "/nonexistent"])
    assert os.listdir(small) == []

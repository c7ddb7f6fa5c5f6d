"""One server a pool: a second one is told so, and a dead one is in nobody's way."""

from __future__ import annotations

from pathlib import Path

from tests.crash.harness import Server, ring_path, serving

OPTIONS = ("--volume", "a=4M", "--capacity", "64M", "--memory", "16M")


def test_a_second_server_is_refused_in_one_line(tmp_path: Path) -> None:
    with serving(tmp_path / "pool", *OPTIONS) as first:
        first.start()
        second = Server(first.pool, *OPTIONS)
        second.log_path = tmp_path / "second.log"
        code, said = second.refuse()
        assert code == 2
        assert len(said.splitlines()) == 1, said
        assert "is being served by process" in said
        first.stop()


def test_the_lock_does_not_survive_kill_9(tmp_path: Path) -> None:
    with serving(tmp_path / "pool", *OPTIONS) as server:
        server.start()
        server.kill()
        server.start()
        server.stop()


def test_a_clean_end_leaves_no_ring_behind(tmp_path: Path) -> None:
    with serving(tmp_path / "pool", *OPTIONS) as server:
        server.start()
        server.stop()
        assert not ring_path(server.pool).exists()

"""Rows W1, W2, W3 and W5, promises 1, 2 and 4: write-back that fails loses nothing and lies to nobody.

The experiment of 2017, on the real server: one write-back in sixteen fails on purpose. One writer flushes, another one
never does and leaves; a newcomer flushes in its place. Then the server is killed, in half of the runs its ring is taken
away as a power failure would, and a server without faults must have everything: what was acknowledged, or without the
ring what was covered by a FLUSH that succeeded.

Over all runs more than 4 GiB are written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from errno import EIO, ENOMEM, ENOSPC
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_WRITE
from holdfast.units import MIB
from tests.crash.harness import Answer, Connection, Server, call, drain, progress, serving
from tests.crash.oracle import CELL_BYTES, pattern

SLOTS = 128  # of 1 MiB, in each volume
MIB_A_RUN = 180  # of each of the two writers; twelve runs make 4.2 GiB
DEPTH = 8
OPTIONS = (
    "--volume", f"a={SLOTS}M", "--volume", f"b={SLOTS}M", "--memory", "64M", "--capacity", "2G", "--segment-size", "4M",
)  # fmt: skip


class Volume:
    """What a volume may hold: for each MiB of it the generation that was sent, acknowledged and flushed last."""

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.sent = np.zeros(SLOTS, np.int64)
        self.acknowledged = np.zeros(SLOTS, np.int64)
        self.flushed = np.zeros(SLOTS, np.int64)

    def check(self, slot: int, found: bytes, floor: int) -> None:
        """A MiB holds, cell by cell, something that was sent and is not older than `floor`."""
        generations = np.frombuffer(found, np.uint64).reshape(-1, CELL_BYTES // 8)[:, 1]
        for generation in np.unique(generations).tolist():
            assert floor <= generation <= self.sent[slot], (
                f"{self.name}, MiB {slot}: generation {generation} of {floor}..{self.sent[slot]}"
            )
            wanted = pattern(self.number, slot * MIB, MIB, generation) if generation else bytes(MIB)
            cells = np.frombuffer(found, f"V{CELL_BYTES}")[generations == generation]
            assert cells.tobytes() == np.frombuffer(wanted, f"V{CELL_BYTES}")[generations == generation].tobytes()


class Writer:
    """Writes a volume from beginning to end, again and again; flushes after so many answers, or never."""

    def __init__(self, pool: Path, volume: Volume, *, flush_every: int = 0) -> None:
        self.connection = Connection(pool, volume.name)
        self.volume = volume
        self.flush_every = flush_every
        self.answered = 0
        self.told: list[int] = []  # what the FLUSHes were answered
        self._ends: dict[int, Callable[[int], None]] = {}
        self._next = 0

    def send(self) -> None:
        volume = self.volume
        slot = self._next % SLOTS
        self._next += 1
        volume.sent[slot] += 1
        generation = int(volume.sent[slot])
        payload = pattern(volume.number, slot * MIB, MIB, generation)

        def answered(errno: int) -> None:
            assert errno == 0, f"a write was answered with errno {errno}"
            volume.acknowledged[slot] = generation
            self.answered += 1
            if self.flush_every and self.answered % self.flush_every == 0:
                self.flush()

        self._ends[self.connection.submit(CMD_WRITE, offset=slot * MIB, length=MIB, payload=payload)] = answered

    def flush(self) -> None:
        covered = self.volume.acknowledged.copy()

        def answered(errno: int) -> None:
            self.told.append(errno)
            if errno == 0:
                np.maximum(self.volume.flushed, covered, out=self.volume.flushed)

        self._ends[self.connection.submit(CMD_FLUSH)] = answered

    def take(self) -> None:
        while self.connection.answers:
            answer = self.connection.answers.popleft()
            self._ends.pop(answer.cookie)(answer.errno)


def write(writers: list[Writer], count: int) -> None:
    """Let each writer get so many answers to writes."""
    while any(writer.answered < count for writer in writers):
        for writer in writers:
            assert not writer.connection.ended, "the server hung up"
            while writer.connection.in_flight < DEPTH and writer.answered + writer.connection.in_flight < count:
                writer.send()
        progress([writer.connection for writer in writers])
        for writer in writers:
            writer.take()


def flush_until_it_holds(pool: Path, volume: Volume) -> list[int]:
    """A newcomer flushes until that succeeds; returns what it was answered."""
    connection = Connection(pool, volume.name)
    covered = volume.acknowledged.copy()
    told: list[int] = []
    while not told or told[-1]:
        answer: Answer = call(connection, CMD_FLUSH)
        told.append(answer.errno)
        assert len(told) < 1000
    np.maximum(volume.flushed, covered, out=volume.flushed)
    connection.close()
    return told


def check(pool: Path, volume: Volume, floor: npt.NDArray[np.int64]) -> None:
    connection = Connection(pool, volume.name)
    for slot in range(SLOTS):
        answer = call(connection, CMD_READ, offset=slot * MIB, length=MIB)
        assert answer.errno == 0
        assert answer.data is not None
        volume.check(slot, bytes(answer.data), int(floor[slot]))
    connection.close()


FAULTS = {
    "ENOMEM": ("writeback=ENOMEM:1/16,seed=7", ENOMEM),
    "EIO": ("writeback=EIO:1/16,seed=7", EIO),
    "ENOSPC": ("writeback=ENOSPC:1/16,seed=7", ENOSPC),
    "short": ("writeback=short:1/16,seed=7", EIO),
    "syncs": ("flush=EIO:1/16,seed=7", EIO),
    "dead for 10 s": ("writeback=EIO,after=200,for=10", EIO),
}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("end", ["kill -9", "power"])
@pytest.mark.parametrize("kind", FAULTS)
def test_write_back_that_fails_loses_nothing_and_lies_to_nobody(kind: str, end: str, tmp_path: Path) -> None:
    rule, errno = FAULTS[kind]
    volumes = [Volume(1, "a"), Volume(2, "b")]
    told: list[int] = []
    with serving(tmp_path / "pool", *OPTIONS, "--fault", rule) as server:
        server.start()
        flushing = Writer(server.pool, volumes[0], flush_every=16)
        never_flushing = Writer(server.pool, volumes[1])
        write([flushing, never_flushing], MIB_A_RUN // 2)
        never_flushing.connection.close()  # W1: the data of a writer that is gone is written back all the same
        told += flush_until_it_holds(server.pool, volumes[1])
        others = Writer(server.pool, volumes[1])
        flushing.answered = 0
        write([flushing, others], MIB_A_RUN // 2)
        told += flushing.told
        server.kill()
        drain([flushing.connection, others.connection])
        for writer in (flushing, others):
            writer.take()
            writer.connection.close()
        check_log(server, errno)
        if end == "power":
            server.remove_ring()
        server.options = OPTIONS
        server.start()
        for volume in volumes:
            check(server.pool, volume, volume.flushed if end == "power" else volume.acknowledged)
        server.stop()
        shutil.rmtree(server.pool)
    assert set(told) <= {0, errno}, "W2: a FLUSH is told why, and nothing else"
    assert told.count(0) >= 4
    assert volumes[1].flushed.any()


def check_log(server: Server, errno: int) -> None:
    """W3: the log names the faults, and the volumes that they met."""
    log = server.log()
    assert "Traceback" not in log
    assert "fault " in log
    name = {EIO: "EIO", ENOMEM: "ENOMEM", ENOSPC: "ENOSPC"}[errno]
    lines = [line for line in log.splitlines() if f"write-back failed ({name})" in line]
    assert any("a (" in line for line in lines)
    assert any("b (" in line for line in lines)


@pytest.mark.slow
def test_every_connection_is_told_while_the_data_is_not_durable_and_the_next_one_too(tmp_path: Path) -> None:
    """W2 and W5: with a disk that takes nothing, no FLUSH of anybody succeeds; when it does again, all of them do."""
    volume = Volume(1, "a")
    with serving(tmp_path / "pool", *OPTIONS, "--fault", "writeback=ENOSPC,after=6,for=4") as server:
        server.start()
        writer = Writer(server.pool, volume)
        write([writer], 8)
        writer.connection.close()  # nobody has heard of a failure, and the one whose data it is is gone
        began = time.monotonic()
        newcomers = [Connection(server.pool, "a") for _ in range(3)]
        assert [call(newcomer, CMD_FLUSH).errno for newcomer in newcomers] == [ENOSPC] * 3
        late = Connection(server.pool, "b")
        assert call(late, CMD_FLUSH).errno == ENOSPC, "the pool's log is one: what is before it is not durable"
        while call(newcomers[0], CMD_FLUSH).errno:
            assert time.monotonic() - began < 30
        assert [call(newcomer, CMD_FLUSH).errno for newcomer in (*newcomers, late)] == [0] * 4
        for connection in (*newcomers, late):
            connection.close()
        server.kill()
        server.remove_ring()
        server.options = OPTIONS
        server.start()
        check(server.pool, volume, volume.acknowledged)
        server.stop()
        shutil.rmtree(server.pool)

"""Random load on the volumes of a pool, all of it known to the oracles.

Writes of 4 KiB to 256 KiB and unaligned ones down to a byte, trims, zeroes with and without allocation, flushes, FUA,
and reads that are compared at once.  Everything random comes from one generator.  What the server makes of it depends
on the scheduling of two processes as well, so a seed replays the kind of load, not the crash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Self

from holdfast.nbd.protocol import (
    CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
)
from holdfast.units import BLOCK_SIZE_BYTES, KIB
from tests.crash.harness import Answer, Connection, drain, progress
from tests.crash.oracle import VolumeOracle, cells_of, pattern

WINDOW_BYTES = 256 * KIB


@dataclass(slots=True)
class Target:
    """A volume under load. Requests go to windows of 256 KiB, one at the start of every `stride_bytes`: a large stride
    spreads a small load over many leaves of the map."""

    name: str
    oracle: VolumeOracle
    stride_bytes: int = WINDOW_BYTES


class Load:
    """Connections to the volumes of a running server. One Load ends with its server."""

    def __init__(
        self, pool: Path, targets: list[Target], random: Random, *, connections: int, depth: int, generation: int
    ) -> None:
        self.random = random
        self.generation = generation  # of the newest write; grows over all Loads of a test
        self.answered = 0
        self._depth = depth
        self._connections = [(Connection(pool, target.name), target) for target in targets for _ in range(connections)]
        self._ends: dict[tuple[Connection, int], Callable[[Answer], None]] = {}

    def wipe(self, target: Target) -> None:
        """Trim a whole volume, as the first request of a Load: all its segments die."""
        connection = next(connection for connection, its in self._connections if its is target)
        size_bytes = target.oracle.size_bytes
        self._change(connection, target.oracle, CMD_TRIM, 0, size_bytes, bytes(size_bytes), 0)

    def run(self, answers: int) -> None:
        """Keep all connections busy until so many requests were answered."""
        goal = self.answered + answers
        while self.answered < goal:
            for connection, target in self._connections:
                assert not connection.ended, "the server hung up"
                while connection.in_flight < self._depth and self._submit(connection, target):
                    pass
            self._progress()

    def after_death(self) -> None:
        """Take the answers that the server had given before."""
        drain([connection for connection, _ in self._connections])
        self._take_answers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for connection, _ in self._connections:
            connection.close()

    def _progress(self) -> None:
        progress([connection for connection, _ in self._connections])
        self._take_answers()

    def _take_answers(self) -> None:
        for connection, _ in self._connections:
            while connection.answers:
                answer = connection.answers.popleft()
                self.answered += 1
                self._ends.pop((connection, answer.cookie))(answer)

    # ---- requests

    def _submit(self, connection: Connection, target: Target) -> bool:
        """Send a random request. False if what it would touch is busy: then it is given up."""
        random = self.random
        kind = random.random()
        if kind < 0.04:
            self._flush(connection, target.oracle)
            return True
        offset, length = self._range(target)
        cells = cells_of(offset, length)
        if target.oracle.busy[cells.start : cells.stop].any():
            return False
        if kind < 0.10:
            self._read(connection, target.oracle, offset, length)
        elif kind < 0.17:
            self._trim(connection, target.oracle, offset, length)
        elif kind < 0.23:
            self._zero(connection, target.oracle, offset, length)
        else:
            self._write(connection, target.oracle, offset, length)
        return True

    def _range(self, target: Target) -> tuple[int, int]:
        random = self.random
        window = random.randrange(target.oracle.size_bytes // target.stride_bytes) * target.stride_bytes
        shape = random.random()
        if shape < 0.6:
            blocks = 1 << random.randrange(4)
        elif shape < 0.8:
            blocks = random.randrange(1, 65)
        else:
            start = random.randrange(WINDOW_BYTES)
            return window + start, random.randrange(1, min(WINDOW_BYTES - start, 5 * BLOCK_SIZE_BYTES) + 1)
        first = random.randrange(WINDOW_BYTES // BLOCK_SIZE_BYTES - blocks + 1)
        return window + first * BLOCK_SIZE_BYTES, blocks * BLOCK_SIZE_BYTES

    def _flush(self, connection: Connection, oracle: VolumeOracle) -> None:
        flush = oracle.flush()
        self._send(connection, lambda answer: oracle.flush_done(flush), CMD_FLUSH)

    def _read(self, connection: Connection, oracle: VolumeOracle, offset: int, length: int) -> None:
        cells = cells_of(offset, length)
        oracle.busy[cells.start : cells.stop] = True

        def compare(answer: Answer) -> None:
            oracle.busy[cells.start : cells.stop] = False
            assert answer.data == oracle.content[offset : offset + length], f"a read of {length} at {offset} is wrong"

        self._send(connection, compare, CMD_READ, offset, length)

    def _write(self, connection: Connection, oracle: VolumeOracle, offset: int, length: int) -> None:
        self.generation += 1
        payload = pattern(oracle.volume, offset, length, self.generation)
        self._change(connection, oracle, CMD_WRITE, offset, length, payload, 0)

    def _trim(self, connection: Connection, oracle: VolumeOracle, offset: int, length: int) -> None:
        # A trim lets go of whole blocks only; here that is a promise of the server, not only of this test.
        first, stop = -(-offset // BLOCK_SIZE_BYTES), (offset + length) // BLOCK_SIZE_BYTES
        data = bytearray(oracle.content[offset : offset + length])
        if first < stop:
            at = first * BLOCK_SIZE_BYTES - offset
            data[at : at + (stop - first) * BLOCK_SIZE_BYTES] = bytes((stop - first) * BLOCK_SIZE_BYTES)
        self._change(connection, oracle, CMD_TRIM, offset, length, bytes(data), 0)

    def _zero(self, connection: Connection, oracle: VolumeOracle, offset: int, length: int) -> None:
        flags = CMD_FLAG_NO_HOLE if self.random.random() < 0.3 else 0
        self._change(connection, oracle, CMD_WRITE_ZEROES, offset, length, bytes(length), flags)

    def _change(
        self,
        connection: Connection,
        oracle: VolumeOracle,
        command: int,
        offset: int,
        length: int,
        data: bytes,
        flags: int,
    ) -> None:
        fua = self.random.random() < 0.05
        what = f"{_NAMES[command]} of {length} at {offset}{', FUA' if fua else ''}"
        change = oracle.change(offset, data, fua=fua, what=what)
        flags |= CMD_FLAG_FUA if fua else 0
        payload = data if command == CMD_WRITE else b""
        self._send(connection, lambda answer: oracle.changed(change), command, offset, length, flags, payload)

    def _send(
        self,
        connection: Connection,
        end: Callable[[Answer], None],
        command: int,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        payload: bytes = b"",
    ) -> None:
        def ended(answer: Answer) -> None:
            assert answer.errno == 0, f"{_NAMES[command]} of {length} at {offset}: {os.strerror(answer.errno)}"
            end(answer)

        cookie = connection.submit(command, offset=offset, length=length, flags=flags, payload=payload)
        self._ends[connection, cookie] = ended


_NAMES = {CMD_FLUSH: "flush", CMD_READ: "read", CMD_TRIM: "trim", CMD_WRITE: "write", CMD_WRITE_ZEROES: "zero"}

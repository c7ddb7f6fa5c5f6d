"""A client without a library: a socket, and bytes put together by hand."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from tests.nbd.wire import option


class RawClient:
    """Connected, greeted, and its client flags sent. What comes after that is the test's business."""

    def __init__(self, path: Path, *, flags: int = 3, timeout_s: float = 60) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        self.socket.connect(str(path))
        self.input = self.socket.makefile("rb")
        assert self.input.read(18) == b"NBDMAGICIHAVEOPT\x00\x03"
        self.socket.sendall(struct.pack(">I", flags))

    def choose(self, name: str, *, structured: bool = False) -> None:
        """Begin transmission. Only after `flags=3`: no zeroes follow."""
        if structured:
            self.send(option(8))
            assert self.receive(20) == struct.pack(">QIII", 0x3E889045565A9, 8, 1, 0)
        self.send(option(1, name.encode()))
        assert len(self.receive(10)) == 10

    def receive(self, count: int) -> bytes:
        return self.input.read(count)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        self.input.close()
        self.socket.close()

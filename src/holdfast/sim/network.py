"""Simulated connections: two streams of bytes, each with so much room.

The server's end is the `Socket` port: what it is offered comes in portions, what it sends may be taken in part. The
client's end is a pair of queues that the simulated client fills and empties when it wakes up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import ECONNRESET, EPIPE
from random import Random


class SimSocket:
    """The server's end. `room_bytes`: what the streams hold in each direction; `portion`: now and then a receive or a
    send gets less than it could (0: never)."""

    def __init__(self, fd: int, rng: Random, *, room_bytes: int, portions: float = 0.0) -> None:
        self.room_bytes = room_bytes
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.ended = False  # the client has closed its end
        self.reset = False  # ... and what it had sent is gone
        self.closed = False  # the server has closed its end
        self.on_sent: Callable[[], None] = lambda: None
        self.on_received: Callable[[], None] = lambda: None
        self.vanishes: Callable[[], bool] = lambda: False  # asked at each send: is the client gone by now?
        self._fd = fd
        self._rng = rng
        self._portions = portions

    # ---- the port

    def fileno(self) -> int:
        return self._fd

    def recv_into(self, buffer: memoryview) -> int:
        if self.reset:
            raise ConnectionResetError(ECONNRESET, "Connection reset by peer")
        available = len(self.to_server)
        if not available:
            if self.ended:
                return 0
            raise BlockingIOError
        count = self._portion(min(len(buffer), available))
        buffer[:count] = self.to_server[:count]
        del self.to_server[:count]
        self.on_received()
        return count

    def send(self, data: memoryview | bytearray | bytes) -> int:
        if self.ended or self.vanishes():
            raise BrokenPipeError(EPIPE, "Broken pipe")
        room = self.room_bytes - len(self.to_client)
        if room <= 0:
            raise BlockingIOError
        count = self._portion(min(len(data), room))
        self.to_client += data[:count]
        self.on_sent()
        return count

    def sendmsg(self, buffers: Sequence[memoryview | bytearray | bytes]) -> int:
        return self.send(b"".join(buffers))

    def close(self) -> None:
        self.closed = True
        self.to_server.clear()
        self.on_sent()

    # ---- the loop

    def readable(self) -> bool:
        return bool(self.to_server) or self.ended or self.reset

    def writable(self) -> bool:
        return self.ended or len(self.to_client) < self.room_bytes

    # ---- the client's end

    def push(self, data: memoryview) -> int:
        """The client sends; returns how much there was room for. What a closed server is sent is gone."""
        if self.closed:
            return len(data)
        count = max(0, min(len(data), self.room_bytes - len(self.to_server)))
        self.to_server += data[:count]
        return count

    def pull(self) -> bytes:
        data = bytes(self.to_client)
        self.to_client.clear()
        return data

    def hang_up(self, *, reset: bool) -> None:
        """The client is gone; with `reset`, the server does not get to see what it had sent before."""
        self.ended = True
        self.reset = reset

    def _portion(self, count: int) -> int:
        if self._portions and count > 1 and self._rng.random() < self._portions:
            return self._rng.randrange(1, count)
        return count

"""A server over a piece of memory, made of nothing but the wire room: what strange clients are tried against.

One thread a connection and blocking sockets: slow, short, and obviously right where the real server is neither.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast.nbd import replies
from holdfast.nbd.handshake import Handshake
from holdfast.nbd.negotiated import Export, Negotiated
from holdfast.nbd.protocol import CMD_FLAG_REQ_ONE, LARGE_READ_BYTES, STATE_HOLE, STATE_ZERO
from holdfast.nbd.transmission import REJECT, WRITE_PIECE, Request, RequestReader
from tests.nbd.wire import BLOCK_STATUS, DISC, READ, TRIM, WRITE, WRITE_ZEROES, Exports

BUFFER_BYTES = 28 + 16384 + 4096


class RamServer:
    """The export `disk0`, and `fixed`, which is read-only; both show the same memory."""

    def __init__(self, size_bytes: int) -> None:
        self.memory = bytearray(size_bytes)
        self.exports = Exports([Export("disk0", size_bytes), Export("fixed", size_bytes, read_only=True)])
        self.failures: list[Exception] = []

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # the listener was shut down: the test is over
            threading.Thread(target=self._connection, args=(connection,), daemon=True).start()

    def _connection(self, connection: socket.socket) -> None:
        with connection:
            try:
                handshake = Handshake(self.exports)
                while handshake.negotiated is None:
                    connection.sendall(handshake.data_to_send())
                    received = b"" if handshake.closed else connection.recv(1 << 16)
                    if not received:
                        return
                    handshake.receive_data(received)
                connection.sendall(handshake.data_to_send())
                self._transmission(connection, handshake.negotiated, handshake.trailing)
            except (BrokenPipeError, ConnectionResetError):
                return  # a client may go without a word
            except Exception as failure:
                self.failures.append(failure)
                raise

    def _transmission(self, connection: socket.socket, terms: Negotiated, trailing: bytes) -> None:
        reader = RequestReader(terms)
        buffer = memoryview(bytearray(BUFFER_BYTES))
        buffer[: len(trailing)] = trailing
        filled = len(trailing)
        while True:
            requests: list[Request] = []
            used = reader.parse(buffer, 0, filled, requests, reply_budget_bytes=1 << 20, request_budget=64)
            for request in requests:
                if request[0] == DISC:
                    return
                connection.sendall(self._answer(request, terms))
            buffer[: filled - used] = bytes(buffer[used:filled])
            filled -= used
            if used:
                continue
            assert filled < BUFFER_BYTES, "the parser makes no progress in a full buffer"
            received = connection.recv_into(buffer[filled:])
            if not received:
                return
            filled += received

    def _answer(self, request: Request, terms: Negotiated) -> bytes:
        command, flags, cookie, offset, length, payload = request
        out = memoryview(bytearray(1000 + (length + 100 * (1 + length // LARGE_READ_BYTES) if command == READ else 0)))
        at = 0
        if command == WRITE_PIECE:
            self.memory[offset : offset + length] = payload
        elif command == REJECT and offset == READ and terms.structured:
            at = replies.error_chunk(out, at, cookie, length, b"refused")
        elif command == REJECT:
            at = replies.error(out, at, cookie, length)
        elif command == READ and terms.structured:
            at = replies.none_chunk(out, self._content(out, cookie, offset, length, flags), cookie)
        elif command == READ:
            at = replies.read_header_simple(out, at, cookie)
            out[at : at + length] = self.memory[offset : offset + length]
            at += length
        elif command == BLOCK_STATUS:
            extents = [(min(length, 4096), STATE_HOLE | STATE_ZERO), (1 << 20, 0)]
            at = replies.block_status_chunk(out, at, cookie, extents[:1] if flags & CMD_FLAG_REQ_ONE else extents)
        else:
            if command == WRITE:
                self.memory[offset : offset + length] = payload
            elif command in (TRIM, WRITE_ZEROES):
                self.memory[offset : offset + length] = bytes(length)
            at = replies.done(out, at, cookie)
        return bytes(out[:at])

    def _content(self, out: memoryview, cookie: int, offset: int, length: int, flags: int) -> int:
        """The chunks of a structured READ: one where it may not be fragmented, else as many as a large one needs."""
        at = 0
        end = offset + length
        step = length if flags & 4 else LARGE_READ_BYTES
        while offset < end:
            part = min(step, end - offset)
            if not flags & 4 and not any(self.memory[offset : offset + part]):
                at = replies.hole_chunk(out, at, cookie, offset, part, False)
            else:
                at = replies.data_chunk(out, at, cookie, offset, part, False)
                out[at : at + part] = self.memory[offset : offset + part]
                at += part
            offset += part
        return at


@contextmanager
def ram_server(directory: Path, *, size_bytes: int = 16 << 20) -> Iterator[tuple[RamServer, Path]]:
    """A running server and the path of its socket. What failed in it fails the test."""
    server = RamServer(size_bytes)
    path = directory / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=server.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield server, path
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert server.failures == []

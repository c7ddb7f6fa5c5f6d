"""One blocking connection to an NBD server, for bulk transfer: requests pipelined, replies in any order.

The bytes of the handshake are `nbd.client`'s.  Replies are received here, by size and straight into place, rather than
through its incremental reader: a whole data chunk is then in one buffer, with one copy out of the kernel, and is
written on or compared from there.  Each worker thread of a copy owns one session; system calls drop the GIL.

1. At most `depth` requests are unanswered.  Their replies cannot dead-lock with their payloads: whoever sends WRITEs
   gets back a few bytes each, whoever sends READs sends a few bytes each.
2. A view passed to `write` may be reused when `write` returns; a view passed to the sink is valid during the call.
3. An error reply raises CommandError, naming the request; the session is of no use afterwards.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final, Protocol, Self
from urllib.parse import parse_qs, unquote, urlsplit

from holdfast.cli.command import EXIT_NO, CommandError, describe_os_error
from holdfast.control.client import connect_unix
from holdfast.errors import HoldfastError
from holdfast.nbd import protocol as wire
from holdfast.nbd.client import ClientHandshake, ServerTerms, request
from holdfast.units import GIB, MIB

CONNECT_TIMEOUT_S: Final = 30.0

# One request moves this much.  Against nbdkit on two cores 256 KiB and 1 MiB differ by less than the noise; 1 MiB makes
# a quarter of the requests, which costs less CPU time at both ends.
TRANSFER_BYTES_MAX: Final = 1 * MIB

# A zeroing or a status request carries no data: it may be long, but stays well below 2^32 (some servers fall over
# there), and short enough that a progress bar moves.
CONTROL_BYTES_MAX: Final = 1 * GIB

_SOCKET_BUFFER_BYTES: Final = 4 * MIB
_DEFAULT_PORT: Final = 10809

_MAGIC_COOKIE = Struct(">IIQ")  # of both kinds of reply: magic, error or flags and type, cookie
_LENGTH_OFFSET = Struct(">IQ")


class FullError(CommandError):
    """The server has no space left. It works; its answer is 'no'."""

    exit_code = EXIT_NO


class Sink(Protocol):
    """Where the answers to READs go."""

    def data(self, offset: int, view: memoryview) -> None: ...

    def zeros(self, offset: int, length: int) -> None: ...


@dataclass(frozen=True, slots=True)
class NbdAddress:
    """An export of a server: nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH."""

    uri: str
    name: str
    socket_path: Path | None = None
    host: str = ""
    port: int = _DEFAULT_PORT

    @classmethod
    def parse(cls, uri: str) -> Self:
        parts = urlsplit(uri)
        name = unquote(parts.path.removeprefix("/"))
        if parts.scheme == "nbd+unix":
            path = parse_qs(parts.query).get("socket", [""])[0]
            if not path:
                raise CommandError(f"{uri}: the socket is missing; write nbd+unix:///NAME?socket=PATH")
            return cls(uri, name, socket_path=Path(path))
        if parts.scheme == "nbd":
            try:
                port = parts.port or _DEFAULT_PORT
            except ValueError:
                raise CommandError(f"{uri}: the port is not a number up to 65535") from None
            return cls(uri, name, host=parts.hostname or "localhost", port=port)
        raise CommandError(
            f"{uri}: {parts.scheme} is not supported; use nbd://HOST/NAME or nbd+unix:///NAME?socket=PATH"
        )


class NbdSession:
    """A connection in its transmission phase. Used by one thread at a time."""

    def __init__(self, address: NbdAddress, *, depth: int = 8, changed_since: str = "") -> None:
        """Connect and come to terms, for `changes` with the name of a snapshot. Raises CommandError or HoldfastError in
        the words of who refused."""
        self.address = address
        self.depth = depth
        self._socket = _connect(address)
        try:
            self.terms = _shake_hands(self._socket, address, changed_since)
        except BaseException:
            self._socket.close()
            raise
        self.transfer_bytes_max = min(TRANSFER_BYTES_MAX, self.terms.maximum_payload_bytes)
        self._pending: dict[int, tuple[int, int, int, Sink | None]] = {}
        self._cookie = 0
        self._extents: dict[int, list[tuple[int, int]]] = {}  # by context
        self._header = memoryview(bytearray(32))
        self._buffer = memoryview(bytearray(TRANSFER_BYTES_MAX))

    @property
    def multi_conn(self) -> bool:
        return bool(self.terms.flags & wire.FLAG_CAN_MULTI_CONN)

    @property
    def can_zero(self) -> bool:
        return bool(self.terms.flags & wire.FLAG_SEND_WRITE_ZEROES)

    @property
    def read_only(self) -> bool:
        return bool(self.terms.flags & wire.FLAG_READ_ONLY)

    # --- Requests -----------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int, sink: Sink) -> None:
        """Ask for at most `transfer_bytes_max` bytes; they come to `sink` now or in a later call."""
        self._submit(wire.CMD_READ, offset, length, sink)

    def write(self, offset: int, view: memoryview) -> None:
        self._submit(wire.CMD_WRITE, offset, len(view), None, view)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._submit(wire.CMD_WRITE_ZEROES, offset, length, None)

    def flush(self) -> None:
        """Make durable all that was answered so far, on every connection if the server is `multi_conn`."""
        self.drain()
        if self.terms.flags & wire.FLAG_SEND_FLUSH:
            self._submit(wire.CMD_FLUSH, 0, 0, None)
            self.drain()

    def block_status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """(length, reads as zeroes) of the extents from `offset` on, up to `length` together, at least one."""
        self._ask_status(offset, length)
        return self._told_status(offset, self.terms.base_allocation_context, wire.STATE_ZERO)

    def changes(self, offset: int, length: int) -> tuple[list[tuple[int, bool]], list[tuple[int, bool]]]:
        """(length, changed since the snapshot) of the extents from `offset` on, and what `block_status` gives, which
        may reach less far, or further. The session was made with that snapshot's name."""
        self._ask_status(offset, length)
        changed = self._told_status(offset, self.terms.changed_since_context, wire.STATE_CHANGED)
        return changed, self._told_status(offset, self.terms.base_allocation_context, wire.STATE_ZERO)

    def _ask_status(self, offset: int, length: int) -> None:
        self._extents.clear()
        cookie = self._submit(wire.CMD_BLOCK_STATUS, offset, length, None)
        while cookie in self._pending:
            self._receive()

    def _told_status(self, offset: int, context: int | None, state: int) -> list[tuple[int, bool]]:
        extents = [] if context is None else self._extents.pop(context, [])
        if not extents or not all(run for run, _flags in extents):
            raise CommandError(f"{self.address.uri}: the server tells no extents at offset {offset}")
        return [(run, bool(flags & state)) for run, flags in extents]

    def drain(self) -> None:
        """Wait for all answers."""
        while self._pending:
            self._receive()

    def interrupt(self) -> None:
        """Make blocked calls of the owning thread fail; for another thread that wants it to end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already, which is what was wanted

    def close(self) -> None:
        """End the session: politely if nothing is unanswered."""
        try:
            if not self._pending:
                self._socket.sendall(request(wire.CMD_DISC, 0, 0, 0, 0))
        except OSError:
            pass  # the server was faster; there is nobody left to be polite to
        finally:
            self._socket.close()

    def _submit(
        self, command: int, offset: int, length: int, sink: Sink | None, payload: memoryview | None = None
    ) -> int:
        while len(self._pending) >= self.depth:
            self._receive()
        self._cookie += 1
        self._pending[self._cookie] = (command, offset, length, sink)
        header = request(command, 0, self._cookie, offset, length)
        try:
            if payload is None:
                self._socket.sendall(header)
            else:
                sent = self._socket.sendmsg((header, payload))
                if sent < len(header):
                    self._socket.sendall(header[sent:])
                    sent = len(header)
                if sent < len(header) + length:
                    self._socket.sendall(payload[sent - len(header) :])
        except OSError as error:
            raise self._lost(error) from error
        return self._cookie

    # --- Replies ------------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take in one reply or chunk of a reply."""
        header = self._header
        self._fill(header[:16])
        magic, word, cookie = _MAGIC_COOKIE.unpack_from(header)
        pending = self._pending.get(cookie)
        if pending is None:
            raise self._nonsense("an answer to nothing that was asked")
        command, offset, length, sink = pending
        if magic == wire.STRUCTURED_REPLY_MAGIC:
            self._receive_chunk(word, cookie, pending)
        elif magic != wire.SIMPLE_REPLY_MAGIC:
            raise self._nonsense("something that is no reply")
        else:
            del self._pending[cookie]
            if word:
                raise self._refused(word, pending)
            if command == wire.CMD_READ:
                assert sink is not None
                self._take_data(offset, length, sink)

    def _receive_chunk(self, word: int, cookie: int, pending: tuple[int, int, int, Sink | None]) -> None:
        """The rest of a structured reply chunk whose magic and cookie are read already."""
        flags, kind = word >> 16, word & 0xFFFF
        _command, asked_offset, asked_length, sink = pending
        is_data = kind == wire.REPLY_TYPE_OFFSET_DATA
        header = self._header[: 12 if is_data else 4]
        self._fill(header)
        length = int.from_bytes(header[:4], "big")
        if is_data:
            length, offset = _LENGTH_OFFSET.unpack(header)
            length -= 8
            if sink is None or length <= 0 or offset < asked_offset or offset + length > asked_offset + asked_length:
                raise self._nonsense("data that was not asked for")
            self._take_data(offset, length, sink)
        else:
            self._receive_small_chunk(kind, length, pending)
        if flags & wire.REPLY_FLAG_DONE:
            del self._pending[cookie]

    def _receive_small_chunk(self, kind: int, length: int, pending: tuple[int, int, int, Sink | None]) -> None:
        # The longest is a BLOCK_STATUS chunk, which a server may fill with as many extents as it likes.
        if length > wire.BLOCK_STATUS_EXTENTS_MAX * 8 + 4:
            raise self._nonsense(f"a chunk of {length} bytes")
        payload = memoryview(bytearray(length))
        self._fill(payload)
        sink = pending[3]
        if kind & wire.REPLY_TYPE_FLAG_ERROR and length >= 4:
            raise self._refused(int.from_bytes(payload[:4], "big"), pending)
        if kind == wire.REPLY_TYPE_OFFSET_HOLE and length == 12 and sink is not None:
            sink.zeros(int.from_bytes(payload[:8], "big"), int.from_bytes(payload[8:], "big"))
        elif kind == wire.REPLY_TYPE_BLOCK_STATUS and length >= 12 and length % 8 == 4:
            self._extents[int.from_bytes(payload[:4], "big")] = list(Struct(">II").iter_unpack(payload[4:]))
        elif kind != wire.REPLY_TYPE_NONE:
            raise self._nonsense(f"a chunk of type {kind} and {length} bytes")

    def _take_data(self, offset: int, length: int, sink: Sink) -> None:
        while length:
            view = self._buffer[: min(length, len(self._buffer))]
            self._fill(view)
            sink.data(offset, view)
            offset += len(view)
            length -= len(view)

    def _fill(self, view: memoryview) -> None:
        try:
            while view:
                received = self._socket.recv_into(view, 0, socket.MSG_WAITALL)
                if not received:
                    raise CommandError(f"{self.address.uri}: the server ended the connection; look at its log")
                view = view[received:]
        except OSError as error:
            raise self._lost(error) from error

    # --- Errors -------------------------------------------------------------------------------------------------------

    def _refused(self, errno: int, pending: tuple[int, int, int, Sink | None]) -> CommandError:
        command, offset, length, _sink = pending
        what = {
            wire.CMD_READ: "reading",
            wire.CMD_WRITE: "writing",
            wire.CMD_WRITE_ZEROES: "zeroing",
            wire.CMD_BLOCK_STATUS: "asking for the status of",
        }.get(command)
        where = f"{what} {length} bytes at offset {offset}" if what else "flushing"
        hint = "; free space in it, or give it more" if errno == wire.ENOSPC else "; look at the server's log"
        text = f"{self.address.uri}: {where}: {os.strerror(errno).lower()}{hint}"
        return FullError(text) if errno == wire.ENOSPC else CommandError(text)

    def _nonsense(self, what: str) -> CommandError:
        return CommandError(f"{self.address.uri}: the server sent {what}; it does not follow the NBD protocol")

    def _lost(self, error: OSError) -> CommandError:
        return CommandError(f"{self.address.uri}: connection lost: {describe_os_error(error)}; see the server's log")


def _connect(address: NbdAddress) -> socket.socket:
    try:
        if address.socket_path is not None:
            connection = connect_unix(address.socket_path, timeout_s=CONNECT_TIMEOUT_S)
        else:
            connection = socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise CommandError(f"{address.uri}: {describe_os_error(error)}; is the server running?") from error
    if address.socket_path is not None:
        # The kernel cuts this down to net.core.wmem_max. TCP sizes its buffers by itself, and better.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
    return connection


def _shake_hands(connection: socket.socket, address: NbdAddress, changed_since: str) -> ServerTerms:
    handshake = ClientHandshake(address.name, changed_since=changed_since)
    try:
        while handshake.terms is None:
            data = handshake.data_to_send()
            if data:
                connection.sendall(data)
            received = connection.recv(65536)
            if not received:
                raise CommandError(f"{address.uri}: the server ended the connection during the handshake")
            handshake.receive_data(received)
    except TimeoutError:
        raise CommandError(
            f"{address.uri}: no answer in {CONNECT_TIMEOUT_S:.0f} s; does the server take one client at a time?"
        ) from None
    except OSError as error:
        raise CommandError(f"{address.uri}: {describe_os_error(error)}") from error
    except HoldfastError as error:
        raise CommandError(f"{address.uri}: {error}") from error
    connection.settimeout(None)
    return handshake.terms

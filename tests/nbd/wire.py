"""What the tests of the wire share: bytes as a client would send them, and answers taken apart.

Written from the protocol's document with literal numbers, not with the constants of holdfast.nbd.protocol: a wrong
constant there must not be able to hide.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from holdfast.nbd.handshake import Handshake
from holdfast.nbd.negotiated import Export, Negotiated
from holdfast.nbd.transmission import WRITE_PIECE, Request, RequestReader

OPTION_MAGIC = b"IHAVEOPT"
MIB = 1 << 20
SIZE_BYTES = 64 * MIB


@dataclass
class Exports:
    """A directory of exports; the empty name is the only one, if there is only one."""

    exports: list[Export] = field(default_factory=lambda: [Export("disk0", SIZE_BYTES)])
    snapshots: tuple[str, ...] = ()

    def names(self) -> list[str]:
        return [export.name for export in self.exports]

    def find(self, name: str) -> Export | None:
        if not name and len(self.exports) == 1:
            return self.exports[0]
        return next((export for export in self.exports if export.name == name), None)

    def base(self, export: Export, snapshot: str) -> str | None:
        return f"{export.name}@{snapshot}" if snapshot in self.snapshots else None

    def bases(self, export: Export) -> list[str]:
        return list(self.snapshots)


# --- Handshake --------------------------------------------------------------------------------------------------------

Answer = tuple[int, int, bytes]  # option, type, data


def option(number: int, data: bytes = b"") -> bytes:
    return OPTION_MAGIC + struct.pack(">II", number, len(data)) + data


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(data)) + data


def go(name: str = "disk0", *requests: int, number: int = 7) -> bytes:
    return option(number, string(name) + struct.pack(f">H{len(requests)}H", len(requests), *requests))


def meta_context(number: int, name: str, *queries: str) -> bytes:
    return option(number, string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries)))


STRUCTURED_REPLY = option(8)


def handshake(exports: Exports | None = None, *, client_flags: int = 3) -> Handshake:
    """A handshake whose greeting has been taken and whose client flags have been sent."""
    machine = Handshake(exports or Exports())
    assert machine.data_to_send() == bytes.fromhex("4e42444d41474943 49484156454f5054 0003")
    machine.receive_data(struct.pack(">I", client_flags))
    return machine


def answers(machine: Handshake) -> list[Answer]:
    """The option replies that are to be sent now."""
    data = machine.data_to_send()
    found = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x3E889045565A9
        assert len(data) >= 20 + length
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def kinds(found: list[Answer]) -> list[int]:
    return [kind for _, kind, _ in found]


# --- Transmission -----------------------------------------------------------------------------------------------------

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = (1 << bit for bit in range(5))


def request(command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 7) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def write(offset: int, payload: bytes, *, flags: int = 0, cookie: int = 7) -> bytes:
    return request(WRITE, offset, len(payload), flags=flags, cookie=cookie) + payload


def reader(
    *,
    size_bytes: int = SIZE_BYTES,
    read_only: bool = False,
    structured: bool = True,
    base_allocation: bool = True,
    minimum_block_bytes: int = 1,
    piece_size_bytes_min: int = 16384,
) -> RequestReader:
    export = Export("disk0", size_bytes, read_only, minimum_block_bytes=minimum_block_bytes)
    terms = Negotiated(export, structured, structured and base_allocation)
    return RequestReader(terms, piece_size_bytes_min=piece_size_bytes_min)


def parse(
    machine: RequestReader,
    data: bytes,
    *,
    reply_budget_bytes: int = 1 << 40,
    request_budget: int = 1 << 40,
    pieces: bool = True,
) -> tuple[list[Request], int]:
    """The requests in one buffer, and how many of its bytes were consumed."""
    requests: list[Request] = []
    view = memoryview(data)
    used = machine.parse(
        view,
        0,
        len(data),
        requests,
        reply_budget_bytes=reply_budget_bytes,
        request_budget=request_budget,
        pieces=pieces,
    )
    assert 0 <= used <= len(data)
    return requests, used


def parse_stream(
    machine: RequestReader, parts: Sequence[bytes], *, limit_bytes: int | None = None, pieces: Iterable[bool] = ()
) -> list[Request]:
    """The requests of a stream that arrives in these parts, payloads copied out as the engine would.

    `pieces`: whether to take pieces of a WRITE, part by part; after its end always.
    """
    take = iter(pieces)
    requests: list[Request] = []
    pending = b""
    for part in parts:
        pending += part
        found, used = parse(machine, pending, pieces=next(take, True))
        for command, flags, cookie, offset, length, payload in found:
            requests.append((command, flags, cookie, offset, length, memoryview(bytes(payload))))
        pending = pending[used:]
        if limit_bytes is not None:
            assert len(pending) < limit_bytes
    return requests


def joined(requests: Sequence[Request]) -> list[tuple[int, int, int, int, int, bytes]]:
    """The same requests with the pieces of each WRITE put together again."""
    whole: list[tuple[int, int, int, int, int, bytes]] = []
    begun: tuple[int, int, int, int, int, bytes] | None = None
    for command, flags, cookie, offset, length, payload in requests:
        assert len(payload) in (0, length)
        if begun is not None:
            assert command in (WRITE, WRITE_PIECE)
            assert (flags, cookie) == begun[1:3]
            assert offset == begun[3] + begun[4]
            current = (WRITE, flags, cookie, begun[3], begun[4] + length, begun[5] + bytes(payload))
        else:
            current = (WRITE if command == WRITE_PIECE else command, flags, cookie, offset, length, bytes(payload))
        if command == WRITE_PIECE:
            assert (offset + length) % 4096 == 0
            begun = current
        else:
            whole.append(current)
            begun = None
    return whole

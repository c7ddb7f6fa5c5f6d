"""A fuzzer for the wire: `python tests/fuzz/fuzz_nbd.py --seconds 10 --seed 1`.

It makes streams that are valid, damages most of them, and holds four machines to what they promise, the server's
handshake and request parser, the client's handshake and reply reader:

 1. No exception comes out but the documented ones (none at all out of the server's handshake).
 2. What is held or left unconsumed stays within its bound.
 3. A stream in random parts gives what the whole stream gives, up to the same error.
 4. The requests are those that a model of the parser finds, forty lines that know nothing of buffers and budgets.

Every case has a generator of its own, seeded by the seed and the number of the case, so that a failure is replayed
alone with `--only`.
"""

from __future__ import annotations

import struct
import sys
from itertools import pairwise
from pathlib import Path
from random import Random

from holdfast.errors import GoneError, NotFoundError, RequestError
from holdfast.nbd import replies
from holdfast.nbd.client import DATA, STATUS, UNCONSUMED_BYTES_MAX, ClientHandshake, Reply, ReplyReader, ServerTerms
from holdfast.nbd.handshake import OPTION_BYTES_MAX, OUTPUT_BYTES_MAX, Handshake
from holdfast.nbd.negotiated import Export, Negotiated
from holdfast.nbd.protocol import ProtocolError
from holdfast.nbd.transmission import REJECT, WRITE_PIECE, Request, RequestReader

if __name__ == "__main__":  # then only this file's own directory is on the path
    sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.fuzz.driver import Fuzzer

SIZE_BYTES = 1 << 26
EXPORTS = (
    Export("disk0", SIZE_BYTES, description="the first"),
    Export("disk1", 12345, read_only=True),
    Export("disk2", SIZE_BYTES, minimum_block_bytes=512),
)
INTERESTING = (0, 1, 2, 3, 5, 7, 8, 16, 27, 28, 511, 512, 4095, 4096, 65535, 65536, 1 << 25, 1 << 26, 1 << 31)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS_OF = range(8)
EPERM, EINVAL, ENOSPC, EOVERFLOW = 1, 22, 28, 75


SNAPSHOTS = ("monday", "tuesday")
SINCE = b"holdfast:changed-since:"
QUERIES = (b"base:allocation", b"base:", b"x:y", b"", SINCE, SINCE + b"monday", SINCE + b"tuesday", SINCE + b"nobody")


class Directory:
    def names(self) -> list[str]:
        return [export.name for export in EXPORTS]

    def find(self, name: str) -> Export | None:
        return next((export for export in EXPORTS if export.name == (name or "disk0")), None)

    def base(self, export: Export, snapshot: str) -> str | None:
        return f"{export.name}@{snapshot}" if snapshot in SNAPSHOTS else None

    def bases(self, export: Export) -> list[str]:
        return list(SNAPSHOTS)


# --- Streams ----------------------------------------------------------------------------------------------------------


def integer(rng: Random, bits: int) -> int:
    """A number of so many bits, more often than not one at which something changes."""
    if rng.random() < 0.7:
        return (rng.choice(INTERESTING) + rng.choice((-1, 0, 0, 0, 1))) % (1 << bits)
    return rng.getrandbits(bits)


def handshake_stream(rng: Random) -> bytes:
    def string(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    def name() -> bytes:
        return rng.choice((b"disk0", b"disk1", b"disk2", b"", b"nothing", b"x" * 4097, b"\xff", b"a\0b"))

    def data_of(option: int) -> bytes:
        if option == 1:
            return name()
        if option in (6, 7):
            infos = [rng.randrange(6) for _ in range(rng.randrange(4))]
            return string(name()) + struct.pack(f">H{len(infos)}H", len(infos), *infos)
        if option in (9, 10):
            queries = [rng.choice(QUERIES) for _ in range(rng.randrange(3))]
            return string(name()) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))
        return b"" if rng.random() < 0.9 else bytes(integer(rng, 17))

    stream = struct.pack(">I", 3 if rng.random() < 0.9 else integer(rng, 32))
    for _ in range(rng.randrange(8)):
        option = rng.choice((3, 6, 7, 8, 8, 9, 10, 10, *range(13))) if rng.random() < 0.97 else integer(rng, 32)
        data = data_of(option)
        stream += b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data
    return stream


def request_stream(rng: Random) -> bytes:
    stream = b""
    for _ in range(rng.randrange(12)):
        command = rng.choice((0, 1, 1, 1, 3, 4, 5, 6, 7)) if rng.random() < 0.95 else integer(rng, 16)
        flags = 0 if rng.random() < 0.7 else integer(rng, 16)
        offset = rng.randrange(SIZE_BYTES) if rng.random() < 0.7 else integer(rng, 64)
        length = rng.randrange(60_000) if command == WRITE else integer(rng, 32)
        stream += struct.pack(">IHHQQI", 0x25609513, flags, command, rng.getrandbits(64), offset, length)
        if command == WRITE:
            stream += rng.randbytes(length)
    return stream


def reply_stream(rng: Random) -> bytes:
    out = memoryview(bytearray(1 << 17))
    at = 0
    for _ in range(rng.randrange(8)):
        cookie, offset, length, final = (
            rng.getrandbits(64),
            rng.getrandbits(64),
            1 + rng.randrange(9000),
            rng.random() < 0.5,
        )
        message = b"m" * rng.randrange(200)
        kind = rng.randrange(8)
        if kind == 0:
            at = replies.done(out, at, cookie)
        elif kind == 1:
            at = replies.error(out, at, cookie, 1 + rng.randrange(130))
        elif kind == 2:
            at = replies.data_chunk(out, at, cookie, offset, length, final) + length
        elif kind == 3:
            at = replies.hole_chunk(out, at, cookie, offset, length, final)
        elif kind == 4:
            at = replies.none_chunk(out, at, cookie)
        elif kind == 5:
            at = replies.error_chunk(out, at, cookie, 5, message, final)
        elif kind == 6:
            at = replies.error_offset_chunk(out, at, cookie, 5, offset, message, final)
        else:
            at = replies.block_status_chunk(out, at, cookie, [(1 + n, n % 4) for n in range(1 + length % 500)], final)
    return bytes(out[:at])


def server_stream(rng: Random) -> bytes:
    """What our server says to our client: a mutation of it is what a strange server says."""
    client, server = ClientHandshake(rng.choice(("disk0", "disk1", "disk2"))), Handshake(Directory())
    stream = b""
    while True:
        said = server.data_to_send()
        stream += said
        client.receive_data(said)
        if client.terms is not None:
            return stream
        server.receive_data(client.data_to_send())


def damaged(rng: Random, stream: bytes) -> bytes:
    """The stream with up to four accidents; one in five stays as it was."""
    data = bytearray(stream)
    if rng.random() < 0.2:
        return stream
    for _ in range(1 + rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:
            # Heads are where the damage matters, and payloads are where most of the bytes are.
            at = min(at, rng.randrange(80))
        accident = rng.randrange(6)
        if accident == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif accident == 1:
            width = rng.choice((2, 4, 8))
            data[at : at + width] = integer(rng, 8 * width).to_bytes(width, "big")
        elif accident == 2:
            del data[at : at + rng.choice((1, 2, 4, 28, 1000))]
        elif accident == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 28)))
        elif accident == 4:
            data[at:at] = data[at : at + rng.choice((16, 28, 100))]
        else:
            del data[at:]
    return bytes(data)


def parts_of(rng: Random, stream: bytes) -> list[bytes]:
    if 0 < len(stream) < 2000 and rng.random() < 0.2:
        return [stream[at : at + 1] for at in range(len(stream))]
    edges = sorted({0, len(stream), *(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(20)))})
    return [stream[begin:end] for begin, end in pairwise(edges)] or [stream]


# --- What the machines make of them -----------------------------------------------------------------------------------


def run_handshake(parts: list[bytes]) -> object:
    machine = Handshake(Directory())
    output, trailing = b"", b""
    for part in parts:
        if machine.negotiated is None:
            machine.receive_data(part)
            trailing = machine.trailing
        else:
            trailing += part
        held = len(machine._data)
        assert held < 16 + OPTION_BYTES_MAX, f"the handshake holds {held} bytes"
        said = machine.data_to_send()
        assert len(said) <= 2 * OUTPUT_BYTES_MAX, f"the handshake says {len(said)} bytes"
        output += said
    return output, machine.closed, machine.negotiated, trailing


def check_handshake(rng: Random) -> None:
    stream = damaged(rng, handshake_stream(rng))
    whole, split = run_handshake([stream]), run_handshake(parts_of(rng, stream))
    assert whole == split, f"whole {whole!r}\nsplit {split!r}"


def model_refusal(terms: Negotiated, command: int, flags: int, offset: int, length: int) -> int | None:
    """The errno with which a request is refused, 0 for none, None for a disconnection."""
    export = terms.export
    applicable = {READ: 5 if terms.structured else 1, WRITE: 1, FLUSH: 1, TRIM: 1, CACHE: 1, ZEROES: 19, STATUS_OF: 9}
    if command == WRITE and length > 32 << 20:
        return None if length > 64 << 20 else EINVAL
    if command not in applicable or flags & ~applicable[command]:
        return EINVAL
    if command == FLUSH:
        return 0
    if export.read_only and command in (WRITE, TRIM, ZEROES):
        return EPERM
    if offset % export.minimum_block_bytes or length % export.minimum_block_bytes:
        return EINVAL
    if offset + length > export.size_bytes:
        return ENOSPC if command in (WRITE, ZEROES) else EINVAL
    if command == READ and length > 32 << 20:
        return EOVERFLOW if flags & 4 else EINVAL
    return EINVAL if command == STATUS_OF and not (terms.block_status and length) else 0


def model_requests(stream: bytes, terms: Negotiated) -> list[list[object]]:
    found: list[list[object]] = []
    at = 0
    while at + 28 <= len(stream):
        magic, flags, command, cookie, offset, length = struct.unpack_from(">IHHQQI", stream, at)
        at += 28
        refusal = model_refusal(terms, command, flags, offset, length)
        if magic != 0x25609513 or (refusal is None and command != DISC):
            return [*found, ["disconnected"]]
        if command == DISC:
            return [*found, [DISC, flags, cookie, offset, length]]
        payload_bytes = length if command == WRITE else 0
        if at + payload_bytes > len(stream):
            return found  # a refusal, too, comes after the payload
        if refusal:
            found.append([REJECT, flags, cookie, command, refusal])
        else:
            found.append([command, flags, cookie, offset, stream[at : at + length] if command == WRITE else length])
        at += payload_bytes
    return found


def run_requests(parts: list[bytes], terms: Negotiated, piece_size_bytes_min: int) -> object:
    machine = RequestReader(terms, piece_size_bytes_min=piece_size_bytes_min)
    whole: list[list[object]] = []
    begun: tuple[int, int, int, bytes] | None = None  # flags, cookie, offset, payload so far
    pending = b""
    for part in parts:
        pending += part
        found: list[Request] = []
        disconnected, used = False, 0
        try:
            used = machine.parse(
                memoryview(pending), 0, len(pending), found, reply_budget_bytes=1 << 40, request_budget=1 << 40
            )
        except ProtocolError:
            disconnected = True
        for command, flags, cookie, offset, length, payload in found:
            if command in (WRITE, WRITE_PIECE):
                assert len(payload) == length
                first, before = offset, b""
                if begun is not None:
                    assert (flags, cookie, offset) == (*begun[:2], begun[2] + len(begun[3]))
                    first, before = begun[2:]
                begun = (flags, cookie, first, before + payload)
                if command == WRITE_PIECE:
                    assert (offset + length) % 4096 == 0
                    assert length > 0
                else:
                    assert first + len(begun[3]) <= machine.size_bytes
                    whole.append([WRITE, flags, cookie, first, begun[3]])
                    begun = None
            else:
                assert begun is None, "a request in the middle of a write"
                assert command in (REJECT, DISC, FLUSH) or offset + length <= machine.size_bytes
                whole.append([command, flags, cookie, offset, length])
        if disconnected:
            return [*whole, ["disconnected"]]
        pending = pending[used:]
        assert len(pending) < 28 + piece_size_bytes_min + 4096, f"{len(pending)} bytes are left"
    return whole


def check_requests(rng: Random) -> None:
    structured = rng.random() < 0.7
    since = "disk0@monday" if structured and rng.random() < 0.3 else None
    terms = Negotiated(rng.choice(EXPORTS), structured, structured and rng.random() < 0.7, since)
    stream = damaged(rng, request_stream(rng))
    whole = run_requests([stream], terms, 16384)
    model = model_requests(stream, terms)
    assert whole == model, f"whole {whole!r}\nmodel {model!r}"
    split = run_requests(parts_of(rng, stream), terms, rng.choice((4096, 5000, 16384)))
    assert whole == split, f"whole {whole!r}\nsplit {split!r}"


def run_replies(parts: list[bytes], terms: ServerTerms) -> object:
    machine = ReplyReader(terms)
    for cookie in range(4):
        machine.expect_read(cookie, 4096, 100)
    whole: list[object] = []
    data = b""
    extents: tuple[tuple[int, int], ...] = ()
    pending = b""
    for part in parts:
        pending += part
        found: list[Reply] = []
        error = ""
        try:
            used = machine.parse(memoryview(pending), 0, len(pending), found)
        except ProtocolError as failure:
            error, used = str(failure), 0
        for event in found:
            if event.kind == DATA:
                data += event.payload
            elif event.kind == STATUS:
                extents += event.extents
            else:
                whole.append(event)
        if error:
            # Content may come in larger pieces, an error in the same buffer before it: only what was whole counts.
            return whole, error
        pending = pending[used:]
        assert len(pending) < UNCONSUMED_BYTES_MAX, f"{len(pending)} bytes are left"
    return whole, data, extents


def check_replies(rng: Random) -> None:
    structured = rng.random() < 0.8
    terms = ServerTerms(SIZE_BYTES, 0, structured, 1 if structured else None)
    stream = damaged(rng, reply_stream(rng))
    whole, split = run_replies([stream], terms), run_replies(parts_of(rng, stream), terms)
    assert whole == split, f"whole {whole!r}\nsplit {split!r}"


def run_client_handshake(parts: list[bytes]) -> object:
    machine = ClientHandshake("disk0")
    output, trailing = b"", b""
    for part in parts:
        try:
            if machine.terms is None:
                machine.receive_data(part)
                trailing = machine.trailing
            else:
                trailing += part
        except (ProtocolError, NotFoundError, GoneError, RequestError) as failure:
            return output + machine.data_to_send(), type(failure), str(failure)
        output += machine.data_to_send()
    return output, machine.terms, trailing


def check_client_handshake(rng: Random) -> None:
    stream = damaged(rng, server_stream(rng))
    whole, split = run_client_handshake([stream]), run_client_handshake(parts_of(rng, stream))
    assert whole == split, f"whole {whole!r}\nsplit {split!r}"


FUZZER = Fuzzer(
    "tests/fuzz/fuzz_nbd.py",
    "Fuzz the NBD wire.",
    (check_handshake, check_requests, check_replies, check_client_handshake),
)

if __name__ == "__main__":
    sys.exit(FUZZER.main())

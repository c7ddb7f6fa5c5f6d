"""The client's side, against our own server and against what other servers do."""

from __future__ import annotations

import errno
import struct
from itertools import pairwise

import pytest

from holdfast.errors import GoneError, NotFoundError, RequestError
from holdfast.nbd import replies
from holdfast.nbd.client import (
    DATA,
    DONE,
    ERROR,
    HOLE,
    STATUS,
    UNCONSUMED_BYTES_MAX,
    ClientHandshake,
    Reply,
    ReplyReader,
    ServerTerms,
    request,
)
from holdfast.nbd.handshake import Handshake
from holdfast.nbd.negotiated import Export
from holdfast.nbd.protocol import ProtocolError
from tests.nbd.wire import READ, SIZE_BYTES, Exports
from tests.nbd.wire import request as literal_request

STRUCTURED = ServerTerms(SIZE_BYTES, 0, structured=True, base_allocation_context=1)
SIMPLE = ServerTerms(SIZE_BYTES, 0, structured=False, base_allocation_context=None)


def settle(client: ClientHandshake, server: Handshake) -> None:
    """Carry bytes to and fro, one at a time, until neither has anything to say."""
    while True:
        for_client, for_server = server.data_to_send(), client.data_to_send()
        if not for_client and not for_server:
            return
        for byte in for_client:
            client.receive_data(bytes([byte]))
        for byte in for_server:
            server.receive_data(bytes([byte]))


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


# --- Handshake --------------------------------------------------------------------------------------------------------


def test_client_and_server_come_to_the_same_terms() -> None:
    client, server = ClientHandshake("disk0"), Handshake(Exports([Export("disk0", SIZE_BYTES)]))
    settle(client, server)
    assert client.terms is not None
    assert server.negotiated is not None
    assert client.terms.size_bytes == SIZE_BYTES
    assert client.terms.structured
    assert server.negotiated.structured
    assert client.terms.base_allocation_context == 1
    assert server.negotiated.base_allocation
    assert client.terms.maximum_payload_bytes == 32 << 20


def test_the_client_may_do_without_structured_replies() -> None:
    client, server = ClientHandshake("", structured=False), Handshake(Exports())
    settle(client, server)
    assert client.terms is not None
    assert server.negotiated is not None
    assert not client.terms.structured
    assert not server.negotiated.structured
    assert client.terms.base_allocation_context is None


def test_the_client_learns_the_minimum_block_of_the_server() -> None:
    exports = Exports([Export("disk0", SIZE_BYTES, minimum_block_bytes=4096)])
    client = ClientHandshake("disk0")
    settle(client, Handshake(exports))
    assert client.terms is not None
    assert client.terms.minimum_block_bytes == 4096


def test_an_unknown_export_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        settle(ClientHandshake("nothing"), Handshake(Exports()))


def test_a_server_that_shuts_down_is_gone() -> None:
    with pytest.raises(GoneError):
        settle(ClientHandshake("disk0"), Handshake(Exports(), shutting_down=lambda: True))


def test_the_words_of_a_server_that_refuses_are_passed_on() -> None:
    client = ClientHandshake("disk0", structured=False)
    client.receive_data(b"NBDMAGICIHAVEOPT\x00\x03")
    with pytest.raises(RequestError, match="not on Sundays"):
        client.receive_data(option_reply(7, 2**31 + 2, b"not on Sundays"))


@pytest.mark.parametrize("no_zeroes", [False, True])
def test_a_server_without_go_is_asked_by_export_name(no_zeroes: bool) -> None:
    client = ClientHandshake("disk0")
    client.receive_data(b"NBDMAGICIHAVEOPT" + bytes([0, 1 | no_zeroes << 1]))
    client.receive_data(option_reply(8, 2**31 + 1) + option_reply(7, 2**31 + 1))
    assert client.data_to_send().endswith(b"IHAVEOPT" + struct.pack(">II", 1, 5) + b"disk0")
    client.receive_data(struct.pack(">QH", 1 << 30, 1) + (b"" if no_zeroes else bytes(124)))
    assert client.terms == ServerTerms(1 << 30, 1, structured=False, base_allocation_context=None)


def test_a_server_without_fixed_newstyle_is_asked_by_export_name_alone() -> None:
    client = ClientHandshake("disk0")
    client.receive_data(b"NBDMAGICIHAVEOPT\x00\x00")
    assert client.data_to_send() == bytes(4) + b"IHAVEOPT" + struct.pack(">II", 1, 5) + b"disk0"
    client.receive_data(struct.pack(">QH", 1 << 30, 1) + bytes(124) + b"!")
    assert client.terms is not None
    assert client.trailing == b"!"


def test_a_server_without_the_context_is_used_without_it() -> None:
    client = ClientHandshake("disk0")
    client.receive_data(b"NBDMAGICIHAVEOPT\x00\x03" + option_reply(8, 1) + option_reply(10, 1))
    client.receive_data(option_reply(7, 3, struct.pack(">HQH", 0, 4096, 1)) + option_reply(7, 1))
    assert client.terms == ServerTerms(4096, 1, structured=True, base_allocation_context=None)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"NBDMAGIC" + bytes.fromhex("0000420281861253") + bytes(200),
        b"NBDMAGICIHAVEOPT\x00\x03" + bytes(20),
        b"NBDMAGICIHAVEOPT\x00\x03" + option_reply(7, 1),
        b"NBDMAGICIHAVEOPT\x00\x03" + option_reply(8, 3, bytes(65537)),
        b"NBDMAGICIHAVEOPT\x00\x03" + option_reply(8, 3) * 100,
        b"NBDMAGICIHAVEOPT\x00\x03" + option_reply(8, 1) + option_reply(10, 1) + option_reply(7, 1),
    ],
    ids=["http", "oldstyle", "magic", "option", "long", "many", "no-export"],
)
def test_what_is_no_server_of_this_protocol_is_recognised(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ClientHandshake("disk0").receive_data(data)


# --- Transmission -----------------------------------------------------------------------------------------------------


def events_of(
    data: bytes, terms: ServerTerms = STRUCTURED, *, reads: tuple[tuple[int, int, int], ...] = ()
) -> list[Reply]:
    reader = ReplyReader(terms)
    for read in reads:
        reader.expect_read(*read)
    events: list[Reply] = []
    assert reader.parse(memoryview(data), 0, len(data), events) == len(data)
    return events


def a_reply_of_every_kind() -> bytes:
    out = memoryview(bytearray(30000))
    at = replies.done(out, 0, 1)
    at = replies.error(out, at, 2, errno.ENOSPC)
    at = replies.data_chunk(out, at, 3, 4096, 5000, False)
    out[at : at + 5000] = bytes(range(250)) * 20
    at += 5000
    at = replies.hole_chunk(out, at, 3, 9096, 77, True)
    at = replies.none_chunk(out, at, 4)
    at = replies.error_chunk(out, at, 5, errno.EIO, b"a bad sector" * 300, False)
    at = replies.error_offset_chunk(out, at, 5, errno.EIO, 512, b"here")
    at = replies.block_status_chunk(out, at, 6, [(4096, flags % 4) for flags in range(1000)])
    return bytes(out[:at])


def test_a_request_is_encoded_as_the_document_draws_it() -> None:
    assert request(READ, 1, 7, 4096, 512) == literal_request(READ, 4096, 512, flags=1)


def test_each_kind_of_reply_becomes_its_event() -> None:
    found = events_of(a_reply_of_every_kind())
    assert [(event.cookie, event.kind, event.final) for event in found] == [
        (1, DONE, True),
        (2, ERROR, True),
        (3, DATA, False),
        (3, HOLE, True),
        (4, DONE, True),
        (5, ERROR, False),
        (5, ERROR, True),
        (6, STATUS, True),
    ]
    assert found[1].errno == errno.ENOSPC
    assert (found[2].offset, bytes(found[2].payload)) == (4096, bytes(range(250)) * 20)
    assert (found[3].offset, found[3].length) == (9096, 77)
    assert (found[5].offset, found[5].message) == (-1, b"a bad sector" * 300)
    assert (found[6].offset, found[6].message) == (512, b"here")
    assert found[7].extents == tuple((4096, flags % 4) for flags in range(1000))


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_stream_in_parts_gives_the_same_events_in_pieces(step: int) -> None:
    data = a_reply_of_every_kind()
    reader = ReplyReader(STRUCTURED)
    events: list[Reply] = []
    pending = b""
    for at in range(0, len(data), step):
        pending += data[at : at + step]
        used = reader.parse(memoryview(pending), 0, len(pending), events)
        pending = pending[used:]
        assert len(pending) < UNCONSUMED_BYTES_MAX
    whole = events_of(data)
    for kind in (DONE, ERROR, HOLE):
        assert [event for event in events if event.kind == kind] == [event for event in whole if event.kind == kind]
    assert b"".join(event.payload for event in events if event.kind == DATA) == bytes(whole[2].payload)
    pieces = [(event.offset, event.length) for event in events if event.kind == DATA]
    assert pieces[0][0] == 4096
    assert all(begin + length == following for (begin, length), (following, _) in pairwise(pieces))
    assert sum((event.extents for event in events if event.kind == STATUS), ()) == whole[7].extents
    assert [event.cookie for event in events if event.final] == [event.cookie for event in whole if event.final]


def test_a_simple_read_reply_is_told_by_what_was_asked() -> None:
    data = bytes.fromhex("6744669800000000") + struct.pack(">Q", 9) + b"payload"
    (event,) = events_of(data, SIMPLE, reads=((9, 4096, 7),))
    assert (event.cookie, event.kind, event.offset, bytes(event.payload), event.final) == (
        9,
        DATA,
        4096,
        b"payload",
        True,
    )


def test_a_simple_read_reply_with_an_error_has_no_payload() -> None:
    data = bytes.fromhex("6744669800000005") + struct.pack(">Q", 9)
    (event,) = events_of(data, SIMPLE, reads=((9, 4096, 7),))
    assert (event.kind, event.errno, event.final) == (ERROR, errno.EIO, True)


def test_a_simple_read_reply_of_nothing_is_done() -> None:
    (event,) = events_of(bytes.fromhex("6744669800000000") + struct.pack(">Q", 9), SIMPLE, reads=((9, 4096, 0),))
    assert event.kind == DONE


def chunk(kind: int, payload: bytes = b"", *, flags: int = 1) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, 7, len(payload)) + payload


def test_an_error_chunk_of_an_unknown_type_is_an_error() -> None:
    (event,) = events_of(chunk(0x8077, struct.pack(">IH", 5, 2) + b"no" + b"whatever"))
    assert (event.kind, event.errno, event.message) == (ERROR, 5, b"no")


@pytest.mark.parametrize(
    "data",
    [
        bytes(20),
        chunk(3),
        chunk(0, b"x"),
        chunk(0, flags=0),
        chunk(1, bytes(8)),
        chunk(2, bytes(11)),
        chunk(2, bytes(12)),
        chunk(5, bytes(4)),
        chunk(5, struct.pack(">III", 1, 512, 0) + b"x"),
        chunk(5, struct.pack(">III", 2, 512, 0)),
        chunk(5, struct.pack(">III", 1, 0, 0)),
        chunk(0x8001, b"12345"),
        chunk(0x8001, bytes(6)),
        chunk(0x8001, struct.pack(">IH", 5, 1)),
        chunk(0x8001, struct.pack(">IH", 5, 9000) + bytes(9000)),
        chunk(0x8002, struct.pack(">IH", 5, 0) + bytes(7)),
    ],
    ids=lambda data: data[6:].hex()[:40],
)
def test_what_is_no_reply_of_this_protocol_is_recognised(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        events_of(data)


def test_a_structured_reply_that_was_not_negotiated_is_recognised() -> None:
    with pytest.raises(ProtocolError):
        events_of(chunk(0), SIMPLE)

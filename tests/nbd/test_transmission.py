"""The request parser: what the engine gets to see, and what is refused before it."""

from __future__ import annotations

import errno

import pytest

from holdfast.nbd.protocol import ProtocolError
from holdfast.nbd.transmission import BLOCK_STATUS_REPLY_BYTES, REJECT, WRITE_PIECE, Request, RequestReader
from tests.nbd.wire import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    FAST_ZERO,
    FLUSH,
    FUA,
    MIB,
    NO_HOLE,
    READ,
    REQ_ONE,
    SIZE_BYTES,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    joined,
    parse,
    parse_stream,
    reader,
    request,
    write,
)

NOT_DISC = (READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS)
RANGED = (READ, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS)
REQUEST_OFFSET_MAX = (1 << 64) - 1
LENGTH_MAX = (1 << 32) - 1


def only(machine: RequestReader, data: bytes) -> Request:
    """The one request in this buffer, all of which is consumed."""
    (found,), used = parse(machine, data)
    assert used == len(data)
    return found


def refused_with(machine: RequestReader, data: bytes) -> int:
    """The errno with which this request is refused; the cookie and the command come along."""
    command, _flags, cookie, original, number, payload = only(machine, data)
    assert command == REJECT
    assert cookie == 7
    assert original == int.from_bytes(data[6:8], "big")
    assert not payload
    return number


# --- What passes ------------------------------------------------------------------------------------------------------


def test_a_write_comes_with_its_payload() -> None:
    *fields, payload = only(reader(), write(4096, b"abc", cookie=1 << 63))
    assert fields == [WRITE, 0, 1 << 63, 4096, 3]
    assert bytes(payload) == b"abc"


def test_the_payload_is_a_slice_of_the_buffer_and_no_copy() -> None:
    data = write(0, bytes(4096))
    assert only(reader(), data)[5].obj is data


@pytest.mark.parametrize("command", RANGED)
def test_a_request_without_payload_passes_as_it_is(command: int) -> None:
    *fields, payload = only(reader(), request(command, 8192, 512))
    assert fields == [command, 0, 7, 8192, 512]
    assert not payload


def test_several_requests_in_one_buffer_come_in_their_order() -> None:
    data = write(0, b"a" * 10, cookie=1) + request(FLUSH, cookie=2) + request(READ, 0, 10, cookie=3)
    found, used = parse(reader(), data)
    assert used == len(data)
    assert [(command, cookie) for command, _, cookie, _, _, _ in found] == [(WRITE, 1), (FLUSH, 2), (READ, 3)]


def test_an_incomplete_header_is_left_in_the_buffer() -> None:
    assert parse(reader(), request(READ, 0, 1)[:27]) == ([], 0)


def test_parsing_begins_and_ends_where_it_is_told() -> None:
    data = memoryview(b"junk" + request(READ, 0, 1) + request(READ, 0, 2))
    found: list[Request] = []
    used = reader().parse(data, 4, 4 + 28 + 27, found, reply_budget_bytes=1 << 20, request_budget=9)
    assert used == 4 + 28
    assert len(found) == 1


@pytest.mark.parametrize("command", NOT_DISC)
def test_fua_is_accepted_on_every_command(command: int) -> None:
    payload = bytes(512) if command == WRITE else b""
    assert only(reader(), request(command, 0, 512, flags=FUA) + payload)[:2] == (command, FUA)


@pytest.mark.parametrize("command", NOT_DISC[:-1])
def test_a_length_of_zero_is_no_offence(command: int) -> None:
    assert only(reader(), request(command, 512, 0))[0] == command


def test_a_block_status_of_length_zero_is_invalid_since_no_extent_may_be_empty() -> None:
    assert refused_with(reader(), request(BLOCK_STATUS, 0, 0)) == errno.EINVAL


@pytest.mark.parametrize("command", [*RANGED, FLUSH])
def test_a_request_may_reach_to_the_very_end(command: int) -> None:
    assert only(reader(), request(command, SIZE_BYTES - 512, 512))[0] == command


def test_offset_and_length_of_a_flush_do_not_matter() -> None:
    assert only(reader(), request(FLUSH, REQUEST_OFFSET_MAX, LENGTH_MAX))[0] == FLUSH


@pytest.mark.parametrize("command", [TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS])
def test_the_maximum_payload_does_not_bound_what_carries_no_payload(command: int) -> None:
    assert only(reader(size_bytes=1 << 40), request(command, 0, LENGTH_MAX))[0] == command


def test_a_read_and_a_write_of_the_maximum_payload_pass() -> None:
    assert only(reader(), request(READ, 0, 32 * MIB))[0] == READ
    assert only(reader(), write(0, bytes(32 * MIB)))[0] == WRITE


def test_after_a_resize_the_new_size_bounds_requests() -> None:
    machine = reader(size_bytes=4096)
    machine.size_bytes = 8192
    assert only(machine, write(4096, b"x"))[0] == WRITE
    machine.size_bytes = 0
    assert refused_with(machine, write(4096, b"x")) == errno.ENOSPC


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (READ, errno.EINVAL),
        (WRITE, errno.ENOSPC),
        (TRIM, errno.EINVAL),
        (CACHE, errno.EINVAL),
        (WRITE_ZEROES, errno.ENOSPC),
        (BLOCK_STATUS, errno.EINVAL),
    ],
)
@pytest.mark.parametrize("offset", [SIZE_BYTES - 1, SIZE_BYTES, 1 << 63, REQUEST_OFFSET_MAX - 1, REQUEST_OFFSET_MAX])
def test_beyond_the_end_is_no_space_for_writes_and_invalid_otherwise(command: int, number: int, offset: int) -> None:
    assert refused_with(reader(), request(command, offset, 2) + bytes(2 * (command == WRITE))) == number


@pytest.mark.parametrize("command", [8, 9, WRITE_PIECE, REJECT, 0xFFFF])
def test_an_unknown_command_is_invalid(command: int) -> None:
    assert refused_with(reader(), request(command, 0, 512)) == errno.EINVAL


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        (READ, FUA | DF),
        (WRITE, FUA),
        (FLUSH, FUA),
        (TRIM, FUA),
        (CACHE, FUA),
        (WRITE_ZEROES, FUA | NO_HOLE | FAST_ZERO),
        (BLOCK_STATUS, FUA | REQ_ONE),
    ],
)
@pytest.mark.parametrize("bit", range(16))
def test_a_flag_that_does_not_apply_to_the_command_is_invalid(command: int, allowed: int, bit: int) -> None:
    data = request(command, 0, 512, flags=1 << bit) + (bytes(512) if command == WRITE else b"")
    if allowed & 1 << bit:
        assert only(reader(), data)[:2] == (command, 1 << bit)
    else:
        assert refused_with(reader(), data) == errno.EINVAL


def test_df_does_not_apply_without_structured_replies() -> None:
    assert refused_with(reader(structured=False), request(READ, 0, 512, flags=DF)) == errno.EINVAL


@pytest.mark.parametrize("command", [WRITE, TRIM, WRITE_ZEROES])
def test_a_read_only_export_refuses_what_writes(command: int) -> None:
    data = request(command, 0, 8) + (bytes(8) if command == WRITE else b"")
    assert refused_with(reader(read_only=True), data) == errno.EPERM


@pytest.mark.parametrize("command", [READ, FLUSH, CACHE, BLOCK_STATUS])
def test_a_read_only_export_takes_what_does_not_write(command: int) -> None:
    assert only(reader(read_only=True), request(command, 0, 8))[0] == command


def test_block_status_without_a_context_is_invalid() -> None:
    assert refused_with(reader(base_allocation=False), request(BLOCK_STATUS, 0, 512)) == errno.EINVAL


@pytest.mark.parametrize("command", [READ, WRITE, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS])
@pytest.mark.parametrize(("offset", "length"), [(1, 512), (512, 100)])
def test_a_request_that_is_not_aligned_to_the_minimum_block_is_invalid(command: int, offset: int, length: int) -> None:
    data = request(command, offset, length) + (bytes(length) if command == WRITE else b"")
    assert refused_with(reader(minimum_block_bytes=512), data) == errno.EINVAL


@pytest.mark.parametrize("command", NOT_DISC)
def test_a_request_that_is_aligned_to_the_minimum_block_passes(command: int) -> None:
    data = request(command, 512, 1024) + (bytes(1024) if command == WRITE else b"")
    assert only(reader(minimum_block_bytes=512), data)[0] == command


def test_a_read_beyond_the_maximum_payload_is_invalid() -> None:
    assert refused_with(reader(), request(READ, 0, 32 * MIB + 1)) == errno.EINVAL


def test_an_unfragmented_read_beyond_the_maximum_payload_overflows() -> None:
    assert refused_with(reader(), request(READ, 0, 32 * MIB + 1, flags=DF)) == errno.EOVERFLOW


@pytest.mark.parametrize("length", [32 * MIB + 1, 64 * MIB])
def test_a_write_beyond_the_maximum_payload_is_drained_and_invalid(length: int) -> None:
    machine = reader(size_bytes=1 << 40)
    payload = [bytes(MIB)] * (length // MIB) + [bytes(length % MIB)]
    found = parse_stream(machine, [request(WRITE, 0, length), *payload, request(FLUSH)], limit_bytes=28)
    assert [fields[:5] for fields in found] == [(REJECT, 0, 7, WRITE, errno.EINVAL), (FLUSH, 0, 7, 0, 0)]


def test_the_payload_of_a_refused_write_is_drained_to_the_byte() -> None:
    machine = reader(read_only=True)
    stream = write(0, request(READ, 0, 1) * 1000, cookie=1) + request(FLUSH, cookie=2)
    found = parse_stream(machine, [stream[at : at + 100] for at in range(0, len(stream), 100)], limit_bytes=128)
    assert [(command, cookie) for command, _, cookie, _, _, _ in found] == [(REJECT, 1), (FLUSH, 2)]


def test_a_write_is_refused_when_its_payload_has_come_not_before() -> None:
    """A client may not expect an answer to what it is still sending: libnbd takes that for a bug of the server."""
    machine = reader(size_bytes=1 << 40)
    length = 32 * MIB + 1
    found, used = parse(machine, request(WRITE, 0, length) + bytes(1000))
    assert (found, used) == ([], 28 + 1000)
    found, used = parse(machine, bytes(length - 1001))
    assert (found, used) == ([], length - 1001)
    found, used = parse(machine, b"\0" + request(FLUSH))
    assert ([fields[0] for fields in found], used) == ([REJECT, FLUSH], 29)


def test_a_refused_write_of_length_zero_has_nothing_to_drain() -> None:
    machine = reader(read_only=True)
    found, _ = parse(machine, request(WRITE, 0, 0) + request(FLUSH))
    assert [fields[0] for fields in found] == [REJECT, FLUSH]


# --- What ends the connection -----------------------------------------------------------------------------------------


def test_a_write_too_large_to_be_drained_ends_the_connection() -> None:
    with pytest.raises(ProtocolError, match="67108865"):
        parse(reader(), request(WRITE, 0, 64 * MIB + 1))


def test_a_wrong_magic_ends_the_connection_after_the_requests_before_it() -> None:
    found: list[Request] = []
    data = memoryview(request(READ, 0, 1) + request(FLUSH) + b"\0" + request(FLUSH))
    with pytest.raises(ProtocolError, match="begins with"):
        reader().parse(data, 0, len(data), found, reply_budget_bytes=1 << 20, request_budget=100)
    assert [fields[0] for fields in found] == [READ, FLUSH]


def test_after_disc_nothing_is_a_request() -> None:
    machine = reader()
    data = request(FLUSH) + request(DISC) + request(FLUSH) + b"anything"
    found, used = parse(machine, data)
    assert [fields[0] for fields in found] == [FLUSH, DISC]
    assert used == len(data)
    assert parse(machine, request(FLUSH)) == ([], 28)


# --- Pieces -----------------------------------------------------------------------------------------------------------


def test_the_part_of_a_long_write_that_is_there_comes_as_a_piece() -> None:
    data = write(0, bytes(65536))
    found, used = parse(reader(), data[: 28 + 20000])
    assert [fields[:5] for fields in found] == [(WRITE_PIECE, 0, 7, 0, 16384)]
    assert used == 28 + 16384


def test_a_piece_ends_at_a_block_of_the_export_and_not_of_the_payload() -> None:
    data = write(1000, bytes(65536))
    found, used = parse(reader(), data[: 28 + 20000])
    assert [fields[:5] for fields in found] == [(WRITE_PIECE, 0, 7, 1000, 20480 - 1000)]
    assert used == 28 + 20480 - 1000


def test_too_little_of_a_write_waits_for_more() -> None:
    data = write(0, bytes(65536))
    assert parse(reader(), data[: 28 + 16383]) == ([], 0)


def test_a_write_whose_end_is_there_is_no_piece() -> None:
    assert only(reader(), write(0, bytes(65536)))[0] == WRITE


def test_the_rest_of_a_write_comes_last_as_the_write() -> None:
    machine = reader()
    payload = bytes(range(256)) * 200
    data = write(4096, payload, flags=FUA) + request(FLUSH)
    found = parse_stream(machine, [data[:30000], data[30000:]])
    assert [fields[0] for fields in found] == [WRITE_PIECE, WRITE, FLUSH]
    assert found[1][3] + found[1][4] == 4096 + len(payload)
    assert joined(found)[0] == (WRITE, FUA, 7, 4096, len(payload), payload)


@pytest.mark.parametrize("there", [0, 100, 20000, 65535])
def test_without_pieces_a_write_waits_and_its_missing_bytes_are_told(there: int) -> None:
    machine = reader()
    data = write(0, bytes(65536))
    assert parse(machine, data[: 28 + there], pieces=False) == ([], 0)
    assert machine.missing_bytes == 65536 - there
    assert parse(machine, data, pieces=False)[1] == len(data)
    assert machine.missing_bytes == 0


def test_without_pieces_the_rest_of_a_write_in_pieces_waits_as_well() -> None:
    machine = reader()
    data = write(0, bytes(65536))
    _, used = parse(machine, data[: 28 + 20000])
    assert parse(machine, data[used:40000], pieces=False) == ([], 0)
    assert machine.missing_bytes == len(data) - 40000
    (last,), _ = parse(machine, data[used:], pieces=False)
    assert last[:5] == (WRITE, 0, 7, 16384, 65536 - 16384)


def test_what_is_left_in_the_buffer_is_bounded() -> None:
    stream = b"".join(write(offset, bytes(100_000)) for offset in range(0, 3 * MIB, 77_777))
    for step in (1000, 16384, 50_000):
        parts = [stream[at : at + step] for at in range(0, len(stream), step)]
        parse_stream(reader(), parts, limit_bytes=28 + 16384 + 4096)


# --- Budgets ----------------------------------------------------------------------------------------------------------


def test_no_more_requests_are_taken_than_the_budget_allows() -> None:
    found, used = parse(reader(), request(FLUSH) * 10, request_budget=3)
    assert (len(found), used) == (3, 3 * 28)


def test_reads_are_taken_as_long_as_their_replies_fit() -> None:
    data = request(READ, 0, 4096) * 10
    assert len(parse(reader(), data, reply_budget_bytes=3 * (28 + 4096))[0]) == 3
    assert len(parse(reader(), data, reply_budget_bytes=3 * (28 + 4096) - 1)[0]) == 2


@pytest.mark.parametrize(
    "data",
    [
        request(READ, 0, 4096),
        write(0, b"x"),
        request(FLUSH),
        request(99),
        request(BLOCK_STATUS, 0, 512),
        write(0, b"x", flags=DF),
    ],
    ids=["read", "write", "flush", "unknown", "status", "refused"],
)
def test_one_request_is_taken_whatever_the_reply_budget(data: bytes) -> None:
    found, used = parse(reader(), data * 2, reply_budget_bytes=0)
    assert (len(found), used) == (1, len(data))


def test_large_reads_take_nothing_of_the_reply_budget() -> None:
    found, _ = parse(reader(), request(READ, 0, 128 * 1024 + 1) * 10, reply_budget_bytes=100)
    assert len(found) == 10


def test_a_block_status_has_its_extents_reserved() -> None:
    found, _ = parse(reader(), request(BLOCK_STATUS, 0, 512) * 10, reply_budget_bytes=4 * BLOCK_STATUS_REPLY_BYTES)
    assert len(found) == 4


@pytest.mark.parametrize(("request_budget", "reply_budget_bytes"), [(1, 1 << 20), (9, 16 + 28 + 4095)])
def test_the_rest_of_a_write_counts_like_a_request(request_budget: int, reply_budget_bytes: int) -> None:
    machine = reader()
    data = write(0, bytes(20000)) + request(READ, 0, 4096)
    _, used = parse(machine, data[:19000])
    found, _ = parse(machine, data[used:], request_budget=request_budget, reply_budget_bytes=reply_budget_bytes)
    assert [fields[0] for fields in found] == [WRITE]


def test_small_budgets_change_nothing_but_the_pace() -> None:
    stream = write(5, bytes(100), cookie=1) + request(READ, 0, 99, cookie=2) + request(FLUSH, cookie=3) + request(77)
    machine = reader()
    found: list[Request] = []
    at = 0
    while at < len(stream):
        used = machine.parse(memoryview(stream), at, len(stream), found, reply_budget_bytes=1, request_budget=1)
        assert used > at
        at = used
    assert found == parse(reader(), stream)[0]

"""However the bytes are cut, the same comes out: in one buffer, in random parts, a byte at a time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.nbd.handshake import Handshake
from holdfast.nbd.negotiated import Export, Negotiated
from tests.nbd.wire import (
    MIB,
    READ,
    SIZE_BYTES,
    Exports,
    go,
    joined,
    meta_context,
    option,
    parse_stream,
    reader,
    request,
    write,
)

Cuts = list[int]


def cut(data: bytes, cuts: Cuts) -> list[bytes]:
    edges = sorted({0, len(data), *(position % (len(data) + 1) for position in cuts)})
    return [data[begin:end] for begin, end in pairwise(edges)]


def singly(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


cuts = st.lists(st.integers(0, 1 << 20), max_size=30)

# --- Transmission -----------------------------------------------------------------------------------------------------

offsets = st.one_of(st.integers(0, SIZE_BYTES), st.integers(SIZE_BYTES - 4096, SIZE_BYTES), st.integers(0, 2**64 - 1))
cookies = st.integers(0, 2**64 - 1)
flags = st.one_of(st.just(0), st.integers(0, 31), st.integers(0, 0xFFFF))
headers = st.builds(
    request,
    st.sampled_from([0, 3, 4, 5, 6, 7, 8, 0x101, 0x102]),
    offsets,
    st.integers(0, 2**32 - 1),
    flags=flags,
    cookie=cookies,
)
lengths = st.one_of(st.integers(0, 100), st.integers(4000, 9000), st.integers(0, 50_000))
payloads = st.builds(
    lambda length, seed: bytes([seed, (seed * 7) % 256, 3]) * (length // 3), lengths, st.integers(0, 255)
)
writes = st.builds(write, offsets, payloads, flags=flags, cookie=cookies)
streams = st.lists(st.one_of(headers, writes), max_size=12).map(b"".join)


@given(streams, cuts, st.lists(st.booleans(), max_size=30))
@settings(max_examples=150, deadline=None)
def test_requests_do_not_depend_on_when_pieces_are_taken(stream: bytes, cuts: Cuts, pieces: list[bool]) -> None:
    parts = [*cut(stream, cuts), b""]  # once more at the end, with pieces
    found = parse_stream(reader(piece_size_bytes_min=4096), parts, pieces=pieces[: len(parts) - 1])
    assert joined(found) == joined(parse_stream(reader(), [stream]))


@given(streams, cuts, st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_requests_do_not_depend_on_how_the_stream_was_cut(
    stream: bytes, cuts: Cuts, read_only: bool, structured: bool
) -> None:
    def found(parts: list[bytes]) -> list[tuple[int, int, int, int, int, bytes]]:
        machine = reader(read_only=read_only, structured=structured, piece_size_bytes_min=4096)
        return joined(parse_stream(machine, parts, limit_bytes=28 + 4096 + 4096))

    whole = joined(parse_stream(reader(read_only=read_only, structured=structured), [stream]))
    assert found([stream]) == whole
    assert found(cut(stream, cuts)) == whole


@given(st.lists(st.one_of(headers, writes), max_size=3).map(b"".join), st.booleans())
@settings(max_examples=20, deadline=None)
def test_requests_are_the_same_a_byte_at_a_time(stream: bytes, read_only: bool) -> None:
    whole = joined(parse_stream(reader(read_only=read_only), [stream]))
    assert joined(parse_stream(reader(read_only=read_only), singly(stream))) == whole


@given(
    streams, st.lists(st.integers(1, 5), min_size=1, max_size=5), st.lists(st.integers(0, MIB), min_size=1, max_size=5)
)
@settings(max_examples=100, deadline=None)
def test_requests_do_not_depend_on_the_budgets(stream: bytes, counts: list[int], sizes: list[int]) -> None:
    whole = joined(parse_stream(reader(), [stream]))
    machine = reader()
    found: list[tuple[int, int, int, int, int, memoryview]] = []
    view = memoryview(stream)
    at, turn = 0, 0
    while at < len(stream):
        before = at
        at = machine.parse(
            view,
            at,
            len(stream),
            found,
            reply_budget_bytes=sizes[turn % len(sizes)],
            request_budget=counts[turn % len(counts)],
        )
        turn += 1
        assert at > before
    assert joined(found) == whole


# --- Handshake --------------------------------------------------------------------------------------------------------

names = st.sampled_from(["disk0", "disk1", "", "nothing", "x" * 4096])
options = st.one_of(
    st.builds(lambda name, wanted: go(name, *wanted, number=6), names, st.lists(st.integers(0, 5), max_size=3)),
    st.builds(lambda name, wanted: go(name, *wanted), names, st.lists(st.integers(0, 5), max_size=3)),
    st.builds(meta_context, st.sampled_from([9, 10]), names, st.sampled_from(["base:allocation", "base:", "x:y"])),
    st.sampled_from([option(8), option(3), option(1, b"disk0"), option(1, b"nothing"), option(2)]),
    st.builds(option, st.integers(0, 14), st.binary(max_size=40)),
    st.builds(option, st.sampled_from([2, 3, 7, 10, 99]), st.just(bytes(66_000))),
    st.binary(max_size=20),
)
handshakes = st.builds(
    lambda flags, parts: bytes([0, 0, 0, flags]) + b"".join(parts),
    st.sampled_from([0, 1, 3, 7]),
    st.lists(options, max_size=8),
)


def shake(parts: list[bytes]) -> tuple[bytes, bool, Negotiated | None, bytes]:
    """What a client sees of a handshake: the bytes, whether it is closed, the terms, what transmission begins with."""
    machine = Handshake(Exports([Export("disk0", SIZE_BYTES, description="zero"), Export("disk1", 0, read_only=True)]))
    output = machine.data_to_send()
    trailing = b""
    for part in parts:
        if machine.negotiated is None:
            machine.receive_data(part)
            trailing = machine.trailing
        else:
            trailing += part
        output += machine.data_to_send()
    return output, machine.closed, machine.negotiated, trailing


@given(handshakes, cuts)
@settings(max_examples=200, deadline=None)
def test_the_handshake_does_not_depend_on_how_the_stream_was_cut(stream: bytes, cuts: Cuts) -> None:
    assert shake(cut(stream, cuts)) == shake([stream])


@given(st.lists(options, max_size=3).map(lambda parts: bytes([0, 0, 0, 3]) + b"".join(parts)))
@settings(max_examples=30, deadline=None)
def test_the_handshake_is_the_same_a_byte_at_a_time(stream: bytes) -> None:
    assert shake(singly(stream)) == shake([stream])


def test_requests_that_came_with_go_are_not_lost() -> None:
    stream = bytes([0, 0, 0, 3]) + go("disk0") + request(READ, 0, 512)
    _, _, terms, trailing = shake([stream])
    assert terms is not None
    assert trailing == request(READ, 0, 512)

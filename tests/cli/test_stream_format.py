"""The stream format: what is written is read again, and whatever is done to it in between is noticed."""

from __future__ import annotations

import io
import random
import re
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import pytest
from xxhash import xxh3_64_intdigest

from holdfast.cli.stream_format import (
    DATA,
    DATA_BYTES_MAX,
    END,
    HEAD_BYTES,
    HEADER_BYTES_MAX,
    MAGIC,
    ZERO,
    SnapshotIdentity,
    StreamError,
    StreamHeader,
    StreamReader,
    StreamWriter,
    Totals,
    encode_header,
    seal_record,
)
from holdfast.units import MIB

SIZE_BYTES = MIB + 700
MONDAY = SnapshotIdentity(identity="0" * 31 + "1", name="disk0@monday", pool="p", created="2024-01-01T00:00:00+00:00")
TUESDAY = SnapshotIdentity(identity="f" * 32, name="disk0@tuesday")
INCREMENT = StreamHeader(size_bytes=SIZE_BYTES, snapshot=TUESDAY, base=MONDAY)
WHOLE = StreamHeader(size_bytes=SIZE_BYTES, snapshot=MONDAY)


class Got(NamedTuple):
    kind: int
    offset: int
    content: bytes


RECORDS = [
    Got(DATA, 4096, random.Random(1).randbytes(4096)),
    Got(ZERO, 65536, bytes(131072)),
    Got(DATA, SIZE_BYTES // 4096 * 4096, b"the end" * 100),
]


def stream_of(records: list[Got], header: StreamHeader = INCREMENT) -> bytes:
    out = io.BytesIO()
    encoded = encode_header(header)
    out.write(encoded)
    writer = StreamWriter(out.write, Totals(encoded))  # type: ignore[arg-type]
    for record in records:
        if record.kind == DATA:
            writer.data(record.offset, memoryview(record.content))
        else:
            writer.zeros(record.offset, len(record.content))
    writer.end()
    assert writer.totals.stream_bytes == len(out.getvalue())
    return out.getvalue()


def reader_of(stream: bytes) -> StreamReader:
    return StreamReader(io.BytesIO(stream).readinto, "file")


def read(stream: bytes) -> list[Got]:
    """All records; raises StreamError."""
    reader = reader_of(stream)
    found = []
    while (record := reader.record()) is not None:
        found.append(Got(record.kind, record.offset, bytes(record.view) or bytes(record.length)))
    return found


def test_what_is_written_is_read_again() -> None:
    stream = stream_of(RECORDS)
    reader = reader_of(stream)
    assert reader.header == INCREMENT
    assert read(stream) == RECORDS


def test_every_byte_counts() -> None:
    """Of the magic, the version, the lengths, the JSON, the heads, the data, the checks, the end: one bit each."""
    stream = bytearray(stream_of(RECORDS))
    for at in range(len(stream)):
        stream[at] ^= 1 << at % 8
        with pytest.raises(StreamError):
            read(bytes(stream))
        stream[at] ^= 1 << at % 8
    assert read(bytes(stream)) == RECORDS


def test_every_length_but_the_whole_is_cut_off() -> None:
    stream = stream_of(RECORDS)
    for length in range(len(stream)):
        with pytest.raises(StreamError, match="cut off" if length >= len(MAGIC) else "cut off|no stream"):
            read(stream[:length])
    with pytest.raises(StreamError, match="does not end where it says"):
        read(stream + b"x")


def record_ends(stream: bytes) -> list[int]:
    reader = reader_of(stream)
    ends = [reader.totals.stream_bytes]
    while reader.record() is not None:
        ends.append(reader.totals.stream_bytes)
    return ends


def test_records_cannot_be_left_out_doubled_exchanged_or_taken_from_elsewhere() -> None:
    stream = stream_of(RECORDS)
    ends = record_ends(stream)
    header = stream[: ends[0]]
    records = [stream[a:b] for a, b in zip(ends, [*ends[1:], len(stream)], strict=True)]
    assert len(records) == 4
    orders = [[0, 2, 3], [1, 2, 3], [0, 1, 3], [3], [0, 0, 1, 2, 3], [1, 0, 2, 3], [0, 1, 2, 3, 3]]
    for order in orders:
        with pytest.raises(StreamError):
            read(header + b"".join(records[index] for index in order))
    other = stream_of([RECORDS[0]._replace(offset=0), *RECORDS[1:]])
    for cut in ends[1:]:
        with pytest.raises(StreamError):
            read(stream[:cut] + other[cut:])


def test_a_whole_stream_leaves_nothing_out() -> None:
    everything = [Got(ZERO, 0, bytes(MIB)), Got(DATA, MIB, b"x" * 700)]
    assert read(stream_of(everything, WHOLE)) == everything
    for records in (everything[:1], everything[1:], []):
        with pytest.raises(StreamError):
            read(stream_of(records, WHOLE))


# --- Made to do harm: every check is right ----------------------------------------------------------------------------


def sealed(*records: tuple[int, int, int, bytes], header: StreamHeader = INCREMENT) -> bytes:
    """A stream of records whatever they say."""
    stream = encode_header(header)
    seed = Totals(stream).check
    for kind, first, second, data in records:
        head, seed = seal_record(kind, first, second, memoryview(data), seed)
        stream += head + data
    return stream


@pytest.mark.parametrize(
    "records",
    [
        [(DATA, 4096, 4096, bytes(4096)), (DATA, 4096, 4096, bytes(4096))],
        [(DATA, 8192, 4096, bytes(4096)), (DATA, 4096, 4096, bytes(4096))],
        [(DATA, 1, 4096, bytes(4096))],
        [(DATA, 0, 100, bytes(100))],
        [(DATA, 0, 0, b"")],
        [(ZERO, 0, 0, b"")],
        [(DATA, 2 * MIB, 4096, bytes(4096))],
        [(ZERO, 0, 2 * MIB, b"")],
        [(ZERO, 0, (1 << 64) - 4096, b"")],
        [(ZERO, (1 << 64) - 4096, 4096, b"")],
        [(DATA, 0, DATA_BYTES_MAX + 4096, b"")],
        [(DATA, 0, (1 << 64) - 1, b"")],
        [(12345, 0, 4096, b"")],
        [(END, 1, 0, b"")],
        [(ZERO, 0, 4096, b""), (END, 1, 1, b"")],
    ],
)
def test_a_record_that_makes_no_sense_is_refused(records: list[tuple[int, int, int, bytes]]) -> None:
    with pytest.raises(StreamError):
        read(sealed(*records))


def test_an_empty_increment_is_one() -> None:
    assert read(sealed((END, 0, 0, b""))) == []


@pytest.mark.parametrize(
    "header",
    [
        StreamHeader(size_bytes=0, snapshot=MONDAY),
        StreamHeader(size_bytes=-1, snapshot=MONDAY),
        StreamHeader(size_bytes=1 << 62, snapshot=MONDAY),
        StreamHeader(size_bytes=4096, snapshot=MONDAY, block_bytes=512),
        StreamHeader(size_bytes=4096, snapshot=SnapshotIdentity(identity="../../etc", name="x@y")),
        StreamHeader(size_bytes=4096, snapshot=MONDAY, base=SnapshotIdentity(identity="", name="x@y")),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(header: StreamHeader) -> None:
    with pytest.raises(StreamError):
        reader_of(encode_header(header))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"size_bytes": "x"}'])
def test_a_header_that_is_no_header_is_refused(body: bytes) -> None:
    unchecked = MAGIC + (1).to_bytes(4, "little") + len(body).to_bytes(4, "little") + body
    with pytest.raises(StreamError, match="not understood"):
        reader_of(unchecked + xxh3_64_intdigest(unchecked).to_bytes(8, "little"))


def test_a_newer_version_is_said_to_be_one() -> None:
    stream = stream_of(RECORDS)
    with pytest.raises(StreamError, match="version 2"):
        reader_of(MAGIC + (2).to_bytes(4, "little") + stream[12:])


def test_what_a_stream_claims_takes_no_memory() -> None:
    claims = [
        MAGIC + (1).to_bytes(4, "little") + b"\xff\xff\xff\x7f" + bytes(HEADER_BYTES_MAX),
        sealed((DATA, 0, 1 << 40, b"")) + bytes(HEAD_BYTES),
        sealed((ZERO, 0, 1 << 63, b"")),
    ]
    tracemalloc.start()
    for claim in claims:
        with pytest.raises(StreamError):
            read(claim)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * DATA_BYTES_MAX


def test_the_document_has_the_numbers_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "stream-format.md").read_text(encoding="utf-8")
    for kind, name in ((DATA, "DATA"), (ZERO, "ZERO"), (END, "END.")):
        assert kind.to_bytes(4, "little").decode() == name
        assert f"`{name}`" in text
    assert f"`{MAGIC.decode()}`" in text
    found = re.search(r"at most (\d+) KiB of JSON", text)
    assert found is not None
    assert int(found[1]) * 1024 == HEADER_BYTES_MAX

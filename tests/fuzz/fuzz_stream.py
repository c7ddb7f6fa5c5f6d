"""A fuzzer for streams: `python tests/fuzz/fuzz_stream.py --seconds 10 --seed 1`.

1. What was written comes back as it was.
2. A stream that was damaged gives a beginning of its records and then a StreamError, never another record, and never
   an end that is not there.
3. Noise with checks that are right gives records within the volume, in ascending order, or a StreamError.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from random import Random

if __name__ == "__main__":  # then only this file's own directory is on the path
    sys.path.insert(0, str(Path(__file__).parents[2]))
from holdfast.cli.stream_format import (
    DATA,
    END,
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
from tests.fuzz.driver import Fuzzer

BLOCK = 4096
Got = tuple[int, int, bytes | int]


def random_header(rng: Random) -> StreamHeader:
    def snapshot(name: str) -> SnapshotIdentity:
        return SnapshotIdentity(identity=f"{rng.getrandbits(128):032x}", name=f"disk0@{name}")

    base = snapshot("a") if rng.random() < 0.7 else None
    return StreamHeader(size_bytes=rng.randrange(1, 64 * BLOCK), snapshot=snapshot("b"), base=base)


def random_stream(rng: Random) -> tuple[bytes, list[Got]]:
    header = random_header(rng)
    out = io.BytesIO()
    out.write(encode_header(header))
    writer = StreamWriter(out.write, Totals(out.getvalue()))  # type: ignore[arg-type]
    records: list[Got] = []
    at, size = 0, header.size_bytes
    while at < size:
        end = min(size, at + rng.randrange(1, 9) * BLOCK)
        kind = rng.randrange(2 if header.base is None else 3)
        if kind == 0:
            data = rng.randbytes(end - at)
            writer.data(at, memoryview(data))
            records.append((DATA, at, data))
        elif kind == 1:
            writer.zeros(at, end - at)
            records.append((ZERO, at, end - at))
        at = end
    writer.end()
    return out.getvalue(), records


def read(stream: bytes) -> tuple[list[Got], bool]:
    """The records, and whether there was an end."""
    file = io.BytesIO(stream)
    found: list[Got] = []
    try:
        reader = StreamReader(file.readinto, "fuzz")
        at = 0
        while (record := reader.record()) is not None:
            assert at <= record.offset < record.offset + record.length <= reader.header.size_bytes
            at = record.offset + record.length
            found.append((record.kind, record.offset, bytes(record.view) if record.kind == DATA else record.length))
    except StreamError:
        return found, False
    return found, True


def check_whole(rng: Random) -> None:
    stream, records = random_stream(rng)
    assert read(stream) == (records, True)


def check_damaged(rng: Random) -> None:
    stream, records = random_stream(rng)
    damaged = bytearray(stream)
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(damaged))
        kind = rng.randrange(5)
        length = rng.randrange(1, 200)
        if kind == 0:
            del damaged[at:]
        elif kind == 1:
            del damaged[at : at + length]
        elif kind == 2:
            damaged[at:at] = damaged[at : at + length]
        elif kind == 3:
            damaged[at : at + length] = rng.randbytes(len(damaged[at : at + length]))
        else:
            damaged[at] ^= 1 << rng.randrange(8)
        if not damaged:
            break
    found, ended = read(bytes(damaged))
    assert found == records[: len(found)]
    assert not ended or bytes(damaged) == stream


def check_hostile(rng: Random) -> None:
    stream = encode_header(random_header(rng))
    seed = Totals(stream).check
    numbers = (
        0,
        1,
        BLOCK,
        2 * BLOCK,
        10 * BLOCK,
        1 << 20,
        (1 << 20) + BLOCK,
        1 << 40,
        -BLOCK % (1 << 64),
        -1 % (1 << 64),
    )
    for _ in range(rng.randrange(6)):
        kind = rng.choice((DATA, ZERO, ZERO, END, rng.getrandbits(32)))
        offset, length = rng.choice(numbers), rng.choice(numbers)
        data = rng.randbytes(length) if kind == DATA and length <= 1 << 20 else b""
        head, seed = seal_record(kind, offset, length, memoryview(data), seed)
        stream += head + data
    read(stream)


FUZZER = Fuzzer(
    "tests/fuzz/fuzz_stream.py",
    "Fuzz the reader of streams.",
    (check_whole, check_damaged, check_damaged, check_hostile),
)

if __name__ == "__main__":
    sys.exit(FUZZER.main())

"""The stream format (docs/stream-format.md): a snapshot, or what differs between two, as bytes for a file or a pipe.

    header    magic, version, length, JSON: what is in it, and since what; check
    records   data, zeroes: 32 bytes of head, for data the bytes; offsets only ascend
    end       a head with the totals

The check of each record is seeded with that of the record before, the first with the header's. So a record that is
damaged, missing, twice there, out of its order or from another stream does not check out, and only a stream that was
read to its end, from its beginning, has an end that does.

`StreamWriter` and `StreamReader` know nothing of files: they are given a function that writes, or one that fills a
buffer. Whatever is read, memory is bounded by HEADER_BYTES_MAX and DATA_BYTES_MAX.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from holdfast.cli.command import EXIT_NO, CommandError
from holdfast.units import BLOCK_SIZE_BYTES, MIB, VOLUME_SIZE_BYTES_MAX

MAGIC: Final = b"HFSTREAM"
VERSION: Final = 1
HEADER_BYTES_MAX: Final = 16 * 1024
DATA_BYTES_MAX: Final = 1 * MIB

DATA: Final = int.from_bytes(b"DATA", "little")
ZERO: Final = int.from_bytes(b"ZERO", "little")
END: Final = int.from_bytes(b"END.", "little")

_PREFIX: Final = Struct("<8sII")  # magic, version, length of the JSON
_CHECK: Final = Struct("<Q")
_HEAD: Final = Struct("<IIQQQ")  # kind, zero, offset, length, check; of the end: records, bytes of data in their place
_UNCHECKED_BYTES: Final = _HEAD.size - _CHECK.size
HEAD_BYTES: Final = _HEAD.size


class StreamError(CommandError):
    """What was read is no whole stream."""

    exit_code = EXIT_NO


class SnapshotIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream says of a snapshot. The identity counts; the rest is for people."""

    identity: str  # 32 hexadecimal digits
    name: str  # VOLUME@SNAPSHOT, where the stream was made
    pool: str = ""  # the UUID of the pool there
    created: str = ""

    @property
    def label(self) -> str:
        return self.name.partition("@")[2]


class StreamHeader(msgspec.Struct, frozen=True, kw_only=True):
    """`base`: the snapshot that the stream holds the difference to; None: it holds everything."""

    size_bytes: int
    snapshot: SnapshotIdentity
    base: SnapshotIdentity | None = None
    block_bytes: int = BLOCK_SIZE_BYTES

    def what(self) -> str:
        """For people."""
        return self.snapshot.name if self.base is None else f"{self.base.name}..{self.snapshot.label}"


class Record(NamedTuple):
    """`view`: the bytes of data, valid until the next record is read; empty for zeroes."""

    kind: int
    offset: int
    length: int
    view: memoryview


def encode_header(header: StreamHeader) -> bytes:
    body = msgspec.json.encode(header)
    assert len(body) <= HEADER_BYTES_MAX, len(body)
    unchecked = _PREFIX.pack(MAGIC, VERSION, len(body)) + body
    return unchecked + _CHECK.pack(xxh3_64_intdigest(unchecked))


def is_header_but_for_magic(raw: bytes) -> bool:
    """Whether what a file begins with would be a header if its magic were right, or is the beginning of a magic."""
    if len(raw) < len(MAGIC):
        return bool(raw) and MAGIC.startswith(raw)
    if len(raw) < _PREFIX.size:
        return raw.startswith(MAGIC)
    length = _PREFIX.unpack_from(raw)[2]
    end = _PREFIX.size + length
    if length > HEADER_BYTES_MAX or len(raw) < end + _CHECK.size:
        return raw.startswith(MAGIC)
    return bool(_CHECK.unpack_from(raw, end)[0] == xxh3_64_intdigest(MAGIC + raw[len(MAGIC) : end]))


class Totals:
    """What has gone through a stream. `check`: of the last record, the seed of the next one."""

    __slots__ = ("check", "data_bytes", "end", "records", "stream_bytes", "zero_bytes")

    def __init__(self, header: bytes) -> None:
        (self.check,) = _CHECK.unpack_from(header, len(header) - _CHECK.size)
        self.records = 0
        self.data_bytes = 0
        self.zero_bytes = 0
        self.end = 0  # of the last record, in the volume
        self.stream_bytes = len(header)

    def add(self, kind: int, offset: int, length: int, check: int) -> None:
        self.check = check
        self.records += 1
        self.end = offset + length
        self.stream_bytes += HEAD_BYTES
        if kind == DATA:
            self.data_bytes += length
            self.stream_bytes += length
        else:
            self.zero_bytes += length


class StreamWriter:
    def __init__(self, write: Callable[[bytes | memoryview], None], totals: Totals) -> None:
        """`totals`: of what is written already, the header at least."""
        self._write = write
        self.totals = totals

    def data(self, offset: int, view: memoryview) -> None:
        assert 0 < len(view) <= DATA_BYTES_MAX, len(view)
        self._record(DATA, offset, len(view), view)

    def zeros(self, offset: int, length: int) -> None:
        assert length > 0, length
        self._record(ZERO, offset, length, memoryview(b""))

    def _record(self, kind: int, offset: int, length: int, view: memoryview) -> None:
        totals = self.totals
        assert offset >= totals.end, offset
        head, check = seal_record(kind, offset, length, view, totals.check)
        self._write(head)
        if view:
            self._write(view)
        totals.add(kind, offset, length, check)

    def end(self) -> None:
        totals = self.totals
        head, _ = seal_record(END, totals.records, totals.data_bytes, memoryview(b""), totals.check)
        self._write(head)
        totals.stream_bytes += HEAD_BYTES


def seal_record(kind: int, first: int, second: int, view: memoryview, seed: int) -> tuple[bytes, int]:
    """The head of a record with data `view`, or of the end, and its check, the seed of the next one's."""
    unsealed = _HEAD.pack(kind, 0, first, second, 0)[:_UNCHECKED_BYTES]
    check = _check(unsealed, view, seed)
    return unsealed + _CHECK.pack(check), check


def _check(unchecked: bytes | memoryview, view: memoryview, seed: int) -> int:
    head_check = xxh3_64_intdigest(unchecked, seed)
    return xxh3_64_intdigest(view, head_check) if view else head_check


class StreamReader:
    """`header` is there when it is made; then `record` until it gives None, which is the end."""

    def __init__(self, fill: Callable[[memoryview], int], name: str) -> None:
        """`fill` fills a buffer and returns how many bytes it got: fewer only at the end of what there is. `name` is
        for messages. Raises StreamError where it does not begin with a header."""
        self._fill = fill
        self._name = name
        self._buffer = memoryview(bytearray(DATA_BYTES_MAX))
        self._head = memoryview(bytearray(HEAD_BYTES))
        raw = self._read_header()
        self.raw_header = raw
        self.header = self._decode_header(raw[_PREFIX.size : -_CHECK.size])
        self.totals = Totals(raw)

    def _read_header(self) -> bytes:
        prefix = self._buffer[: _PREFIX.size]
        got = self._fill(prefix)
        if bytes(prefix[: min(got, len(MAGIC))]) != MAGIC[:got]:
            raise StreamError(f"{self._name}: it is no stream of holdfast copy")
        if got < len(prefix):
            raise self._cut_off(got)
        _, version, length = _PREFIX.unpack(prefix)
        if version != VERSION:
            raise StreamError(
                f"{self._name}: a stream of version {version}, or a damaged one; this holdfast reads version {VERSION}"
            )
        if length > HEADER_BYTES_MAX:
            raise StreamError(f"{self._name}: the header of the stream is damaged; get it anew")
        whole = self._buffer[: _PREFIX.size + length + _CHECK.size]
        got = self._fill(whole[_PREFIX.size :])
        if got < len(whole) - _PREFIX.size:
            raise self._cut_off(_PREFIX.size + got)
        raw = bytes(whole)
        if _CHECK.unpack_from(raw, len(raw) - _CHECK.size)[0] != xxh3_64_intdigest(raw[: -_CHECK.size]):
            raise StreamError(f"{self._name}: the header of the stream is damaged; get it anew")
        return raw

    def _decode_header(self, body: bytes) -> StreamHeader:
        try:
            header = msgspec.json.decode(body, type=StreamHeader)
        except msgspec.DecodeError as error:
            raise StreamError(f"{self._name}: the header of the stream is not understood: {error}") from error
        if not 0 < header.size_bytes <= VOLUME_SIZE_BYTES_MAX or header.block_bytes != BLOCK_SIZE_BYTES:
            raise StreamError(
                f"{self._name}: a stream of a volume of {header.size_bytes} bytes in blocks of {header.block_bytes}; "
                "there is no such volume"
            )
        for snapshot in (header.snapshot, header.base):
            if snapshot is not None and (len(snapshot.identity) != 32 or set(snapshot.identity) - _DIGITS):
                raise StreamError(f"{self._name}: the header of the stream names no snapshot")
        return header

    def record(self) -> Record | None:
        """The next record; None at the end. Raises StreamError where the stream is cut off or damaged; what came before
        was whole."""
        totals = self.totals
        head = self._head
        got = self._fill(head)
        if got < HEAD_BYTES:
            raise self._cut_off(totals.stream_bytes + got)
        kind, reserved, offset, length, check = _HEAD.unpack(head)
        view = self._buffer[:0]
        if kind == DATA and 0 < length <= DATA_BYTES_MAX:
            view = self._buffer[:length]
            got = self._fill(view)
            if got < length:
                raise self._cut_off(totals.stream_bytes + HEAD_BYTES + got)
        if _check(head[:_UNCHECKED_BYTES], view, totals.check) != check:
            raise StreamError(
                f"{self._name}: record {totals.records} at byte {totals.stream_bytes} is damaged; get the stream anew, "
                "then import it with --resume"
            )
        if kind == END:
            is_whole = self.header.base is not None or totals.end == self.header.size_bytes
            same = (reserved, offset, length) == (0, totals.records, totals.data_bytes)
            if not (same and is_whole) or self._fill(head[:1]):
                raise StreamError(f"{self._name}: the stream does not end where it says so; make it anew")
            totals.stream_bytes += HEAD_BYTES
            return None
        if not self._is_valid(kind, reserved, offset, length):
            raise StreamError(f"{self._name}: record {totals.records} makes no sense; it was not written by holdfast")
        totals.add(kind, offset, length, check)
        return Record(kind, offset, length, view)

    def _is_valid(self, kind: int, reserved: int, offset: int, length: int) -> bool:
        size = self.header.size_bytes
        end = offset + length
        return (
            kind in (DATA, ZERO)
            and reserved == 0
            and (kind == ZERO or length <= DATA_BYTES_MAX)
            and self.totals.end <= offset < end <= size
            and offset % BLOCK_SIZE_BYTES == 0
            and (end % BLOCK_SIZE_BYTES == 0 or end == size)
            and (self.header.base is not None or offset == self.totals.end)
        )

    def _cut_off(self, at: int) -> StreamError:
        return StreamError(
            f"{self._name}: the stream is cut off after {at} bytes; get all of it, then import it with --resume"
        )


_DIGITS: Final = frozenset("0123456789abcdef")

"""The data of handshake options, taken apart, and option replies, put together.

Leaf functions for `handshake`, which decides; the formats are those of `doc/proto.md`, 'Option types'.  Whatever is
wrong with the form of an option raises `MalformedOptionError`, which the handshake answers with REP_ERR_INVALID.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from holdfast.nbd.negotiated import Export, transmission_flags
from holdfast.nbd.protocol import (
    INFO_BLOCK_SIZE,
    INFO_DESCRIPTION,
    INFO_EXPORT,
    INFO_NAME,
    REP_MAGIC,
    STRING_BYTES_MAX,
)

OPTION_HEADER: Final = Struct(">QII")  # IHAVEOPT, option, length of the data
REPLY_HEADER: Final = Struct(">QIII")  # REP_MAGIC, option, type, length of the data

_UINT16: Final = Struct(">H")
_UINT32: Final = Struct(">I")
_INFO_EXPORT: Final = Struct(">HQH")
_INFO_BLOCK_SIZE: Final = Struct(">HIII")


class MalformedOptionError(Exception):
    """The data of an option is not of its form. The message is for the client's user."""


class _Cursor:
    """Takes fields off the front of an option's data; every length is checked against what is there."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, length: int, what: str) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise MalformedOptionError(f"the option ends inside its {what}")
        field = self._data[self._at : end]
        self._at = end
        return field

    def uint16(self, what: str) -> int:
        value: int = _UINT16.unpack(self._take(2, what))[0]
        return value

    def uint32(self, what: str) -> int:
        value: int = _UINT32.unpack(self._take(4, what))[0]
        return value

    def string(self, what: str) -> str:
        """A string after its 32-bit length."""
        return decode_string(self._take(self.uint32(f"length of the {what}"), what), what)

    def finish(self) -> None:
        if self._at != len(self._data):
            raise MalformedOptionError(f"the option has {len(self._data) - self._at} bytes too many")


def decode_string(data: bytes, what: str) -> str:
    """A string as the protocol allows it: at most 4096 bytes of UTF-8 without NUL."""
    if len(data) > STRING_BYTES_MAX:
        raise MalformedOptionError(f"the {what} is longer than {STRING_BYTES_MAX} bytes")
    if b"\0" in data:
        raise MalformedOptionError(f"the {what} contains a NUL")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedOptionError(f"the {what} is not UTF-8") from error


def parse_info(data: bytes) -> tuple[str, frozenset[int]]:
    """The export name and the information requests of an INFO or GO."""
    cursor = _Cursor(data)
    name = cursor.string("export name")
    count = cursor.uint16("number of information requests")
    requests = frozenset(cursor.uint16("information requests") for _ in range(count))
    cursor.finish()
    return name, requests


def parse_meta_context(data: bytes, *, query_count_max: int) -> tuple[str, list[str] | None]:
    """The export name and the queries of a LIST_ or SET_META_CONTEXT; None in place of too many queries."""
    cursor = _Cursor(data)
    name = cursor.string("export name")
    count = cursor.uint32("number of queries")
    if count > query_count_max:
        if 4 * count > len(data):
            # Not many queries but a number that cannot be true: it would need more bytes than there are.
            raise MalformedOptionError("the option ends inside its queries")
        return name, None
    queries = [cursor.string("query") for _ in range(count)]
    cursor.finish()
    return name, queries


def encode_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return REPLY_HEADER.pack(REP_MAGIC, option, kind, len(data)) + data


def encode_server(name: str, description: str) -> bytes:
    """The data of a REP_SERVER: what follows the name is for people to read."""
    encoded = name.encode()
    return _UINT32.pack(len(encoded)) + encoded + description.encode()


def encode_meta_context(context_id: int, name: str) -> bytes:
    return _UINT32.pack(context_id) + name.encode()


def encode_info_block_size(export: Export) -> bytes:
    return _INFO_BLOCK_SIZE.pack(
        INFO_BLOCK_SIZE, export.minimum_block_bytes, export.preferred_block_bytes, export.maximum_payload_bytes
    )


def encode_infos(export: Export, requests: frozenset[int], *, structured: bool) -> list[bytes]:
    """The data of the REP_INFOs for an export.  INFO_EXPORT is due to everyone, and the block sizes cost nothing, so
    that a client that did not ask may still do well by them; a request for anything unknown is passed over."""
    infos = [
        _INFO_EXPORT.pack(INFO_EXPORT, export.size_bytes, transmission_flags(export, structured=structured)),
        encode_info_block_size(export),
    ]
    if INFO_NAME in requests:
        infos.append(_UINT16.pack(INFO_NAME) + export.name.encode())
    if INFO_DESCRIPTION in requests and export.description:
        infos.append(_UINT16.pack(INFO_DESCRIPTION) + export.description.encode())
    return infos

"""What there is to negotiate about, and what comes of it: exports, and the terms of one connection.

The handshake produces `Negotiated`, the transmission phase and the client side live by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from holdfast.nbd.protocol import (
    FLAG_CAN_MULTI_CONN,
    FLAG_HAS_FLAGS,
    FLAG_READ_ONLY,
    FLAG_SEND_CACHE,
    FLAG_SEND_DF,
    FLAG_SEND_FAST_ZERO,
    FLAG_SEND_FLUSH,
    FLAG_SEND_FUA,
    FLAG_SEND_TRIM,
    FLAG_SEND_WRITE_ZEROES,
    MAXIMUM_PAYLOAD_BYTES,
    STRING_BYTES_MAX,
)
from holdfast.units import KIB


@dataclass(frozen=True, slots=True)
class Export:
    """An export as clients are told of it.

    The block sizes are what NBD calls constraints: requests that are no multiple of the minimum are refused, the
    preferred size is advice, and the maximum bounds the payload of one READ or WRITE (not the reach of a TRIM).
    """

    name: str
    size_bytes: int
    read_only: bool = False
    description: str = ""
    minimum_block_bytes: int = 1
    preferred_block_bytes: int = 4096
    maximum_payload_bytes: int = MAXIMUM_PAYLOAD_BYTES

    def __post_init__(self) -> None:
        minimum, preferred, maximum = self.minimum_block_bytes, self.preferred_block_bytes, self.maximum_payload_bytes
        assert 0 <= self.size_bytes < 1 << 63, self.size_bytes
        assert minimum.bit_count() == 1, minimum
        assert minimum <= 64 * KIB, minimum
        assert preferred.bit_count() == 1, preferred
        assert preferred >= max(minimum, 512), preferred
        assert maximum % minimum == 0, maximum
        assert min(preferred, self.size_bytes) <= maximum < 1 << 32, maximum
        for text in (self.name, self.description):
            assert "\0" not in text, text
            assert len(text.encode()) <= STRING_BYTES_MAX, text


class ExportDirectory(Protocol):
    """The exports of a server, as the handshake needs to know them."""

    def names(self) -> list[str]:
        """The names to list, each of them one that `find` knows."""
        ...

    def find(self, name: str) -> Export | None:
        """The export with this name, or None. The empty name is the default export: the only one, for example."""
        ...

    def base(self, export: Export, snapshot: str) -> str | None:
        """The name of the export that `changed-since:SNAPSHOT` means for this one, or None if there is none."""
        ...

    def bases(self, export: Export) -> list[str]:
        """What a client that asks is told that it can say for SNAPSHOT: not more than fits into an answer."""
        ...


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The terms of a connection in its transmission phase."""

    export: Export
    structured: bool
    base_allocation: bool  # the context BASE_ALLOCATION_CONTEXT is selected; implies `structured`
    changed_since: str | None = None  # likewise CHANGED_SINCE_CONTEXT: the name of the export that is compared with

    def __post_init__(self) -> None:
        assert self.structured or not self.block_status

    @property
    def block_status(self) -> bool:
        """True if there is something to answer BLOCK_STATUS with."""
        return self.base_allocation or self.changed_since is not None


def transmission_flags(export: Export, *, structured: bool) -> int:
    """What this server can do with the export, as the 16 bits of the transmission flags.

    A read-only export announces no command that would only be refused.  CAN_MULTI_CONN is a promise: FLUSH and FUA on
    one connection cover what was answered on all the others.
    """
    flags = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_CAN_MULTI_CONN | FLAG_SEND_CACHE
    if export.read_only:
        flags |= FLAG_READ_ONLY
    else:
        flags |= FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES | FLAG_SEND_FAST_ZERO
    if structured:
        flags |= FLAG_SEND_DF
    return flags

"""What happened in a run: a digest of it always, every line of it when somebody wants to read.

Two runs of a seed have the same digest, to the byte; that is the first thing that is tested.
"""

from __future__ import annotations

from collections.abc import Callable

from xxhash import xxh3_64


class Trace:
    """`write` gets each line; without it only the digest is kept."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self._hash = xxh3_64()
        self._write = write

    def note(self, at_ns: int, who: str, what: str, detail: object = "") -> None:
        """Note an event. `detail` is shown by its repr where somebody reads along, and otherwise left alone."""
        self._hash.update(f"{at_ns} {who} {what}".encode())
        if self._write is not None:
            self._write(f"{at_ns / 1e6:12.3f} ms  {who:<10} {what:<10} {detail}")

    def digest(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes that are part of what happened."""
        self._hash.update(data)

    def value(self) -> str:
        return str(self._hash.hexdigest())

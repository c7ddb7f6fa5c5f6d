"""Sizes, positions and the small integer kinds that must not be mixed up.

A **block** is 4 KiB, everywhere.  A **block address** numbers a block of the pool: `segment_id * blocks_per_segment +
offset`.  Block 0 of every segment is its header, so address 0 never holds data and means *hole*.  A **log position**
numbers a block of the log in the order of appending: `ordinal * blocks_per_segment + offset`, where the ordinal counts
segments ever opened; positions only grow, addresses are reused when a segment is recycled.
"""

from __future__ import annotations

import re
from typing import NewType

BLOCK_SHIFT = 12
BLOCK_SIZE_BYTES = 1 << BLOCK_SHIFT

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

BlockAddress = NewType("BlockAddress", int)
LogPosition = NewType("LogPosition", int)
Lba = NewType("Lba", int)
SegmentId = NewType("SegmentId", int)
VolumeId = NewType("VolumeId", int)

VOLUME_SIZE_BYTES_MAX = 64 * TIB

_SIZE_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_SUFFIX_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: `4096`, `64M`, `10G`, `1.5T`, `10GiB` (binary units throughout).

    Raises ValueError, with a sentence for the user, on anything else.
    """
    match = _SIZE_PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 512M, 10G or 1T")
    number, suffix = match.groups()
    scale = 1 << _SUFFIX_SHIFT[suffix.lower()]
    size_bytes = int(number) * scale if "." not in number else int(float(number) * scale)
    return size_bytes


def format_size(size_bytes: int) -> str:
    """The shortest exact or one-decimal rendering: `10G`, `1.5T`, `512`."""
    for suffix, shift in (("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        scale = 1 << shift
        if size_bytes >= scale:
            if size_bytes % scale == 0:
                return f"{size_bytes // scale}{suffix}"
            return f"{size_bytes / scale:.1f}{suffix}"
    return str(size_bytes)


def format_duration(seconds: float) -> str:
    """A time as people say it: `less than a minute`, `20 min`, `3 h 20 min`, `12 days`."""
    minutes = int(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days"

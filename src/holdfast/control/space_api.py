"""The part of the control API that is about sizes and space: what is asked for and what is answered. See `api.py`."""

from __future__ import annotations

from msgspec import Struct

from holdfast.errors import RequestError


class ResizeVolume(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    size_bytes: int
    force: bool = False  # also if that makes it smaller


class VolumeResized(Struct, frozen=True, kw_only=True):
    """Clients learn of it when they connect the next time."""

    name: str
    size_bytes: int
    cut_bytes: int = 0  # how much smaller it is
    cut_data_bytes: int = 0  # how much of that held data


class FillInfo(Struct, frozen=True, kw_only=True):
    """How full something is. `kind`: pool, group, volume, or host filesystem, the one below the pool."""

    kind: str
    name: str = ""  # of the group or volume
    used_bytes: int = 0
    limit_bytes: int = 0
    over_percent: int = 0  # the highest threshold of the warnings that is crossed
    full_in_s: float | None = None  # at the rate of the last minutes; none: never


class ChangePool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    capacity_bytes: int


def validate_capacity(capacity_bytes: int) -> int:
    """Return `capacity_bytes` if that can be meant; raise RequestError otherwise. The pool knows what it can have."""
    if capacity_bytes <= 0:
        raise RequestError(f"a pool cannot have {capacity_bytes} bytes; give a capacity such as 100G")
    return capacity_bytes

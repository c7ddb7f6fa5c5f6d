"""What `holdfast doctor` finds: a property of the host or of a pool, and what it means."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

OK: Literal["ok"] = "ok"
WARN: Literal["warn"] = "warn"
BAD: Literal["bad"] = "bad"


class Finding(Struct, frozen=True, kw_only=True):
    subject: str
    state: Literal["ok", "warn", "bad"]
    found: str
    why: str = ""
    what_to_do: str = ""

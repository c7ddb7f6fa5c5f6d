"""What volumes and snapshots may be called. A snapshot is VOLUME@SNAPSHOT wherever it is named."""

from __future__ import annotations

import re

from holdfast.errors import RequestError

VOLUME_NAME_LENGTH_MAX = 255
SNAPSHOT_NAME_LENGTH_MAX = 64

# The names travel in NBD export names, URLs, command lines and file names.  Letters, digits and these three signs need
# no quoting in any of them; a leading dot would hide, a leading dash would read as an option.
_VOLUME_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def validate_volume_name(name: str) -> str:
    """Return `name` if a volume may be called so; raise RequestError otherwise."""
    if not name:
        raise RequestError("the volume name is empty; give it a name such as disk0")
    if len(name) > VOLUME_NAME_LENGTH_MAX:
        raise RequestError(
            f"the volume name {name[:32]!r}... has {len(name)} characters; at most {VOLUME_NAME_LENGTH_MAX} are allowed"
        )
    if _VOLUME_NAME_PATTERN.fullmatch(name) is None:
        raise RequestError(
            f"{name!r} is not a volume name; use letters, digits, dot, underscore and dash, with no leading dot or dash"
        )
    return name


def validate_snapshot_name(name: str) -> str:
    """Return `name`, VOLUME@SNAPSHOT, if a snapshot may be called so; raise RequestError otherwise."""
    volume, at, label = name.partition("@")
    if not at:
        raise RequestError(f"{name!r} names no snapshot; write {name}@SNAPSHOT")
    validate_volume_name(volume)
    if not label:
        raise RequestError(f"the snapshot name behind {name!r} is empty; give it a name such as {name}monday")
    if len(label) > SNAPSHOT_NAME_LENGTH_MAX:
        raise RequestError(
            f"the snapshot name {label[:32]!r}... has {len(label)} characters; at most {SNAPSHOT_NAME_LENGTH_MAX} are "
            "allowed"
        )
    # Two dots stand between the snapshots of a range, VOLUME@A..B.
    if _VOLUME_NAME_PATTERN.fullmatch(label) is None or ".." in label:
        raise RequestError(
            f"{label!r} is not a snapshot name; use letters, digits, dot, underscore and dash, with no leading dot or "
            "dash and no two dots in a row"
        )
    return name


def validate_name(name: str) -> str:
    """Return `name` if a volume, or as VOLUME@SNAPSHOT a snapshot, may be called so; raise RequestError otherwise."""
    return validate_snapshot_name(name) if "@" in name else validate_volume_name(name)

"""Names, sizes and errors of the control API."""

from __future__ import annotations

import pytest

from holdfast.control.api import (
    describe_error,
    rebuild_error,
    validate_volume_size,
)
from holdfast.control.names import (
    SNAPSHOT_NAME_LENGTH_MAX,
    VOLUME_NAME_LENGTH_MAX,
    validate_name,
    validate_snapshot_name,
    validate_volume_name,
)
from holdfast.errors import (
    CorruptionError,
    DiskError,
    GoneError,
    HoldfastError,
    NoSpaceError,
    NotFoundError,
    PoolBusyError,
    RequestError,
    RetryError,
)
from holdfast.units import VOLUME_SIZE_BYTES_MAX


@pytest.mark.parametrize("name", ["disk0", "a", "0", "_x", "Disk.0-b_c", "x" * VOLUME_NAME_LENGTH_MAX])
def test_good_names_pass(name: str) -> None:
    assert validate_volume_name(name) == name


@pytest.mark.parametrize("name", ["", ".x", "-x", "a/b", "a b", "a\n", "é", "a=b", "x" * (VOLUME_NAME_LENGTH_MAX + 1)])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(RequestError):
        validate_volume_name(name)


@pytest.mark.parametrize("name", ["disk0@a", "a@0", "x@_y", "v@Mon.2-b_c", "v@" + "x" * SNAPSHOT_NAME_LENGTH_MAX])
def test_good_names_of_snapshots_pass(name: str) -> None:
    assert validate_snapshot_name(name) == validate_name(name) == name


@pytest.mark.parametrize(
    "name", ["@", "v@", "@s", "v@s@t", "v@.s", "v@-s", "v@a/b", "v@a b", "v@a..b", "-v@s", "v@" + "x" * 65]
)
def test_bad_names_of_snapshots_are_refused(name: str) -> None:
    for validate in (validate_snapshot_name, validate_name, validate_volume_name):
        with pytest.raises(RequestError):
            validate(name)


def test_a_volume_is_no_snapshot() -> None:
    with pytest.raises(RequestError, match="write disk0@SNAPSHOT"):
        validate_snapshot_name("disk0")


@pytest.mark.parametrize("size_bytes", [1, 4096, VOLUME_SIZE_BYTES_MAX])
def test_sizes_up_to_the_limit_pass(size_bytes: int) -> None:
    assert validate_volume_size(size_bytes) == size_bytes


@pytest.mark.parametrize("size_bytes", [0, -1, VOLUME_SIZE_BYTES_MAX + 1])
def test_sizes_that_no_volume_can_have_are_refused(size_bytes: int) -> None:
    with pytest.raises(RequestError):
        validate_volume_size(size_bytes)


@pytest.mark.parametrize(
    "error",
    [
        RetryError("a"),
        RequestError("b"),
        NotFoundError("c"),
        NoSpaceError("d"),
        DiskError("e", 121),
        CorruptionError("f"),
        GoneError("g"),
        PoolBusyError("h"),
        HoldfastError("i"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_the_journey(error: HoldfastError) -> None:
    _status, answer = describe_error(error)
    rebuilt = rebuild_error(answer.error)
    assert type(rebuilt) is type(error)
    assert (str(rebuilt), rebuilt.errno) == (str(error), error.errno)

"""Names, sizes and errors of the control API."""

from __future__ import annotations

import pytest

from holdfast.control.api import (
    VOLUME_NAME_LENGTH_MAX,
    describe_error,
    rebuild_error,
    validate_volume_name,
    validate_volume_size,
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

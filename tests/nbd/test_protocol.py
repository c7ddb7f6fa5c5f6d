"""Which errors may travel, and what becomes of the others."""

from __future__ import annotations

import errno

import pytest

from holdfast.nbd.protocol import WIRE_ERRNOS, wire_errno

TRAVELLING = {1, 5, 12, 22, 28, 75, 95, 108}


@pytest.mark.parametrize("number", sorted(TRAVELLING))
def test_an_error_of_the_protocol_travels_as_it_is(number: int) -> None:
    assert wire_errno(number) == number


def test_no_error_of_this_host_becomes_one_that_the_protocol_does_not_know() -> None:
    assert {wire_errno(number) for number in errno.errorcode} == TRAVELLING == WIRE_ERRNOS


@pytest.mark.parametrize(
    ("host", "wire"),
    [
        (errno.EDQUOT, errno.ENOSPC),
        (errno.EFBIG, errno.ENOSPC),
        (errno.EROFS, errno.EPERM),
        (errno.EACCES, errno.EPERM),
        (errno.ETIMEDOUT, errno.EIO),
        (errno.EUCLEAN, errno.EIO),
        (9999, errno.EIO),
    ],
)
def test_an_error_that_does_not_travel_becomes_its_nearest_kin(host: int, wire: int) -> None:
    assert wire_errno(host) == wire

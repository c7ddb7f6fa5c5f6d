"""Errors are counted without exception, and logged within bounds."""

from __future__ import annotations

from errno import EIO, ENOSPC

import pytest

from holdfast.complaints import COMPLAINTS_A_TICK_MAX, Complaints
from holdfast.errors import DiskError, GoneError, NoSpaceError, Resource


def test_what_is_too_much_for_the_log_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    for _ in range(100):
        complaints.answer(NoSpaceError("full"), "disk0")
    complaints.answer(DiskError("segment 5"), "disk1")
    assert complaints.answered == {("ENOSPC", "pool space"): 100, ("EIO", "disk"): 1}
    assert len(caplog.records) == COMPLAINTS_A_TICK_MAX
    complaints.tick()
    assert caplog.messages[-1] == "... and 96 more of these, the last: volume disk1: segment 5"
    assert complaints.suppressed == 96
    complaints.tick()
    assert len(caplog.records) == COMPLAINTS_A_TICK_MAX + 1
    complaints.answer(NoSpaceError("full", resource=Resource.QUOTA), "disk0")
    assert caplog.messages[-1] == "volume disk0: full"


def test_an_error_that_names_no_resource_is_counted_as_other(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    complaints.answer(GoneError("stopping"), "disk0")
    complaints.count(EIO, Resource.DISK)
    complaints.count(ENOSPC, Resource.HOST_FILESYSTEM)
    assert complaints.answered == {
        ("ESHUTDOWN", "other"): 1, ("EIO", "disk"): 1, ("ENOSPC", "host filesystem"): 1,
    }  # fmt: skip
    assert not hasattr(caplog.records[0], "resource")

"""The log of the write-back room, as what recovery reads."""

from __future__ import annotations

import pytest

from tests.writeback.conftest import Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()

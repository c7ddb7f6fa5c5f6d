"""The engine has every reason to complain in these runs: what it logs is not what is tested."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="holdfast")

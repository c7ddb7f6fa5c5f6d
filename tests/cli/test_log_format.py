"""`serve --log-format json`: one object a line, with what is exhausted and what to do."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime
from errno import EIO, ENOSPC
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.log_format import JsonFormatter
from holdfast.control.api import CreateVolume
from holdfast.control.client import ControlClient
from holdfast.errors import ACTIONS, DiskError, NoSpaceError, Resource, log_fields, resource_of
from holdfast.nbd.protocol import CMD_FLUSH, CMD_WRITE
from holdfast.units import KIB, MIB
from tests.crash.harness import Connection, call, serving


def formatted(logger: logging.Logger, level: int, message: str, *arguments: object, **extra: Any) -> dict[str, str]:
    record = logger.makeRecord(
        logger.name, level, "file.py", 1, message, arguments, extra.pop("exc_info", None), **extra
    )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    parsed = json.loads(line)
    assert isinstance(parsed, dict)
    return parsed


LOGGER = logging.getLogger("tests.log_format")


def test_a_line_has_time_level_logger_and_message() -> None:
    line = formatted(LOGGER, logging.INFO, "%d of\n%s", 3, "€")
    assert line.keys() == {"ts", "level", "logger", "message"}
    assert (line["level"], line["logger"], line["message"]) == ("info", "tests.log_format", "3 of\n€")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(line["ts"])).total_seconds()) < 60


def test_a_shortage_names_the_resource_and_what_to_do() -> None:
    fields = log_fields(Resource.QUOTA, volume="disk0", errno=ENOSPC)
    line = formatted(LOGGER, logging.WARNING, "full", extra=fields)
    assert (line["resource"], line["volume"], line["errno"]) == ("quota", "disk0", "ENOSPC")
    assert "raise its quota" in line["action"]


def test_an_exception_comes_with_its_traceback() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        line = formatted(LOGGER, logging.ERROR, "what", exc_info=sys.exc_info())
    assert line["exception"].startswith("Traceback ")
    assert line["exception"].endswith("ValueError: why")


def test_every_resource_has_something_to_do_about_it() -> None:
    assert ACTIONS.keys() == set(Resource)


def test_errors_know_what_is_short() -> None:
    assert NoSpaceError("full").resource is Resource.POOL_SPACE
    assert NoSpaceError("full", resource=Resource.QUOTA).resource is Resource.QUOTA
    assert DiskError("file", ENOSPC).resource is Resource.HOST_FILESYSTEM
    assert DiskError("file").resource is resource_of(EIO) is Resource.DISK


def lines_of(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.clients
def test_what_a_client_and_an_operator_meet_is_in_the_log_of_a_server(tmp_path: Path) -> None:
    options = ("--memory", "16M", "--capacity", "96M", "--segment-size", "1M", "--log-format", "json")
    with serving(tmp_path / "pool", *options, "--fault", "writeback=EDQUOT:1/1,after=12,count=1") as server:
        server.start()
        with ControlClient(server.pool / "control.sock") as client:
            client.create_volume(CreateVolume(name="small", size_bytes=64 * MIB, quota_bytes=MIB))
        connection = Connection(server.pool, "small")
        assert call(connection, CMD_WRITE, length=2 * MIB, payload=bytes(2 * MIB)).errno == ENOSPC
        outcomes = {
            (call(connection, CMD_WRITE, length=KIB, payload=bytes(KIB)).errno, call(connection, CMD_FLUSH).errno)
            for _ in range(30)
        }
        assert outcomes == {(0, 0), (0, ENOSPC)}  # EDQUOT, as the protocol says it
        connection.close()
        server.stop()
        lines = lines_of(server.log())
    (full,) = [line for line in lines if line.get("resource") == "quota"]
    assert full["message"].startswith("volume small: its quota of 1M is used up; trim it")
    assert (full["level"], full["volume"], full["errno"]) == ("warning", "small", "ENOSPC")
    (failed,) = [line for line in lines if line["message"].startswith("write-back failed")]
    assert (failed["resource"], failed["volume"], failed["errno"]) == ("host filesystem", "small", "EDQUOT")
    assert failed["action"] == "free space on the filesystem that holds the pool"
    assert failed["action"] in failed["message"]


@pytest.mark.clients
def test_what_ends_a_server_is_a_line_like_the_others(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "holdfast.cli.main", "serve", str(tmp_path / "pool"), "--capacity", "64M"]
    command += ["--segment-size", "1M", "--memory", "16M", "--fault", "ring=ENOSPC"]
    text = subprocess.run(command, capture_output=True, text=True, check=False)
    program = subprocess.run([*command, "--log-format", "json"], capture_output=True, text=True, check=False)
    assert program.returncode == text.returncode == 1
    last = lines_of(program.stderr)[-1]
    assert (last["level"], last["resource"], last["errno"]) == ("error", "ring", "ENOSPC")
    assert text.stderr.splitlines()[-1] == "holdfast: " + last["message"]

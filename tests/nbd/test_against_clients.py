"""The wire room against clients that nobody here wrote: libnbd, qemu, and what is built on them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Tool
from tests.nbd.ram_server import RamServer, ram_server

pytestmark = pytest.mark.clients


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[RamServer, Path]]:
    with ram_server(tmp_path) as running:
        yield running


def run(*command: str) -> str:
    # nbdsh starts the first python3 on the path, and only the distribution's own has the bindings of libnbd.
    environment = os.environ | {"PATH": os.pathsep.join(("/usr/bin", "/bin"))}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return finished.stdout + finished.stderr


def nbdsh(program: str, path: Path, script: str) -> None:
    """Run a script in nbdsh, with `connect(**settings)` for a handle of libnbd that checks nothing on our behalf."""
    prelude = f"""
import errno
def connect(export="disk0", structured=True):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_export_name(export)
    handle.set_request_structured_replies(structured)
    if structured:
        handle.add_meta_context("base:allocation")
    handle.connect_unix({str(path)!r})
    return handle
def fails(number, call, *arguments, **settings):
    try:
        call(*arguments, **settings)
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError("no error")
"""
    run(program, "-c", prelude + script)


def test_libnbd_reads_what_it_wrote_with_either_kind_of_reply(tool: Tool, served: tuple[RamServer, Path]) -> None:
    server, path = served
    nbdsh(
        tool("nbdsh"),
        path,
        """
for structured in (True, False):
    h = connect(structured=structured)
    assert h.get_structured_replies_negotiated() == structured
    data = bytes(range(256)) * 4096
    h.pwrite(data, 1000, nbd.CMD_FLAG_FUA)
    assert h.pread(len(data), 1000) == data
    assert h.pread(1, 1003) == b"\\x03"
    h.flush()
    h.zero(len(data), 1000)
    assert h.pread(len(data), 1000) == bytes(len(data))
    h.trim(4096, 0)
    h.cache(4096, 0)
    h.shutdown()
""",
    )
    assert not any(server.memory)


def test_libnbd_sees_the_errors_that_the_document_names(tool: Tool, served: tuple[RamServer, Path]) -> None:
    nbdsh(
        tool("nbdsh"),
        served[1],
        """
for structured in (True, False):
    h = connect(structured=structured)
    size = h.get_size()
    fails(errno.ENOSPC, h.pwrite, b"xx", size - 1)
    fails(errno.ENOSPC, h.zero, 2, size - 1)
    fails(errno.EINVAL, h.pread, 2, size - 1)
    fails(errno.EINVAL, h.trim, 2, size - 1)
    fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_REQ_ONE)
    fails(errno.EINVAL, h.pwrite, bytes(512), 0, nbd.CMD_FLAG_NO_HOLE)
    assert h.pread(512, 0) == bytes(512)
    r = connect("fixed", structured=structured)
    assert r.is_read_only()
    fails(errno.EPERM, r.pwrite, b"xx", 0)
    fails(errno.EPERM, r.trim, 512, 0)
    assert r.pread(512, 0) == bytes(512)
""",
    )


def test_libnbd_may_ask_for_nothing_without_being_disconnected(tool: Tool, served: tuple[RamServer, Path]) -> None:
    nbdsh(
        tool("nbdsh"),
        served[1],
        """
for structured in (True, False):
    h = connect(structured=structured)
    assert h.pread(0, 0) == b""
    h.pwrite(b"", 0)
    h.zero(0, 0)
    h.trim(0, 0)
    assert h.pread(512, 0) == bytes(512)
""",
    )


def test_libnbd_gets_the_block_status_it_negotiated(tool: Tool, served: tuple[RamServer, Path]) -> None:
    nbdsh(
        tool("nbdsh"),
        served[1],
        """
h = connect()
assert h.can_meta_context("base:allocation")
found = []
h.block_status(1 << 20, 0, lambda context, offset, extents, error: found.append((context, offset, extents)))
assert found == [("base:allocation", 0, [4096, 3, 1 << 20, 0])], found
found.clear()
h.block_status(512, 0, lambda context, offset, extents, error: found.append(extents), nbd.CMD_FLAG_REQ_ONE)
assert found == [[512, 3]], found
""",
    )


def test_libnbd_reads_unfragmented(tool: Tool, served: tuple[RamServer, Path]) -> None:
    served[0].memory[300_000:300_004] = b"here"
    nbdsh(
        tool("nbdsh"),
        served[1],
        """
h = connect()
chunks = []
data = h.pread_structured(1 << 20, 0, lambda part, offset, kind, error: chunks.append(kind), nbd.CMD_FLAG_DF)
assert chunks == [nbd.READ_DATA], chunks
assert data[300000:300004] == b"here"
chunks.clear()
h.pread_structured(1 << 20, 0, lambda part, offset, kind, error: chunks.append(kind))
assert nbd.READ_HOLE in chunks and nbd.READ_DATA in chunks, chunks
""",
    )


def test_nbdinfo_lists_the_exports(tool: Tool, served: tuple[RamServer, Path]) -> None:
    listing = run(tool("nbdinfo"), "--list", f"nbd+unix:///?socket={served[1]}")
    assert 'export="disk0"' in listing
    assert 'export="fixed"' in listing
    assert "base:allocation" in listing
    assert "can_multi_conn: true" in listing


def test_nbdcopy_brings_an_image_there_and_back(tool: Tool, served: tuple[RamServer, Path], tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.write_bytes((bytes(range(251)) * 70000)[: 16 << 20])
    uri = f"nbd+unix:///disk0?socket={served[1]}"
    run(tool("nbdcopy"), str(image), uri)
    assert served[0].memory == image.read_bytes()
    run(tool("nbdcopy"), "--request-size=33554432", uri, str(copy))
    assert copy.read_bytes() == image.read_bytes()


def test_qemu_verifies_the_pattern_it_wrote(tool: Tool, served: tuple[RamServer, Path]) -> None:
    commands = ("write -P 17 1M 3M", "read -P 17 1M 3M", "write -z 2M 64k", "read -P 0 2M 64k", "discard 0 1M", "flush")
    script = [argument for command in commands for argument in ("-c", command)]
    output = run(tool("qemu-io"), "-f", "raw", *script, f"nbd+unix:///disk0?socket={served[1]}")
    assert "Pattern verification failed" not in output
    assert "rror" not in output

"""libnbd, one call at a time: every command with the arguments that programs seldom use."""

from __future__ import annotations

import pytest

from holdfast.units import GIB, KIB, MIB
from tests.clients.conftest import Disk, MakeDisk
from tests.clients.running import run
from tests.conftest import Tool

pytestmark = pytest.mark.clients

# `connect()` gives a handle of libnbd that checks nothing on our behalf: the server has to.
PRELUDE = """
import errno, random
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
STRUCTURED, NAME, PATH = {structured}, "{name}", "{path}"
def connect(**settings):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_export_name(NAME)
    handle.set_request_structured_replies(STRUCTURED)
    if STRUCTURED:
        handle.add_meta_context("base:allocation")
    for name, value in settings.items():
        getattr(handle, "set_" + name)(value)
    handle.connect_unix(PATH)
    assert handle.get_structured_replies_negotiated() == STRUCTURED
    return handle
def fails(number, call, *arguments, **settings):
    try:
        call(*arguments, **settings)
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError("no error")
def extents(handle, count, offset, flags=0):
    found = []
    handle.block_status(count, offset, lambda context, start, entries, error: found.extend(entries), flags)
    return list(zip(found[::2], found[1::2]))
h = connect()
"""


class Shell:
    def __init__(self, program: str, disk: Disk, structured: bool) -> None:
        self.disk = disk
        self._program = program
        self._prelude = PRELUDE.format(structured=structured, name=disk.name, path=disk.server.unix_path)

    def __call__(self, script: str) -> None:
        run(self._program, "-c", self._prelude + script)


@pytest.fixture(params=[True, False], ids=["structured", "simple"])
def structured(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def shell(tool: Tool, disk: Disk, structured: bool) -> Shell:
    return Shell(tool("nbdsh"), disk, structured)


@pytest.fixture
def huge(tool: Tool, make_disk: MakeDisk) -> Shell:
    """On a disk of 16 GiB, with structured replies."""
    return Shell(tool("nbdsh"), make_disk(16 * GIB), True)


@pytest.fixture
def structured_shell(tool: Tool, disk: Disk) -> Shell:
    return Shell(tool("nbdsh"), disk, True)


def test_odd_lengths_at_odd_offsets_read_back(shell: Shell) -> None:
    shell("""
model = bytearray(2 * MIB)
rng = random.Random(5)
for length in (1, 2, 511, 513, 4095, 4097, 8191, 12289, 65537, 262143, 300001):
    for _ in range(4):
        offset = rng.randrange(len(model) - length)
        data = rng.randbytes(length)
        h.pwrite(data, offset)
        model[offset:offset + length] = data
        assert h.pread(length, offset) == data
    start = rng.randrange(MIB)
    assert h.pread(MIB, start) == model[start:start + MIB]
assert connect().pread(len(model), 0) == model
""")


def test_partial_writes_leave_their_neighbours_alone(shell: Shell) -> None:
    shell("""
h.pwrite(b"\\xaa" * 16384, 0)
h.pwrite(b"\\xbb" * 5000, 3000)
h.zero(100, 9000)
h.trim(5000, 11000)
got = h.pread(16384, 0)
want = b"\\xaa" * 3000 + b"\\xbb" * 5000 + b"\\xaa" * 1000 + bytes(100) + b"\\xaa" * 1900
assert got[:11000] == want
# A trim is a hint: what it covers of a block in part may stay or be zeroes, what it does not cover must stay.
assert set(got[11000:16000]) <= {0, 0xaa}
assert got[16000:] == b"\\xaa" * 384
""")


def test_a_length_of_zero_is_no_mistake(shell: Shell) -> None:
    shell("""
for offset in (0, 4097, h.get_size()):
    assert h.pread(0, offset) == b""
    h.pwrite(b"", offset)
    h.pwrite(b"", offset, nbd.CMD_FLAG_FUA)
    h.zero(0, offset)
    h.trim(0, offset)
    h.cache(0, offset)
h.pwrite(b"still here", 0)
assert h.pread(10, 0) == b"still here"
""")


def test_every_command_may_ask_for_fua(shell: Shell) -> None:
    shell("""
FUA = nbd.CMD_FLAG_FUA
h.pwrite(b"x" * 10000, 1, FUA)
h.pwrite(b"y" * 4096, 8192, FUA)
h.zero(4096, 16384, FUA)
h.trim(4096, 0, FUA)
h.flush()
h.flush()
assert h.pread(4096, 8192) == b"y" * 4096
""")


def test_zeroes_come_in_every_kind(shell: Shell) -> None:
    shell("""
NO_HOLE, FAST = nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO
h.pwrite(b"z" * 65536, 0)
h.zero(16384, 0)
h.zero(16384, 16384, NO_HOLE)
h.zero(16384, 32768, FAST)
assert h.pread(49152, 0) == bytes(49152)
try:
    h.zero(16384, 49152, FAST | NO_HOLE)
except nbd.Error as error:
    # As fast as a write or not at all: then the contents must be untouched.
    assert error.errnum == errno.ENOTSUP, error
    assert h.pread(16384, 49152) == b"z" * 16384
if STRUCTURED:
    found = extents(h, 49152, 0)
    assert found[0] == (16384, 3), found
    assert found[1][1] & 1 == 0, found  # provisioned, whether it reads as zeroes or not
""")


def test_a_trimmed_block_reads_as_zeroes_and_takes_no_space(shell: Shell) -> None:
    shell("""
h.pwrite(b"t" * MIB, 0)
h.flush()
h.trim(MIB // 2, 4096)
assert h.pread(MIB // 2, 4096) == bytes(MIB // 2)
""")
    assert shell.disk.mapped_bytes == MIB // 2


def test_cache_is_taken_as_a_hint(shell: Shell) -> None:
    shell("h.pwrite(b'c' * 100, 0); h.cache(MIB, 0); h.cache(h.get_size(), 0); assert h.pread(100, 0) == b'c' * 100")


def test_block_status_without_its_context_is_refused(tool: Tool, disk: Disk) -> None:
    shell = Shell(tool("nbdsh"), disk, False)
    shell("fails(errno.EINVAL, h.block_status, 4096, 0, lambda *told: 0); assert h.pread(1, 0) == bytes(1)")


def test_block_status_may_be_asked_for_one_extent(structured_shell: Shell) -> None:
    structured_shell("""
h.pwrite(b"d" * 8192, 8192)
assert extents(h, 65536, 0) == [(8192, 3), (8192, 0), (49152, 3)], extents(h, 65536, 0)
assert extents(h, 65536, 0, nbd.CMD_FLAG_REQ_ONE) == [(8192, 3)]
assert extents(h, 4096, 8192, nbd.CMD_FLAG_REQ_ONE) == [(4096, 0)]
assert extents(h, 1, 8191, nbd.CMD_FLAG_REQ_ONE) == [(1, 3)]
assert extents(h, 100, 8150)[0] == (42, 3)
""")


def test_block_status_of_many_extents_is_answered_in_parts(structured_shell: Shell) -> None:
    structured_shell("""
for number in range(600):
    h.pwrite(b"s", number * 8192)
at, data = 0, 0
while at < h.get_size():
    for length, state in extents(h, h.get_size() - at, at):
        assert length > 0
        at += length
        data += 0 if state & 1 else length
assert at == h.get_size()
assert data == 600 * 4096
""")


def test_requests_of_32_mib_are_served(shell: Shell) -> None:
    shell("""
data = random.Random(32).randbytes(32 * MIB)
h.pwrite(data, 4096 * 3 + 1)
assert h.pread(32 * MIB, 4096 * 3 + 1) == data
h.zero(32 * MIB, 0)
assert h.pread(32 * MIB, 0) == bytes(32 * MIB)
""")


def test_requests_of_33_mib_are_refused_and_the_connection_goes_on(shell: Shell) -> None:
    shell("""
fails(errno.EINVAL, h.pwrite, bytes(33 * MIB), 0)
fails(errno.EINVAL, h.pread, 33 * MIB, 0)
h.pwrite(b"on", 0)
assert h.pread(2, 0) == b"on"
""")
    assert shell.disk.mapped_bytes == 4 * KIB


def test_what_lies_behind_the_end_is_an_error_by_command(shell: Shell) -> None:
    shell("""
size = h.get_size()
h.pwrite(b"e" * 512, size - 512)
for beyond in (size - 511, size, size + (1 << 40), (1 << 63) - 512):
    fails(errno.ENOSPC, h.pwrite, b"x" * 512, beyond)
    fails(errno.ENOSPC, h.zero, 512, beyond)
    fails(errno.EINVAL, h.pread, 512, beyond)
    fails(errno.EINVAL, h.trim, 512, beyond)
    fails(errno.EINVAL, h.cache, 512, beyond)
    if STRUCTURED:
        fails(errno.EINVAL, h.block_status, 512, beyond, lambda *told: 0)
assert h.pread(512, size - 512) == b"e" * 512
""")


def test_flags_that_do_not_apply_are_refused(shell: Shell) -> None:
    shell("""
for flag in (nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, 1 << 9):
    fails(errno.EINVAL, h.pread, 512, 0, flag)
    fails(errno.EINVAL, h.pwrite, bytes(512), 0, flag)
    fails(errno.EINVAL, h.trim, 512, 0, flag)
    fails(errno.EINVAL, h.flush, flag)
assert h.pread(512, 0) == bytes(512)
""")


@pytest.mark.parametrize("length", [3 * GIB, 4 * GIB - 512])
def test_a_trim_of_gigabytes_is_one_request(huge: Shell, length: int) -> None:
    huge(f"""
length = {length}
for offset in (0, MIB, 2 * GIB, length - 4096, length, 5 * GIB):
    h.pwrite(b"g" * 4096, offset + 4096)
h.trim(length, 4096, nbd.CMD_FLAG_FUA)
for offset in (0, MIB, 2 * GIB, length - 4096 - 4096):
    assert h.pread(4096, offset + 4096) == bytes(4096)
assert h.pread(4096, 5 * GIB + 4096) == b"g" * 4096
h.zero(length, 0)
assert h.pread(4096, 4096) == bytes(4096)
""")


def test_block_status_of_gigabytes_is_one_request(huge: Shell) -> None:
    huge("""
assert sum(length for length, state in extents(h, 4 * GIB - 512, 0)) == 4 * GIB - 512
h.pwrite(b"b", 12 * GIB)
at, found = 0, []
while at < h.get_size():
    for length, state in extents(h, min(4 * GIB - 512, h.get_size() - at), at):
        found += [at] if not state & 1 else []
        at += length
assert found == [12 * GIB], found
""")


def test_a_flush_covers_what_another_connection_wrote(shell: Shell) -> None:
    shell("""
others = [connect() for _ in range(7)]
assert h.can_multi_conn()
for number, other in enumerate(others):
    other.pwrite(bytes([number + 1]) * 4096, number * 4096)
h.flush()
for number in range(7):
    assert h.pread(4096, number * 4096) == bytes([number + 1]) * 4096
for other in others:
    other.shutdown()
assert h.pread(1, 0) == b"\\1"
""")


def test_requests_answered_in_any_order_find_their_callers(shell: Shell) -> None:
    shell("""
buffers = []
for number in range(64):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([number]) * 70000), number * 70000)
while h.aio_in_flight():
    h.poll(-1)
for number in range(64):
    buffers.append((number, nbd.Buffer(70000)))
    h.aio_pread(buffers[-1][1], number * 70000)
    if number % 8 == 0:
        h.aio_flush()
while h.aio_in_flight():
    h.poll(-1)
for number, buffer in buffers:
    assert buffer.to_bytearray() == bytearray([number]) * 70000, number
""")


def test_a_disconnect_loses_nothing_that_was_sent_before(shell: Shell) -> None:
    shell("""
for number in range(32):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([number + 1]) * 100000), number * 100000)
h.shutdown()
again = connect()
for number in range(32):
    assert again.pread(100000, number * 100000) == bytearray([number + 1]) * 100000
""")
    shell.disk.server.wait_until_drained(shell.disk.name)


def test_options_are_answered_before_the_choice(shell: Shell) -> None:
    shell("""
h.shutdown()
o = nbd.NBD()
o.set_opt_mode(True)
o.set_request_structured_replies(STRUCTURED)
o.set_export_name("nothing")
o.connect_unix(PATH)
names = []
o.opt_list(lambda name, description: names.append(name))
assert NAME in names, names
fails(errno.ENOENT, o.opt_info)
o.set_export_name(NAME)
if STRUCTURED:
    o.add_meta_context("base:allocation")
    o.add_meta_context("other:context")
    found = []
    assert o.opt_list_meta_context(found.append) == 1
    assert found == ["base:allocation"], found
o.opt_info()
size = o.get_size()
assert o.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
o.opt_go()
assert o.get_size() == size
assert o.can_meta_context("base:allocation") == STRUCTURED
assert o.pread(512, 0) == bytes(512)
""")


def test_an_old_client_that_knows_no_go_is_served(shell: Shell) -> None:
    """Without FIXED_NEWSTYLE libnbd can only name its export (NBD_OPT_EXPORT_NAME), and has simple replies."""
    shell("""
h.shutdown()
for flags in (0, nbd.HANDSHAKE_FLAG_NO_ZEROES):
    old = nbd.NBD()
    old.set_handshake_flags(flags)
    old.set_export_name(NAME)
    old.connect_unix(PATH)
    assert old.get_protocol() == "newstyle", old.get_protocol()
    assert not old.get_structured_replies_negotiated()
    old.pwrite(b"old", 5)
    assert old.pread(5, 4) == b"\\0old\\0"
    old.flush()
    old.shutdown()
""")

"""Faults on purpose: what a rule says, which attempts it strikes, and what a struck disk does."""

from __future__ import annotations

from errno import EIO, ENOMEM, ENOSPC
from pathlib import Path

import pytest

from holdfast.errors import RequestError
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.disk import DirectoryDisk
from holdfast.runtime.fault import FaultInjector, FaultRule, parse_fault
from holdfast.runtime.fault_disk import FaultyDisk
from holdfast.runtime.loop import EventLoop
from holdfast.runtime.ports import PREPARE, READ, SUPERBLOCK, SYNC, WRITE, Io
from holdfast.units import MIB


def test_a_rule_says_all_that_it_can() -> None:
    rule = parse_fault("writeback=ENOMEM:1/16,seed=7,after=10,count=3,for=1.5")
    assert rule == FaultRule("writeback", "ENOMEM", 16, seed=7, after=10, count=3, duration_ns=1_500_000_000)
    assert rule.errno == ENOMEM
    assert parse_fault("flush=EIO") == FaultRule("flush", "EIO")
    assert parse_fault("writeback=short:1/2").errno == EIO


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("writeback", "is no fault; write POINT=ERRNO"),
        ("nowhere=EIO", "there is no fault point 'nowhere'"),
        ("flush=short", "flush cannot fail with 'short'"),
        ("read=EFOO", "read cannot fail with 'EFOO'"),
        ("read=EIO:1/0", "1/0 is no rate"),
        ("read=EIO:1/2,colour=3", "'colour=3' is no option"),
        ("read=EIO,seed=1,seed=2", "'seed=2' is no option"),
        ("read=EIO,after=1.5", "'after=1.5' is not a whole number"),
        ("read=EIO,for=1.2.3", "'for=1.2.3' is not seconds"),
        ("read=EIO,for=.", "'for=.' is not seconds"),
        ("read=EIO,for=" + "9" * 400, "is not seconds"),
        ("read=EIO,seed=" + "9" * 400, "is not a whole number"),
        ("read=EIO:1/2 ", "is no fault"),
    ],
)
def test_what_is_no_rule_is_refused(text: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        parse_fault(text)


def strikes(text: str, attempts: int = 1000) -> list[int]:
    faults = FaultInjector([parse_fault(text)])
    return [number for number in range(attempts) if faults.strike("read", "") is not None]


def test_the_rate_the_seed_and_the_bounds() -> None:
    struck = strikes("read=EIO:1/16,seed=1")
    assert 30 < len(struck) < 100
    assert struck == strikes("read=EIO:1/16,seed=1")
    assert struck != strikes("read=EIO:1/16,seed=2")
    assert strikes("read=EIO,after=5,count=2") == [5, 6]
    assert strikes("flush=EIO") == [], "another point"


def test_a_rule_that_lasts_for_a_time_ends() -> None:
    now = [0]
    faults = FaultInjector([parse_fault("read=EIO,for=10")], now_ns=lambda: now[0])
    now[0] = 5_000_000_000
    assert faults.strike("read", "")
    now[0] = 14_000_000_000
    assert faults.strike("read", "")
    now[0] = 15_000_000_001
    assert faults.strike("read", "") is None


class Struck:
    """A real disk under rules."""

    def __init__(self, directory: Path, *rules: str) -> None:
        self.loop = EventLoop()
        self.real = DirectoryDisk(directory, self.loop, segment_size_bytes=MIB)
        self.told: list[str] = []
        self.faults = FaultInjector([parse_fault(rule) for rule in rules], told=self.told.append)
        self.disk = FaultyDisk(self.real, self.faults, self.loop.call_soon)
        assert self.real.run(Io(PREPARE, 0, length=MIB)) == 0

    def do(self, io: Io) -> int:
        """Start an operation and wait until it is done."""
        began: list[Io] = []

        def done(io: Io) -> None:
            assert began, "`done` is called after `start` returned"
            self.loop.stop()

        io.done = done
        self.disk.start(io)
        began.append(io)
        self.loop.run()
        return io.result

    def stored(self, length: int) -> bytes:
        view = aligned_buffer(length)
        assert self.real.run(Io(READ, 0, 0, view)) == 0
        return bytes(view)


def block(value: int, count: int = 1) -> memoryview:
    view = aligned_buffer(4096 * count)
    view[:] = bytes([value]) * len(view)
    return view


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "pool"


def test_a_write_that_is_struck_writes_nothing_and_says_so(directory: Path) -> None:
    struck = Struck(directory, "writeback=ENOSPC,count=1")
    assert struck.do(Io(WRITE, 0, 0, block(1))) == -ENOSPC
    assert struck.stored(4096) == bytes(4096)
    assert struck.told == ["fault writeback=ENOSPC: <write file=0 offset=0 length=4096 result=0>"]
    assert struck.do(Io(WRITE, 0, 0, block(1))) == 0
    assert struck.stored(4096) == bytes(block(1))
    assert struck.faults.struck["writeback"] == 1


def test_a_short_write_writes_half(directory: Path) -> None:
    struck = Struck(directory, "writeback=short")
    assert struck.do(Io(WRITE, 0, 0, block(1, 4))) == -EIO
    assert struck.stored(4 * 4096) == bytes([1]) * 8192 + bytes(8192)
    assert struck.do(Io(WRITE, 0, 0, block(2))) == -EIO, "one block cannot be halved: nothing is written"
    assert struck.stored(4096) == bytes([1]) * 4096


def test_a_durable_write_is_a_flush_as_well(directory: Path) -> None:
    struck = Struck(directory, "flush=EIO")
    assert struck.do(Io(WRITE, 0, 0, block(1), durable=True)) == -EIO
    assert struck.do(Io(WRITE, 0, 0, block(1))) == 0
    assert struck.do(Io(SYNC, 0)) == -EIO


def test_each_point_strikes_its_own_operations(directory: Path) -> None:
    struck = Struck(directory, "checkpoint=EIO", "prepare=ENOSPC", "read=EIO,after=1")
    assert struck.do(Io(WRITE, SUPERBLOCK, 0, block(1), durable=True)) == -EIO
    assert struck.do(Io(PREPARE, 1, length=MIB)) == -ENOSPC
    assert not struck.disk.exists(1)
    assert struck.do(Io(READ, 0, 0, block(0))) == 0
    assert not struck.disk.read_now(0, 0, block(0)), "the page cache would hide the fault"
    assert struck.disk.run(Io(READ, 0, 0, block(0))) == -EIO
    assert struck.do(Io(WRITE, 0, 0, block(1))) == 0

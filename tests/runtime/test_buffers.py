"""Memory for direct I/O, and the two ports that are one line each."""

from __future__ import annotations

import ctypes
import time

from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.clock import SystemClock
from holdfast.runtime.prng import SystemPrng
from holdfast.units import MIB


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


def test_a_buffer_is_page_aligned_zeroed_and_writable() -> None:
    view = aligned_buffer(3 * 4096)
    assert ctypes.addressof(ctypes.c_char.from_buffer(view)) % 4096 == 0
    assert view == bytes(3 * 4096)
    view[0] = 1


def test_a_buffer_is_resident_before_it_is_used() -> None:
    before_bytes = resident_bytes()
    view = aligned_buffer(16 * MIB)
    assert resident_bytes() - before_bytes >= 15 * MIB
    assert len(view) == 16 * MIB


def test_the_clock_does_not_go_back() -> None:
    clock = SystemClock()
    first_ns = clock.now_ns()
    assert clock.now_ns() >= first_ns
    assert abs(clock.wall_ns() - time.time_ns()) < 60 * 10**9


def test_the_prng_stays_below_its_bound_and_reaches_it() -> None:
    prng = SystemPrng()
    assert {prng.below(3) for _ in range(200)} == {0, 1, 2}
    assert len(prng.bytes(16)) == 16

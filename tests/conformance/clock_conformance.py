"""The contracts of the `Clock` and `Prng` ports, as tests that every implementation inherits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.runtime.ports import Clock, Prng

MS = 1_000_000
YEAR_NS = 365 * 24 * 3600 * 1_000_000_000

PassTime = Callable[[int], None]


class ClockConformance:
    @pytest.fixture
    def clock(self) -> Clock:
        raise NotImplementedError("the deriving class makes the clock")

    @pytest.fixture
    def pass_time(self) -> PassTime:
        """Lets so many nanoseconds pass, or a little more."""
        raise NotImplementedError("the deriving class lets time pass")

    def test_it_never_goes_back(self, clock: Clock, pass_time: PassTime) -> None:
        readings = []
        for _ in range(5):
            readings += [clock.now_ns() for _ in range(100)]
            pass_time(MS)
        assert readings == sorted(readings)

    def test_it_counts_nanoseconds(self, clock: Clock, pass_time: PassTime) -> None:
        before_ns = clock.now_ns()
        pass_time(20 * MS)
        assert 20 * MS <= clock.now_ns() - before_ns < 5_000 * MS

    def test_the_wall_clock_shows_a_year_in_which_this_program_can_run(self, clock: Clock) -> None:
        assert isinstance(clock.wall_ns(), int)
        assert 50 * YEAR_NS < clock.wall_ns() < 200 * YEAR_NS

    def test_the_wall_clock_goes_on(self, clock: Clock, pass_time: PassTime) -> None:
        before_ns = clock.wall_ns()
        pass_time(20 * MS)
        assert clock.wall_ns() > before_ns


class PrngConformance:
    @pytest.fixture
    def prng(self) -> Prng:
        raise NotImplementedError("the deriving class makes the generator")

    @pytest.mark.parametrize("count", [0, 1, 16, 1000])
    def test_it_gives_as_many_bytes_as_it_is_asked_for(self, prng: Prng, count: int) -> None:
        assert len(prng.bytes(count)) == count

    def test_it_does_not_repeat_itself(self, prng: Prng) -> None:
        assert len({prng.bytes(16) for _ in range(100)}) == 100
        assert len({prng.below(1 << 64) for _ in range(100)}) == 100

    def test_numbers_below_a_bound_are_all_of_those_and_no_other(self, prng: Prng) -> None:
        assert {prng.below(4) for _ in range(400)} == {0, 1, 2, 3}

    def test_below_one_there_is_only_zero(self, prng: Prng) -> None:
        assert prng.below(1) == 0

    def test_a_bound_may_be_larger_than_any_machine_word(self, prng: Prng) -> None:
        assert max(prng.below(1 << 100) for _ in range(100)) >= 1 << 64

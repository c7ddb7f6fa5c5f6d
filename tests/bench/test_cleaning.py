"""What the experiments on cleaning and snapshots compute from what they measure."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from bench.cleaning import Point, Written, greedy_bound, point_of, separated_bound, table
from bench.fio import FioResult
from bench.snapshots import relative
from holdfast.control.api import CheckpointInfo, PoolStatus
from holdfast.units import MIB

RESULT = FioResult(1000.0, 0.0, 100 * MIB, 25600, 1.0, 10.0, 20.0, 0)


@pytest.mark.parametrize(("utilisation", "bound"), [(0.5, 1.26), (0.8, 2.69), (0.9, 5.18)])
def test_the_bound_of_greedy_cleaning(utilisation: float, bound: float) -> None:
    assert greedy_bound(utilisation) == pytest.approx(bound, rel=0.01)


def test_the_bound_of_two_logs_is_that_of_one_where_all_blocks_are_alike_and_lower_where_not() -> None:
    assert separated_bound(0.7, hot_share=0.5, hot_writes=0.5) == pytest.approx(greedy_bound(0.7), rel=1e-6)
    assert separated_bound(0.8) == pytest.approx(2.0, rel=0.01)


def test_write_amplification_is_the_sum_of_its_parts() -> None:
    before = Written(log=10 * MIB, cold=0, copied=0, pages=MIB, checkpoints=1)
    after = Written(log=130 * MIB, cold=50 * MIB, copied=45 * MIB, pages=11 * MIB, checkpoints=5)
    status = make_status()
    point = point_of("uniform", 400 * MIB, status, before, after, RESULT)
    assert (point.log_part, point.cleaner_part, point.metadata_part) == (1.1, 0.5, 0.1)
    assert point.amplification == pytest.approx(1.7)
    assert (point.of_capacity, point.of_usable, point.checkpoints) == (0.4, 0.5, 4)
    assert point.bound == greedy_bound(0.4)


def make_status() -> PoolStatus:
    fields = dict.fromkeys(PoolStatus.__struct_fields__)
    known = {"capacity_bytes": 1000 * MIB, "usable_bytes": 800 * MIB, "checkpoint": CheckpointInfo}
    return PoolStatus(**(fields | known))  # type: ignore[arg-type]


def test_the_table_has_a_line_a_point() -> None:
    point = Point("skewed", 0.8, 0.7, 1.7, 1.1, 0.5, 0.1, 2.0, 1000.0, 20_000.0, 4)
    lines = table({"points": [asdict(point)]}).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| skewed | 80% | 70% | **1.70** | 1.10 | 0.50 | 0.10 | 2.00 | 1,000 | 20.0 |")


def test_a_server_is_compared_with_itself() -> None:
    there = [{"randread": 90.0}, {"randread": 95.0}, {"randread": 10.0}]
    none = [{"randread": 100.0}, {"randread": 101.0}, {"randread": 99.0}]
    assert relative(there, none) == {"randread": {"with": 90.0, "none": 100.0, "ratio": 0.9, "first_ratio": 0.9}}

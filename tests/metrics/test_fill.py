"""When something is worth a warning, and when it will be full."""

from __future__ import annotations

import logging

import pytest

from holdfast.serving.fill import MEMORY_S, OBSERVED_S_MIN, Forecast, Thresholds
from holdfast.serving.space_watch import GROUP, HOST, POOL, VOLUME, SpaceWatch
from holdfast.units import GIB, MIB
from holdfast.volume.settings import VolumeSettings
from tests.engine.helpers import ask, block, connect, create, new_world


def test_each_threshold_is_news_once() -> None:
    thresholds = Thresholds()
    news = [thresholds.look(used, 100) for used in (10, 79, 80, 81, 89, 90, 94, 99, 100)]
    assert news == [0, 0, 80, 0, 0, 90, 0, 95, 0]
    assert thresholds.percent == 95


def test_falling_is_silent_and_hovering_about_a_threshold_is_one_warning() -> None:
    thresholds = Thresholds()
    assert [thresholds.look(used, 100) for used in (91, 89, 91, 88, 90)] == [90, 0, 0, 0, 0]
    assert thresholds.look(87, 100) == 0
    assert thresholds.percent == 80
    assert [thresholds.look(used, 100) for used in (90, 50, 96)] == [90, 0, 95]
    assert thresholds.look(10, 100) == 0
    assert thresholds.percent == 0


def test_a_limit_that_was_made_smaller_than_what_is_used_is_full() -> None:
    assert Thresholds().look(5, 0) == 95
    assert Thresholds().look(50, 40) == 95


def filled(rate: float, seconds: int, forecast: Forecast | None = None, start: tuple[int, int] = (0, 0)) -> Forecast:
    forecast = forecast or Forecast()
    for second in range(0, seconds + 1, 5):
        forecast.look(start[0] + second, int(start[1] + rate * second))
    return forecast


def test_a_steady_rate_is_found_and_leads_to_an_end() -> None:
    forecast = filled(10 * MIB, 60)
    assert forecast.rate == pytest.approx(10 * MIB)
    assert forecast.seconds_left(10 * 60 * MIB + 100 * MIB) == pytest.approx(10)
    assert forecast.seconds_left(MIB) == 0


def test_nothing_is_said_at_first_nor_of_what_stays_or_falls() -> None:
    assert Forecast().seconds_left(GIB) is None
    assert filled(MIB, int(OBSERVED_S_MIN) - 5).seconds_left(GIB) is None
    assert filled(0, 60).seconds_left(GIB) is None
    falling = filled(-MIB, 60, start=(0, GIB))
    assert falling.rate == pytest.approx(-MIB)
    assert falling.seconds_left(2 * GIB) is None
    assert filled(1, 60).seconds_left(1 << 50) is None, "that far ahead is as good as never"


def test_the_last_minutes_count_and_what_was_before_fades() -> None:
    forecast = filled(100 * MIB, 600)
    filled(0, int(4 * MEMORY_S), forecast, (605, 600 * 100 * MIB))
    assert forecast.rate < 3 * MIB
    burst = filled(0, 1200)
    filled(100 * MIB, 30, burst, (1205, 0))
    assert burst.rate < 20 * MIB, "one burst is no trend"


def test_warnings_before_a_quota_a_group_and_the_filesystem_are_used_up(caplog: pytest.LogCaptureFixture) -> None:
    world = new_world("fill")
    outcome = world.wait_for(
        lambda answer: world.engine.create_volume("disk0", GIB, answer, VolumeSettings(quota_bytes=2 * MIB))
    )
    create(world, "disk1", GIB)
    world.settle()
    assert outcome
    client = connect(world, "disk0")
    host = [50, 100]
    watch = SpaceWatch(world.loop, world.engine, host=lambda: (host[0], host[1]))
    watch.look()
    assert not caplog.records
    assert {kind for kind, _ in watch.watched} == {POOL, VOLUME, HOST}
    assert ask(world, client, 1, 0, payload=block(1) * 420).errno == 0
    watch.look()
    watch.look()
    host[0] = 96
    watch.look()
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "volume disk0 is over 80% full, 1.6M of 2M",
        "the host filesystem is over 95% full, 96 of 100",
    ]
    assert [record.__dict__["resource"] for record in caplog.records] == ["quota", "host filesystem"]
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert (GROUP, 0) not in watch.watched

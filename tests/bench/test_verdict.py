"""Medians, the best peer, the ratio, met or missed."""

from __future__ import annotations

from bench.measure import Memory
from bench.table import Cell
from bench.verdict import judge, summarise
from bench.workloads import Row, State

ROW = Row("row", "a row", State.WRITTEN, "randwrite", target=1.2)
FLUSHING = Row("row", "a row", State.WRITTEN, "randwrite", flush_every=1, target=1.2)
PEERS = ["steady", "careless"]
KEEP_FLUSHED = ["holdfast", "steady"]


def cells(server: str, *values: float, row: str = "row") -> list[Cell]:
    return [Cell(row, server, index, value=value) for index, value in enumerate(values)]


def test_a_summary_is_the_median_with_its_spread() -> None:
    summary = summarise("steady", cells("steady", 90.0, 200.0, 100.0))
    assert (summary.value, summary.spread, summary.rounds) == (100.0, 1.1, 3)


def test_a_failed_round_is_left_out_of_the_median_and_told() -> None:
    summary = summarise("steady", [*cells("steady", 90.0, 100.0), Cell("row", "steady", 2, error="it died")])
    assert (summary.value, summary.rounds, summary.error) == (95.0, 2, "it died")


def test_the_peak_is_the_largest_of_all_rounds() -> None:
    peaks = [Cell("row", "steady", index, value=1.0, memory=Memory(peak=peak)) for index, peak in enumerate((5, 9, 7))]
    assert summarise("steady", peaks).peak_bytes == 9


def test_the_ratio_is_to_the_best_peer() -> None:
    verdict = judge(
        ROW, cells("holdfast", 300.0) + cells("steady", 100.0) + cells("careless", 200.0), PEERS, KEEP_FLUSHED
    )
    assert (verdict.best_peer, verdict.ratio, verdict.met) == ("careless", 1.5, True)


def test_a_ratio_below_the_target_is_missed() -> None:
    verdict = judge(ROW, cells("holdfast", 110.0) + cells("steady", 100.0), PEERS, KEEP_FLUSHED)
    assert (verdict.ratio, verdict.met) == (1.1, False)


def test_a_ratio_at_the_target_is_met() -> None:
    assert judge(ROW, cells("holdfast", 120.0) + cells("steady", 100.0), PEERS, KEEP_FLUSHED).met is True


def test_a_peer_that_ignores_flushes_is_not_the_best_where_the_row_flushes() -> None:
    measured = cells("holdfast", 150.0) + cells("steady", 100.0) + cells("careless", 200.0)
    assert judge(FLUSHING, measured, PEERS, KEEP_FLUSHED).best_peer == "steady"


def test_a_server_that_is_no_peer_is_never_the_best() -> None:
    measured = cells("holdfast", 150.0) + cells("steady", 100.0) + cells("null", 900.0)
    assert judge(ROW, measured, PEERS, KEEP_FLUSHED).best_peer == "steady"


def test_without_a_peer_nothing_is_judged() -> None:
    verdict = judge(ROW, cells("holdfast", 150.0), PEERS, KEEP_FLUSHED)
    assert (verdict.best_peer, verdict.ratio, verdict.met) == ("", None, None)


def test_a_peer_that_always_failed_is_not_the_best() -> None:
    measured = [*cells("holdfast", 150.0), Cell("row", "steady", 0, error="it died")]
    assert judge(ROW, measured, PEERS, KEEP_FLUSHED).ratio is None


def test_a_target_is_missed_if_holdfast_failed_in_any_round() -> None:
    measured = [*cells("holdfast", 900.0), Cell("row", "holdfast", 1, error="it died"), *cells("steady", 100.0, 100.0)]
    assert judge(ROW, measured, PEERS, KEEP_FLUSHED).met is False


def test_a_row_without_a_target_has_a_ratio_and_no_verdict() -> None:
    row = Row("row", "a row", State.WRITTEN, "copy-in", client="holdfast copy")
    verdict = judge(row, cells("holdfast", 50.0) + cells("steady", 100.0), PEERS, KEEP_FLUSHED)
    assert (verdict.ratio, verdict.met) == (0.5, None)

"""What is written: the JSON that comes back the same, the Markdown that a reader can trust, the pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import plots, report
from bench.experiments import Experiment
from bench.machine import Machine, Noise
from bench.measure import Memory
from bench.table import Cell
from bench.workloads import ROWS
from holdfast.units import GIB, MIB

ROW = "randwrite-d16"
FLUSH_ROW = "randwrite-flush-d1"
EXPERIMENT = Experiment(
    "recovery",
    "Time to readiness",
    ["end", "written MiB", "ready s"],
    [["kill -9", 256, 0.5], ["kill -9", 512, None], ["clean stop", 256, 0.2]],
    notes=["A note."],
    plot=["written MiB", "ready s", "end"],
)


def cell(row: str, server: str, value: float, *, round_index: int = 0, peak: int = 10 * MIB) -> Cell:
    return Cell(row, server, round_index, value, 12.0, 34.0, 2.0, 0.5, 4 * GIB, Memory(peak=peak, resident=peak))


@pytest.fixture
def results() -> report.Results:
    """Two rows, three servers, one experiment."""
    row = [cell(ROW, "holdfast", 150_000.0, peak=300 * MIB), cell(ROW, "nbdkit file", 50_000.0)]
    flush = [cell(FLUSH_ROW, name, value) for name, value in (("holdfast", 9000.0), ("nbdkit file", 7500.0))]
    return report.Results(
        machine=Machine("A CPU", 2, 8 * GIB, "6.1", "3.11", "ext4", {"fio": "3.33"}, "abc"),
        settings={"rounds": "1", "--memory": "256M"},
        noise=[Noise(0.1, 40.0, 90.0, 3000.0, 20000.0, 19.0)],
        peers=["nbdkit file", "nbdkit cow"],
        keep_flushed=["holdfast", "nbdkit file"],
        rows={
            ROW: report.RowRecord("2026-01-01T00:00:00+00:00", "abc", row),
            FLUSH_ROW: report.RowRecord(
                "2026-01-01T00:00:00+00:00", "abc", [*flush, cell(FLUSH_ROW, "nbdkit cow", 9_900.0)]
            ),
        },
        experiments={"recovery": report.ExperimentRecord("2026-01-01T00:00:00+00:00", "abc", EXPERIMENT)},
    )


def line_with(text: str, *parts: str) -> str:
    """The first line that has all the parts; the test fails with the whole text if there is none."""
    found = [line for line in text.splitlines() if all(part in line for part in parts)]
    assert found, text
    return found[0]


def test_results_come_back_as_they_were_saved(results: report.Results, tmp_path: Path) -> None:
    report.save(results, tmp_path)
    assert report.load(tmp_path) == results


def test_a_directory_without_results_is_an_empty_beginning(tmp_path: Path) -> None:
    assert report.load(tmp_path) == report.Results()


def test_results_of_another_format_are_not_mixed_in(results: report.Results, tmp_path: Path) -> None:
    results.format_version = report.FORMAT_VERSION + 1
    report.save(results, tmp_path)
    assert report.load(tmp_path).rows == {}


def test_a_row_shows_ratio_target_and_verdict(results: report.Results) -> None:
    line = line_with(report.markdown(results), "randwrite 4k, depth 16, IOPS")
    assert line == "| randwrite 4k, depth 16, IOPS | 150k | **50.0k** |  | 3.00 | ≥ 2.5 | met |"


def test_a_missed_target_stands_out_in_table_and_summary(results: report.Results) -> None:
    text = report.markdown(results)
    assert "**missed**" in line_with(text, "randwrite 4k + flush each, IOPS")
    assert line_with(text, "targets met") == "**1 of 2 targets met.** Missed: randwrite-flush-d1."


def test_a_server_that_ignores_flushes_is_put_in_parentheses(results: report.Results) -> None:
    assert "(9.9k)" in line_with(report.markdown(results), "randwrite 4k + flush each, IOPS")


def test_more_rounds_show_their_spread(results: report.Results) -> None:
    results.rows[ROW].cells.append(cell(ROW, "holdfast", 100_000.0, round_index=1))
    assert "125k ±20%" in line_with(report.markdown(results), "randwrite 4k, depth 16, IOPS")


def test_the_rows_stand_in_the_order_of_the_table(results: report.Results) -> None:
    results.rows = dict(reversed(results.rows.items()))
    measured = [row.name for row, _ in results.verdicts()]
    assert measured == [row.name for row in ROWS if row.name in measured]


def test_a_failed_cell_is_listed_with_its_reason(results: report.Results) -> None:
    results.rows[ROW].cells.append(Cell(ROW, "nbdkit cow", 0, error="it died | of boredom"))
    text = report.markdown(results)
    assert "failed" in line_with(text, "randwrite 4k, depth 16, IOPS")
    assert f"- {ROW}, nbdkit cow: it died | of boredom" in text


def test_the_memory_base_is_what_is_over_the_budget(results: report.Results) -> None:
    assert "300 MiB in randwrite-d16, which is --memory 256M and 44 MiB" in report.markdown(results)


def test_an_experiment_is_a_table_with_its_notes(results: report.Results) -> None:
    text = report.markdown(results)
    assert line_with(text, "kill -9", "512") == "| kill -9 | 512 |  |"
    assert "A note." in text


def test_empty_results_render_too() -> None:
    assert report.markdown(report.Results()).startswith("# Benchmark results")


def test_values_are_relative_to_the_best_peer_in_the_plot(results: report.Results) -> None:
    relative = plots.relative_values(results.verdicts())
    assert list(relative) == ["holdfast", "nbdkit file", "nbdkit cow"]
    assert relative["holdfast"] == [3.0, 1.2]
    assert relative["nbdkit cow"] == [None, 1.32]


def test_a_line_of_an_experiment_leaves_out_what_was_not_measured() -> None:
    assert plots.experiment_lines(EXPERIMENT) == {"kill -9": [(256.0, 0.5)], "clean stop": [(256.0, 0.2)]}


@pytest.mark.slow
def test_pictures_are_drawn(results: report.Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: it is in the group `bench`")
    drawn = plots.draw(results, tmp_path)
    assert [path.name for path in drawn] == ["table.png", "recovery.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)

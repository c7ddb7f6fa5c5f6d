"""fio's side of a run: the job file that goes in, the JSON that comes out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.fio import Job, job_text, parse
from bench.settings import BenchError
from holdfast.units import KIB, MIB


def side(requests: int, *, iops: float = 0.0, p50_ns: int = 0) -> dict[str, Any]:
    return {
        "total_ios": requests,
        "iops": iops,
        "bw_bytes": int(iops * 4096),
        "io_bytes": requests * 4096,
        "runtime": 4000 if requests else 0,
        "clat_ns": {"percentile": {"50.000000": p50_ns, "99.000000": 10 * p50_ns}} if requests else {"min": 0},
    }


def output(*jobs: dict[str, Any], before: str = "") -> str:
    return before + json.dumps({"fio version": "fio-3.33", "jobs": list(jobs)})


def job(read: dict[str, Any], write: dict[str, Any], *, error: int = 0, flushes: int = 0) -> dict[str, Any]:
    return {"jobname": "job0", "error": error, "read": read, "write": write, "sync": {"total_ios": flushes}}


def test_a_write_run_gives_its_rate_latency_and_bytes() -> None:
    result = parse(output(job(side(0), side(400, iops=100.0, p50_ns=20_000), flushes=12)))
    assert (result.iops, result.requests, result.moved_bytes, result.flushes) == (100.0, 400, 400 * 4096, 12)
    assert (result.latency_p50_us, result.latency_p99_us, result.runtime_s) == (20.0, 200.0, 4.0)


def test_notes_before_the_json_are_passed_over() -> None:
    assert parse(output(job(side(8, iops=2.0), side(0)), before="fio: connected to NBD server\n")).iops == 2.0


def test_jobs_and_directions_are_added_up() -> None:
    result = parse(output(job(side(8, iops=2.0), side(4, iops=1.0)), job(side(0), side(12, iops=3.0))))
    assert (result.iops, result.requests) == (6.0, 24)


def test_the_busiest_side_stands_for_the_latency() -> None:
    result = parse(output(job(side(8, iops=2.0, p50_ns=5000), side(4, iops=1.0, p50_ns=90_000))))
    assert result.latency_p50_us == 5.0


def test_a_job_that_failed_is_an_error_even_with_figures() -> None:
    with pytest.raises(BenchError, match="errno 28"):
        parse(output(job(side(0), side(400, iops=100.0), error=28)))


def test_a_run_without_requests_is_an_error() -> None:
    with pytest.raises(BenchError, match="without a single request"):
        parse(output(job(side(0), side(0))))


def test_output_without_json_is_shown() -> None:
    with pytest.raises(BenchError, match="engine nbd not loadable"):
        parse("fio: engine nbd not loadable\n")


def test_a_run_bounded_by_time_alone_goes_round_until_it_is_over() -> None:
    lines = job_text(Job("randread", 4 * KIB, 16, 64 * MIB, runtime_s=0.5), ["nbd+unix:///a"]).splitlines()
    assert "runtime=500ms" in lines
    assert "time_based=1" in lines


def test_a_byte_bound_ends_a_run_before_its_time() -> None:
    text = job_text(Job("randwrite", 4 * KIB, 16, 64 * MIB, runtime_s=4, bytes_max=MIB), ["nbd+unix:///a"])
    assert f"io_size={MIB}" in text.splitlines()
    assert "time_based" not in text


def test_each_uri_is_a_job_of_its_own() -> None:
    lines = job_text(Job("read", MIB, 4, 64 * MIB), ["nbd+unix:///a", "nbd+unix:///b"]).splitlines()
    assert [line for line in lines if line.startswith(("[job", "uri="))] == [
        "[job0]",
        "uri=nbd+unix:///a",
        "[job1]",
        "uri=nbd+unix:///b",
    ]


def test_flushes_are_asked_for_only_where_the_row_flushes() -> None:
    assert "fsync=32" in job_text(Job("randwrite", 4 * KIB, 32, MIB, flush_every=32), ["u"]).splitlines()
    assert "fsync" not in job_text(Job("randwrite", 4 * KIB, 32, MIB), ["u"])

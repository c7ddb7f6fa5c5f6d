"""HTTP on the control socket, without the socket: bytes in, bytes out."""

from __future__ import annotations

import pytest

from holdfast.control.http import (
    BODY_BYTES_MAX,
    HEADER_BYTES_MAX,
    METRICS_CONTENT_TYPE,
    OUTPUT_BYTES_MAX,
    ControlConnection,
    MetricsConnection,
)
from holdfast.control.routes import SCRAPE_AGE_NS_MAX
from holdfast.units import GIB

from .fake_service import FakeService
from .http_messages import ask, parse_answers, request


def test_a_head_request_gets_no_body_and_keeps_the_connection() -> None:
    connection = ControlConnection(FakeService())
    connection.receive_data(request("HEAD", "/v1/pool"))
    assert connection.data_to_send().endswith(b"\r\n\r\n")
    assert not connection.closed


def test_a_connection_serves_one_request_after_the_other() -> None:
    connection = ControlConnection(FakeService())
    for _ in range(3):
        connection.receive_data(request("GET", "/v1/statistics"))
        assert parse_answers(connection.data_to_send())[0][0] == 200
    assert not connection.closed


def test_connection_close_is_honoured() -> None:
    connection = ControlConnection(FakeService())
    connection.receive_data(request("GET", "/v1/pool", headers="Connection: close\r\n"))
    assert parse_answers(connection.data_to_send())[0][0] == 200
    assert connection.closed


def test_a_byte_at_a_time_gives_the_same_answer() -> None:
    data = request("POST", "/v1/volumes", {"name": "disk0", "size_bytes": GIB})
    connection = ControlConnection(FakeService())
    for index in range(len(data)):
        connection.receive_data(data[index : index + 1])
    assert parse_answers(connection.data_to_send()) == [ask(FakeService(), data)]


def test_pipelined_requests_wait_for_the_late_answer_before_them() -> None:
    service = FakeService(hold_replies=True)
    outputs: list[bytes] = []
    connection = ControlConnection(service, on_output=lambda: outputs.append(connection.data_to_send()))
    create = request("POST", "/v1/volumes", {"name": "disk0", "size_bytes": GIB})
    connection.receive_data(create + request("GET", "/v1/volumes"))
    assert connection.data_to_send() == b""
    assert not connection.wants_data
    service.release()
    assert [status for status, _ in parse_answers(b"".join(outputs))] == [201, 200]
    assert connection.wants_data


def test_requests_wait_until_the_answers_before_them_are_taken() -> None:
    service = FakeService()
    for number in range(100):
        service.add(f"disk{number}", GIB)
    connection = ControlConnection(service)
    connection.receive_data(request("GET", "/v1/volumes") * 200)
    connection.receive_data(b"")
    assert not connection.wants_data
    answers = []
    while data := connection.data_to_send():
        taken = parse_answers(data)
        assert len(data) <= OUTPUT_BYTES_MAX + 2 * len(data) // len(taken)
        answers += taken
    assert [status for status, _ in answers] == [200] * 200
    assert connection.closed


def test_a_flood_behind_answers_not_taken_ends_the_connection() -> None:
    service = FakeService()
    for number in range(1000):
        service.add(f"disk{number}", GIB)
    connection = ControlConnection(service)
    connection.receive_data(request("GET", "/v1/volumes") * 2)
    for _ in range(HEADER_BYTES_MAX + BODY_BYTES_MAX >> 12):
        assert not connection.closed
        connection.receive_data(bytes(4096))
    connection.receive_data(b"\0")
    assert connection.closed


def test_a_peer_that_half_closed_still_gets_its_late_answer() -> None:
    service = FakeService(hold_replies=True)
    connection = ControlConnection(service)
    connection.receive_data(request("POST", "/v1/volumes", {"name": "disk0", "size_bytes": GIB}))
    connection.receive_data(b"")
    service.release()
    assert parse_answers(connection.data_to_send())[0][0] == 201
    assert connection.closed


def test_an_answer_for_a_peer_that_is_gone_is_dropped_and_the_work_is_done() -> None:
    service = FakeService(hold_replies=True)
    connection = ControlConnection(service)
    connection.receive_data(request("POST", "/v1/volumes", {"name": "disk0", "size_bytes": GIB}))
    connection.peer_gone()
    service.release()
    assert connection.data_to_send() == b""
    assert "disk0" in service.known


def test_a_flood_behind_a_held_request_ends_the_connection() -> None:
    service = FakeService(hold_replies=True)
    connection = ControlConnection(service)
    connection.receive_data(request("POST", "/v1/volumes", {"name": "disk0", "size_bytes": GIB}))
    for _ in range(HEADER_BYTES_MAX + BODY_BYTES_MAX >> 12):
        assert not connection.closed
        connection.receive_data(bytes(4096))
    connection.receive_data(b"\0")
    assert connection.closed


def test_a_body_announced_too_long_is_refused_before_it_comes() -> None:
    connection = ControlConnection(FakeService())
    connection.receive_data(request("POST", "/v1/volumes", headers=f"Content-Length: {BODY_BYTES_MAX + 1}\r\n"))
    assert parse_answers(connection.data_to_send())[0][0] == 413
    assert connection.closed


def test_a_chunked_body_is_cut_off_where_it_becomes_too_long() -> None:
    connection = ControlConnection(FakeService())
    connection.receive_data(request("POST", "/v1/volumes", headers="Transfer-Encoding: chunked\r\n"))
    chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
    for _ in range(BODY_BYTES_MAX >> 12):
        connection.receive_data(chunk)
    assert not connection.closed
    connection.receive_data(chunk)
    assert parse_answers(connection.data_to_send())[0][0] == 413
    assert connection.closed


def test_an_endless_header_is_cut_off() -> None:
    connection = ControlConnection(FakeService())
    connection.receive_data(b"GET /v1/pool HTTP/1.1\r\nHost: pool\r\nX: " + b"a" * HEADER_BYTES_MAX)
    assert parse_answers(connection.data_to_send())[0][0] in (400, 431)
    assert connection.closed


@pytest.mark.parametrize("garbage", [b"\0\0\0\0\r\n\r\n", b"NBDMAGICIHAVEOPT\r\n\r\n", b"GET\r\n\r\n", b"\r\n\r\n"])
def test_what_is_no_http_is_answered_once_and_disconnected(garbage: bytes) -> None:
    connection = ControlConnection(FakeService())
    connection.receive_data(garbage)
    assert parse_answers(connection.data_to_send())[0][0] == 400
    assert connection.closed


def test_an_expected_continue_is_given() -> None:
    connection = ControlConnection(FakeService())
    body = b'{"name": "disk0", "size_bytes": 4096}'
    connection.receive_data(
        request("POST", "/v1/volumes", headers=f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n")
    )
    assert connection.data_to_send().startswith(b"HTTP/1.1 100 ")
    connection.receive_data(body)
    assert parse_answers(connection.data_to_send())[0][0] == 201


def head_and_body(data: bytes) -> tuple[list[str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return head.decode().lower().split("\r\n"), body


@pytest.mark.parametrize(("speaks", "age_ns"), [(ControlConnection, 0), (MetricsConnection, SCRAPE_AGE_NS_MAX)])
def test_metrics_are_text(speaks: type[ControlConnection], age_ns: int) -> None:
    service = FakeService()
    connection = speaks(service)
    connection.receive_data(request("GET", "/metrics"))
    head, body = head_and_body(connection.data_to_send())
    assert f"content-type: {METRICS_CONTENT_TYPE}" in head
    assert service.asked_age_ns == age_ns
    assert body == service.metrics()


def test_through_a_scrapers_connection_nothing_else_is_there() -> None:
    service = FakeService()
    service.add("disk0", GIB)
    connection = MetricsConnection(service)
    targets = [
        "/v1/pool",
        "/v1/statistics",
        "/v1/volumes",
        "/v1/volumes/disk0?force=1",
        "/v1/volumes/disk0/acknowledge-loss",
        "/v1/groups",
        "/v1/groups/default",
        "/v1/shutdown",
        "/",
        "//metrics",
    ]
    asked = [(method, target) for target in targets for method in ("GET", "POST", "PATCH", "DELETE", "OPTIONS")]
    for method, target in asked:
        connection.receive_data(request(method, target))
        ((status, answer),) = parse_answers(connection.data_to_send())
        assert (status, answer["error"]["kind"]) == (404, "not_found"), (method, target)
    connection.receive_data(request("POST", "/metrics"))
    assert parse_answers(connection.data_to_send())[0][0] == 405
    assert not service.stopped
    assert service.known.keys() == {"disk0"}

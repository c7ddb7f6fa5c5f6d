"""Requests as bytes, and what the answers say."""

from __future__ import annotations

import json
from typing import Any

from holdfast.control.http import ControlConnection

from .fake_service import FakeService


def request(method: str, target: str, body: object = None, *, headers: str = "") -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    length = f"Content-Length: {len(payload)}\r\n" if payload else ""
    return f"{method} {target} HTTP/1.1\r\nHost: pool\r\n{length}{headers}\r\n".encode() + payload


def parse_answers(data: bytes) -> list[tuple[int, Any]]:
    answers = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        length = int(headers.get("content-length", "0"))
        answers.append((int(lines[0].split()[1]), json.loads(rest[:length]) if length else None))
        data = rest[length:]
    return answers


def ask(service: FakeService, data: bytes) -> tuple[int, Any]:
    connection = ControlConnection(service)
    connection.receive_data(data)
    (answer,) = parse_answers(connection.data_to_send())
    return answer

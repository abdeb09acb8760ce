"""Status answers as kubectl reads them."""

from __future__ import annotations

import json

import pytest

from daemon.faults import FAULTS
from gateway.status import fault_response, reason_for, status_response


def parts(answer: bytes) -> tuple[list[str], dict]:
    head, body = answer.split(b"\r\n\r\n", 1)
    return head.decode().split("\r\n"), json.loads(body)


def test_a_status_is_what_the_apiserver_would_send() -> None:
    lines, body = parts(status_response(403, "no", code="TWR406", mend="ask"))
    assert lines[0] == "HTTP/1.1 403 Forbidden"
    assert "Content-Type: application/json" in lines
    assert "Connection: close" in lines
    assert (body["kind"], body["apiVersion"], body["status"]) == ("Status", "v1", "Failure")
    assert (body["code"], body["reason"], body["message"]) == (403, "Forbidden", "no (TWR406); ask")
    assert body["details"]["causes"] == [{"reason": "TWR406", "message": "ask"}]


def test_the_length_is_that_of_the_body() -> None:
    answer = status_response(503, "Zürich is away", code="TWR201")
    head, body = answer.split(b"\r\n\r\n", 1)
    assert f"Content-Length: {len(body)}".encode() in head


def test_retry_after_is_whole_seconds_in_header_and_details() -> None:
    lines, body = parts(status_response(503, "m", code="TWR201", retry_after=1.2))
    assert "Retry-After: 2" in lines
    assert body["details"]["retryAfterSeconds"] == 2
    lines, body = parts(status_response(503, "m", code="TWR201"))
    assert not any(line.startswith("Retry-After") for line in lines)
    assert "retryAfterSeconds" not in body["details"]


def test_head_gets_the_head_alone() -> None:
    whole = status_response(401, "m", code="TWR401")
    assert status_response(401, "m", code="TWR401", head_only=True) == whole[: whole.index(b"\r\n\r\n") + 4]


def test_a_kept_connection_is_not_closed() -> None:
    assert b"Connection:" not in status_response(401, "m", code="TWR401", close=False)


@pytest.mark.parametrize("code", ["TWR201", "TWR301", "TWR303", "TWR401", "TWR408", "TWR409", "TWR410", "TWR411"])
def test_every_fault_can_be_answered(code: str) -> None:
    lines, body = parts(fault_response(code))
    assert body["code"] == FAULTS[code].http_status == int(lines[0].split(" ")[1])
    assert FAULTS[code].title in body["message"]
    assert FAULTS[code].mend in body["message"]


def test_reasons_are_apimachinerys() -> None:
    assert [reason_for(code) for code in (400, 401, 403, 429, 503, 504, 502, 431)] == [
        "BadRequest",
        "Unauthorized",
        "Forbidden",
        "TooManyRequests",
        "ServiceUnavailable",
        "Timeout",
        "BadGateway",
        "RequestHeaderFieldsTooLarge",
    ]

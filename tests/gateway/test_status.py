"""A Status answer as its reader meets it: HTTP, JSON, and the sentence that kubectl prints in any case."""

from __future__ import annotations

import json

import h11
import pytest

from gateway.status import fault_response, reason_for, status_response, warning_of


def parse(data: bytes) -> tuple[h11.Response, bytes]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    response, body = connection.next_event(), b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(response, h11.Response)
    assert isinstance(event, h11.EndOfMessage)
    return response, body


def test_an_answer_is_http_and_names_message_code_and_mend() -> None:
    answer, body = parse(status_response(403, 'user "a" may not', code="TWR411", mend="ask\n  the owner"))
    status = json.loads(body)
    assert (answer.status_code, status["code"], status["reason"], status["kind"]) == (403, 403, "Forbidden", "Status")
    assert status["message"] == 'user "a" may not (TWR411); ask\n  the owner'
    headers = dict(answer.headers)
    assert headers[b"warning"] == b'299 - "user \\"a\\" may not (TWR411); ask the owner"'
    assert b"retry-after" not in headers


def test_a_retry_is_asked_for_in_whole_seconds_in_header_and_body() -> None:
    answer, body = parse(fault_response("TWR201", retry_after=1.2))
    assert answer.status_code == 503
    assert dict(answer.headers)[b"retry-after"] == b"2"
    assert json.loads(body)["details"]["retryAfterSeconds"] == 2


def test_an_answer_to_head_has_the_length_and_no_body() -> None:
    whole, head = (status_response(401, "x", code="TWR401", head_only=only) for only in (False, True))
    assert whole.startswith(head)
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "text", ["a\r\nInjected: yes", "a\x00b\x7f", "caf\u00e9 \u2028 z", 'say "no" \\', "x" * 100_000]
)
def test_no_text_leaves_its_warning(text: str) -> None:
    value = warning_of(text)
    assert value.isascii()
    assert value.isprintable()
    assert len(value) < 4100
    inner = value.removeprefix('299 - "').removesuffix('"')
    assert '"' not in inner.replace("\\\\", "").replace('\\"', "")


def test_reasons_are_those_of_apimachinery() -> None:
    assert [reason_for(status) for status in (401, 429, 431, 502)] == [
        "Unauthorized",
        "TooManyRequests",
        "RequestHeaderFieldsTooLarge",
        "BadGateway",
    ]

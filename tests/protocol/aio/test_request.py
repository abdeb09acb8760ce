from __future__ import annotations

import pytest

from protocol.aio.request import MAX_REQUEST_BODY, BadRequest, HttpResponse, RequestParser

POST = b"POST /v1/enrol?token=a HTTP/1.1\r\nHost: tower\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize("cut", range(len(POST)))
def test_a_request_is_the_same_wherever_it_is_cut(cut: int) -> None:
    request = RequestParser()
    assert not request.feed(memoryview(POST[:cut]))
    assert request.feed(memoryview(POST[cut:]))
    assert (request.method, request.target, bytes(request.body)) == ("POST", "/v1/enrol?token=a", b"hello")
    assert request.headers["host"] == "tower"
    assert not request.upgrade


def test_what_follows_an_upgrade_is_kept_for_the_websocket() -> None:
    request = RequestParser()
    head = b"GET /v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert request.feed(memoryview(head + b"\x82\x00"))
    assert (request.upgrade, request.rest) == (True, b"\x82\x00")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 3 * MAX_REQUEST_BODY, 413),
        (POST + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01", 400),
    ],
    ids=["fields", "what is no body", "a second request", "no HTTP"],
)
def test_what_is_above_a_bound_or_no_request_has_its_status(data: bytes, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        RequestParser().feed(memoryview(data))
    assert caught.value.status == status


def test_an_answer_ends_the_connection_and_is_kept_by_nobody() -> None:
    head, _, body = HttpResponse(429, b"{}", headers=[("Retry-After", "3")]).encoded().partition(b"\r\n\r\n")
    assert body == b"{}"
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 429 Too Many Requests"
    assert {b"Connection: close", b"Cache-Control: no-store", b"Content-Length: 2", b"Retry-After: 3"} <= set(lines)

"""Heads of answers on their way back."""

from __future__ import annotations

from gateway.answer import relayed_head, switching_head
from gateway.head import parse_response


def test_an_ordinary_head_passes_byte_by_byte() -> None:
    raw = b"HTTP/1.1 200 OK\r\naudit-id: 1\r\nContent-Length:  5\r\nX: \xff\r\n\r\n"
    assert relayed_head(parse_response(raw), close=False) == raw


def test_close_is_said_once() -> None:
    raw = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n"
    assert relayed_head(parse_response(raw), close=True) == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
    )


def test_fields_of_the_hop_go_and_framing_stays() -> None:
    raw = (
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-End: 2\r\n"
        b"Proxy-Authenticate: Basic\r\nTransfer-Encoding: chunked\r\nTrailer: Grpc-Status\r\n\r\n"
    )
    assert relayed_head(parse_response(raw), close=False) == (
        b"HTTP/1.1 200 OK\r\nX-End: 2\r\nTrailer: Grpc-Status\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


def test_a_length_cannot_be_stripped_by_naming_it_in_connection() -> None:
    raw = b"HTTP/1.1 200 OK\r\nConnection: Content-Length, close\r\nContent-Length: 5\r\n\r\n"
    assert b"Content-Length: 5\r\n" in relayed_head(parse_response(raw), close=False)


def test_an_http_1_0_answer_becomes_1_1_that_closes() -> None:
    head = parse_response(b"HTTP/1.0 200 OK\r\nX: y\r\n\r\n")
    assert relayed_head(head, close=True) == b"HTTP/1.1 200 OK\r\nX: y\r\nConnection: close\r\n\r\n"


def test_switching_says_the_upgrade_anew() -> None:
    raw = (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: SPDY/3.1\r\nconnection: upgrade, x-hop\r\nX-Hop: 1\r\n"
        b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
    )
    assert switching_head(parse_response(raw)) == (
        b"HTTP/1.1 101 Switching Protocols\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n"
        b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
    )

"""What broke is said without numbers and wrapping."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from protocol.aio.hops import DialError, reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('10.0.0.1', 443)"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ssl.SSLError(1, "[SSL] something"), "[SSL] something"),
        (ConnectionResetError(), "ConnectionResetError"),
        (ValueError("odd"), "odd"),
    ],
)
def test_reasons_are_for_people(error: Exception, said: str) -> None:
    assert reason(error) == said


def test_the_hop_stands_first() -> None:
    error = DialError("proxy", "no way", code=403, retry_after=2.0)
    assert str(error) == "proxy: no way"
    assert (error.hop, error.code, error.retry_after, error.peer_ca) == ("proxy", 403, 2.0, None)


def test_the_words_of_a_peer_steer_no_terminal() -> None:
    error = DialError("http", "403 \x1b]0;owned\x07 \x9b2J\u202e")
    assert (error.text, str(error)) == ("403 ?]0;owned? ?2J?", "http: 403 ?]0;owned? ?2J?")

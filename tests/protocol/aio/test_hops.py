"""What broke is said without numbers and wrapping."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from email.utils import formatdate

import pytest

from protocol.aio.hops import DialError, asked_to_wait, reason, wait_of


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


@pytest.mark.parametrize("told", ["7", " 7", "7 ", "\t7\t"])
def test_when_to_come_back_is_read_however_it_is_spaced(told: str) -> None:
    assert asked_to_wait(f"HTTP/1.1 503 Busy\r\nretry-AFTER:{told}\r\nServer: lb\r\n\r\n") == 7.0


def test_when_to_come_back_may_be_a_moment() -> None:
    assert wait_of(formatdate(time.time() + 600, usegmt=True)) == pytest.approx(600, abs=60)
    assert wait_of(formatdate(0, usegmt=True)) == 0.0


@pytest.mark.parametrize("told", ["", "soon", "-5", "1.5", "\u0667", "Sun, 99 Nov 2026 10:00:00 GMT"])
def test_what_is_no_moment_is_not_waited_for(told: str) -> None:
    assert wait_of(told) is None


def test_a_wait_without_end_stays_a_number() -> None:
    assert wait_of("9" * 5000) == 9_999_999_999.0

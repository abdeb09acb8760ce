"""The hops of the way to a server, and the one error that names which of them broke."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from calendar import timegm
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from protocol.frames import printable

HopName = Literal["dns", "tcp", "proxy", "tls", "http", "subprotocol", "handshake"]
_RETRY_AFTER: Final = re.compile(r"\r\nretry-after:[ \t]*([^\r\n]*?)[ \t]*\r\n", re.IGNORECASE)
_HTTP_DATE: Final = "%a, %d %b %Y %H:%M:%S GMT"


class DialError(Exception):
    """The way to the server broke at `hop`.

    `text` is for people and names who was dialled and what came back; `code` is the peer's wire code or HTTP status
    where it sent one; `retry_after` is in seconds; `peer_ca` names where an unwanted certificate chain ended.
    """

    def __init__(
        self,
        hop: HopName,
        text: str,
        *,
        code: int | None = None,
        retry_after: float | None = None,
        peer_ca: str | None = None,
    ) -> None:
        text = printable(text)  # the peer's words are in it, and a terminal shows it
        super().__init__(f"{hop}: {text}")
        self.hop: HopName = hop
        self.text = text
        self.code = code
        self.retry_after = retry_after
        self.peer_ca = peer_ca


@dataclass(frozen=True, slots=True)
class Hop:
    """One hop that was passed, with what was seen there.

    `seconds` is how long it took; `chain` what the far end of a TLS hop showed (DER, leaf first).
    """

    name: HopName
    evidence: str
    seconds: float
    chain: tuple[bytes, ...] = ()


OnHop = Callable[[Hop], None]


def unnoted(_hop: Hop) -> None:
    """Nobody asked for the hops."""


def reason(error: BaseException) -> str:
    """What an operating system or library error says, without its number and the loop's wrapping."""
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror | ssl.SSLError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def asked_to_wait(head: str) -> float | None:
    """The seconds of the `Retry-After` in an HTTP head; None where there is none that can be read."""
    told = _RETRY_AFTER.search(head)
    return None if told is None else wait_of(told[1])


def wait_of(retry_after: str) -> float | None:
    """The seconds of a `Retry-After`, which is a number or a moment (RFC 9110, 10.2.3); None for what is neither."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:10])
    try:
        return max(0.0, timegm(time.strptime(retry_after, _HTTP_DATE)) - time.time())
    except ValueError:
        return None

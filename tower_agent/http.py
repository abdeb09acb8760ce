"""One small HTTP/1.1 request at a time, over the way that `protocol.aio.proxydial` walks.

For what the agent itself asks (enrolment, probes, its Secret, its own rights), not for callers. One connection and one
deadline a request, the answer bounded before it is kept; redirects are never followed, since they could carry a
credential elsewhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httptools

from protocol import defaults
from protocol.aio.hops import DialError, OnHop
from protocol.aio.proxydial import DialTarget, certificate_chain, open_connection

MAX_ANSWER_BYTES: Final = 4 * defaults.MIB
Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `chain` holds the certificates that the peer showed, DER, leaf first."""

    status: int
    headers: dict[str, str]
    body: bytes
    chain: list[bytes] = field(default_factory=list)

    def json(self) -> Any:
        """The body as JSON; raises ValueError."""
        return json.loads(self.body)

    def text(self, limit: int = 200) -> str:
        """The body's beginning on one line, for messages."""
        return " ".join(self.body[:limit].decode("utf-8", "replace").split())


async def fetch(
    target: DialTarget,
    method: str,
    path: str,
    *,
    headers: Sequence[Header] = (),
    body: bytes = b"",
    deadline: float = defaults.HANDSHAKE_DEADLINE,
    limit: int = MAX_ANSWER_BYTES,
    on_hop: OnHop | None = None,
) -> Answer:
    """Ask once. Raises DialError (hop http for an answer that cannot be used or does not come in time)."""
    transport, exchange = None, None
    try:
        async with asyncio.timeout(deadline):
            transport, exchange = await open_connection(target, lambda: _Exchange(method, limit), on_hop=on_hop)
            transport.write(_head(target, method, path, headers, len(body)) + body)
            answer = await exchange.answer
            answer.chain.extend(certificate_chain(transport))
            return answer
    except TimeoutError as error:
        raise DialError("http", f"{target.authority} did not answer {method} {path} within {deadline:g} s") from error
    except _BadAnswer as error:
        raise DialError("http", f"{target.authority} {error} ({method} {path})") from error
    finally:
        if exchange is not None and transport is not None:
            exchange.answer.cancel()
            transport.abort()


def _head(target: DialTarget, method: str, path: str, headers: Sequence[Header], length: int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {target.authority}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length or method not in {"GET", "HEAD", "DELETE"}:
        lines.append(f"Content-Length: {length}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header value holds a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _BadAnswer(Exception):
    """The answer cannot be used; the text continues a sentence that begins with the peer's address."""


class _Exchange(asyncio.Protocol):
    """Reads one answer. A 1xx before it is skipped; bytes after it are ignored with the connection."""

    def __init__(self, method: str, limit: int) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._bodyless = method == "HEAD"
        self._limit = limit
        self._size = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            return
        self._size += len(data)
        if self._size > self._limit:
            self._fail(f"sent more than {self._limit} bytes")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("switched protocols, which nobody asked for")
        except httptools.HttpParserError as error:
            self._fail(f"did not answer in HTTP/1.1: {error}")

    def on_message_begin(self) -> None:
        self._headers.clear()
        self._body.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._bodyless:
            self._complete()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._complete()

    def eof_received(self) -> None:
        self._end("closed the connection before its answer was complete")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"closed the connection before its answer was complete ({exc})" if exc else "closed the connection")

    def _end(self, text: str) -> None:
        """A body without length ends with the connection."""
        framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        if not self.answer.done() and self._headers and not framed and self._parser.get_status_code() >= 200:
            self._complete()
        self._fail(text)

    def _complete(self) -> None:
        if not self.answer.done():
            self.answer.set_result(Answer(self._parser.get_status_code(), dict(self._headers), bytes(self._body)))

    def _fail(self, text: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(_BadAnswer(text))

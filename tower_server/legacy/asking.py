"""What the server itself asks a Go agent's member, by the credential that the agent shipped, through the tunnel.

One small request on a connection of its own, its answer bounded and with a deadline.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

import httptools

from gateway.errors import UpstreamError
from gateway.upstream import Connection, Pool
from protocol.jsontext import parse_object

DEADLINE: Final = 10.0
MAX_ANSWER: Final = 64 * 1024


class NotAnswered(Exception):
    """Why the member's apiserver could not be asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    def object(self) -> dict[str, Any]:
        """The body as a JSON object; empty where it is none."""
        try:
            return parse_object(self.body)
        except ValueError:
            return {}

    @property
    def message(self) -> str:
        text = self.object().get("message") or self.body[:200].decode("utf-8", "replace")
        return " ".join(str(text)[:300].split())


async def ask(pool: Pool, method: str, path: str, document: Any = None, *, accept: str = "application/json") -> Answer:
    """NotAnswered where none comes; every status is an answer."""
    body = b"" if document is None else json.dumps(document).encode()
    head = [f"{method} {path} HTTP/1.1", f"Host: {pool.apiserver}", "User-Agent: tower-server", "Connection: close"]
    connection: Connection | None = None
    try:
        if pool.authorization is not None:
            head.append("Authorization: " + pool.authorization().decode("ascii"))
        head += [f"Accept: {accept}", "Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        async with asyncio.timeout(DEADLINE):
            connection = await pool.dial()
            exchange = connection.exchange = _Exchange()
            connection.transport.write("\r\n".join(head).encode() + body)
            return await exchange.answer
    except TimeoutError:
        raise NotAnswered(f"the apiserver did not answer within {DEADLINE:g} s") from None
    except (UpstreamError, ConnectionError) as error:
        raise NotAnswered(str(error)) from error
    finally:
        if connection is not None:
            pool.discard(connection)


class _Exchange:
    """One answer, bounded."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()

    def on_body(self, body: bytes) -> None:
        self._body += body[: MAX_ANSWER - len(self._body)]

    def on_message_complete(self) -> None:
        if not self.answer.done():
            self.answer.set_result(Answer(self._parser.get_status_code(), bytes(self._body)))

    def upstream_data(self, data: memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the apiserver's answer is not HTTP: {error}")

    def upstream_eof(self) -> None:
        self._fail("the apiserver closed the connection without an answer")

    def upstream_lost(self, exc: Exception | None) -> None:
        self._fail("the connection to the apiserver was lost")

    def upstream_full(self, full: bool) -> None:
        """One small request."""

    def _fail(self, text: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(ConnectionError(text))
            self.answer.exception()

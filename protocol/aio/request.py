"""The small HTTP/1.1 requests of a tunnel port: one a connection, bounded in head, fields and body, by httptools.

What is above a bound, malformed, or more than one request is a BadRequest with the status that answers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import httptools
from websockets.datastructures import Headers

from protocol.defaults import KIB

MAX_REQUEST_HEAD: Final = 16 * KIB
MAX_REQUEST_BODY: Final = 64 * KIB
_REASONS: Final = {
    200: "OK", 201: "Created", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 410: "Gone", 413: "Content Too Large",
    415: "Unsupported Media Type", 426: "Upgrade Required", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip  # fmt: skip


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request on the tunnel port that is not a tunnel. `target` is the raw request target."""

    method: str
    target: str
    body: bytes
    remote: str


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """Its answer; the connection closes after it."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Sequence[tuple[str, str]] = ()

    def encoded(self) -> bytes:
        head = [
            f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Unknown')}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Connection: close",
            "Cache-Control: no-store",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + self.body


class BadRequest(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class RequestParser:
    """One bounded request, parsed by httptools."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._head = 0
        self._after = 0
        self._fields = 0
        self._target = bytearray()
        self._headers_done = False
        self._done = False
        self.headers = Headers()
        self.body = bytearray()
        self.rest = b""
        self.method = ""
        self.target = ""
        self.upgrade = False

    def whole(self) -> bytes:
        """The request as it came, and what has come behind it."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.headers.raw_items())
        return f"{self.method} {self.target} HTTP/1.1\r\n{fields}\r\n".encode("latin-1") + self.rest

    def feed(self, data: memoryview) -> bool:
        """Whether the request is complete."""
        while len(data) and not self._headers_done:
            # No more at a time than the head may still take, however much one read brings.
            piece, data = data[: MAX_REQUEST_HEAD - self._head], data[MAX_REQUEST_HEAD - self._head :]
            self._head += len(piece)
            if self._parse(piece):
                self.rest += bytes(data)
                return True
            self._check_head()
        # What is no body counts too: a chunk's extension, or a trailer, may go on for ever.
        self._after += len(data)
        if self._after > 2 * MAX_REQUEST_BODY:
            raise BadRequest(413, f"a body above {MAX_REQUEST_BODY} bytes")
        return self._parse(data) if len(data) else self._done

    def _check_head(self) -> None:
        if not self._headers_done and self._head == MAX_REQUEST_HEAD:
            raise BadRequest(431, f"a request head above {MAX_REQUEST_HEAD} bytes")

    def _parse(self, data: memoryview) -> bool:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.upgrade = True
            self.rest = bytes(data[upgrade.args[0] :])
            return True
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            raise cause if isinstance(cause, BadRequest) else BadRequest(400, "malformed HTTP") from error
        except httptools.HttpParserError as error:
            raise BadRequest(400, f"malformed HTTP: {error}"[:200]) from error
        return self._done

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > 100:
            raise BadRequest(431, "more than 100 header fields")
        self.headers[name.decode("latin-1")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._headers_done = True
        self.method = self._parser.get_method().decode("ascii")
        self.target = self._target.decode("latin-1")
        length = self.headers.get_all("Content-Length")
        if length and (len(length[0]) > 9 or int(length[0]) > MAX_REQUEST_BODY):
            raise BadRequest(413, f"a body above {MAX_REQUEST_BODY} bytes")

    def on_body(self, body: bytes) -> None:
        if self._done or len(self.body) + len(body) > MAX_REQUEST_BODY:
            raise BadRequest(413, f"a body above {MAX_REQUEST_BODY} bytes")
        self.body += body

    def on_message_complete(self) -> None:
        if self._done:
            raise BadRequest(400, "a second request on a connection that carries one")
        self._done = True

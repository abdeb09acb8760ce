"""One kept HTTP/1.1 connection to an apiserver, and the few that a client shares.

A connection carries one exchange at a time, its body read piece by piece with back-pressure, and is kept only when
request and answer both ended where their framing says; any byte that nobody asked for ends it. An exchange that is
given up (cancelled, over its deadline) takes its connection along.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar, cast
from weakref import WeakSet

import httptools

from protocol.aio.hops import DialError

P = TypeVar("P", bound=asyncio.BaseProtocol)

MAX_CONNECTIONS: Final = 16  # of one client, watches apart: an apiserver serves a few hundred requests at once to all
KEEP_IDLE: Final = 60.0  # seconds; the apiserver closes idle connections after 90
UNREAD_BYTES: Final = 256 * 1024  # of a body, above which the peer is kept waiting
MAX_HEADER_BYTES: Final = 64 * 1024


class Endpoint(Protocol):
    """An apiserver and a credential for it; `daemon.kube.access.Access` is one."""

    @property
    def address(self) -> str:
        """host:port, for the Host header and for messages."""

    async def connect(self, factory: Callable[[], P]) -> tuple[asyncio.Transport, P]:
        """A connection with TLS done; raises DialError."""

    async def fresh_token(self) -> str | None:
        """The bearer token to show now; None where a certificate speaks."""

    def forget_token(self) -> None:
        """The token was refused: read it anew before the next use."""


class Cut(Exception):
    """The connection ended, or its bytes are no HTTP."""


@dataclass(frozen=True, slots=True)
class Head:
    """Of an answer; header names in lower case."""

    status: int
    headers: dict[str, str]


class Connection(asyncio.Protocol):
    """`ask`, then `read` until it gives b""; then `kept` says whether it may be used again."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: dict[str, str] = {}
        self._header_bytes = 0
        self._head: asyncio.Future[Head] | None = None
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._complete = False
        self._broken: Cut | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._keep = True
        self._surplus = False
        self._paused = False
        self.idle_since = 0.0
        self.served = 0

    # ---- the exchange -------------------------------------------------------------------------------------------

    async def ask(self, request: bytes) -> Head:
        """Send a whole request and wait for the answer's head. Raises Cut."""
        if self._broken is not None:
            raise self._broken
        if self._transport is None:
            raise Cut("closed the connection")
        self._parser = httptools.HttpResponseParser(self)
        self._complete, self._keep = False, True
        self._headers, self._header_bytes = {}, 0
        self._head = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._head

    async def read(self) -> bytes:
        """The next piece of the body, b"" at its end. Raises Cut."""
        while not self._pieces:
            if self._complete:
                self.served += 1
                return b""
            if self._broken is not None:
                raise self._broken
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        piece = self._pieces.popleft()
        self._unread -= len(piece)
        if self._paused and self._unread <= UNREAD_BYTES // 2 and self._transport is not None:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return piece

    async def rest(self, limit: int) -> bytes:
        """The whole rest of the body, of at most `limit` bytes. Raises Cut."""
        pieces: list[bytes] = []
        size = 0
        while piece := await self.read():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise Cut(f"sent more than {limit} bytes")
        return b"".join(pieces)

    @property
    def kept(self) -> bool:
        """Whether the exchange is over and another may follow."""
        open_still = self._transport is not None and not self._transport.is_closing()
        return self._complete and self._keep and not self._pieces and self._broken is None and open_still

    def abort(self) -> None:
        """Drop it. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._complete:
            self._fail("sent bytes that nobody asked for")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("switched protocols, which nobody asked for")
        except httptools.HttpParserError as error:
            self._fail(f"did not answer in HTTP/1.1: {error}")
        if self._surplus:
            self._fail("sent bytes that nobody asked for")
        if self._unread > UNREAD_BYTES and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """Unframed bodies end here; anything else was cut, which `connection_lost` says."""
        framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        if self._head is not None and self._head.done() and not self._complete and not framed:
            self._complete, self._keep = True, False
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        told = f" ({exc})" if exc is not None and str(exc) else ""
        self._fail(f"closed the connection before its answer was complete{told}")
        # Both point back here; left so, the buffers of the TLS below would stay until the collector comes by.
        self._transport = self._parser = None

    def _fail(self, text: str) -> None:
        answered = self._head is not None and self._head.done()
        if self._broken is None and not (self._complete and answered):
            self._broken = Cut(text)
        self._keep = False
        if self._head is not None and not self._head.done():
            self._head.set_exception(self._broken or Cut(text))
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # ---- httptools ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._surplus = self._complete  # another answer behind the one that was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"more than {MAX_HEADER_BYTES} bytes of headers")
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status >= 200 and self._head is not None and not self._head.done():
            self._head.set_result(Head(status, self._headers))

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._unread += len(body)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._parser.get_status_code() < 200:
            self._headers = {}
            return
        self._complete = True
        self._keep = self._parser.should_keep_alive()


class Connections:
    """At most `MAX_CONNECTIONS` exchanges at once, over connections that are kept for the next one."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: list[Connection] = []
        self._open: WeakSet[Connection] = WeakSet()
        self.closed = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """A connection for one exchange; raises DialError."""
        async with self._turns:
            connection = self._take() or await self.dial()
            try:
                yield connection
            except BaseException:
                connection.abort()
                raise
            if connection.kept and not self.closed:
                connection.idle_since = asyncio.get_running_loop().time()
                self._idle.append(connection)
            else:
                connection.abort()

    async def dial(self) -> Connection:
        """A connection of the caller's own, which aborts it."""
        if self.closed:
            raise DialError("tcp", f"the client of {self._endpoint.address} is closed")
        _transport, connection = await self._endpoint.connect(Connection)
        self._open.add(connection)
        if self.closed:
            connection.abort()
        return connection

    def _take(self) -> Connection | None:
        oldest = asyncio.get_running_loop().time() - KEEP_IDLE
        while self._idle and (self._idle[0].idle_since < oldest or not self._idle[0].kept):
            self._idle.pop(0).abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.kept:
                return connection
            connection.abort()
        return None

    def close(self) -> None:
        """Drop all connections; exchanges under way are cut. Idempotent."""
        self.closed = True
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()

"""The small HTTP server for /healthz, /readyz and /metrics, on a port of its own.

/healthz says that the process lives and nothing more: losing a link must never make Kubernetes restart a pod. /readyz
asks the named checks and answers 503 with the reasons as JSON. The server is an asyncio.Protocol on httptools rather
than starlette on uvicorn: three fixed answers need neither, and the agent's memory bound does. Everything is bounded:
connections, size of a head, time to send it, time that a check may take.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Final, cast

import httptools

from daemon.faults import cannot_listen
from daemon.log import get_logger
from daemon.units import split_address
from protocol.defaults import HEAD_DEADLINE

MAX_CONNECTIONS: Final = 64  # probes and a few scrapers; more is a mistake or an attack
MAX_HEAD: Final = 16 * 1024
CHECK_DEADLINE: Final = 2.0  # below the 3 s that a kubelet is usually told to wait
IDLE_DEADLINE: Final = 60.0
METRICS_REST: Final = 4.0  # times as long as making /metrics took, before it is made again: a fifth of the time at most
_TEXT: Final = "text/plain; charset=utf-8"
_EXPOSITION: Final = "text/plain; version=0.0.4; charset=utf-8"
_PHRASES: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

Check = Callable[[], "str | Awaitable[str | None] | None"]
"""Says None when fine, else why not, in a few words without secrets."""

log = get_logger(__name__)


class Health:
    """Owns the listener. `check` adds a named readiness check; `stopping` makes /readyz 503 during a drain."""

    def __init__(self, *, metrics: Callable[[], bytes] | None = None) -> None:
        self._metrics = metrics
        self._checks: dict[str, Check] = {}
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, None] = {}  # the one heard of last is the last
        self._making: asyncio.Task[bytes] | None = None  # for all who ask until it begins
        self._made: set[asyncio.Task[bytes]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._rest_until = 0.0
        self.stopping = False

    def check(self, name: str, check: Check) -> None:
        """Adds a readiness check, or replaces the one of that name."""
        self._checks[name] = check

    async def start(self, address: str, *, sock: socket.socket | None = None) -> str:
        """Listens on "HOST:PORT" (port 0: any) or on `sock`; gives the address in use. Raises TowerError TWR103."""
        loop = asyncio.get_running_loop()
        if sock is not None:
            self._server = await loop.create_server(lambda: _Connection(self), sock=sock)
        else:
            name, port = split_address(address)
            host = name or None
            try:
                self._server = await loop.create_server(lambda: _Connection(self), host, port, reuse_address=True)
            except OSError as exc:
                raise cannot_listen(f"{address} for health and metrics", exc, key="health_address") from exc
        bound = self._server.sockets[0].getsockname()
        return f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Closes the listener and every connection."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()
        for task in self._made:
            task.cancel()
        await asyncio.gather(*self._made, return_exceptions=True)
        self._making = None
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def make_room(self) -> bool:
        """Whether there is a place for one more connection. Who was silent longest gives up his: nobody who merely
        sits on all places may keep a kubelet out, which would end the process for it."""
        if len(self._connections) >= MAX_CONNECTIONS:
            idle = next((connection for connection in self._connections if connection.idle), None)
            if idle is None:
                return False
            self._connections.pop(idle)
            idle.abort()
        return True

    def heard_of(self, connection: _Connection) -> None:
        """It is the newest now."""
        self._connections.pop(connection, None)
        self._connections[connection] = None

    async def not_ready(self) -> dict[str, str]:
        """Why the process is not ready, by check; empty when it is."""
        checks = dict(self._checks)
        found = await asyncio.gather(*(_reason(name, check) for name, check in checks.items()))
        reasons = {"stopping": "the process is stopping"} if self.stopping else {}
        return reasons | {name: reason for name, reason in zip(checks, found, strict=True) if reason}

    async def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for a GET of `path`."""
        if path == "/healthz":
            return 200, _TEXT, b"ok\n"
        if path == "/readyz":
            reasons = await self.not_ready()
            document = {"ready": not reasons, "reasons": reasons}
            return 503 if reasons else 200, "application/json", json.dumps(document).encode() + b"\n"
        if path == "/metrics" and self._metrics is not None:
            return 200, _EXPOSITION, await asyncio.shield(self._text())
        return 404, _TEXT, b"not found; there are /healthz, /readyz and /metrics\n"

    def _text(self) -> asyncio.Task[bytes]:
        """The metrics as of now, made once for all who wait for them: text for a thousand clusters takes as long as a
        hundred handshakes, and whoever reaches the port may ask for it again and again."""
        if self._making is None:
            self._making = asyncio.get_running_loop().create_task(self._make(), name="metrics")
            self._made.add(self._making)
            self._making.add_done_callback(self._done)
        return self._making

    def _done(self, task: asyncio.Task[bytes]) -> None:
        self._made.discard(task)
        if not task.cancelled():
            task.exception()  # said by whoever waits, if anybody still does

    async def _make(self) -> bytes:
        assert self._metrics is not None
        loop = asyncio.get_running_loop()
        async with self._one_at_a_time:
            await asyncio.sleep(self._rest_until - loop.time())
            self._making, began = None, loop.time()
            try:
                return await asyncio.to_thread(self._metrics)
            finally:
                self._rest_until = loop.time() + METRICS_REST * (loop.time() - began)


async def _reason(name: str, check: Check) -> str | None:
    try:
        async with asyncio.timeout(CHECK_DEADLINE):
            result = check()
            return await result if inspect.isawaitable(result) else result
    except TimeoutError:
        return f"no answer within {CHECK_DEADLINE:g}s"
    except Exception as exc:  # the boundary: a broken check is a reason, not a crash
        log.error("readiness-check-failed", check=name, exc_info=True)
        return f"the check itself failed: {type(exc).__name__}"


class _Connection(asyncio.Protocol):
    """One connection: a request at a time; what arrives meanwhile waits in the socket."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._full = False
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._size = 0
        self._keep_alive = False
        self._pipelined = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports share no base with asyncio's
        if not self._health.make_room():
            self._transport.abort()
            return
        self._health.heard_of(self)
        self._arm(HEAD_DEADLINE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._health._connections.pop(self, None)
        self._disarm()
        if self._task is not None:
            self._task.cancel()
        self._transport = None

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._task is None and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def idle(self) -> bool:
        """Whether no answer is being made for it."""
        return self._task is None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._task is not None:  # pipelined: one answer at a time, the rest is not worth keeping
            self.abort()
            return
        self._size += len(data)
        if self._size > MAX_HEAD:
            self._write(431, _TEXT, b"request too large\n", close=True)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._task is None:
                self._write(400, _TEXT, b"not a valid HTTP/1.1 request\n", close=True)

    # httptools callbacks
    def on_message_begin(self) -> None:
        self._pipelined = self._task is not None

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_headers_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        if self._task is None and self._transport is not None:
            method, path = self._parser.get_method(), self._url.split(b"?", 1)[0].decode("ascii", "replace")
            self._disarm()
            self._health.heard_of(self)
            self._transport.pause_reading()
            self._task = asyncio.get_running_loop().create_task(self._respond(method, path), name="health-request")

    async def _respond(self, method: bytes, path: str) -> None:
        if method not in (b"GET", b"HEAD"):
            status, kind, body = 405, _TEXT, b"only GET and HEAD\n"
        else:
            try:
                status, kind, body = await self._health.answer(path)
            except Exception:  # the boundary: one failed answer must not end the health port
                log.error("health-request-failed", path=path, exc_info=True)
                status, kind, body = 500, _TEXT, b"internal error; see the log\n"
        self._task = None
        self._write(status, kind, body, close=not self._keep_alive or self._pipelined, head=method == b"HEAD")
        if self._transport is not None and not self._transport.is_closing():
            self._begin()
            self._arm(IDLE_DEADLINE)
            if not self._full:  # else a peer that asks and does not read would have us keep all its answers
                self._transport.resume_reading()

    def _write(self, status: int, kind: str, body: bytes, *, close: bool, head: bool = False) -> None:
        if self._transport is None:
            return
        allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
        lines = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"Cache-Control: no-store\r\n{allow}Connection: {'close' if close else 'keep-alive'}\r\n\r\n"
        )
        self._transport.write(lines.encode() + (b"" if head else body))
        if close:
            self._disarm()
            self._arm(HEAD_DEADLINE)  # a peer that does not read its answer is cut off
            self._transport.close()

    def _arm(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

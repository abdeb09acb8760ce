"""The tunnel port: WebSocket at /v1/tunnel, small HTTP/1.1 requests beside it, the server's end of the handshake.

Nothing is allocated for a peer before it has proven who it is, but a bounded number of connections, each with a
deadline and at most one bounded head, body or handshake message in memory.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, Protocol

import httptools
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from protocol.aio.link import Link
from protocol.aio.tlspump import TlsError, TlsFailure, TlsServerSocketPump
from protocol.aio.tunnel import Tunnel
from protocol.constants import FEATURE_ACK, SUBPROTOCOL, Code, FrameType
from protocol.defaults import (
    HANDSHAKE_DEADLINE,
    KIB,
    LINGER,
    MAX_HANDSHAKE_BYTES,
    MAX_UNAUTHENTICATED,
    TUNNEL_PATH,
)
from protocol.errors import HandshakeRejected, RemoteProtocolError
from protocol.flow import Budget, Limits
from protocol.frames import FrameDecoder
from protocol.handshake import Chain, Hello, ServerHandshake, Signer, Verifier, parse_reject, reject
from protocol.session import Session

log = logging.getLogger(__name__)

MAX_REQUEST_HEAD: Final = 16 * KIB
MAX_REQUEST_BODY: Final = 64 * KIB
FEATURES: Final = frozenset({FEATURE_ACK})
_REASONS: Final = {
    200: "OK", 201: "Created", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 410: "Gone", 413: "Content Too Large",
    415: "Unsupported Media Type", 426: "Upgrade Required", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request on the tunnel port that is not a tunnel. `target` is the raw request target."""

    method: str
    target: str
    headers: Headers
    body: bytes
    remote: str


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """Its answer; the connection closes after it."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Admission:
    """What the server's `authenticate` grants an agent."""

    tunnel_id: str
    renew_only: bool = False


@dataclass(frozen=True, slots=True)
class Credentials:
    """The server's own side of a handshake."""

    chain: Chain
    sign: Signer


class Refused(Protocol):
    """Hears of every connection that did not become a tunnel or an answered request, with a fixed stage name."""

    def __call__(self, *, remote: str, stage: str, code: Code, text: str, hello: Hello | None) -> None: ...


@dataclass(slots=True, kw_only=True)
class TunnelListener:
    """Accepts agents.

    Attributes:
        credentials: asked for at each handshake, so that a rotated certificate takes effect at once.
        verify: chain, transcript, signature -> the agent's identity; HandshakeRejected otherwise.
        authenticate: the last word on a proven identity; HandshakeRejected refuses with a reason and a retry-after.
        admit: called before a handshake costs anything; HandshakeRejected (BUSY) turns a storm away.
        http: answers other requests.
        on_tunnel: takes over each tunnel; called from the loop, before its first byte is read.
    """

    credentials: Callable[[], Credentials]
    verify: Verifier
    authenticate: Callable[[Hello, Any, str], Awaitable[Admission]]
    http: Callable[[HttpRequest], Awaitable[HttpResponse]]
    on_tunnel: Callable[[Tunnel], None]
    budget: Budget
    admit: Callable[[], None] = lambda: None
    limits: Limits = field(default_factory=Limits)
    on_refused: Refused | None = None
    deadline: float = HANDSHAKE_DEADLINE
    max_unauthenticated: int = MAX_UNAUTHENTICATED
    _servers: list[asyncio.Server] = field(default_factory=list)
    _waiting: set[_ServerLink] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(
        self,
        host: str | None,
        port: int,
        ssl_context: ssl.SSLContext | None,
        *,
        sock: socket.socket | None = None,
    ) -> tuple[str, int]:
        """Listen; the address. OSError when it cannot be bound. A plain listener (no context) is for `ws://`."""
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"sock": sock}
        if sock is None:
            options = {"host": host, "port": port, "reuse_address": True}

        def connection() -> asyncio.BaseProtocol:
            link = _ServerLink(self, private=ssl_context is not None)
            return link if ssl_context is None else _TlsEnd(link, ssl_context, self.deadline)

        server = await loop.create_server(connection, backlog=1024, **options)
        self._servers.append(server)
        address = server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def stop(self) -> None:
        """Accept no more and drop what is not a tunnel yet; tunnels are their owner's. Idempotent."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        for link in list(self._waiting):
            link.abort("the server stops")
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)

    # ---- what connections call ----------------------------------------------------------------------------------

    def enter(self, link: _ServerLink) -> bool:
        """Count a connection that has proven nothing yet; False when there are too many."""
        if len(self._waiting) >= self.max_unauthenticated:
            return False
        self._waiting.add(link)
        return True

    def leave(self, link: _ServerLink) -> None:
        """It became a tunnel, or went."""
        self._waiting.discard(link)

    def run(self, work: Awaitable[None], name: str) -> None:
        """Own a connection's asynchronous part."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def refused(self, remote: str, stage: str, code: Code, text: str, hello: Hello | None = None) -> None:
        """Report a refusal."""
        if self.on_refused is not None:
            self.on_refused(remote=remote, stage=stage, code=code, text=text, hello=hello)


class _ServerLink(Link):
    """One connection to the tunnel port: a request head, then either an HTTP answer or a handshake and a tunnel."""

    def __init__(self, listener: TunnelListener, *, private: bool) -> None:
        super().__init__(client=False, private=private, owner=self)
        self._listener = listener
        self._request: _Request | None = _Request()
        self._frames = FrameDecoder(MAX_HANDSHAKE_BYTES)
        self._handshake: ServerHandshake | None = None
        self._stage = "http"
        self._heard = False
        self._timer: asyncio.TimerHandle | None = None
        self.remote = ""

    def enter(self, transport: asyncio.BaseTransport) -> bool:
        """Be counted, before anything is spent on it; False when there are too many."""
        peer = transport.get_extra_info("peername")
        self.remote = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "local"
        if self._listener.enter(self):
            return True
        self._report(Code.BUSY, "too many connections that have not authenticated")
        return False

    def tls_failed(self, code: Code, text: str) -> None:
        """There was no connection to speak of; `_TlsEnd` closes it."""
        self._stage = "tls"
        self._report(code, text)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._private and not self.enter(transport):
            self.close("too many connections")
            return
        self._timer = self._loop.call_later(self._listener.deadline, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._settled()

    def received(self, data: memoryview) -> None:
        self._heard = True
        if self._request is None:
            super().received(data)
        elif self._stage == "http":
            self._read_request(self._request, data)
        # What follows a complete or a refused request is not looked at.

    def _too_late(self) -> None:
        self._timer = None
        text = f"nothing complete within {self._listener.deadline:g} s"
        if self._request is None:
            self.write([reject(Code.TIMEOUT, f"no handshake within {self._listener.deadline:g} s")])
        elif self._stage == "http" and self._heard:
            self._answer(HttpResponse(408, f"{text}\n".encode(), "text/plain"))
        self._refuse(Code.TIMEOUT, text)

    def left(self) -> None:
        """Whatever became of it, it is no longer one that waits."""
        self._settled()

    def _settled(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._listener.leave(self)

    def _refuse(self, code: Code, text: str) -> None:
        self._report(code, text)
        self._settled()
        self.close(text)

    def _report(self, code: Code, text: str) -> None:
        handshake = self._handshake
        self._listener.refused(self.remote, self._stage, code, text, handshake.hello if handshake else None)

    # ---- HTTP ---------------------------------------------------------------------------------------------------

    def _read_request(self, request: _Request, data: memoryview) -> None:
        try:
            done = request.feed(data)
        except _BadRequest as error:
            self._turn_away(error.status, str(error))
            return
        if not done:
            return
        path = request.target.partition("?")[0]
        if path == TUNNEL_PATH:
            self._upgrade(request)
        elif request.upgrade:
            self._turn_away(404, f"no tunnel at {path[:80]!r}; it is at {TUNNEL_PATH}")
        else:
            self._stage = "request"
            whole = HttpRequest(request.method, request.target, request.headers, bytes(request.body), self.remote)
            self._listener.run(self._serve(whole), "tunnel-port-request")

    async def _serve(self, request: HttpRequest) -> None:
        try:
            async with asyncio.timeout(self._listener.deadline):
                response = await self._listener.http(request)
        except Exception:  # the boundary: a handler's failure is this request's alone
            log.exception(
                "a request on the tunnel port failed: %s %s", request.method, request.target.partition("?")[0]
            )
            response = HttpResponse(500, b"internal error; the server's log says more\n", "text/plain")
        self._answer(response)
        self._settled()
        self.close("answered")

    def _turn_away(self, status: int, text: str) -> None:
        self._answer(HttpResponse(status, f"{text}\n".encode(), "text/plain"))
        self._report(Code.PROTOCOL, text)
        self._linger()

    def _linger(self) -> None:
        """Close once the peer does or a moment has passed: bytes that nobody reads would reset the answer away."""
        self._stage = "answered"
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LINGER, self.close, "answered")

    def _answer(self, response: HttpResponse) -> None:
        head = [
            f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            "Connection: close",
            "Cache-Control: no-store",
            *(f"{name}: {value}" for name, value in response.headers),
        ]
        if self._transport is not None and not self.closing:
            self._transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + response.body)

    def _upgrade(self, request: _Request) -> None:
        offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        if request.upgrade and SUBPROTOCOL not in map(str.strip, offered.split(",")):
            self._turn_away(400, f"no common WebSocket subprotocol: this port speaks {SUBPROTOCOL}")
            return
        # An agent is not a browser and sends no Origin: whoever sends one is turned away.
        protocol = ServerProtocol(origins=[None], subprotocols=[Subprotocol(SUBPROTOCOL)])
        answer = protocol.accept(Request(request.target, request.headers, request.method))
        if self._transport is not None:
            self._transport.write(answer.serialize())
        if answer.status_code != 101:
            self._report(Code.PROTOCOL, f"not a WebSocket request that is taken: answered {answer.status_code}")
            self._linger()
            return
        self._request = None
        self._stage = "handshake"
        if request.rest:
            super().received(memoryview(request.rest))

    # ---- the handshake ------------------------------------------------------------------------------------------

    def link_received(self, data: memoryview) -> None:
        try:
            for kind, _flags, _stream, payload in self._frames.feed(data):
                self._step(kind, bytes(payload))
        except HandshakeRejected as error:
            self._reject(error)
        except RemoteProtocolError as error:
            self._reject(HandshakeRejected(error.code, error.text))

    def _step(self, kind: int, payload: bytes) -> None:
        listener = self._listener
        if kind == FrameType.REJECT:
            raise parse_reject(payload)
        if self._handshake is None:
            if kind != FrameType.HELLO:
                raise HandshakeRejected(Code.PROTOCOL, f"a frame of type {kind} in place of HELLO")
            listener.admit()
            own = listener.credentials()
            self._handshake = ServerHandshake(
                chain=own.chain,
                sign=own.sign,
                verify=listener.verify,
                nonce=secrets.token_bytes(32),
                features=FEATURES,
            )
            self.write([self._handshake.greeted(payload)])
            return
        if kind != FrameType.PROOF or self._stage != "handshake":
            raise HandshakeRejected(Code.PROTOCOL, f"a frame of type {kind} out of place in the handshake")
        identity = self._handshake.proven(payload)
        self._stage = "authenticate"
        assert self._handshake.hello is not None
        listener.run(self._authenticate(self._handshake, self._handshake.hello, identity), "tunnel-authenticate")

    async def _authenticate(self, handshake: ServerHandshake, hello: Hello, identity: Any) -> None:
        try:
            admission = await self._listener.authenticate(hello, identity, self.remote)
        except HandshakeRejected as error:
            self._reject(error)
            return
        except Exception:  # the boundary: one agent's admission must not take the listener down
            log.exception("the admission of agent %s of cluster %s failed", hello.instance, hello.cluster)
            self._reject(HandshakeRejected(Code.INTERNAL, "internal error; the server's log says more", 5.0))
            return
        if self.closing:
            return
        if self._frames.buffered:
            self._reject(HandshakeRejected(Code.PROTOCOL, "bytes sent between PROOF and WELCOME"))
            return
        self._settled()
        self.write([handshake.welcome(admission.tunnel_id, renew_only=admission.renew_only)])
        tunnel = self._tunnel(handshake, hello, identity, admission)
        try:
            self._listener.on_tunnel(tunnel)
        except Exception:  # the same boundary
            log.exception("tunnel %s could not be taken over", tunnel.id)
            tunnel.close(Code.INTERNAL, "internal error; the server's log says more")

    def _tunnel(self, handshake: ServerHandshake, hello: Hello, identity: Any, admission: Admission) -> Tunnel:
        session = Session(
            opens_odd=True,
            accepts=False,
            limits=self._listener.limits,
            budget=self._listener.budget,
            now=monotonic(),
            features=handshake.features,
        )
        return Tunnel(
            session=session,
            link=self,
            tunnel_id=admission.tunnel_id,
            peer=identity,
            instance=hello.instance,
            remote=self.remote,
            software=hello.software,
            renew_only=admission.renew_only,
        )

    def _reject(self, error: HandshakeRejected) -> None:
        if not error.by_peer:
            self.write([reject(error.code, error.text, error.retry_after)])
        self._refuse(error.code, error.text)

    def link_writable(self) -> None:
        """Nothing waits before the tunnel."""

    def link_lost(self, reason: str) -> None:
        if self._timer is not None and self._heard and self._stage in ("http", "handshake", "authenticate"):
            self._report(Code.TUNNEL_LOST, reason)
        self._settled()


class _TlsEnd(TlsServerSocketPump):
    """The TLS of one connection: counted from its first byte, its failures reported."""

    __slots__ = ("_link",)

    def __init__(self, link: _ServerLink, context: ssl.SSLContext, deadline: float) -> None:
        super().__init__(context, lambda: link, handshake_deadline=deadline, on_failure=self._failed)
        self._link = link

    def connection_made(self, transport: Any) -> None:
        if self._link.enter(transport):
            super().connection_made(transport)
        else:
            self._on_failure = None
            transport.abort()

    def _failed(self, error: TlsError) -> None:
        if self._start:  # a connection that never said anything was a look at the port
            code = Code.TIMEOUT if error.failure is TlsFailure.DEADLINE else Code.PROTOCOL
            self._link.tls_failed(code, str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._link.left()


class _BadRequest(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Request:
    """One bounded request, parsed by httptools."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._head = 0
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
        return self._parse(data) if len(data) else self._done

    def _check_head(self) -> None:
        if not self._headers_done and self._head == MAX_REQUEST_HEAD:
            raise _BadRequest(431, f"a request head above {MAX_REQUEST_HEAD} bytes")

    def _parse(self, data: memoryview) -> bool:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.upgrade = True
            self.rest = bytes(data[upgrade.args[0] :])
            return True
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            raise cause if isinstance(cause, _BadRequest) else _BadRequest(400, "malformed HTTP") from error
        except httptools.HttpParserError as error:
            raise _BadRequest(400, f"malformed HTTP: {error}"[:200]) from error
        return self._done

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > 100:
            raise _BadRequest(431, "more than 100 header fields")
        self.headers[name.decode("latin-1")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._headers_done = True
        self.method = self._parser.get_method().decode("ascii")
        self.target = self._target.decode("latin-1")
        length = self.headers.get_all("Content-Length")
        if length and (len(length[0]) > 9 or int(length[0]) > MAX_REQUEST_BODY):
            raise _BadRequest(413, f"a body above {MAX_REQUEST_BODY} bytes")

    def on_body(self, body: bytes) -> None:
        if self._done or len(self.body) + len(body) > MAX_REQUEST_BODY:
            raise _BadRequest(413, f"a body above {MAX_REQUEST_BODY} bytes")
        self.body += body

    def on_message_complete(self) -> None:
        if self._done:
            raise _BadRequest(400, "a second request on a connection that carries one")
        self._done = True

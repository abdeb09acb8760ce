"""The tunnel port: WebSocket at /v1/tunnel, small HTTP/1.1 requests beside it, the server's end of the handshake.

Nothing is allocated for a peer before it has proven who it is, but a bounded number of connections, each with a
deadline and at most one bounded head, body or handshake message in memory.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_network
from time import monotonic, thread_time
from typing import Any, Final, Protocol

import httptools
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from protocol.aio.link import Link
from protocol.aio.tunnel import Tunnel
from protocol.aio.turns import Turns
from protocol.constants import (
    CHECK_INSTANCE,
    FEATURE_ACK,
    FEATURE_RESUME,
    RESUME_HEADER,
    SUBPROTOCOL,
    Code,
    FrameType,
)
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
from protocol.frames import FrameDecoder, decode_reason
from protocol.handshake import Chain, Hello, Resume, ServerHandshake, Signer, Verifier, parse_reject, reject
from protocol.session import Session

log = logging.getLogger(__name__)

MAX_REQUEST_HEAD: Final = 16 * KIB
MAX_REQUEST_BODY: Final = 64 * KIB
TLS_SHUTDOWN: Final = 2.0
BACKLOG: Final = 64  # accepted within the agents' deadlines; the kernel has those beyond it try again by themselves
LONG_TURN: Final = 0.04  # seconds of processor time; how many are taken in a turn follows from it
MOST_IN_A_TURN: Final = 8
LONGEST_PAUSE: Final = 0.1
OVER: Final = (7, 8)  # CLOSE, CLOSE_WAIT of <netinet/tcp.h>
ACCEPT_AGAIN: Final = 1.0  # after the process ran out of descriptors, say
FEATURES: Final = frozenset({FEATURE_ACK, FEATURE_RESUME})
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
class PortListener:
    """A port of WebSockets and small HTTP requests, whatever is spoken over the WebSocket: `link` says what.

    Attributes:
        admit: called with the peer's address before a handshake costs anything; HandshakeRejected (BUSY) turns a storm
            away.
        http: answers requests that open no WebSocket.
        max_unauthenticated: connections that have not proven who they are.
    """

    http: Callable[[HttpRequest], Awaitable[HttpResponse]]
    admit: Callable[[str], None] = lambda _remote: None
    on_refused: Refused | None = None
    deadline: float = HANDSHAKE_DEADLINE
    max_unauthenticated: int = MAX_UNAUTHENTICATED
    _listening: list[tuple[socket.socket, asyncio.Task[None]]] = field(default_factory=list)
    _waiting: dict[ServerLink, str] = field(default_factory=dict)  # to the network they come from, oldest first
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def link(self, *, private: bool, remote: str) -> ServerLink:
        """The protocol for one accepted connection."""
        raise NotImplementedError

    async def start(
        self,
        host: str | None,
        port: int,
        ssl_context: ssl.SSLContext | None,
        *,
        sock: socket.socket | None = None,
    ) -> tuple[str, int]:
        """Listen; the address. OSError when it cannot be bound. A plain listener (no context) is for `ws://`."""
        found = [sock] if sock is not None else await _bound(host, port)
        for each in found:
            each.setblocking(False)
            each.listen(BACKLOG)
            accepting = asyncio.create_task(self._accept(each, ssl_context), name="tunnel-port-accept")
            self._listening.append((each, accepting))
        address = found[0].getsockname()
        return str(address[0]), int(address[1])

    async def _accept(self, listening: socket.socket, context: ssl.SSLContext | None) -> None:
        """Takes connections itself: `create_server` tells nobody of TLS handshakes that fail, nor bounds them."""
        loop, at_once, taken = asyncio.get_running_loop(), 1, 0
        while True:
            try:
                sock, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    log.error("the tunnel port cannot accept: %s; trying again in %g s", error, ACCEPT_AGAIN)
                    await asyncio.sleep(ACCEPT_AGAIN)
                continue
            if _gone(sock):
                sock.close()
                continue
            remote = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "local"
            link = self.link(private=context is not None, remote=remote)
            if self.enter(link):
                link.connecting = self.run(link.connect(sock, context), "tunnel-port-connect")
            else:
                sock.close()
                self.refused(remote, "tls", Code.BUSY, "too many connections that have not authenticated")
            # A few a turn of the loop, and fewer while its turns are dear: who waits to be accepted costs nothing; a
            # backlog taken at once is in its TLS handshakes all at once, of which none ends before its deadline, and
            # whoever is served already waits for them. Who connects and says nothing makes no turn dearer.
            taken += 1
            if taken < at_once:
                continue
            taken, began = 0, thread_time()
            await asyncio.sleep(0)
            if (turn := thread_time() - began) > LONG_TURN:
                at_once = 1
                await asyncio.sleep(min(turn, LONGEST_PAUSE))
            else:
                at_once = min(at_once + 1, MOST_IN_A_TURN)

    async def stop(self) -> None:
        """Accept no more and drop what is not a tunnel yet; tunnels are their owner's. Idempotent."""
        listening, self._listening = self._listening, []
        for _, accepting in listening:
            accepting.cancel()
        await asyncio.gather(*(accepting for _, accepting in listening), return_exceptions=True)
        for sock, _ in listening:
            sock.close()
        for link in list(self._waiting):
            link.abort("the server stops")
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)

    # ---- what connections call ----------------------------------------------------------------------------------

    def enter(self, link: ServerLink) -> bool:
        """Count a connection that has proven nothing yet; False when there are too many.

        When all places are taken, the network with most of them gives up its oldest for one with fewer: whoever opens
        connections and says nothing keeps out nobody but its neighbours.
        """
        network = network_of(link.remote)
        if len(self._waiting) >= self.max_unauthenticated:
            held = Counter(self._waiting.values())
            greedy, most = held.most_common(1)[0]
            if held[network] + 1 >= most:
                return False
            next(each for each, its in self._waiting.items() if its == greedy).give_way()
        self._waiting[link] = network
        return True

    def leave(self, link: ServerLink) -> None:
        """It became a tunnel, or went."""
        self._waiting.pop(link, None)

    def run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Own a connection's asynchronous part."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def refused(self, remote: str, stage: str, code: Code, text: str, hello: Hello | None = None) -> None:
        """Report a refusal."""
        if self.on_refused is not None:
            self.on_refused(remote=remote, stage=stage, code=code, text=text, hello=hello)


@dataclass(slots=True, kw_only=True)
class TunnelListener(PortListener):
    """Accepts agents.

    Attributes:
        credentials: asked for at each handshake, so that a rotated certificate takes effect at once.
        verify: chain, transcript, signature -> the agent's identity; HandshakeRejected otherwise.
        authenticate: the last word on a proven identity; HandshakeRejected refuses with a reason and a retry-after.
        on_tunnel: takes over each tunnel; called from the loop, before its first byte is read.
        admit_new: called with who asks, and since when (monotonic), before a tunnel that is new; may raise
            HandshakeRejected.
        find: the tunnel of that id which this identity may go on with over a new link; it hears of that by its own
            `on_resumed`.
        carry: called for a connection that comes back for a tunnel, before anything is known of who that is, with the
            tunnel's name, the request as it came, the transport (which does not read), where it comes from, and what to
            call with whether another server has taken the connection. False: none is asked to.
    """

    credentials: Callable[[], Credentials]
    verify: Verifier
    authenticate: Callable[[Hello, Any, str], Awaitable[Admission]]
    on_tunnel: Callable[[Tunnel], None]
    budget: Budget
    find: Callable[[str, Any], Tunnel | None] = lambda _tunnel, _identity: None
    admit_new: Callable[[Hello, Any, float], None] = lambda _hello, _identity, _since: None
    carry: Callable[[str, bytes, asyncio.Transport, str, Callable[[bool], None]], bool] = lambda *_: False
    limits: Limits = field(default_factory=Limits)
    turns: Turns = field(default_factory=Turns)

    def link(self, *, private: bool, remote: str) -> ServerLink:
        return _TunnelLink(self, private=private, remote=remote)

    def carried(self, remote: str) -> ServerLink:
        """A link for a connection that another server has carried here; it goes no further."""
        link = _TunnelLink(self, private=True, remote=remote)
        link.final = True
        return link


class ServerLink(Link):
    """One connection to such a port: a request head, then either an HTTP answer or, by `upgrade`, a WebSocket."""

    def __init__(self, listener: PortListener, *, private: bool, remote: str) -> None:
        super().__init__(client=False, private=private, owner=self)
        self._listener = listener
        self._request: _Request | None = _Request()
        self._stage = "http"
        self._heard = False
        self._timer: asyncio.TimerHandle | None = None
        self.connecting: asyncio.Task[None] | None = None
        self.remote = remote

    async def connect(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """Take over an accepted socket, through its TLS handshake; its failure is reported."""
        options: dict[str, Any] = {}
        if context is not None:
            deadline = self._listener.deadline
            options = {"ssl": context, "ssl_handshake_timeout": deadline, "ssl_shutdown_timeout": TLS_SHUTDOWN}
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(lambda: self, sock, **options)
        except ssl.SSLError as error:
            self._tls_failed(Code.PROTOCOL, f"no TLS handshake: {(error.reason or str(error)).lower()}")
        except (OSError, TimeoutError) as error:
            # A connection that is closed without a handshake was a look at the port.
            if isinstance(error, TimeoutError) or "taking longer" in str(error):
                self._tls_failed(Code.TIMEOUT, f"no TLS handshake within {self._listener.deadline:g} s")
        finally:
            if self._transport is None:
                self._settled()
                sock.close()

    def _tls_failed(self, code: Code, text: str) -> None:
        self._stage = "tls"
        self._report(code, text)

    def give_way(self) -> None:
        """Leave the place that it has taken, wherever it is on its way to a tunnel."""
        self._report(Code.BUSY, "too many connections that have not authenticated, most of them from there")
        self._settled()
        if self._transport is not None:
            self.abort("it gives way")
        elif self.connecting is not None:
            self.connecting.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
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
            self._say_too_late()
        elif self._stage == "http" and self._heard:
            self._answer(HttpResponse(408, f"{text}\n".encode(), "text/plain"))
        self._refuse(Code.TIMEOUT, text)

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
        self._listener.refused(self.remote, self._stage, code, text, self._hello())

    def _hello(self) -> Hello | None:
        """What the peer has said of itself."""
        return None

    def _say_too_late(self) -> None:
        """Tell a peer whose handshake has taken too long."""

    # ---- HTTP ---------------------------------------------------------------------------------------------------

    def _read_request(self, request: _Request, data: memoryview) -> None:
        try:
            done = request.feed(data)
        except _BadRequest as error:
            self._turn_away(error.status, str(error))
            return
        if not done:
            return
        if self._wants_tunnel(request):
            self._upgrade(request)
        elif request.upgrade:
            path = request.target.partition("?")[0]
            self._turn_away(404, f"no tunnel at {path[:80]!r}; it is at {TUNNEL_PATH}")
        else:
            self._stage = "request"
            whole = HttpRequest(request.method, request.target, request.headers, bytes(request.body), self.remote)
            self._listener.run(self._serve(whole), "tunnel-port-request")

    def _wants_tunnel(self, request: _Request) -> bool:
        raise NotImplementedError

    def _upgrade(self, request: _Request) -> None:
        raise NotImplementedError

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

    def _accept_websocket(self, request: _Request, protocol: ServerProtocol) -> bool:
        """Answer an opening handshake; True when what follows are frames."""
        answer = protocol.accept(Request(request.target, request.headers, request.method))
        if self._transport is not None:
            self._transport.write(answer.serialize())
        if answer.status_code != 101:
            self._report(Code.PROTOCOL, f"not a WebSocket request that is taken: answered {answer.status_code}")
            self._linger()
            return False
        self._request = None
        self._stage = "handshake"
        return True

    def link_received(self, data: memoryview) -> None:
        """What comes over the WebSocket, until it has another owner."""
        raise NotImplementedError

    def link_writable(self) -> None:
        """Nothing waits before the tunnel."""

    def link_lost(self, reason: str) -> None:
        if self._timer is not None and self._heard and self._stage in ("http", "handshake", "authenticate"):
            self._report(Code.TUNNEL_LOST, reason)
        self._settled()


class _TunnelLink(ServerLink):
    """The handshake of `tower.v1`, and the tunnel that it ends in."""

    _listener: TunnelListener

    def __init__(self, listener: TunnelListener, *, private: bool, remote: str) -> None:
        super().__init__(listener, private=private, remote=remote)
        self._frames = FrameDecoder(MAX_HANDSHAKE_BYTES)
        self._handshake: ServerHandshake | None = None
        self._since = 0.0  # when HELLO came
        self._proof_came = False
        self.final = False
        """It stays at this server, whoever holds the tunnel that it comes for."""

    def _hello(self) -> Hello | None:
        return self._handshake.hello if self._handshake else None

    def _say_too_late(self) -> None:
        self.write([reject(Code.TIMEOUT, f"no handshake within {self._listener.deadline:g} s")])

    def _wants_tunnel(self, request: _Request) -> bool:
        return request.target.partition("?")[0] == TUNNEL_PATH

    def _upgrade(self, request: _Request) -> None:
        offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        if request.upgrade and SUBPROTOCOL not in map(str.strip, offered.split(",")):
            self._turn_away(400, f"no common WebSocket subprotocol: this port speaks {SUBPROTOCOL}")
            return
        if not self.final and self._carried(request):
            return
        # An agent is not a browser and sends no Origin: whoever sends one is turned away.
        protocol = ServerProtocol(origins=[None], subprotocols=[Subprotocol(SUBPROTOCOL)])
        if self._accept_websocket(request, protocol) and request.rest:
            self.received(memoryview(request.rest))

    def _carried(self, request: _Request) -> bool:
        """Whether another server is asked to take the connection. Nothing is read until it has answered."""
        self.final = True
        tunnel, transport = next(iter(request.headers.get_all(RESUME_HEADER)), ""), self._transport
        if not tunnel or not request.upgrade or transport is None:
            return False

        def answered(taken: bool) -> None:
            if taken:
                self._settled()
            elif not (self.closing or transport.is_closing()):
                self._stage = "http"
                transport.resume_reading()
                self._upgrade(request)

        transport.pause_reading()
        if self._listener.carry(tunnel, request.whole(), transport, self.remote, answered):
            self._stage = "carried"
            return True
        transport.resume_reading()
        return False

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
        if kind == FrameType.CLOSE and self._proof_came:  # it believes that there may be a tunnel by now
            code, text = decode_reason(memoryview(payload))
            raise HandshakeRejected(code, text, by_peer=True)
        if self._handshake is None:
            if kind != FrameType.HELLO:
                raise HandshakeRejected(Code.PROTOCOL, f"a frame of type {kind} in place of HELLO")
            listener.admit(self.remote)
            own = listener.credentials()
            self._since = monotonic()
            self._handshake = ServerHandshake(
                chain=own.chain,
                sign=own.sign,
                verify=listener.verify,
                nonce=secrets.token_bytes(32),
                features=FEATURES,
            )
            self.write([self._handshake.greeted(payload)])
            return
        if kind != FrameType.PROOF or self._proof_came:
            raise HandshakeRejected(Code.PROTOCOL, f"a frame of type {kind} out of place in the handshake")
        self._proof_came = True
        assert self._handshake.hello is not None
        listener.run(self._authenticate(self._handshake, self._handshake.hello, payload), "tunnel-authenticate")

    async def _authenticate(self, handshake: ServerHandshake, hello: Hello, proof: bytes) -> None:
        """The dear parts in slices: many agents that answer at once keep nobody else waiting."""
        turns = self._listener.turns
        try:
            identity = await turns.do(lambda: None if self.closing else handshake.proven(proof))
            if identity is None:
                return
            self._stage = "authenticate"
            admission = await self._listener.authenticate(hello, identity, self.remote)
            await turns.do(lambda: self._admitted(handshake, hello, identity, admission))
        except HandshakeRejected as error:
            self._reject(error)
            return
        except Exception:  # the boundary: one agent's admission must not take the listener down
            log.exception("the admission of agent %s of cluster %s failed", hello.instance, hello.cluster)
            self._reject(HandshakeRejected(Code.INTERNAL, "internal error; the server's log says more", 5.0))

    def _admitted(self, handshake: ServerHandshake, hello: Hello, identity: Any, admission: Admission) -> None:
        """Welcome a proven agent. HandshakeRejected where that is not the last word."""
        if self.closing:
            return
        if self._frames.buffered:
            raise HandshakeRejected(Code.PROTOCOL, "bytes sent between PROOF and WELCOME")
        refused: HandshakeRejected | None = None
        try:
            if handshake.resume is not None:
                refused = self._go_on(handshake, handshake.resume, identity, renew_only=admission.renew_only)
                if refused is None:
                    return
            self._listener.admit_new(hello, identity, self._since)
        except HandshakeRejected as error:
            raise refused or error from None  # that the tunnel is over is the first that its streams have to know
        if refused is not None:
            self._report(refused.code, refused.text)
        self._settled()
        self.write([handshake.welcome(admission.tunnel_id, renew_only=admission.renew_only, refused=refused)])
        tunnel = self._tunnel(handshake, hello, identity, admission)
        try:
            self._listener.on_tunnel(tunnel)
        except Exception:  # the same boundary
            log.exception("tunnel %s could not be taken over", tunnel.id)
            tunnel.close(Code.INTERNAL, "internal error; the server's log says more")

    def _go_on(
        self, handshake: ServerHandshake, resume: Resume, identity: Any, *, renew_only: bool
    ) -> HandshakeRejected | None:
        """Give a tunnel this link, or refuse, which changes nothing.

        The refusal is returned where the agent takes a new tunnel for it, and raised where it does not.
        """
        try:
            tunnel = None if renew_only else self._listener.find(resume.tunnel, identity)
            if tunnel is None:
                text = "this server has no such tunnel for this agent: it has ended, or the time to come back was over"
                raise HandshakeRejected(Code.UNKNOWN_TUNNEL, text)
            tunnel.session.check_attach(resume.received, resume.epoch)
        except HandshakeRejected as error:
            if resume.anew:
                return error
            raise
        self._settled()
        self.write([handshake.welcome(tunnel.id, received=tunnel.session.frames_received)])
        try:
            tunnel.attach(self, peer_received=resume.received, epoch=resume.epoch, peer=identity, remote=self.remote)
        except Exception:  # the same boundary as for a new tunnel
            log.exception("tunnel %s could not be taken up again", tunnel.id)
            tunnel.close(Code.INTERNAL, "internal error; the server's log says more")
        return None

    def _tunnel(self, handshake: ServerHandshake, hello: Hello, identity: Any, admission: Admission) -> Tunnel:
        lasting = not admission.renew_only and not hello.instance.startswith(CHECK_INSTANCE)
        session = Session(
            opens_odd=True,
            accepts=False,
            limits=self._listener.limits,
            budget=self._listener.budget,
            now=monotonic(),
            features=handshake.features - (set() if lasting else {FEATURE_RESUME}),
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


def _gone(sock: socket.socket) -> bool:
    """Whether the peer has given up while it waited to be accepted: its handshake would be nobody's."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in OVER
    except OSError:  # not TCP: who inherits a listener may have any
        return False


async def _bound(host: str | None, port: int) -> list[socket.socket]:
    """A socket for each address of `host`; OSError when one cannot be had."""
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, protocol)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except OSError:
        for sock in bound:
            sock.close()
        raise
    return bound


def network_of(remote: str) -> str:
    """Where a peer comes from, for limits: its IPv4 address, or the /64 of its IPv6 one."""
    try:
        address = ip_address(remote.rpartition(":")[0].partition("%")[0])
    except ValueError:
        return remote
    if isinstance(address, IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((int(address) >> 64 << 64, 64)))


class _BadRequest(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Request:
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
            raise _BadRequest(413, f"a body above {MAX_REQUEST_BODY} bytes")
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

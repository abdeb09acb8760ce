"""A port of WebSockets and small HTTP/1.1 requests: who is accepted, how many at a time, and until when.

Nothing is allocated for a peer before it has proven who it is, but a bounded number of connections, each with a
deadline and at most one bounded head, body or handshake message in memory.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any, Final, Protocol

from websockets.http11 import Request
from websockets.server import ServerProtocol

from protocol.aio.link import Link
from protocol.aio.request import BadRequest, HttpRequest, HttpResponse, RequestParser
from protocol.constants import Code
from protocol.defaults import HANDSHAKE_DEADLINE, LINGER, MAX_UNAUTHENTICATED, TUNNEL_PATH
from protocol.handshake import Hello

log = logging.getLogger(__name__)

TLS_SHUTDOWN: Final = 2.0
BACKLOG: Final = 64  # accepted within the agents' deadlines; the kernel has those beyond it try again by themselves
LONG_TURN: Final = 0.01  # seconds
PAUSE: Final = 0.005
OVER: Final = (7, 8)  # CLOSE, CLOSE_WAIT of <netinet/tcp.h>
ACCEPT_AGAIN: Final = 1.0  # after the process ran out of descriptors, say


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
        loop = asyncio.get_running_loop()
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
            # One a turn of the loop, and fewer while its turns are long: who waits to be accepted costs nothing, while
            # a backlog taken at once is in its TLS handshakes all at once, of which none ends before its deadline, and
            # whoever is served already waits for them. Who connects and says nothing makes no turn longer.
            began = loop.time()
            await asyncio.sleep(0)
            if loop.time() - began > LONG_TURN:
                await asyncio.sleep(PAUSE)

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


class ServerLink(Link):
    """One connection to such a port: a request head, then either an HTTP answer or, by `upgrade`, a WebSocket."""

    def __init__(self, listener: PortListener, *, private: bool, remote: str) -> None:
        super().__init__(client=False, private=private, owner=self)
        self._listener = listener
        self._request: RequestParser | None = RequestParser()
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

    def _read_request(self, request: RequestParser, data: memoryview) -> None:
        try:
            done = request.feed(data)
        except BadRequest as error:
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

    def _wants_tunnel(self, request: RequestParser) -> bool:
        raise NotImplementedError

    def _upgrade(self, request: RequestParser) -> None:
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
        if self._transport is not None and not self.closing:
            self._transport.write(response.encoded())

    def _accept_websocket(self, request: RequestParser, protocol: ServerProtocol) -> bool:
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

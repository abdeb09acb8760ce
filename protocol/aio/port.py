"""A port for WebSockets and small HTTP/1.1 requests: whose connections are accepted, how many, and for how long.

Nothing is allocated for a peer that has not proven who it is, except a connection: those are bounded in number, and
each has a deadline and holds at most one bounded head, body or handshake message in memory.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_network
from time import monotonic
from typing import Any, Final, Protocol

from websockets.http11 import Request
from websockets.server import ServerProtocol

from protocol.aio.link import Link
from protocol.aio.listening import accept, bound, turn_away, waited_for
from protocol.aio.request import BadRequest, HttpRequest, HttpResponse, RequestParser
from protocol.aio.strangers import Strangers
from protocol.aio.tlsfailure import BUSY_ALERT, TlsError, TlsFailure
from protocol.aio.tlspump import TlsServerSocketPump
from protocol.constants import Code
from protocol.defaults import COME_BACK, HANDSHAKE_DEADLINE, LINGER, MAX_UNAUTHENTICATED, TUNNEL_PATH
from protocol.handshake import Hello

log = logging.getLogger(__name__)

BACKLOG: Final = 4096  # capped by the kernel; a client that finds it full believes it is connected
LATE: Final = 0.6  # of the deadline: a connection that waited longer to be accepted may have been given up by its agent
LONG_TURN: Final = 0.01  # seconds
PAUSE: Final = 0.005
ACCEPT_AGAIN: Final = 1.0  # after the process ran out of descriptors, say


class Refused(Protocol):
    """Called for every connection that became neither a tunnel nor an answered request, with a fixed stage name."""

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
    _waiting: Strangers = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._waiting = Strangers(self.max_unauthenticated, monotonic)

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
        found = [sock] if sock is not None else await bound(host, port)
        for each in found:
            each.setblocking(False)
            each.listen(BACKLOG)
            accepting = asyncio.create_task(self._accept(each, ssl_context), name="tunnel-port-accept")
            self._listening.append((each, accepting))
        address = found[0].getsockname()
        return str(address[0]), int(address[1])

    async def _accept(self, listening: socket.socket, context: ssl.SSLContext | None) -> None:
        """Accepts connections by itself: `create_server` neither reports failed TLS handshakes nor bounds them."""
        loop = asyncio.get_running_loop()
        word = BUSY_ALERT if context is not None else busy("no room for another handshake now").encoded()
        while True:
            await self._waiting.room()
            try:
                sock, address = await accept(listening)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    log.error("the tunnel port cannot accept: %s; trying again in %g s", error, ACCEPT_AGAIN)
                    await asyncio.sleep(ACCEPT_AGAIN)
                continue
            try:
                self._take(sock, address, context, word)
            except Exception:  # the boundary: one connection, or the report of one, must not end the port for all
                log.exception("a connection to the tunnel port could not be taken")
                sock.close()
            # One a turn of the loop, and fewer while its turns are long: who waits to be accepted costs nothing, while
            # a backlog taken at once is in its TLS handshakes all at once, of which none ends before its deadline, and
            # whoever is served already waits for them. Who connects and says nothing makes no turn longer.
            began = loop.time()
            await asyncio.sleep(0)
            if loop.time() - began > LONG_TURN:
                await asyncio.sleep(PAUSE)

    def _take(self, sock: socket.socket, address: Any, context: ssl.SSLContext | None, word: bytes) -> None:
        """Give the connection a place or, with the reason `word`, turn it away."""
        waited = waited_for(sock)
        if waited is None:  # the client has gone meanwhile
            sock.close()
            return
        remote = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "local"
        link = self.link(private=context is not None, remote=remote)
        if self._waiting.busy and waited > LATE * self.deadline:
            self._not_taken(sock, remote, word, f"it has waited {waited:.1f} s, too long for a handshake in time")
        elif self._waiting.enter(link, network_of(remote)):
            link.take(sock, context)
        else:
            self._not_taken(sock, remote, word, "too many connections that have not authenticated")

    async def stop(self) -> None:
        """Accept no more and drop what is not a tunnel yet; tunnels are their owner's. Idempotent."""
        listening, self._listening = self._listening, []
        for _, accepting in listening:
            accepting.cancel()
        await asyncio.gather(*(accepting for _, accepting in listening), return_exceptions=True)
        for sock, _ in listening:
            sock.close()
        for link in self._waiting.all():
            link.abort("the server stops")
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)

    def _not_taken(self, sock: socket.socket, remote: str, word: bytes, text: str) -> None:
        turn_away(sock, word)
        self.refused(remote, "tls", Code.BUSY, text)

    # ---- what connections call ----------------------------------------------------------------------------------

    def leave(self, link: ServerLink, *, proven: bool) -> None:
        """The connection became a tunnel, or ended: its place is free."""
        self._waiting.leave(link, proven=proven)

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
        self._connecting: asyncio.Task[None] | None = None
        self._tls: TlsServerSocketPump | None = None
        self.remote = remote

    def take(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """Take over an accepted socket."""
        self._connecting = self._listener.run(self._connect(sock, context), "tunnel-port-connect")
        # Cancelled at once it never began.
        self._connecting.add_done_callback(lambda task: self._unconnected(sock) if task.cancelled() else None)

    async def _connect(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """Not by the loop's own TLS: it bounds nothing that a stranger may ask of it, see `tlsrecords`."""
        above: Link | TlsServerSocketPump = self
        if context is not None:
            above = self._tls = TlsServerSocketPump(
                context,
                lambda: self,
                handshake_deadline=self._listener.deadline,
                on_failure=self._tls_failed,
                outer=True,
            )
        connected = False
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(lambda: above, sock)
            connected = True
        except OSError:
            pass  # it is gone already
        finally:
            if not connected:
                self._unconnected(sock)

    def _unconnected(self, sock: socket.socket) -> None:
        """Clean up where there is no transport to do it. Idempotent."""
        self._settled()
        sock.close()

    def _tls_failed(self, error: TlsError) -> None:
        self._stage = "tls"
        if error.failure is TlsFailure.DEADLINE:
            self._report(Code.TIMEOUT, f"no TLS handshake within {self._listener.deadline:g} s")
        elif error.failure is not TlsFailure.CUT:  # a connection that is closed without one was a look at the port
            self._report(Code.PROTOCOL, f"no TLS handshake: {error}")
        self._tls = None
        self._settled()

    @property
    def silent(self) -> bool:
        """Whether the peer has sent nothing since its TLS handshake."""
        return not self._heard

    def give_way(self) -> None:
        """Give up the place, at whatever stage this connection is. A peer that has sent something is told why."""
        text = "too many connections that have not authenticated, most of them from there"
        self._report(Code.BUSY, text)
        self._settled()
        if self._transport is None or self.silent:
            self.abort("it gives way")
        else:
            if self._request is None:
                self._say_busy(text)
            elif self._stage != "answered":
                self._answer(busy(text))
            self.close("it gives way")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._timer = self._loop.call_later(self._listener.deadline, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, TlsError) and self._timer is not None and not self._heard:
            self._report(Code.PROTOCOL, str(exc))
        self._tls = None  # with its memory: this one is its own owner, and waits for the collector
        super().connection_lost(exc)
        self._settled()

    def abort(self, reason: str) -> None:
        """At whatever stage it is. Idempotent."""
        if self._transport is None:
            if self._connecting is not None:
                self._connecting.cancel()
            if self._tls is not None:
                self._tls.abort()
        super().abort(reason)

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

    def _settled(self, *, proven: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.proven = self.proven or proven
        self._listener.leave(self, proven=proven)

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

    def _say_busy(self, text: str) -> None:
        """Tell a peer in its handshake that it has to come back later."""

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
            whole = HttpRequest(request.method, request.target, bytes(request.body), self.remote)
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
        """Close when the peer does, or after a moment: closing on unread bytes would reset the answer away."""
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
        """Ignored: before there is a tunnel nothing waits to be written."""

    def link_lost(self, reason: str) -> None:
        if self._timer is not None and self._heard and self._stage in ("http", "handshake", "authenticate"):
            self._report(Code.TUNNEL_LOST, reason)
        self._settled()


def busy(text: str) -> HttpResponse:
    """The answer that asks a client to come back later."""
    return HttpResponse(503, f"{text}\n".encode(), "text/plain", [("Retry-After", f"{COME_BACK:g}")])


def network_of(remote: str) -> str:
    """Where a peer comes from, for limits: its IPv4 address, or the /64 of its IPv6 one."""
    try:
        address = ip_address(remote.rpartition(":")[0].partition("%")[0])
    except ValueError:
        return remote
    if isinstance(address, IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((int(address) >> 64 << 64, 64)))

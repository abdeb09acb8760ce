"""The gateway of one host in front of one apiserver: it owns the callers' connections and the way to the apiserver.

`serve` gives the protocol for one caller: put it on a stream of a tunnel (`IncomingStream.accept`) or on any other
transport. One ticker looks at all deadlines, so that a request costs no timer. Certificates are checked at every
request, when one expires, and whenever `recheck` is called (a new revocation list).
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Final

from certs.errors import Untrusted
from gateway.audit import NullObserver, Observer
from gateway.caller import NO_CERTIFICATE, Caller, ClientIdentity
from gateway.connection import CallerConnection
from gateway.decide import refusal
from gateway.errors import UpstreamError
from gateway.policy import Policy
from gateway.upstream import Upstreams
from protocol import defaults
from protocol.aio.tlsfailure import TlsError
from protocol.aio.tlspump import TlsServerPump
from protocol.aio.tunnel import Tunnel


class Gateway:
    """Start with `start`, end with `close`; both on the loop that it serves.

    `verify_client` takes a DER chain and returns who it is; `check_client` is the cheap check made at every request.
    Both raise `certs.errors.Untrusted`. `policy` and `context` may be replaced at any time.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext,
        upstreams: Upstreams,
        policy: Policy,
        verify_client: Callable[[list[bytes]], ClientIdentity],
        check_client: Callable[[ClientIdentity], None],
        observer: Observer | None = None,
        cluster: str = "",  # for the mends of refusals
        clock: Callable[[], float] = time.time,
        head_deadline: float = defaults.HEAD_DEADLINE,
        handshake_deadline: float = defaults.HANDSHAKE_DEADLINE,
    ) -> None:
        self.context = context
        self.upstreams: Final = upstreams
        self.policy = policy
        self.observer: Final[Observer] = observer or NullObserver()
        self.cluster: Final = cluster
        self.idle_limit: Final = defaults.CALLER_IDLE
        self.head_deadline: Final = head_deadline
        self.connections: set[CallerConnection] = set()
        self.draining = False
        self.host: Final = upstreams.apiserver.authority
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._verify_client = verify_client
        self._check_client = check_client
        self._clock = clock
        self._handshake_deadline = handshake_deadline
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[Tunnel] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._closed = False
        self._over: Caller | None = None  # who everybody is taken for, once nothing can be asked any more

    def start(self) -> None:
        """Start the ticker that looks at deadlines."""
        if self._ticker is None and not self._closed:
            self._ticker = self.loop.call_later(defaults.GATEWAY_TICK, self._tick)

    def serve(self, *, caller_address: str = "", connection_id: str = "") -> TlsServerPump:
        """The protocol for one caller on a transport that pushes, such as a stream of a tunnel."""
        return TlsServerPump(
            self.context,
            lambda: CallerConnection(self, caller_address, connection_id),
            handshake_deadline=self._handshake_deadline,
            on_failure=lambda error: self._tls_failed(error, caller_address, connection_id),
        )

    def recheck(self) -> None:
        """Check every caller's certificate again: a request under a revoked or expired one is cut at once."""
        for connection in list(self.connections):
            connection.recheck()

    def drain(self, tunnel: Tunnel | None = None) -> None:
        """Bring connections (all, or those of a tunnel that drains) to their end: requests go on, watches end."""
        if tunnel is None:
            self.draining = True
        else:
            self._leaving.add(tunnel)
        self._drain()

    def _drain(self) -> None:
        for connection in list(self.connections):
            if connection.leaving:
                connection.drain()

    def cut(self, code: str, message: str) -> None:
        """End whatever requests are under way, for good: by an answer where none was begun, else by breaking it off.
        Callers whose TLS is not finished yet get that answer when it is."""
        self._over = Caller(refused=refusal(code, message))
        for connection in list(self.connections):
            connection.cut(code, message)

    async def close(self) -> None:
        """Break off everything. Idempotent."""
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for connection in list(self.connections):
            connection.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.upstreams.close()
        await asyncio.sleep(0)  # transports say connection_lost in the next turn

    # -- for the connections -----------------------------------------------------------------------------------------

    def caller_of(self, chain: list[bytes]) -> Caller:
        """Who is at the other end of a connection. If its certificate is not accepted, each request is answered so."""
        if self._over is not None:
            return self._over
        if not chain:
            return NO_CERTIFICATE
        try:
            return Caller(identity=self._verify_client(chain))
        except Untrusted as error:
            return _refused(error)

    def recheck_caller(self, caller: Caller) -> Caller:
        """The same caller, or a refused one if its certificate has expired or been revoked since."""
        assert caller.identity is not None
        try:
            self._check_client(caller.identity)
        except Untrusted as error:
            return _refused(error)
        return caller

    def own_authorization(self) -> bytes:
        """The agent's own Authorization value for the impersonation pool."""
        read = self.upstreams.impersonation.authorization
        if read is None:
            return b""
        try:
            return read()
        except OSError as error:
            raise UpstreamError(
                "TWR309", f"the agent's own credential cannot be read: {error.strerror or type(error).__name__}"
            ) from error

    def audit_stem(self) -> str:
        """The unguessable part that the audit ids of one connection share."""
        return os.urandom(12).hex() + "-"

    def spawn(self, work: Coroutine[None, None, None], *, name: str) -> asyncio.Task[None]:
        """A task that the gateway owns: cancelled and awaited by `close`."""
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _tick(self) -> None:
        now, wall = self.loop.time(), self._clock()
        self._ticker = self.loop.call_later(defaults.GATEWAY_TICK, self._tick)
        for connection in list(self.connections):
            connection.tick(now, wall)
        if self._leaving:
            self._leaving = {tunnel for tunnel in self._leaving if tunnel.closed is None}
        if self.draining or self._leaving:
            self._drain()
        self.upstreams.expire(now)

    def _tls_failed(self, error: TlsError, caller_address: str, connection_id: str) -> None:
        self.observer.tls_failed(error.failure.value, str(error), caller_address, connection_id)


def _refused(error: Untrusted) -> Caller:
    return Caller(refused=refusal(error.fault, error.text, mend=error.mend or None))

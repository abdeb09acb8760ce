"""Kept TLS connections to one apiserver.

Two pools stand side by side and never mix: `bearer` connections show no certificate, ever, since the apiserver prefers
a connection's certificate to a token; `impersonation` connections carry the agent's own credential. A connection
serves one request at a time, goes back only when request and answer both ended where their framing says, and is dropped
on any byte that nobody asked for. Connections are bounded in number; the oldest idle ones are dropped first.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from gateway.decide import PoolName
from gateway.errors import UpstreamError
from gateway.tls import Apiserver, upstream_context
from protocol import defaults
from protocol.aio.keepalive import keep_alive
from protocol.aio.tlsfailure import TlsError, TlsFailure
from protocol.aio.tlspump import TlsClientSocketPump

Connect = Callable[[Callable[[], Any]], Awaitable[tuple[Any, Any]]]
"""As `loop.create_connection`, to the one place that it goes to: a channel of somebody's tunnel, say."""


class Exchange(Protocol):
    """Whoever uses a connection now."""

    def upstream_data(self, data: memoryview) -> None: ...
    def upstream_eof(self) -> None: ...
    def upstream_lost(self, exc: Exception | None) -> None: ...
    def upstream_full(self, full: bool) -> None: ...


class Connection:
    """One connection to the apiserver: the protocol above its TLS pump."""

    __slots__ = ("context", "exchange", "idle_since", "pool", "served", "transport")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        self.context: ssl.SSLContext | None = None  # the TLS context that it was dialled with
        self.served = 0
        """Requests it carried before this one: a connection that dies at its first cannot have been stale."""
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anybody sees the connection

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: memoryview) -> None:
        if self.exchange is not None:
            self.exchange.upstream_data(data)
        else:
            self.pool.discard(self)  # bytes that answer no request: they would be taken for the next one's answer

    def eof_received(self) -> bool:
        if self.exchange is not None:
            self.exchange.upstream_eof()
            return True
        self.pool.discard(self)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.forget(self)
        if self.exchange is not None:
            self.exchange.upstream_lost(exc)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.upstream_full(True)

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.upstream_full(False)


class Pool:
    """The connections of one kind. `authorization` gives the agent's own Authorization value, read for each request."""

    def __init__(
        self,
        name: PoolName,
        apiserver: Apiserver,
        context: ssl.SSLContext,
        *,
        authorization: Callable[[], bytes] | None = None,
        connect: Connect | None = None,
        limit: int = defaults.MAX_STREAMS,
        dial_deadline: float = defaults.DIAL_DEADLINE,
    ) -> None:
        self.name: Final = name
        self.apiserver: Final = apiserver
        self.authorization = authorization
        self._connect_to = connect or self._dial_tcp
        self._context = context
        self._limit = limit
        self._dial_deadline = dial_deadline
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._dialing = 0
        self._closed = False

    @property
    def open_count(self) -> int:
        return len(self._open)

    @property
    def idle_count(self) -> int:
        return len(self._idle)

    def take(self) -> Connection | None:
        """The connection that was used last and is idle, or None: then `dial`. Those that ended are not kept."""
        return self._idle.pop() if self._idle else None

    def release(self, connection: Connection, now: float) -> None:
        """Keep a connection whose exchange ended cleanly."""
        connection.exchange = None
        if self._closed or connection.context is not self._context or connection.transport.is_closing():
            self.discard(connection)
            return
        connection.served += 1
        connection.idle_since = now
        self._idle.append(connection)
        if len(self._idle) > defaults.UPSTREAM_IDLE_CONNECTIONS:
            self.discard(self._idle[0])

    def discard(self, connection: Connection) -> None:
        """Drop a connection at once, idle or not."""
        connection.exchange = None
        self.forget(connection)
        connection.transport.abort()

    def forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection.exchange is None:
            try:
                self._idle.remove(connection)
            except ValueError:
                pass

    def expire(self, now: float) -> None:
        """Drop what has been idle for too long; called now and then with the loop's time."""
        while self._idle and now - self._idle[0].idle_since > defaults.UPSTREAM_IDLE:
            self.discard(self._idle[0])

    def renew(self, context: ssl.SSLContext, *, authorization: Callable[[], bytes] | None = None) -> None:
        """Present another credential from now on; connections with the earlier one end when their exchange does."""
        self._context, self.authorization = context, authorization
        while self._idle:
            self.discard(self._idle[0])

    def close(self) -> None:
        """Drop all connections. Idempotent."""
        self._closed = True
        for connection in list(self._open):
            connection.transport.abort()
        self._idle.clear()

    async def dial(self) -> Connection:
        """A new connection with its handshake done. Raises UpstreamError naming the apiserver and what is wrong."""
        if self._closed:
            raise UpstreamError("TWR113", "the gateway is stopping")
        if len(self._open) + self._dialing >= self._limit:
            raise UpstreamError("TWR411", f"{self._limit} connections to the apiserver are in use already")
        self._dialing += 1
        try:
            async with asyncio.timeout(self._dial_deadline):
                connection = await self._connect()
                while connection.context is not self._context:  # renewed meanwhile: this one has the old credential
                    connection.transport.abort()
                    connection = await self._connect()
        except TimeoutError:
            raise UpstreamError(
                "TWR303", f"the apiserver {self.apiserver} did not answer within {self._dial_deadline:g} s"
            ) from None
        except TlsError as error:
            raise self._tls_failed(error) from error
        except OSError as error:
            code = "TWR117" if error.errno in (errno.EMFILE, errno.ENFILE) else "TWR301"
            raise UpstreamError(code, f"cannot connect to the apiserver {self.apiserver}: {_why(error)}") from error
        finally:
            self._dialing -= 1
        if self._closed:
            connection.transport.abort()
            raise UpstreamError("TWR113", "the gateway is stopping")
        self._open.add(connection)
        return connection

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Connection] = loop.create_future()
        connection = Connection(self)
        context = connection.context = self._context

        def ready() -> Connection:
            loop.call_soon(_settle, done, connection)  # after connection_made of the same turn
            return connection

        def failed(error: TlsError) -> None:
            if not done.done():
                done.set_exception(error)

        transport, _ = await self._connect_to(
            lambda: TlsClientSocketPump(
                context,
                ready,
                server_hostname=self.apiserver.server_name or self.apiserver.host,
                handshake_deadline=self._dial_deadline + 1.0,  # the dial's own deadline comes first
                on_failure=failed,
            )
        )
        try:
            return await done
        except BaseException:
            done.cancel()
            transport.abort()
            raise

    async def _dial_tcp(self, factory: Callable[[], Any]) -> tuple[Any, Any]:
        loop = asyncio.get_running_loop()
        made = await loop.create_connection(factory, self.apiserver.host, self.apiserver.port)
        keep_alive(made[0].get_extra_info("socket"))
        return made

    def _tls_failed(self, error: TlsError) -> UpstreamError:
        if error.failure in (TlsFailure.UNKNOWN_ISSUER, TlsFailure.BAD_CERTIFICATE):
            return UpstreamError("TWR304", f"the apiserver {self.apiserver} is not trusted: {error}")
        if error.failure is TlsFailure.REFUSED_BY_PEER:
            return UpstreamError("TWR305", f"the apiserver {self.apiserver} refused the agent's TLS handshake: {error}")
        return UpstreamError("TWR301", f"no TLS with the apiserver {self.apiserver}: {error}")


def _settle(done: asyncio.Future[Connection], connection: Connection) -> None:
    if not done.done():
        done.set_result(connection)


def _why(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


class Upstreams:
    """Both pools of one apiserver, made together so that the bearer pool cannot be given a certificate."""

    def __init__(
        self,
        apiserver: Apiserver,
        *,
        authorization: Callable[[], bytes] | None = None,
        certificate_file: str | None = None,
        key_file: str | None = None,
        connect: Connect | None = None,
        limit: int = defaults.MAX_STREAMS,
        dial_deadline: float = defaults.DIAL_DEADLINE,
    ) -> None:
        self.apiserver: Final = apiserver
        self.bearer: Final = Pool(
            PoolName.BEARER,
            apiserver,
            upstream_context(apiserver),
            connect=connect,
            limit=limit,
            dial_deadline=dial_deadline,
        )
        self.impersonation: Final = Pool(
            PoolName.IMPERSONATION,
            apiserver,
            upstream_context(apiserver, certificate_file=certificate_file, key_file=key_file),
            authorization=authorization,
            connect=connect,
            limit=limit,
            dial_deadline=dial_deadline,
        )

    def pool(self, name: PoolName) -> Pool:
        return self.bearer if name is PoolName.BEARER else self.impersonation

    def expire(self, now: float) -> None:
        self.bearer.expire(now)
        self.impersonation.expire(now)

    def close(self) -> None:
        self.bearer.close()
        self.impersonation.close()

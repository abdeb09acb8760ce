"""A real tunnel on loopback for tests of this room: listener, dialler, and protocols that keep what they saw."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from protocol.aio.dial import dial
from protocol.aio.listener import Admission, Credentials, TunnelListener
from protocol.aio.proxydial import DialTarget
from protocol.aio.request import HttpRequest, HttpResponse
from protocol.aio.stream import IncomingStream, StreamTransport
from protocol.aio.tunnel import Tunnel
from protocol.constants import FEATURE_ACK, Code
from protocol.defaults import MIB
from protocol.flow import Budget, Limits
from protocol.handshake import AgentHandshake, Hello
from tests.protocol.handshakes import signer, verifier

KEY = b"shared by both ends of a test"
PATIENCE = 30.0


class Recorder(asyncio.Protocol):
    """Keeps what its stream or socket brought; never answers, and stays half-open after the peer's end."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received = bytearray()
        self.calls: list[str] = []
        self.error: Exception | None = None
        self._changed = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._note("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._changed.set()

    def eof_received(self) -> bool:
        self._note("eof")
        return True

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self._note("lost")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._changed.set()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for something this recorder can see."""
        async with asyncio.timeout(PATIENCE):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    async def saw(self, call: str) -> None:
        await self.until(lambda: call in self.calls)

    async def bytes(self, count: int) -> bytes:
        await self.until(lambda: len(self.received) >= count)
        return bytes(self.received)


class Echo(Recorder):
    """Sends back what it gets; ends when the peer does."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(bytes(data))

    def eof_received(self) -> bool:
        super().eof_received()
        self.transport.write_eof()
        return True


@dataclass
class Refusal:
    """One call of the listener's `on_refused`."""

    stage: str
    code: Code
    text: str
    hello: Hello | None


@dataclass
class Tower:
    """A listener, what it reported, and a way to dial it."""

    listener: TunnelListener
    address: tuple[str, int]
    tunnels: asyncio.Queue[Tunnel]
    refusals: list[Refusal]
    heard: asyncio.Event
    client_context: ssl.SSLContext | None
    dialled: list[Tunnel] = field(default_factory=list)

    def target(self) -> DialTarget:
        host, port = self.address
        return DialTarget(host=host, port=port, ssl_context=self.client_context, proxy_env=False)

    async def dial(
        self,
        on_stream: Callable[[IncomingStream], None] | None = None,
        *,
        cluster: str = "alpha",
        instance: str = "agent-1",
        **more: Any,
    ) -> Tunnel:
        tunnel = await dial(
            more.pop("target", None) or self.target(),
            handshake=more.pop("handshake", None) or agent(cluster=cluster, instance=instance),
            instance=instance,
            budget=Budget(48 * MIB),
            on_stream=on_stream or (lambda incoming: incoming.refuse(Code.UNKNOWN_SERVICE, "nothing here")),
            **more,
        )
        self.dialled.append(tunnel)
        return tunnel

    async def pair(
        self, on_stream: Callable[[IncomingStream], None] | None = None, **more: Any
    ) -> tuple[Tunnel, Tunnel]:
        """The server's end and the agent's end of a new tunnel."""
        agent_end = await self.dial(on_stream, **more)
        async with asyncio.timeout(PATIENCE):
            return await self.tunnels.get(), agent_end

    async def refusal(self, count: int = 1) -> Refusal:
        """The `count`-th refusal, once it has been reported."""
        async with asyncio.timeout(PATIENCE):
            while len(self.refusals) < count:
                self.heard.clear()
                await self.heard.wait()
        return self.refusals[count - 1]


def agent(*, cluster: str = "alpha", instance: str = "agent-1", key: bytes = KEY, **more: Any) -> AgentHandshake:
    return AgentHandshake(
        cluster=more.pop("claimed", cluster),
        instance=instance,
        chain=[cluster.encode()],
        sign=signer(key),
        verify=verifier(KEY),
        nonce=os.urandom(32),
        features=more.pop("features", [FEATURE_ACK]),
        **more,
    )


async def admitted(hello: Hello, identity: Any, remote: str) -> Admission:
    return Admission(f"{hello.cluster}-{hello.instance}")


async def answered(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, f"{request.method} {request.target} {len(request.body)}".encode(), "text/plain")


@asynccontextmanager
async def tower(
    server_context: ssl.SSLContext | None = None,
    client_context: ssl.SSLContext | None = None,
    *,
    limits: Limits | None = None,
    **more: Any,
) -> AsyncIterator[Tower]:
    tunnels: asyncio.Queue[Tunnel] = asyncio.Queue()
    everyone: list[Tunnel] = []
    refusals: list[Refusal] = []
    heard = asyncio.Event()

    def on_tunnel(tunnel: Tunnel) -> None:
        everyone.append(tunnel)
        tunnels.put_nowait(tunnel)

    def on_refused(*, remote: str, stage: str, code: Code, text: str, hello: Hello | None) -> None:
        refusals.append(Refusal(stage, code, text, hello))
        heard.set()

    settings: dict[str, Any] = {
        "credentials": lambda: Credentials([b"tower"], signer(KEY)),
        "verify": verifier(KEY),
        "authenticate": admitted,
        "http": answered,
        "on_tunnel": on_tunnel,
        "budget": Budget(48 * MIB),
        "limits": limits or Limits(),
        "on_refused": on_refused,
    }
    listener = TunnelListener(**{**settings, **more})
    address = await listener.start("127.0.0.1", 0, server_context)
    made = Tower(listener, address, tunnels, refusals, heard, client_context)
    try:
        yield made
    finally:
        for tunnel in (*everyone, *made.dialled):
            tunnel.close(Code.SHUTDOWN, "the test ends")
        await listener.stop()
        for tunnel in (*everyone, *made.dialled):
            await tunnel.wait_closed()


def accepting(*protocols: Any) -> Callable[[IncomingStream], None]:
    """Accepts each stream with the next protocol."""
    waiting = list(protocols)
    return lambda incoming: void(incoming.accept(waiting.pop(0)))


def void(_: StreamTransport) -> None:
    """A callback returns nothing."""


async def quiet(*tunnels: Tunnel) -> None:
    """What both ends had to say has arrived: a round trip each way."""
    for tunnel in tunnels:
        await tunnel.ping()

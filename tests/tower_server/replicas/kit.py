"""A server's replica port on loopback, and another server that follows it and passes callers on to it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from certs.ca import Authority
from protocol.aio.pipe import PipeEnd, pipe
from protocol.errors import StreamRefused
from tests.waiting import PATIENCE, until
from tower_server.replicas.directory import Peer
from tower_server.replicas.identity import ReplicaCertificate
from tower_server.replicas.link import Link
from tower_server.replicas.passing import PassedStream
from tower_server.replicas.port import ReplicaPort
from tower_server.replicas.wire import Asking, Held, Passing
from tower_server.state import Verdict

CONNECTED = Verdict("Connected", "True")
AUTHORITY = Authority.create("hq", at=time.time())


def certificate(name: str, authority: Authority = AUTHORITY, *, ahead: float = 0.0) -> ReplicaCertificate:
    """`ahead`: by how many seconds its server's clock is."""
    return ReplicaCertificate(authority, name=name, at=time.time() + ahead)


class End(asyncio.Protocol):
    """Keeps what it is told. Either end of a stream: the member's, or that of whoever relays the caller."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.data = bytearray()
        self.accepted = self.eof = self.over = self.full = False
        self.error: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def stream_accepted(self) -> None:
        self.accepted = True

    def data_received(self, data: Any) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.eof = True
        return True

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def connection_lost(self, exc: Any) -> None:
        self.over, self.error = True, exc


class Tunnel:
    """A tunnel whose far ends are at hand. `refusal` is raised in place of an open; `silent` never accepts."""

    def __init__(self) -> None:
        self.refusal: StreamRefused | None = None
        self.silent = self.stalled = False
        self.opened: list[tuple[str, str, str]] = []
        self.far: list[End] = []

    def start_open(self, service: str, protocol: Any, *, caller: str, connection_id: str) -> PipeEnd:
        if self.refusal is not None:
            raise self.refusal
        self.opened.append((service, caller, connection_id))
        far = End()
        near_end, far.transport = pipe(protocol, far)
        self.far.append(far)
        if not self.silent:
            asyncio.get_running_loop().call_soon(protocol.stream_accepted)
        return near_end


class Host:
    """What a replica port belongs to."""

    def __init__(self) -> None:
        self.ready = True
        self.tunnel: Tunnel | None = Tunnel()
        self.hold = 0.05  # seconds
        self.better = False  # whether there is a tunnel that should be asked in place of this one
        self.in_vain: list[Tunnel] = []  # that were waited for
        self.meant = False
        self.said = {"edge": Held(1, CONNECTED, {"uid": "u"})}
        self.questions: list[Asking] = []
        self.answers: Callable[[Asking], Awaitable[dict[str, Any]]] | None = None

    def held(self) -> dict[str, Held]:
        return self.said

    async def answer(self, asking: Asking) -> dict[str, Any]:
        self.questions.append(asking)
        return {"items": []} if self.answers is None else await self.answers(asking)

    def member(self, cluster: str) -> Any:
        if cluster != "edge":
            return None
        return SimpleNamespace(
            pick=lambda: self.tunnel,
            has_better=lambda _tunnel: self.better,
            hold=SimpleNamespace(seconds=self.hold),
            hopeless=lambda tunnel: tunnel in self.in_vain,
            waited_in_vain=self.in_vain.append,
            ended_by_intent=self.meant,
        )


@asynccontextmanager
async def serving(
    host: Host, name: str = "owner", authority: Authority = AUTHORITY, *, ahead: float = 0.0
) -> AsyncIterator[ReplicaPort]:
    port = ReplicaPort(host, certificate(name, authority, ahead=ahead))
    await port.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        port.stop()
        await until(lambda: not (port.unasked or port.followers or port.passed or port.asked))


def peer(port: ReplicaPort, name: str = "owner") -> Peer:
    return Peer(name, "1", *port.address, "")


class Caller:
    """The server that a caller came to; not following, only passing on."""

    def __init__(self, port: ReplicaPort, *, name: str = "owner", mine: ReplicaCertificate | None = None) -> None:
        self.link = Link(peer(port, name), mine or certificate("other"), lambda _link, _clusters, _why: None)
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Any, name: str) -> object:
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def open(self, end: End, head: Passing | None = None) -> PassedStream:
        end.transport = PassedStream(
            self.link, head or Passing("edge", "kubernetes", "192.0.2.1:5", "c-1"), end, start=self.start
        )
        return end.transport


async def said(port: ReplicaPort, context: ssl.SSLContext, line: bytes) -> bytes:
    """All that the port answers to a line."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(*port.address, ssl=context, server_hostname="owner")
        try:
            writer.write(line)
            return await reader.read()
        except OSError:
            return b""
        finally:
            writer.transport.abort()

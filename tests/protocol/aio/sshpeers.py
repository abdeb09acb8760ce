"""Two ends of the dialect's SSH over a real WebSocket link on loopback, for the tests of the modules below them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from protocol.aio.link import Link
from protocol.aio.ssh import AgentConnection, ServerConnection
from protocol.aio.sshchannel import Channel, ChannelLimits
from protocol.aio.sshlink import SshLink
from protocol.aio.sshoptions import agent_options, server_options
from protocol.flow import Budget, Limits
from tests.waiting import until

MIB = 1024 * 1024


def channel_limits(*, budget: int = 64 * MIB, most: int = 1000, **more: Any) -> ChannelLimits:
    return ChannelLimits(budget=Budget(budget), credit=Limits(max_credit=2 * MIB), most=most, **more)


class Owner:
    """Writes down what a connection brings; channels of the peer go to `take`."""

    def __init__(self, take: Callable[[Channel, bytes], None] | None = None) -> None:
        self.ready = asyncio.Event()
        self.lost = asyncio.Event()
        self.reason = ""
        self.requests: list[tuple[str, bytes]] = []
        self.answer: Callable[[str, bytes], tuple[bool, bytes]] = lambda name, payload: (True, b"")
        self._take = take

    def ssh_ready(self) -> None:
        self.ready.set()

    def ssh_request(self, name: str, payload: bytes, answer: Callable[[bool, bytes], None]) -> None:
        self.requests.append((name, payload))
        answer(*self.answer(name, payload))

    def ssh_opened(self, channel: Channel, target: bytes) -> None:
        if self._take is None:
            channel.refuse(2, "nobody is here")
        else:
            self._take(channel, target)

    def ssh_lost(self, reason: str) -> None:
        self.reason = reason
        self.lost.set()


class Collect(asyncio.Protocol):
    """The end of a channel that keeps what it gets."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.data = bytearray()
        self.accepted = asyncio.Event()
        self.eof = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def stream_accepted(self) -> None:
        self.accepted.set()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.eof.set()
        return True

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)


class Echo(Collect):
    """Sends back what it gets, and ends when the other end does."""

    def data_received(self, data: bytes) -> None:
        self.transport.write(bytes(data))

    def eof_received(self) -> bool:
        return False


@dataclass
class Pair:
    server: ServerConnection
    agent: AgentConnection
    server_owner: Owner
    agent_owner: Owner
    links: list[Link] = field(default_factory=list)

    @property
    def server_link(self) -> Link:
        return self.links[0]


@contextlib.asynccontextmanager
async def connected(
    *,
    take: Callable[[Channel, bytes], None] | None = None,
    server: dict[str, Any] | None = None,
    agent: dict[str, Any] | None = None,
    authenticated: bool = True,
    limits: ChannelLimits | None = None,
    agent_limits: ChannelLimits | None = None,
) -> AsyncIterator[Pair]:
    """Both ends, authenticated unless that is what must fail."""
    loop = asyncio.get_running_loop()
    ours, theirs = await server_options(**(server or {})), await agent_options(**(agent or {}))
    arrived: asyncio.Future[Link] = loop.create_future()

    class Accepted(Link):
        def __init__(self) -> None:
            super().__init__(client=False, private=False, owner=None)  # type: ignore[arg-type]

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            arrived.set_result(self)

    listening = await loop.create_server(Accepted, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    _, client = await loop.create_connection(
        lambda: Link(client=True, private=False, owner=None),  # type: ignore[arg-type]
        "127.0.0.1",
        port,
    )
    accepted = await arrived
    owners = Owner(), Owner(take)
    one = ServerConnection(owners[0], ours, limits or channel_limits())
    two = AgentConnection(owners[1], theirs, agent_limits or channel_limits())
    pair = Pair(one, two, *owners, links=[accepted, client])
    try:
        SshLink(accepted, one, remote="127.0.0.1:1")
        SshLink(client, two, remote="127.0.0.1:2")
        if authenticated:
            async with asyncio.timeout(20):
                await owners[0].ready.wait()
                await owners[1].ready.wait()
        yield pair
    finally:
        listening.close()
        one.end("the test is over")
        two.end("the test is over")
        await asyncio.sleep(0.02)
        await listening.wait_closed()


async def ended(owner: Owner) -> str:
    async with asyncio.timeout(30):
        await owner.lost.wait()
    return owner.reason


async def echoed(pair: Pair, data: bytes) -> bytes:
    """What comes back of it through a channel of its own."""
    end = Collect()
    pair.server.open("echo", end).write(data)
    await until(lambda: len(end.data) >= len(data))
    return bytes(end.data)

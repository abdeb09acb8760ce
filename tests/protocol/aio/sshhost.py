"""A host of `kubesphere-v1` on loopback for tests of the agent's end: a WebSocket upgrade as Go's, then our own SSH."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Callable

from protocol.aio.link import Link
from protocol.aio.proxydial import DialTarget
from protocol.aio.ssh import ServerConnection
from protocol.aio.sshlink import SshLink
from protocol.aio.sshoptions import server_options
from tests.protocol.aio.sshpeers import Owner, channel_limits


class Upgraded(Link):
    """Answers the upgrade without naming the subprotocol, and then hands the link on."""

    def __init__(self, made: Callable[[Link], None]) -> None:
        super().__init__(client=False, private=False, owner=self)
        self._made = made
        self._head: bytes | None = b""

    def received(self, data: memoryview) -> None:
        if self._head is None:
            super().received(data)
            return
        self._head += bytes(data)
        if b"\r\n\r\n" in self._head:
            secret = re.search(rb"(?i)sec-websocket-key: *(\S+)", self._head)
            assert secret
            self._head = None
            proof = hashlib.sha1(secret[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            assert self._transport is not None
            self._transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + base64.b64encode(proof) + b"\r\n\r\n"
            )
            self._made(self)

    def link_received(self, data: memoryview) -> None: ...
    def link_writable(self) -> None: ...
    def link_lost(self, reason: str) -> None: ...


class SshHost:
    """What came: `sessions` and their owners, in order. `answer` says what a global request gets, None: nothing."""

    def __init__(self, port: int) -> None:
        self.target = DialTarget(host="127.0.0.1", port=port, path="", ssl_context=None, proxy_env=False)
        self.sessions: list[ServerConnection] = []
        self.owners: list[HostOwner] = []
        self.links: list[Link] = []
        self.answer: Callable[[str, bytes], tuple[bool, bytes] | None] = lambda name, payload: (True, b"")
        self.silent = False
        self.arrived = asyncio.Condition()

    async def session(self, count: int) -> ServerConnection:
        """The `count`th session, once its agent has asked for something."""
        async with asyncio.timeout(20), self.arrived:
            await self.arrived.wait_for(lambda: sum(bool(owner.requests) for owner in self.owners) >= count)
        return self.sessions[count - 1]


class HostOwner(Owner):
    def __init__(self, host: SshHost) -> None:
        super().__init__()
        self._host = host

    def ssh_request(self, name: str, payload: bytes, answer: Callable[[bool, bytes], None]) -> None:
        self.requests.append((name, payload))
        if (reply := self._host.answer(name, payload)) is not None:
            answer(*reply)
        self.told = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self._host.arrived:
            self._host.arrived.notify_all()


@contextlib.asynccontextmanager
async def ssh_host(context: ssl.SSLContext | None = None) -> AsyncIterator[SshHost]:
    """With a context its port speaks TLS; `target` is then the test's to make."""
    options = await server_options()
    host: SshHost

    def made(link: Link) -> None:
        host.links.append(link)
        if not host.silent:
            host.owners.append(HostOwner(host))
            host.sessions.append(ServerConnection(host.owners[-1], options, channel_limits()))
            SshLink(link, host.sessions[-1], remote="127.0.0.1:1")

    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Upgraded(made), "127.0.0.1", 0, ssl=context)
    host = SshHost(listening.sockets[0].getsockname()[1])
    try:
        yield host
    finally:
        listening.close()
        for session in host.sessions:
            session.end("the test is over")
        for link in host.links:
            link.abort("the test is over")
        await asyncio.sleep(0.02)
        await listening.wait_closed()

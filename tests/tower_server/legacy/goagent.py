"""A stand-in for Go Tower's agent in the test's own loop, and an apiserver behind it.

The real Go peers are processes (tests/interop); this one can stop, lie and break off at every step.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from protocol.aio.link import Link
from protocol.aio.splice import Splice
from protocol.aio.ssh import AgentConnection
from protocol.aio.sshchannel import Channel
from protocol.aio.sshlink import SshLink
from protocol.aio.sshoptions import agent_options
from tests.lab.pki import ClusterCA
from tests.protocol.aio.sshpeers import Owner, channel_limits

DIALECT = "kubesphere-v1"
TOKEN = "ab" * 32
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: tower\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
)


# ---- the member's apiserver and ks-apiserver ------------------------------------------------------------------------


@dataclass
class Request:
    first: str
    headers: dict[str, str]
    body: bytes
    certificate: str | None


@dataclass
class Apiserver:
    """Answers every request with 200 and notes how it came."""

    ca: ClusterCA
    server: asyncio.Server
    raw: asyncio.Server
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    answer: bytes = b"ok"
    refuse_bindings: bool = False
    silent: bool = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    @property
    def raw_address(self) -> str:
        return f"127.0.0.1:{self.raw.sockets[0].getsockname()[1]}"

    def to(self, path: str) -> list[Request]:
        return [each for each in self.requests if f" {path} " in each.first]


@contextlib.asynccontextmanager
async def apiserver(folder: Path) -> AsyncIterator[Apiserver]:
    folder.mkdir(parents=True, exist_ok=True)
    ca = ClusterCA(folder, "member-ca")
    pair = ca.server("apiserver", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=ca.pem.decode())
    found: Apiserver

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        shown = writer.get_extra_info("peercert") or {}
        names = {key: value for part in shown.get("subject", ()) for key, value in part}
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                found.requests.append(Request(head[0], headers, body, names.get("commonName")))
                if found.silent:
                    continue
                status = "201 Created" if head[0].startswith("POST") else "200 OK"
                answer = found.answer
                if found.refuse_bindings and "clusterrolebindings" in head[0]:
                    status, answer = "403 Forbidden", b'{"kind":"Status","message":"not allowed"}'
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data.upper())
                await writer.drain()
        writer.close()

    async with contextlib.AsyncExitStack() as stack:
        tls = await stack.enter_async_context(await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
        raw = await stack.enter_async_context(await asyncio.start_server(echo, "127.0.0.1", 0))
        found = Apiserver(ca, tls, raw)
        yield found


# ---- the agent ------------------------------------------------------------------------------------------------------


def config_of(backend: Apiserver, cluster: str, **changes: Any) -> dict[str, Any]:
    """What a Go agent with a kubeconfig sends; None leaves a key out."""
    pair = backend.ca.client("agent", "agent-of-the-member", ["system:masters"])
    document = {
        "Version": "0.0.0-rc",
        "Name": cluster,
        "Token": TOKEN,
        "KubernetesSvcHost": backend.address,
        "KubeSphereSvcHost": backend.raw_address,
        "CAData": b64(backend.ca.pem),
        "CertData": b64(pair.certificate.read_bytes()),
        "KeyData": b64(pair.key.read_bytes()),
        **changes,
    }
    return {key: value for key, value in document.items() if value is not None}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class _Upgrading(asyncio.Protocol):
    """Reads the answer to the opening handshake and hands the transport to the link."""

    def __init__(self, request: str) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._request = request
        self._seen = b""
        self.link: Link | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(self._request.encode())

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if b"\r\n\r\n" not in self._seen or self.head.done():
            return
        head, _, rest = self._seen.partition(b"\r\n\r\n")
        if b" 101 " in head:
            self.link = Link(client=True, private=False, owner=None)  # type: ignore[arg-type]
            self.rest = rest
            self.transport.pause_reading()
        self.head.set_result(self._seen)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.head.done():
            self.head.set_exception(ConnectionError("no answer to the opening handshake"))
            self.head.exception()


class Refused(Exception):
    """The HTTP answer in place of a WebSocket."""


class GoAgent(Owner):
    """One connection of an agent, step by step: `dial`, `register`, then it dials what it is asked to."""

    def __init__(self, port: int) -> None:
        super().__init__(self._take)
        self.port = port
        self.wire: AgentConnection
        self.link: Link
        self.targets: list[str] = []
        self.serve = True
        self.head = b""
        self._splices: set[Splice] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.answer = lambda name, payload: (False, b"")  # as ssh.DiscardRequests does

    async def upgrade(self, *, path: str = "/", protocol: str = DIALECT) -> Link:
        """The WebSocket alone. Refused with the server's answer."""
        loop = asyncio.get_running_loop()
        upgrading = _Upgrading(UPGRADE.format(path=path, protocol=protocol))
        transport, _ = await loop.create_connection(lambda: upgrading, "127.0.0.1", self.port)
        async with asyncio.timeout(30):
            self.head = await upgrading.head
        if upgrading.link is None:
            transport.abort()
            raise Refused(self.head.decode("latin-1"))
        self.link = upgrading.link
        self._upgraded = transport, upgrading.rest
        return self.link

    async def dial(self, **more: Any) -> Self:
        """Up to SSH's authentication."""
        await self.upgrade(**more)
        self.speak(AgentConnection(self, await agent_options(), channel_limits()))
        async with asyncio.timeout(30):
            await self.ready.wait()
        return self

    def speak(self, wire: AgentConnection) -> None:
        """SSH over the WebSocket that is open."""
        self.wire = wire
        transport, rest = self._upgraded
        self.link.connection_made(transport)
        SshLink(self.link, self.wire, remote="127.0.0.1:0")
        transport.set_protocol(self.link)
        if rest:
            self.link.received(memoryview(rest))
        transport.resume_reading()

    async def register(self, document: Any) -> str:
        """The text of the refusal; empty when it is in, as Go reads it."""
        payload = document if isinstance(document, bytes) else json.dumps(document).encode()
        async with asyncio.timeout(30):
            _, text = await self.wire.request("config", payload)
        return text.decode()

    def _take(self, channel: Channel, target: bytes) -> None:
        self.targets.append(target.decode())
        if self.serve:
            task = asyncio.get_running_loop().create_task(self._relay(channel, target.decode()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _relay(self, channel: Channel, target: str) -> None:
        """Go's order: confirm, then dial, and close in silence when that fails."""
        splice = Splice(on_done=lambda _moved: self._splices.discard(splice))
        self._splices.add(splice)
        channel.accept(splice.first)
        channel.pause_reading()
        host, _, port = target.rpartition(":")
        try:
            await asyncio.get_running_loop().create_connection(lambda: splice.second, host, int(port))
        except OSError:
            channel.close()
            return
        splice.start()
        channel.resume_reading()

    async def end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for splice in list(self._splices):
            splice.abort()
        if hasattr(self, "wire"):
            self.wire.end("the test is over")
        elif hasattr(self, "_upgraded"):
            self._upgraded[0].abort()
        await asyncio.sleep(0.01)

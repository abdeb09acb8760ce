"""A real server in the test's own loop, real agents of the protocol that dial it over TLS, and callers of its ports.

The agent here is a stand-in for the member only: it enrols, proves itself and renews as any agent, and answers
`kubernetes` streams by a few lines of HTTP behind TLS with its serving certificate.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any

from certs.enrolment import AgentEnrolment, EnrolmentReply
from certs.handshake import server_verifier
from certs.keys import PrivateKey, generate_key, key_to_pem, make_csr, signer
from certs.renewal import prove_renewal
from certs.sealing import check_offer
from certs.tls import hardened, load_pair
from certs.token import EnrolmentToken, parse_token
from certs.verify import TrustBundle, load_chain
from daemon.process import Process
from protocol import defaults
from protocol.aio.dial import dial
from protocol.aio.proxydial import DialTarget
from protocol.aio.stream import IncomingStream, StreamTransport
from protocol.aio.tlspump import TlsServerPump
from protocol.aio.tunnel import Closed, Tunnel
from protocol.constants import CONTROL_SERVICE, Code
from protocol.flow import Budget
from protocol.handshake import AgentHandshake
from protocol.messages import Message, MessageReader, encode_message
from tests.tower_server.test_ports import free_range
from tests.waiting import PATIENCE, until
from tower_server.config import ServerConfig
from tower_server.server import Server

Connection = AbstractAsyncContextManager[tuple[asyncio.StreamReader, asyncio.StreamWriter]]

# ---- the server -------------------------------------------------------------------------------------------------


@dataclass
class Running:
    server: Server
    process: Process
    config: ServerConfig
    tunnel_port: int

    @property
    def services(self) -> Any:
        return self.server.services

    def member(self, name: str) -> Any:
        return self.services.registry.members[name]

    async def add(self, name: str, **more: Any) -> EnrolmentToken:
        """Adds a cluster by the admin API; its token."""
        answer = await admin(self, "POST", "/v1/clusters", {"name": name, **more})
        assert answer.status == 201, answer.body
        return parse_token(answer.json()["join"]["token"])

    def port(self, name: str, service: str = "kubernetes") -> int:
        return self.services.clusters.get(name)[0].ports[service]


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Running]:
    """A started server on loopback; it is stopped at the end."""
    with contextlib.ExitStack() as stack:
        tunnel = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        tunnel.setblocking(False)
        port = tunnel.getsockname()[1]
        ports = free_range(8)
        config = ServerConfig.model_validate(
            {
                "host": "hq",
                "public_url": f"wss://localhost:{port}",
                "listen": f"127.0.0.1:{port}",
                "state_dir": str(folder / "state"),
                "admin_socket": str(folder / "admin.sock"),
                "health_address": "127.0.0.1:0",
                "ports": {"range": (ports.first, ports.last), "bind": "127.0.0.1"},
                **settings,
            }
        )
        process = Process(name="tower-server")
        process.listeners = {"tunnel": [tunnel.dup()]}
        server = Server(config, process, version="0.0.0+test")
        await server.start()
        try:
            yield Running(server, process, config, port)
        finally:
            await server.stop()
            await process.tasks.close()


@asynccontextmanager
async def following(server: Running) -> AsyncIterator[None]:
    """The server follows what others write of clusters into its store, as one that shares it does."""
    follow = asyncio.create_task(server.services.clusters.follow())
    try:
        yield
    finally:
        follow.cancel()
        await asyncio.gather(follow, return_exceptions=True)


# ---- admin and callers ------------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Answer:
    """One request on a connection, and its whole answer."""
    async with asyncio.timeout(PATIENCE):
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        if request.startswith(b"HEAD"):
            body = b""
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read()
    return Answer(int(head[0].split()[1]), headers, body)


async def admin(
    server: Running,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    raw: bytes | None = None,
) -> Answer:
    """One call of the admin API over its socket."""
    payload = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
    fields = {"Host": "localhost", "Content-Length": str(len(payload)), **(headers or {})}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
    reader, writer = await asyncio.open_unix_connection(str(server.config.admin_socket))
    try:
        return await exchange(reader, writer, head.encode() + payload)
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # the server hung up on what was still to be sent
            await writer.wait_closed()


def caller_context(server: Running) -> ssl.SSLContext:
    """What a kubeconfig's CA makes of it, for a test to add a certificate to."""
    return ssl.create_default_context(cadata=server.services.authority.bundle.root_pem.decode())


def anonymous(server: Running) -> ssl.SSLContext:
    """The same, made once for all who add nothing."""
    return _anonymous(server.services.authority.bundle.root_pem)


@functools.lru_cache(maxsize=4)
def _anonymous(pem: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=pem.decode())


@asynccontextmanager
async def connection(port: int, **tls: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """To this machine; cut off at the end."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **tls)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def calling(server: Running, name: str) -> Connection:
    """A caller's TLS connection to a cluster's port, verified under the member's name."""
    return connection(server.port(name), ssl=anonymous(server), server_hostname=f"{name}.members.tower")


async def call(server: Running, name: str, path: str = "/version", *, method: str = "GET") -> Answer:
    async with calling(server, name) as (reader, writer):
        return await exchange(reader, writer, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


# ---- the agent --------------------------------------------------------------------------------------------------


async def http(server: Running, method: str, target: str, body: bytes = b"") -> Answer:
    """A plain request on the tunnel port."""
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    async with connection(server.tunnel_port, ssl=anonymous(server), server_hostname="localhost") as (reader, writer):
        return await exchange(reader, writer, head.encode() + body)


class Refused(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.body)
        self.answer = answer
        self.code = answer.json()["code"]


@dataclass
class Identity:
    """What an enrolment gave."""

    key: PrivateKey
    serving_key: PrivateKey
    reply: EnrolmentReply

    @functools.cached_property
    def serving_context(self) -> ssl.SSLContext:
        context = hardened(ssl.PROTOCOL_TLS_SERVER)
        load_pair(context, chain_pem=self.reply.serving_chain, key_pem=key_to_pem(self.serving_key))
        return context


async def enrol(
    server: Running,
    token: EnrolmentToken,
    *,
    key: PrivateKey | None = None,
    serving_key: PrivateKey | None = None,
) -> Identity:
    """Joins as an agent does; `Refused` when the server says no."""
    key, serving_key = key or generate_key(), serving_key or generate_key()
    offer = check_offer((await http(server, "GET", f"/v1/enrolment?token={token.id}")).body, ca=token.ca, at=time())
    exchange = AgentEnrolment(offer, token, csr=make_csr(key), serving_csr=make_csr(serving_key))
    answer = await http(server, "POST", "/v1/enrolment", exchange.request)
    if answer.status != 200:
        raise Refused(answer)
    reply, _ = exchange.open_reply(
        answer.body, public_key=key.public_key(), serving_key=serving_key.public_key(), at=time()
    )
    return Identity(key, serving_key, reply)


Respond = Callable[[bytes], tuple[int, bytes]]


def healthy(_head: bytes) -> tuple[int, bytes]:
    return 200, b"ok"


@dataclass
class Agent:
    """A member's end of one tunnel. `respond(head)` answers each request; None accepts no stream."""

    server: Running
    identity: Identity
    respond: Respond | None = healthy
    instance: str = field(default_factory=lambda: secrets.token_hex(4))
    refusal: tuple[Code, str] | None = None
    tunnel: Tunnel | None = None
    control: Control | None = None
    closed: list[Closed] = field(default_factory=list)
    incoming: list[IncomingStream] = field(default_factory=list)
    raw: Callable[[IncomingStream], None] | None = None
    features: Iterable[str] = ("ack",)

    async def connect(self, *, resume: Tunnel | None = None) -> Tunnel:
        reply = self.identity.reply
        bundle = TrustBundle.from_pem(reply.trust)
        handshake = AgentHandshake(
            cluster=reply.cluster,
            instance=self.instance,
            chain=load_chain(reply.chain),
            sign=signer(self.identity.key),
            verify=server_verifier(bundle, time),
            nonce=secrets.token_bytes(32),
            features=self.features,
            software="test",
        )
        target = DialTarget(host="127.0.0.1", port=self.server.tunnel_port, ssl_context=anonymous(self.server))
        self.tunnel = await dial(
            target,
            handshake=handshake,
            instance=self.instance,
            budget=Budget(defaults.PROCESS_BUDGET),
            on_stream=self._on_stream,
            resume=resume,
        )
        self.tunnel.on_closed = lambda _tunnel, closed: self.closed.append(closed)
        if self.tunnel.closed is not None:  # by what came right behind WELCOME
            self.closed.append(self.tunnel.closed)
        return self.tunnel

    def _on_stream(self, incoming: IncomingStream) -> None:
        self.incoming.append(incoming)
        if incoming.service == CONTROL_SERVICE:
            self.control = Control()
            incoming.accept(self.control)
        elif self.raw is not None and incoming.service != "kubernetes":
            self.raw(incoming)
        elif self.refusal is not None:
            incoming.refuse(*self.refusal)
        elif self.respond is not None:
            context, respond = self.identity.serving_context, self.respond
            incoming.accept(TlsServerPump(context, lambda: _Http(respond)))

    async def report(self, **fields: Any) -> None:
        """Sends a status."""
        await until(lambda: self.control is not None)
        assert self.control is not None
        self.control.send("status", **fields)

    async def close(self) -> None:
        if self.tunnel is not None:
            self.tunnel.close(Code.SHUTDOWN, "the agent stops")
            await self.tunnel.wait_closed()
            await asyncio.sleep(0)


def renewal(
    identity: Identity, *, key: PrivateKey | None = None, serving_key: PrivateKey | None = None
) -> dict[str, str]:
    """The fields of a `renew` message as the agent writes them; without other keys for those that it has."""
    reply = identity.reply
    csr, serving = make_csr(key or identity.key), make_csr(serving_key or identity.serving_key)
    proof = prove_renewal(
        signer(identity.key), host=reply.host, cluster=reply.cluster, agent=reply.agent, csr=csr, serving_csr=serving
    )
    return {"csr": csr.decode(), "serving_csr": serving.decode(), "proof": base64.b64encode(proof).decode()}


class Control(asyncio.Protocol):
    """The agent's end of the control stream; keeps what it hears."""

    def __init__(self) -> None:
        self._reader = MessageReader()
        self.heard: list[Message] = []
        self.transport: StreamTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.heard += self._reader.feed(data)

    def send(self, kind: str, **fields: Any) -> None:
        assert self.transport is not None
        self.transport.write(encode_message(kind, **fields))

    def eof_received(self) -> bool:
        return False

    def of(self, kind: str) -> list[Message]:
        return [message for message in self.heard if message["type"] == kind]


class _Http(asyncio.Protocol):
    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._head += bytes(data)
        while b"\r\n\r\n" in self._head:
            head, _, self._head = self._head.partition(b"\r\n\r\n")
            status, body = self._respond(head)
            answer = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            self._transport.write(answer)  # type: ignore[attr-defined]

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None: ...


@asynccontextmanager
async def joined(server: Running, name: str, **agent: Any) -> AsyncIterator[Agent]:
    """A cluster with one connected agent."""
    token = await server.add(name)
    made = Agent(server, await enrol(server, token), **agent)
    await made.connect()
    try:
        yield made
    finally:
        await made.close()


# ---- raw bytes --------------------------------------------------------------------------------------------------


def raw(server: Running, name: str, service: str = "kubernetes") -> Connection:
    return connection(server.port(name, service))


class Echo(asyncio.Protocol):
    """Sends back what comes, then the end."""

    def __init__(self):
        self.lost = asyncio.get_running_loop().create_future()
        self.received = 0

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += len(data)
        self.transport.write(bytes(data))

    def pause_writing(self):
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()

    def eof_received(self):
        self.transport.write_eof()
        return True

    def connection_lost(self, exc):
        if not self.lost.done():
            self.lost.set_result(exc)


def raw_kubernetes(agent: Agent, protocol) -> None:
    """Lets the agent answer `kubernetes` streams by a raw protocol in place of TLS."""
    before = agent._on_stream

    def on_stream(incoming: IncomingStream) -> None:
        if incoming.service == "kubernetes" and incoming.caller != "tower:probe":
            agent.incoming.append(incoming)
            incoming.accept(protocol())
        else:
            before(incoming)

    agent.tunnel.on_stream = on_stream

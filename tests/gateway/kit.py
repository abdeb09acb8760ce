"""What the gateway's tests share: a host's CA, a recording apiserver under TLS, a gateway between, raw callers."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from certs.ca import Authority
from certs.keys import generate_key, key_to_pem
from certs.revocation import RevocationList
from certs.tls import ClientTrust, callers_context, client_context
from certs.verify import ClientIdentity
from gateway.audit import RequestRecord
from gateway.policy import Policy
from gateway.proxy import Gateway
from gateway.tls import Apiserver
from gateway.upstream import Upstreams
from tests.lab.pki import ClusterCA

HOST = "demo"
CLUSTER = "member"
ADMIN = f"tower:{HOST}:admin"
ADMINS = f"tower:{HOST}:cluster-admins"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

Answer = Callable[["Apiside"], Awaitable[None]]


@dataclass
class Apiside:
    """One connection as the apiserver sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: FakeApiserver

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_gone(self) -> bytes:
        """All that still comes until the gateway drops the connection, in whatever way."""
        seen = b""
        try:
            while data := await self.reader.read(65536):
                seen += data
        except ConnectionError:
            pass
        return seen


def always(answer: bytes) -> Answer:
    """Answers every bodiless request with this."""

    async def serve(side: Apiside) -> None:
        while True:
            try:
                side.server.heads.append(await side.head())
            except asyncio.IncompleteReadError as error:
                side.server.rest += error.partial
                return
            await side.say(answer)

    return serve


always_ok = always(OK)


@dataclass
class FakeApiserver:
    """A TLS server that notes what reaches it and answers by script."""

    answer: Answer = always_ok
    heads: list[bytes] = field(default_factory=list)
    rest: bytes = b""
    certificates: list[bytes | None] = field(default_factory=list)
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, context: ssl.SSLContext) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.certificates.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        try:
            await self.answer(Apiside(reader, writer, self))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()


class Recorder:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.tls: list[tuple[str, str]] = []
        self.seen = asyncio.Event()

    def request(self, record: RequestRecord) -> None:
        self.records.append(record)
        self.seen.set()

    def tls_failed(self, failure: str, text: str, caller_address: str, connection_id: str) -> None:
        self.tls.append((failure, text))
        self.seen.set()

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.records) + len(self.tls) < count:
                self.seen.clear()
                await self.seen.wait()


@dataclass
class Caller:
    """A raw TLS client: it may say anything."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        async with asyncio.timeout(30):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(30):
            return await self.reader.readexactly(size)

    async def answer(self) -> tuple[bytes, bytes]:
        """Head and body of one answer with a Content-Length."""
        head = await self.head()
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return head, await self.read(length)

    async def rest(self) -> bytes:
        """Everything until the gateway closes."""
        async with asyncio.timeout(30):
            return await self.reader.read()

    async def until_gone(self) -> bytes:
        """What still comes until the connection ends, in whatever way."""
        try:
            return await self.rest()
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.transport.abort()


class Pki:
    """The certificates of a host and of its member, made once for a test session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(HOST, at=time.time())
        self.cluster = ClusterCA(folder, "cluster-ca")
        self.foreign = ClusterCA(folder, "foreign-ca")
        self.apiserver = self.cluster.server("apiserver", ["127.0.0.1", "localhost"])
        self.agent = self.cluster.client("agent", "agent", ["system:masters"])
        key = generate_key()
        now = time.time()
        self.serving = self._write(
            "serving", self.authority.issue_serving(CLUSTER, public_key=key.public_key(), at=now), key
        )
        self.root = folder / "root.pem"
        self.root.write_bytes(self.authority.bundle.root_pem)
        self._clients: dict[object, tuple[str, str]] = {}

    def _write(self, name: str, issued: object, key: object) -> tuple[str, str]:
        crt, pem = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        crt.write_bytes(issued.chain_pem)
        pem.write_bytes(key_to_pem(key))
        return str(crt), str(pem)

    def client(self, user: str = ADMIN, groups: tuple[str, ...] = (ADMINS,), *, at: float = 0, ttl: float = 3600):
        found = self._clients.get((user, groups, at, ttl))
        if found is None:
            key = generate_key()
            issued = self.authority.issue_client(
                user, groups, public_key=key.public_key(), at=at or time.time(), ttl=ttl
            )
            found = self._write(f"client-{len(self._clients)}", issued, key)
            self._clients[(user, groups, at, ttl)] = found
        return found

    def agent_identity(self) -> tuple[str, str]:
        key = generate_key()
        issued = self.authority.issue_agent(CLUSTER, "agent-0", public_key=key.public_key(), at=time.time())
        return self._write("agent-identity", issued, key)

    def apiserver_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.apiserver.certificate, self.apiserver.key)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=self.cluster.pem.decode())
        return context

    def caller_context(self, certificate: tuple[str, str] | None = None) -> ssl.SSLContext:
        context = client_context(ClientTrust(ca_file=str(self.root)))
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context


class World:
    """A gateway on a loopback port in front of a recording apiserver."""

    def __init__(self, pki: Pki) -> None:
        self.pki = pki
        self.apiserver = FakeApiserver()
        self.seen = Recorder()
        self.revoked: RevocationList | None = None
        self.now = time.time
        self.port = 0
        self.gateway: Gateway = None  # type: ignore[assignment]
        self._callers: list[Caller] = []

    def verify(self, chain: list[bytes]) -> ClientIdentity:
        return self.pki.authority.bundle.verify_client(chain, self.now(), revocations=self.revoked)

    def check(self, identity: ClientIdentity) -> None:
        identity.check(self.now(), self.revoked)

    async def call(self, certificate: tuple[str, str] | None = None) -> Caller:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.pki.caller_context(certificate), server_hostname=f"{CLUSTER}.members.tower"
        )
        caller = Caller(reader, writer)
        self._callers.append(caller)
        return caller

    async def ask(self, request: bytes, certificate: tuple[str, str] | None = None) -> bytes:
        """What the gateway answers to `request` on a connection of its own, until it closes."""
        caller = await self.call(certificate)
        await caller.say(request)
        answer = await caller.rest()
        caller.close()
        return answer

    def hang_up(self) -> None:
        for caller in self._callers:
            caller.close()


@asynccontextmanager
async def world(
    pki: Pki,
    *,
    answer: Answer = always_ok,
    policy: Policy | None = None,
    agent_certificate: bool = False,
    token: bytes = b"Bearer own-token",
    limit: int = 100,
    head_deadline: float = 20.0,
    dial_deadline: float = 20.0,
    dial_port: int | None = None,
    ca_pem: str | None = None,
) -> AsyncIterator[World]:
    made = World(pki)
    made.apiserver.answer = answer
    await made.apiserver.start(pki.apiserver_context())
    upstreams = Upstreams(
        Apiserver("127.0.0.1", dial_port or made.apiserver.port, ca_pem=ca_pem or pki.cluster.pem.decode()),
        authorization=None if agent_certificate else lambda: token,
        certificate_file=str(pki.agent.certificate) if agent_certificate else None,
        key_file=str(pki.agent.key) if agent_certificate else None,
        limit=limit,
        dial_deadline=dial_deadline,
    )
    made.gateway = Gateway(
        context=callers_context(
            pki.authority.bundle,
            chain_pem=Path(pki.serving[0]).read_bytes(),
            key_pem=Path(pki.serving[1]).read_bytes(),
        ),
        upstreams=upstreams,
        policy=policy or Policy.default(HOST),
        verify_client=made.verify,
        check_client=made.check,
        observer=made.seen,
        cluster=CLUSTER,
        clock=lambda: made.now(),
        head_deadline=head_deadline,
        handshake_deadline=20.0,
    )
    made.gateway.start()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(made.gateway.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.hang_up()
        server.close()
        await made.gateway.close()
        await made.apiserver.stop()
        await server.wait_closed()


AUTH = b"Host: x\r\nAuthorization: Bearer theirs\r\n"
GET = b"GET /api HTTP/1.1\r\n" + AUTH + b"\r\n"
WATCH = b"GET /api/v1/pods?watch=true HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED_OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /exec HTTP/1.1\r\n" + AUTH + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def status_of(answer: bytes) -> dict:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head, answer
    document = json.loads(body)
    assert document["kind"] == "Status"
    assert document["code"] == int(head.split(b" ")[1])
    return document

"""A small HTTPS server for the agent's tests: real TLS on loopback, answers by the test, requests kept."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PEM = serialization.Encoding.PEM


@dataclass
class Pki:
    """A throw-away authority with a server certificate for 127.0.0.1 and a client certificate."""

    folder: Path
    name: str = "Member CA"
    lasts: timedelta = timedelta(hours=1)
    ca_pem: bytes = b""
    client_pem: bytes = b""
    client_key: bytes = b""
    server: ssl.SSLContext = field(default_factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)])
        ca = self._sign(
            self._subject, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.ca_pem = ca.public_bytes(PEM)
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        key, certificate = self._leaf("apiserver", names)
        file = self.folder / f"{self.name}.pem".replace(" ", "-")
        file.write_bytes(key + certificate)
        self.server.load_cert_chain(file)
        self.server.load_verify_locations(cadata=self.ca_pem.decode())
        self.server.verify_mode = ssl.CERT_OPTIONAL
        usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH])
        self.client_key, self.client_pem = self._leaf("tower-agent", usage)

    def _leaf(self, name: str, extension: x509.ExtensionType) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), extension, critical=False)
        pem = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return pem, certificate.public_bytes(PEM)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType, *, critical: bool
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(subject_name=subject, issuer_name=self._subject, public_key=key)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=critical)
        builder = builder.not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + self.lasts)
        return builder.sign(self._key, hashes.SHA256())


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    client: str | None

    def json(self) -> object:
        return json.loads(self.body)


Answer = tuple[int, object]
Respond = Callable[[Request], Answer]


@dataclass
class Backend:
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    respond: Respond = lambda _request: (200, {})


@asynccontextmanager
async def backend(respond: Respond, context: ssl.SSLContext | None) -> AsyncIterator[Backend]:
    """Serve `respond` on loopback; bytes are sent as they are, anything else as JSON, None never."""
    served = Backend(respond=respond)
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while True:
                await exchange(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the agent hung up, or the test is over
        finally:
            writer.transport.abort()
            tasks.discard(task)

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        peer = writer.get_extra_info("peercert")
        client = dict(pair[0] for pair in peer["subject"])["commonName"] if peer else None
        request = Request(method, path, headers, body, client)
        served.requests.append(request)
        status, content = served.respond(request)
        if content is None:
            await reader.read()  # silence, until the agent hangs up
            raise ConnectionResetError
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        await writer.drain()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def write_kubeconfig(path: Path, server: str, ca: bytes, user: dict[str, object]) -> Path:
    """A kubeconfig with one context."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "member",
        "contexts": [{"name": "member", "context": {"cluster": "member", "user": "agent"}}],
        "clusters": [
            {
                "name": "member",
                "cluster": {"server": server, "certificate-authority-data": base64.b64encode(ca).decode()},
            }
        ],
        "users": [{"name": "agent", "user": user}],
    }
    path.write_text(yaml.safe_dump(document))
    return path

"""The way out against real sockets: direct, through proxies, and broken at each hop."""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs.tls import ClientTrust, client_context
from protocol.aio import proxydial
from protocol.aio.hops import DialError, Hop
from protocol.aio.proxydial import DialTarget, certificate_chain, open_connection, parse_url
from protocol.aio.tlsfailure import BUSY_ALERT
from protocol.constants import Code
from protocol.defaults import COME_BACK
from tests.waiting import until

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]


@dataclass
class Authority:
    """A throw-away CA with one leaf for 127.0.0.1 and `tower.test`."""

    ca_pem: str
    server: ssl.SSLContext

    def client(self) -> ssl.SSLContext:
        return client_context(ClientTrust(ca_pem=self.ca_pem.encode()))


def make_authority(folder: Path, name: str) -> Authority:
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    leaf_key = ec.generate_private_key(ec.SECP256R1())

    def builder(who: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(subject_name=who, issuer_name=subject, public_key=public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=1))
        )

    ca = (
        builder(subject, key.public_key())
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("tower.test")])
    leaf_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf")])
    leaf = builder(leaf_name, leaf_key.public_key()).add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    file = folder / f"{name}.pem"
    file.write_bytes(
        leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + leaf.public_bytes(pem)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return Authority(ca.public_bytes(pem).decode(), server)


@pytest.fixture
def tower(tmp_path: Path) -> Authority:
    return make_authority(tmp_path, "Tower CA")


@asynccontextmanager
async def serving(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()


class ConnectProxy:
    """A CONNECT proxy that keeps what it was asked."""

    def __init__(self, answer: bytes | None = None) -> None:
        self.heads: list[bytes] = []
        self.answer = answer

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.answer is not None:
            writer.write(self.answer)
            await writer.drain()
            return
        _, port = head.split(b" ")[1].rsplit(b":", 1)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass  # the far end went away: the test looks at the ends
            finally:
                sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


class Collector(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.got: asyncio.Queue[bytes] = asyncio.Queue()
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got.put_nowait(bytes(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def round_trip(target: DialTarget) -> tuple[list[Hop], list[bytes]]:
    hops: list[Hop] = []
    transport, protocol = await open_connection(target, Collector, on_hop=hops.append)
    assert protocol.transport is transport
    transport.write(b"hello")
    assert await asyncio.wait_for(protocol.got.get(), 30) == b"hello"
    chain = certificate_chain(transport)
    transport.abort()
    await asyncio.wait_for(protocol.lost.wait(), 30)
    return hops, chain


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., object]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def runner(coroutine: object) -> object:
        with asyncio.Runner(loop_factory=factory) as loop:
            return loop.run(coroutine)  # type: ignore[arg-type]

    return runner


def test_directly(run: Callable[..., object], tower: Authority) -> None:
    async def scenario() -> None:
        async with serving(echo, tower.server) as port:
            hops, chain = await round_trip(DialTarget(host="127.0.0.1", port=port, ssl_context=tower.client()))
            assert [hop.name for hop in hops] == ["dns", "tcp", "tls"]
            assert "Tower CA" in hops[-1].evidence
            assert len(chain) >= 1
        async with serving(echo) as port:
            hops, chain = await round_trip(DialTarget(host="127.0.0.1", port=port, ssl_context=None))
            assert [hop.name for hop in hops] == ["dns", "tcp"]
            assert chain == []

    run(scenario())


def test_a_proxy_of_a_company_is_trusted_by_the_systems_authorities(
    run: Callable[..., object], tower: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of companies often lack the key identifiers that Python's own default asks for from 3.13 on."""

    async def scenario() -> None:
        async with serving(echo) as port, serving(ConnectProxy(), tower.server) as proxy_port:
            proxy = f"https://127.0.0.1:{proxy_port}"
            hops, _ = await round_trip(DialTarget(host="127.0.0.1", port=port, ssl_context=None, proxy=proxy))
            assert hops[-1].name == "proxy"

    file = tmp_path / "system.pem"
    file.write_text(tower.ca_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    run(scenario())


@pytest.mark.parametrize("secured", [False, True], ids=["http-proxy", "https-proxy"])
def test_through_a_proxy(run: Callable[..., object], tower: Authority, secured: bool) -> None:
    async def scenario() -> None:
        proxy = ConnectProxy()
        scheme = "https" if secured else "http"
        async with (
            serving(echo, tower.server) as port,
            serving(echo) as plain_port,
            serving(proxy, tower.server if secured else None) as proxy_port,
        ):
            url = f"{scheme}://user:secret@127.0.0.1:{proxy_port}"
            trust = tower.client()
            hops, _ = await round_trip(
                DialTarget(host="127.0.0.1", port=port, ssl_context=trust, proxy=url, proxy_ssl_context=trust)
            )
            assert [hop.name for hop in hops] == ["dns", "tcp", "proxy", "tls"]
            assert hops[2].evidence == f"{scheme}://127.0.0.1:{proxy_port} CONNECT 200"
            assert proxy.heads[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode())
            assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in proxy.heads[0]
            await round_trip(
                DialTarget(host="127.0.0.1", port=plain_port, ssl_context=None, proxy=url, proxy_ssl_context=trust)
            )

    run(scenario())


async def refused(target: DialTarget) -> DialError:
    with pytest.raises(DialError) as caught:
        await open_connection(target, Collector)
    return caught.value


def test_a_wrong_authority_is_named(run: Callable[..., object], tower: Authority, tmp_path: Path) -> None:
    async def scenario() -> None:
        middle = make_authority(tmp_path, "Corp Inspection CA")
        async with serving(echo, middle.server) as port, serving(ConnectProxy()) as proxy_port:
            for proxy in (None, f"http://127.0.0.1:{proxy_port}"):
                error = await refused(
                    DialTarget(
                        host="127.0.0.1",
                        port=port,
                        ssl_context=tower.client(),
                        expected_ca="tower CA sha256:9f2c",
                        proxy=proxy,
                    )
                )
                assert (error.hop, error.peer_ca) == ("tls", "Corp Inspection CA")
                assert f"127.0.0.1:{port}" in error.text
                assert "its chain ends at 'Corp Inspection CA', expected tower CA sha256:9f2c" in error.text

    run(scenario())


def test_who_is_not_trusted_gets_no_key_exchange_that_the_target_leaves_out(
    run: Callable[..., object], tower: Authority, tmp_path: Path
) -> None:
    """A group of 8192 bits, of a stranger's choice, would stop the whole process for half a second."""

    async def scenario() -> None:
        chosen: list[str] = []

        async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            chosen.append(writer.get_extra_info("cipher")[0])

        costly, allowed = "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-GCM-SHA256"
        context = make_authority(tmp_path, "Corp Inspection CA").server
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_ciphers(f"{costly}:{allowed}")
        trust = tower.client()
        trust.set_ciphers(allowed)
        async with serving(stranger, context) as port:
            error = await refused(DialTarget(host="127.0.0.1", port=port, ssl_context=trust))
            await until(lambda: chosen)
        assert error.peer_ca == "Corp Inspection CA"
        assert chosen == [allowed]

    run(scenario())


def test_a_proxy_that_is_not_trusted_is_named_and_leaves_nothing_behind(
    run: Callable[..., object], tower: Authority, tmp_path: Path
) -> None:
    async def scenario() -> None:
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        async with serving(ConnectProxy(), make_authority(tmp_path, "Other CA").server) as port:
            trust, url = tower.client(), f"https://127.0.0.1:{port}"
            error = await refused(
                DialTarget(host="tower.test", port=1, ssl_context=trust, proxy=url, proxy_ssl_context=trust)
            )
        assert error.hop == "proxy"
        assert error.text.startswith(f"the certificate of the proxy {url} is not trusted")
        del error
        gc.collect()
        assert reported == []

    run(scenario())


def test_a_wrong_name_and_a_plain_server_break_at_tls(run: Callable[..., object], tower: Authority) -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(BUSY_ALERT)
        await writer.drain()

    async def scenario() -> None:
        async with serving(echo, tower.server) as port:
            target = DialTarget(host="127.0.0.1", port=port, ssl_context=tower.client(), server_hostname="other.test")
            error = await refused(target)
            assert error.hop == "tls"
            assert "other.test" in error.text
        async with serving(garbage) as port:
            error = await refused(DialTarget(host="127.0.0.1", port=port, ssl_context=tower.client()))
            assert error.hop == "tls"
            assert error.text == f"127.0.0.1:{port} does not speak TLS"
        async with serving(silent) as port:
            error = await refused(DialTarget(host="127.0.0.1", port=port, ssl_context=tower.client(), tls_deadline=0.3))
            assert error.hop == "tls"
            assert "within 0.3 s" in error.text
        async with serving(full) as port:
            error = await refused(DialTarget(host="127.0.0.1", port=port, ssl_context=tower.client()))
            assert (error.hop, error.code, error.retry_after) == ("tls", Code.BUSY, COME_BACK)
            assert error.text.startswith(f"127.0.0.1:{port} has no room for another TLS handshake now")

    run(scenario())


@pytest.mark.parametrize(
    ("answer", "told", "code"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "it wants a user and password", 407),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "its rules forbid this destination", 403),
        (b"HTTP/1.1 502 Bad Gateway\r\nRetry-After: 7\r\n\r\n", "502 Bad Gateway", 502),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "which is not HTTP/1.1", None),
        (b"HTTP/1.1 200 OK\r\n\r\nsurprise", "sent bytes that nobody asked for", None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000, "more than 16384 bytes", None),
        (b"", "closed the connection without an answer", None),
    ],
)
def test_a_proxy_that_refuses(
    run: Callable[..., object], tower: Authority, answer: bytes, told: str, code: int | None
) -> None:
    async def scenario() -> None:
        async with serving(ConnectProxy(answer)) as proxy_port:
            error = await refused(
                DialTarget(
                    host="tower.test", port=8443, ssl_context=tower.client(), proxy=f"http://127.0.0.1:{proxy_port}"
                )
            )
            assert (error.hop, error.code) == ("proxy", code)
            assert error.retry_after == (7.0 if b"Retry-After" in answer else None)
            assert told in error.text
            assert "tower.test:8443" in error.text

    run(scenario())


def test_dns_and_tcp_failures_name_what_was_tried(run: Callable[..., object], tower: Authority) -> None:
    async def scenario() -> None:
        error = await refused(DialTarget(host="tower.invalid", port=8443, ssl_context=tower.client(), proxy_env=False))
        assert error.hop == "dns"
        assert "'tower.invalid' cannot be resolved" in error.text
        async with serving(echo) as port:
            pass
        error = await refused(DialTarget(host="127.0.0.1", port=port, ssl_context=tower.client()))
        assert error.hop == "tcp"
        assert error.text == f"cannot connect to 127.0.0.1:{port} (127.0.0.1: Connection refused)"
        error = await refused(
            DialTarget(host="tower.test", port=1, ssl_context=tower.client(), proxy=f"http://127.0.0.1:{port}")
        )
        assert error.hop == "proxy"
        assert "cannot be reached: tcp:" in error.text

    run(scenario())


class _Lost(asyncio.Transport):
    """What uvloop's TLS transport is like once its connection is gone."""

    def abort(self) -> None: ...


def test_a_connection_lost_in_the_turn_of_its_handshake_breaks_at_tls(
    run: Callable[..., object], tower: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_tls = proxydial._start_tls

    async def then_lost(*given: Any) -> asyncio.Transport:
        (await start_tls(*given)).abort()
        return _Lost()

    monkeypatch.setattr(proxydial, "_start_tls", then_lost)

    async def scenario() -> None:
        async with serving(echo, tower.server) as port:
            with pytest.raises(DialError, match="closed the connection right after the TLS handshake") as failed:
                await round_trip(DialTarget(host="127.0.0.1", port=port, ssl_context=tower.client()))
            assert failed.value.hop == "tls"

    run(scenario())


def test_server_addresses() -> None:
    assert parse_url("wss://tower.example.com:8443/base/") == parse_url("https://tower.example.com:8443/base")
    assert parse_url("ws://[::1]").host == "::1"
    assert parse_url("ws://[::1]").port == 80
    for wrong in ("tower.example.com:8443", "ftp://tower", "wss://"):
        with pytest.raises(ValueError, match=r"wss://tower\.example\.com:8443"):
            parse_url(wrong)
    with pytest.raises(ValueError, match="no user name"):
        parse_url("wss://me:hidden@tower")
    for none in (f"wss://{'x' * 70}.example", "wss://tower..example"):
        with pytest.raises(ValueError, match="names no host"):
            parse_url(none)


def test_a_name_of_other_letters_is_dialled_as_dns_spells_it_through_a_proxy_too(run: Callable[..., object]) -> None:
    async def scenario() -> None:
        proxy = ConnectProxy(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        async with serving(proxy) as port:
            url = parse_url("ws://t\u00f6wer.test:8080")
            target = DialTarget(host=url.host, port=url.port, ssl_context=None, proxy=f"http://127.0.0.1:{port}")
            assert (await refused(target)).code == 502
        assert proxy.heads[0].startswith(b"CONNECT xn--twer-5qa.test:8080 HTTP/1.1\r\n")

    run(scenario())

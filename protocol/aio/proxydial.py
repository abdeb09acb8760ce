"""The way out: name lookup, TCP, an HTTP proxy where one stands in between, TLS.

`open_connection` attaches a protocol to the far end of that way. Every failure is a `DialError` that names the hop
(dns, tcp, proxy, tls) with plain evidence: who was dialled, what came back, where a certificate chain ends. Each hop
has a deadline of its own. Nothing secret leaves before TLS is verified; after a failed verification one more connection
reads the chain, so that the error can name who stands in the middle, and is closed without a byte sent over it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar, cast
from urllib.parse import urlsplit

from cryptography import x509

from protocol import defaults
from protocol.aio.hops import DialError, Hop, OnHop, asked_to_wait, reason, unnoted
from protocol.aio.proxyenv import BadProxy, Proxy, bracketed, parse_proxy, proxy_from_environment
from protocol.aio.tcpdial import connect_tcp
from protocol.aio.tlsfailure import BUSY_REASON, out_of_time
from protocol.constants import Code

P = TypeVar("P", bound=asyncio.BaseProtocol)

MAX_PROXY_HEAD_BYTES: Final = 16 * 1024
_PORTS: Final = {"wss": 443, "ws": 80, "https": 443, "http": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class DialTarget:
    """Where to dial and by which way.

    `ssl_context` None means plain TCP to the server, which callers choose by name (`ws://`) only. `proxy` wins over the
    environment; `expected_ca` says in words where the server's chain should end, for the error text.
    """

    host: str
    port: int
    path: str = defaults.TUNNEL_PATH
    ssl_context: ssl.SSLContext | None
    server_hostname: str | None = None
    proxy: str | None = None
    proxy_env: bool = True
    proxy_ssl_context: ssl.SSLContext | None = None
    expected_ca: str = ""
    deadline: float = defaults.DIAL_DEADLINE
    after: str = ""  # an address that led nowhere: see `tcpdial`
    tls_deadline: float = defaults.HANDSHAKE_DEADLINE  # a server under a storm takes its agents one after the other

    @property
    def authority(self) -> str:
        """host:port, as it stands in a CONNECT line and in texts."""
        return f"{bracketed(self.host)}:{self.port}"

    def route(self, environ: Mapping[str, str] | None = None) -> Proxy | None:
        """The proxy on the way, or None; raises DialError at hop proxy for a setting that cannot be used."""
        try:
            if self.proxy:
                return parse_proxy(self.proxy)
            if not self.proxy_env:
                return None
            return proxy_from_environment(
                self.host,
                self.port,
                tls=self.ssl_context is not None,
                environ=os.environ if environ is None else environ,
            )
        except BadProxy as error:
            raise DialError("proxy", str(error)) from error


@dataclass(frozen=True, slots=True)
class Url:
    """The parts of a server's address that dialling needs."""

    tls: bool
    host: str
    port: int
    path: str


def parse_url(url: str) -> Url:
    """Split `wss://host:port/path` (https too; ws and http for the plain way); ValueError says what is wrong."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is not a server address: it must look like wss://tower.example.com:8443")
    if parts.username is not None:
        raise ValueError("a server address carries no user name or password")
    try:
        host = parts.hostname.encode("idna").decode("ascii")  # as DNS, TLS and a CONNECT line have it
    except UnicodeError as error:
        raise ValueError(f"{url!r} names no host: {error}") from error
    return Url(scheme in {"wss", "https"}, host, parts.port or _PORTS[scheme], parts.path.rstrip("/"))


async def open_connection(
    target: DialTarget, protocol_factory: Callable[[], P], *, on_hop: OnHop | None = None
) -> tuple[asyncio.Transport, P]:
    """Walk the way to `target` and attach `protocol_factory()` at its end; raises DialError."""
    note = on_hop or unnoted
    proxy = target.route()
    if proxy is None:
        sock = await connect_tcp(target.host, target.port, target.deadline, note, after=target.after)
        if target.ssl_context is None:
            return await _adopt(sock, protocol_factory)
        transport, _idle = await _adopt(sock, _Idle)
    else:
        transport = await _through_proxy(proxy, target, note)
        if target.ssl_context is None:
            return transport, _attach(transport, protocol_factory)
    started = time.monotonic()
    try:
        secured = await _start_tls(transport, target.ssl_context, target)
    except ssl.SSLCertVerificationError as error:
        ends_at = await _chain_end(target, proxy)
        raise DialError("tls", _untrusted(error, target, ends_at), peer_ca=ends_at) from error
    except (OSError, TimeoutError) as error:
        if isinstance(error, ssl.SSLError) and error.reason == BUSY_REASON:
            text = f"{target.authority} has no room for another TLS handshake now (alert internal_error)"
            raise DialError("tls", text, code=Code.BUSY, retry_after=defaults.COME_BACK) from error
        raise DialError("tls", _tls_failure(error, target.authority, target.tls_deadline)) from error
    except BaseException:
        transport.abort()
        raise
    if secured.get_extra_info("ssl_object") is None:  # lost in the very turn in which the handshake ended
        secured.abort()
        raise DialError("tls", f"{target.authority} closed the connection right after the TLS handshake")
    chain = tuple(certificate_chain(secured))
    note(Hop("tls", _tls_evidence(secured, chain), time.monotonic() - started, chain))
    return secured, _attach(secured, protocol_factory)


def certificate_chain(transport: asyncio.BaseTransport) -> list[bytes]:
    """The peer's certificates of a TLS transport as sent, DER, leaf first; empty on a plain one.

    Before Python 3.13 only the private object underneath offers the whole chain; where it does not, the leaf alone.
    """
    end = transport.get_extra_info("ssl_object")
    if end is None:
        return []
    chain_of = getattr(end, "get_unverified_chain", None) or getattr(
        getattr(end, "_sslobj", None), "get_unverified_chain", None
    )
    sent = chain_of() if chain_of is not None else None
    if sent:
        return [item if isinstance(item, bytes) else item.public_bytes(2) for item in sent]
    leaf = end.getpeercert(True)
    return [leaf] if leaf else []


def _attach(transport: asyncio.Transport, factory: Callable[[], P]) -> P:
    """The protocol is made once the way is walked, so that a broken one never hears of a connection it did not have."""
    protocol = factory()
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    return protocol


class _Idle(asyncio.Protocol):
    """Holds a transport while the way is walked. The far end does not speak first, so there is nothing to keep."""


async def _adopt(sock: socket.socket, factory: Callable[[], P]) -> tuple[asyncio.Transport, P]:
    try:
        transport, protocol = await asyncio.get_running_loop().create_connection(
            cast("Callable[[], asyncio.Protocol]", factory), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    return transport, cast("P", protocol)


# --- proxy


async def _through_proxy(proxy: Proxy, target: DialTarget, note: OnHop) -> asyncio.Transport:
    try:
        sock = await connect_tcp(proxy.host, proxy.port, target.deadline, note, after=target.after)
    except DialError as error:
        raise DialError("proxy", f"the proxy {proxy} cannot be reached: {error}") from error
    exchange = _ConnectExchange(asyncio.get_running_loop().create_future())
    transport, _ = await _adopt(sock, lambda: exchange)
    started = time.monotonic()
    try:
        if proxy.scheme == "https":
            transport = await _tls_to_proxy(transport, exchange, proxy, target)
        transport.write(_connect_request(proxy, target.authority))
        async with asyncio.timeout(defaults.HANDSHAKE_DEADLINE):
            status, head = await exchange.reply
    except TimeoutError as error:
        transport.abort()
        text = f"{proxy} did not answer CONNECT {target.authority} within {defaults.HANDSHAKE_DEADLINE:g} s"
        raise DialError("proxy", text) from error
    except _BadReply as error:
        transport.abort()
        raise DialError("proxy", f"{proxy} {error} when asked to CONNECT {target.authority}") from error
    except BaseException:
        transport.abort()
        raise
    if not 200 <= status < 300:
        transport.abort()
        text = _refused(proxy, target.authority, status, head.partition("\r\n")[0][:120])
        raise DialError("proxy", text, code=status, retry_after=asked_to_wait(head))
    note(Hop("proxy", f"{proxy} CONNECT {status}", time.monotonic() - started))
    return transport


async def _tls_to_proxy(
    transport: asyncio.Transport, exchange: _ConnectExchange, proxy: Proxy, target: DialTarget
) -> asyncio.Transport:
    context = target.proxy_ssl_context or _system_trust()
    try:
        secured = await asyncio.get_running_loop().start_tls(
            transport, exchange, context, server_hostname=proxy.host, ssl_handshake_timeout=target.deadline
        )
    except ssl.SSLCertVerificationError as error:
        text = f"the certificate of the proxy {proxy} is not trusted: {error.verify_message}; give its CA by --ca-file"
        raise DialError("proxy", text) from error
    except OSError as error:
        raise DialError("proxy", f"TLS to the proxy {proxy}: {reason(error)}") from error
    assert secured is not None
    return secured


def _system_trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # From Python 3.13 it also wants of each certificate what those of a company's own authority often lack.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _connect_request(proxy: Proxy, authority: str) -> bytes:
    login = f"Proxy-Authorization: Basic {proxy.credentials}\r\n" if proxy.credentials else ""
    return f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{login}\r\n".encode("ascii")


def _refused(proxy: Proxy, authority: str, status: int, line: str) -> str:
    text = f"{proxy} answered CONNECT {authority} with {line!r}"
    if status == 407:
        held = "the given user name and password are wrong" if proxy.credentials else "it wants a user and password"
        return f"{text}: {held} (in the proxy's URL they stand before the host: USER:PASSWORD@HOST:PORT)"
    if status == 403:
        return f"{text}: its rules forbid this destination"
    return text


class _BadReply(Exception):
    """The proxy's answer cannot be used; the text continues a sentence that begins with its name."""


class _ConnectExchange(asyncio.Protocol):
    """Reads one bounded answer to CONNECT."""

    def __init__(self, reply: asyncio.Future[tuple[int, str]]) -> None:
        self.reply = reply
        self._head = bytearray()

    def data_received(self, data: bytes) -> None:
        if self.reply.done():
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > MAX_PROXY_HEAD_BYTES:
                self.reply.set_exception(_BadReply(f"sent more than {MAX_PROXY_HEAD_BYTES} bytes of head"))
            return
        line = self._head[: self._head.index(b"\r\n")].decode("latin-1")
        words = line.split(None, 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not (words[1].isascii() and words[1].isdigit()):
            self.reply.set_exception(_BadReply(f"answered {line[:80]!r}, which is not HTTP/1.1,"))
        elif words[1].startswith("2") and len(self._head) > end + 4:
            self.reply.set_exception(_BadReply("sent bytes that nobody asked for"))
        else:
            self.reply.set_result((int(words[1][:3]), self._head[: end + 4].decode("latin-1")))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.reply.done():
            self.reply.set_exception(_BadReply("closed the connection without an answer"))
            self.reply.exception()  # nobody waits for it yet where TLS to the proxy failed


# --- tls


async def _start_tls(transport: asyncio.Transport, context: ssl.SSLContext, target: DialTarget) -> asyncio.Transport:
    secured = await asyncio.get_running_loop().start_tls(
        transport,
        _Idle(),
        context,
        server_hostname=target.server_hostname or target.host,
        ssl_handshake_timeout=target.tls_deadline,
    )
    assert secured is not None
    return secured


async def _chain_end(target: DialTarget, proxy: Proxy | None) -> str | None:
    """Who the far end says it is, read without trusting it; None where even that fails."""
    assert target.ssl_context is not None
    curious = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    curious.check_hostname = False
    curious.verify_mode = ssl.CERT_NONE
    # Nor is it given more: with a key exchange that the target's context leaves out it could stop this process.
    curious.set_ciphers(":".join(each["name"] for each in target.ssl_context.get_ciphers()))
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(target.deadline):
            if proxy is None:
                sock = await connect_tcp(target.host, target.port, target.deadline, unnoted, after=target.after)
                transport, _ = await _adopt(sock, _Idle)
            else:
                transport = await _through_proxy(proxy, target, unnoted)
            transport = await _start_tls(transport, curious, target)
            return chain_end(certificate_chain(transport))
    except (DialError, OSError, TimeoutError):
        return None
    finally:
        if transport is not None:
            transport.abort()


def chain_end(sent: Sequence[bytes]) -> str | None:
    """The name of the authority at which a chain ends: its last certificate's issuer."""
    if not sent:
        return None
    try:
        issuer = x509.load_der_x509_certificate(sent[-1]).issuer
    except ValueError:
        return None
    names = issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else issuer.rfc4514_string()


_OTHER_NAME: Final = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH


def _untrusted(error: ssl.SSLCertVerificationError, target: DialTarget, ends_at: str | None) -> str:
    said = f"the certificate of {target.authority} is not trusted ({error.verify_message})"
    if out_of_time(error):
        return f"{said}; the clock here says {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
    if error.verify_code in _OTHER_NAME:
        return said  # who has signed it is not the question
    if ends_at is not None:
        said += f": its chain ends at {ends_at!r}"
    if target.expected_ca:
        said += f", expected {target.expected_ca}"
    return said


def _tls_failure(error: Exception, authority: str, deadline: float) -> str:
    if isinstance(error, ssl.SSLError):
        if "WRONG_VERSION_NUMBER" in str(error) or "HTTP_REQUEST" in str(error):
            return f"{authority} does not speak TLS"
        return f"the TLS handshake with {authority} failed: {error.reason or error}"
    if isinstance(error, ConnectionAbortedError | TimeoutError):
        return f"{authority} did not finish the TLS handshake within {deadline:g} s"
    return f"{authority} closed the connection in the TLS handshake ({reason(error)})"


def _tls_evidence(transport: asyncio.BaseTransport, chain: Sequence[bytes]) -> str:
    end = transport.get_extra_info("ssl_object")
    return f"{end.version()}, chain ends at {chain_end(chain) or 'an unnamed authority'!r}"

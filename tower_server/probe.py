"""The server's own requests through the tunnels: what Ready rests on, and what `ping` measures.

A probe does what a caller does: a real stream, TLS to the member's gateway under the name that callers verify, a client
certificate (`tower:<host>:probe`), `GET /readyz`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Final, cast

import httptools

from certs.ca import Authority
from certs.keys import generate_key, key_to_pem
from certs.names import member_name
from certs.tls import hardened, load_pair
from daemon.faults import FAULTS
from daemon.log import get_logger
from daemon.wirefault import wire_fault
from gateway.policy import probe_user
from protocol import defaults
from protocol.aio.stream import StreamTransport
from protocol.aio.tlsfailure import TlsError
from protocol.aio.tlspump import TlsPump
from protocol.aio.tunnel import Tunnel
from protocol.constants import Code
from protocol.errors import ProtocolError
from protocol.frames import printable
from protocol.jsontext import parse_json
from tower_server.member import Member
from tower_server.records import KUBERNETES
from tower_server.state import ProbeResult

DEADLINE: Final = 5.0
MAX_ANSWER: Final = 64 * 1024
CALLER: Final = "tower:probe"

log = get_logger(__name__)


class ProbeFailed(Exception):
    """One probe's fault."""

    def __init__(self, code: str, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.status = status


class ProbeCredential:
    """The probe's client certificate and TLS contexts, made anew at two thirds of its life."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._renew_at = 0.0
        self._number = 0
        self._context = hardened(ssl.PROTOCOL_TLS_CLIENT)
        self.user = probe_user(authority.host)
        self.passthrough = _passthrough_context()

    def context(self) -> ssl.SSLContext:
        now = time.time()
        if now >= self._renew_at or self._number != self._authority.number:
            self._number = self._authority.number
            key = generate_key()
            issued = self._authority.issue_client(self.user, public_key=key.public_key(), at=now)
            context = hardened(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=self._authority.bundle.root_pem.decode())
            load_pair(context, chain_pem=issued.chain_pem, key_pem=key_to_pem(key))
            self._context = context
            self._renew_at = now + (issued.not_after - now) * defaults.RENEW_AT
        return self._context


def _passthrough_context() -> ssl.SSLContext:
    """For a member that relays callers to its apiserver untouched: whose CA that is, the tower does not know.

    Nothing secret is sent over it and nothing that comes back is trusted but as an answer to "is it there".
    """
    context = hardened(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def probe(member: Member, tunnel: Tunnel, credential: ProbeCredential) -> ProbeResult:
    """One probe; every failure is in the result."""
    began = time.monotonic()
    passthrough = member.passthrough
    exchange = _Exchange(member_name(member.name))
    context = credential.passthrough if passthrough else credential.context()
    pump = _StreamTls(
        context, lambda: exchange, server_side=False, server_hostname=exchange.host, on_failure=exchange.tls
    )
    stream: StreamTransport | None = None
    opened: float | None = None
    try:
        async with asyncio.timeout(DEADLINE):
            stream = await tunnel.open(KUBERNETES, pump, caller=CALLER, connection_id="", deadline=DEADLINE)
            opened = time.monotonic() - began
            status, body = await exchange.answer
            _judge(status, body, passthrough=passthrough)
    except TimeoutError:
        what = "the stream was not opened" if stream is None else "no answer to GET /readyz"
        return _failed(ProbeFailed("TWR303", f"{what} within {DEADLINE:g} s"), opened)
    except ProtocolError as error:
        code = wire_fault(error.code, "TWR301")
        return _failed(ProbeFailed(code, error.text or error.code.name), opened)
    except ProbeFailed as error:
        return _failed(error, opened)
    finally:
        if stream is not None and not stream.is_closing():
            stream.reset(Code.NONE, "probed")
    return ProbeResult(time.time(), True, status=200, stream=opened, readyz=time.monotonic() - began)


def _failed(error: ProbeFailed, opened: float | None) -> ProbeResult:
    return ProbeResult(time.time(), False, error.code, error.text, status=error.status, stream=opened)


def _judge(status: int, body: bytes, *, passthrough: bool) -> None:
    """ProbeFailed unless the apiserver said that it is ready."""
    if status == 200 or (passthrough and status in (401, 403)):
        return  # without a credential a passthrough member may only say that it is there
    code, text = "", ""
    try:
        document = parse_json(body)
        text = " ".join(str(document["message"]).split())[:300]  # a refusal by policy has lines to add
        code = str(document["details"]["causes"][0]["reason"])
    except (ValueError, KeyError, IndexError, TypeError):
        pass  # not a Status of the agent's own
    if code not in FAULTS:
        code = "TWR305" if status in (401, 403) else "TWR302"
    if not text:
        text = " ".join(body[:200].decode("utf-8", "replace").split())
    raise ProbeFailed(code, f"/readyz answered {status}: {printable(text)}", status=status)


class _StreamTls(TlsPump, asyncio.Protocol):
    """TLS as the client over a stream of a tunnel."""


class _Exchange(asyncio.Protocol):
    """One request and its bounded answer."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()

    def tls(self, error: TlsError) -> None:
        code = "TWR507" if "CERT" in error.failure.name or "ISSUER" in error.failure.name else "TWR302"
        self._end(ProbeFailed(code, f"TLS through the tunnel failed: {error}"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        request = f"GET /readyz HTTP/1.1\r\nHost: {self.host}\r\nUser-Agent: tower-server\r\nConnection: close\r\n\r\n"
        cast("asyncio.Transport", transport).write(request.encode())

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ProbeFailed("TWR306", f"the answer to /readyz is not HTTP: {error}"[:200]))

    def on_body(self, body: bytes) -> None:
        if len(self._body) < MAX_ANSWER:
            self._body += body[:MAX_ANSWER]

    def on_message_complete(self) -> None:
        if not self.answer.done():
            self.answer.set_result((self._parser.get_status_code(), bytes(self._body)))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(
            exc if isinstance(exc, ProtocolError) else ProbeFailed("TWR306", "the connection ended without an answer")
        )

    def _end(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # whoever stopped waiting has its own reason

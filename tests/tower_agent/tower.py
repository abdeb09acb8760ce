"""A tower for the agent's tests: a real CA, a real tunnel port with enrolment, and callers with real certificates.

Everything runs in the test's own loop. What a tower server would do beyond the wire (records, ports) is left out.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from certs.ca import Authority
from certs.enrolment import EnrolmentReply, receive
from certs.errors import CertsError
from certs.generation import Issued
from certs.handshake import agent_verifier
from certs.keys import PrivateKey, generate_key, key_to_pem, public_key_from_csr, signer
from certs.peers import RENEWAL_GRACE, AgentIdentity
from certs.renewal import check_renewal
from certs.revocation import RevocationList
from certs.sealing import Sealer
from certs.tls import ClientTrust, client_context, load_pair, server_context
from certs.token import EnrolmentToken
from protocol import defaults
from protocol.aio.listener import Admission, Credentials, TunnelListener
from protocol.aio.request import HttpRequest, HttpResponse
from protocol.aio.stream import StreamTransport
from protocol.aio.tunnel import Tunnel
from protocol.constants import CONTROL_SERVICE, Code
from protocol.errors import HandshakeRejected
from protocol.flow import Budget
from protocol.handshake import Hello
from protocol.messages import Message, MessageReader, encode_message

CLUSTER = "edge"


class Control(asyncio.Protocol):
    """The server's end of a control stream; keeps what the agent says."""

    def __init__(self, tower: Tower, tunnel: Tunnel) -> None:
        self._tower = tower
        self._tunnel = tunnel
        self._reader = MessageReader()
        self.transport: StreamTransport | None = None
        self.messages: asyncio.Queue[Message] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("StreamTransport", transport)

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            if message["type"] == "renew":
                self._tower.renewals.append(message)
                self.send(**self._tower.renewed(self._tunnel.peer, message))
            self.messages.put_nowait(message)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002
        assert self.transport is not None
        self.transport.write(encode_message(type, **fields))

    async def next(self, kind: str) -> Message:
        async with asyncio.timeout(30):
            while True:
                message = await self.messages.get()
                if message["type"] == kind:
                    return message


@dataclass
class Tower:
    """One host. `tunnels` are those that were welcomed, the newest last."""

    authority: Authority
    agent: str = "a1"
    identity_ttl: float = defaults.AGENT_IDENTITY_DAYS * 86400.0
    backdate: float = 0.0
    refuse: HandshakeRejected | None = None
    refuse_renewal: str | None = None
    lose_replies: int = 0
    port: int = 0
    tunnels: list[Tunnel] = field(default_factory=list)
    welcomed: asyncio.Event = field(default_factory=asyncio.Event)
    secrets: dict[str, str] = field(default_factory=dict)
    enrolled_keys: list[bytes] = field(default_factory=list)
    requests: list[HttpRequest] = field(default_factory=list)
    renewals: list[Message] = field(default_factory=list)
    revocations: RevocationList | None = None

    def __post_init__(self) -> None:
        self.bundle = self.authority.bundle
        self.key = generate_key()
        self.server = self.authority.issue_server(
            "tower-0", ["127.0.0.1"], public_key=self.key.public_key(), at=time.time()
        )
        self.sealer = Sealer(bundle=self.bundle, chain_pem=self.server.chain_pem, sign=signer(self.key))
        self.numbers = 0

    @property
    def host(self) -> str:
        return self.authority.host

    def token(self, *, cluster: str = CLUSTER, url: str = "") -> EnrolmentToken:
        made = EnrolmentToken.create(
            url=url or f"https://127.0.0.1:{self.port}", cluster=cluster, ca=self.bundle.fingerprint
        )
        self.secrets[made.id] = made.secret
        return made

    def client(self, user: str, *groups: str, ttl: float = 3600.0) -> tuple[Issued, PrivateKey]:
        key = generate_key()
        return self.authority.issue_client(user, groups, public_key=key.public_key(), at=time.time(), ttl=ttl), key

    def caller_context(self, caller: tuple[Issued, PrivateKey] | None) -> ssl.SSLContext:
        context = client_context(ClientTrust(ca_pem=self.bundle.root_pem))
        if caller is not None:
            load_pair(context, chain_pem=caller[0].chain_pem, key_pem=key_to_pem(caller[1]))
        return context

    def revoke(self, **lists: Any) -> bytes:
        """A newer signed list."""
        self.numbers += 1
        self.revocations = RevocationList(self.numbers, self.host, time.time(), **lists)
        return self.revocations.sign(self.authority.revocation_signer())

    async def tunnel(self) -> Tunnel:
        """The next tunnel that is welcomed, or the one that has been and was not asked for yet."""
        async with asyncio.timeout(30):
            await self.welcomed.wait()
        self.welcomed.clear()
        return self.tunnels[-1]

    # -- what the listener asks --------------------------------------------------------------------------------------

    def find(self, tunnel_id: str, identity: AgentIdentity) -> Tunnel | None:
        return next((each for each in self.tunnels if each.id == tunnel_id and each.closed is None), None)

    def on_tunnel(self, tunnel: Tunnel) -> None:
        control = Control(self, tunnel)
        tunnel.data["control"] = control
        tunnel.start_open(CONTROL_SERVICE, control)
        self.tunnels.append(tunnel)
        self.welcomed.set()

    async def authenticate(self, _hello: Hello, identity: AgentIdentity, _remote: str) -> Admission:
        if self.refuse is not None:
            raise self.refuse
        return Admission(f"t{len(self.tunnels)}", renew_only=time.time() > identity.not_after)

    async def http(self, request: HttpRequest) -> HttpResponse:
        self.requests.append(request)
        if request.method == "GET":
            return HttpResponse(200, self.sealer.offer(time.time()))
        try:
            received = receive(request.body, sealer=self.sealer, host=self.host, at=time.time())
        except CertsError as error:
            return refusal(400, "TWR224", error.text)
        if received.request.secret != self.secrets.get(received.token_id):
            return refusal(401, "TWR204", "no such token")
        self.enrolled_keys.append(received.request.csr)
        if self.lose_replies:
            self.lose_replies -= 1
            return HttpResponse(503, b"lost")
        return HttpResponse(200, received.seal_reply(self.reply(received.request.csr, received.request.serving_csr)))

    def reply(self, csr: bytes, serving_csr: bytes) -> EnrolmentReply:
        chain, serving_chain = self.issue(CLUSTER, self.agent, csr, serving_csr)
        signed = self.revocations.sign(self.authority.revocation_signer()) if self.revocations else b""
        return EnrolmentReply(
            host=self.host,
            cluster=CLUSTER,
            agent=self.agent,
            chain=chain,
            serving_chain=serving_chain,
            trust=self.bundle.to_pem(),
            revocations=signed,
        )

    def issue(self, cluster: str, agent: str, csr: bytes, serving_csr: bytes) -> tuple[bytes, bytes]:
        at, ttl = time.time() - self.backdate, self.identity_ttl
        identity = self.authority.issue_agent(cluster, agent, public_key=public_key_from_csr(csr), at=at, ttl=ttl)
        serving = self.authority.issue_serving(cluster, public_key=public_key_from_csr(serving_csr), at=at, ttl=ttl)
        return identity.chain_pem, serving.chain_pem

    def renewed(self, peer: AgentIdentity, message: Message) -> dict[str, Any]:
        if self.refuse_renewal is not None:
            return {"type": "refused", "id": message["id"], "code": "TWR209", "text": self.refuse_renewal}
        csr, serving_csr = message["csr"].encode(), message["serving_csr"].encode()
        check_renewal(peer, base64.b64decode(message["proof"]), csr=csr, serving_csr=serving_csr)
        chain, serving_chain = self.issue(peer.cluster, peer.agent, csr, serving_csr)
        return {
            "type": "renewed",
            "id": message["id"],
            "chain": chain.decode(),
            "serving_chain": serving_chain.decode(),
        }


def refusal(status: int, code: str, message: str) -> HttpResponse:
    mend = "ask for another: `towerctl create token CLUSTER`"
    document = {"kind": "Error", "code": code, "message": message, "mend": mend}
    return HttpResponse(status, json.dumps(document).encode())


def control_of(tunnel: Tunnel) -> Control:
    control = tunnel.data["control"]
    assert isinstance(control, Control)
    return control


def as_text(encoded: bytes) -> str:
    return base64.b64encode(encoded).decode()


@asynccontextmanager
async def serving_tower(tower: Tower, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Tower]:
    """Listen on loopback, with the tower's own certificate unless another context is given."""
    listener = TunnelListener(
        credentials=lambda: Credentials(tower.server.chain_der, signer(tower.key)),
        verify=agent_verifier(
            lambda: tower.bundle, time.time, lambda: tower.revocations, allow_expired_for=RENEWAL_GRACE
        ),
        authenticate=tower.authenticate,
        http=tower.http,
        on_tunnel=tower.on_tunnel,
        budget=Budget(defaults.PROCESS_BUDGET),
        find=lambda tunnel_id, identity: tower.find(tunnel_id, identity),
    )
    context = tls or server_context(chain_pem=tower.server.chain_pem, key_pem=key_to_pem(tower.key))
    _, tower.port = await listener.start("127.0.0.1", tower.port, context)
    try:
        yield tower
    finally:
        await listener.stop()
        for tunnel in tower.tunnels:
            tunnel.close(Code.SHUTDOWN, "the test is over")
        await asyncio.sleep(0.05)


def new_tower(host: str = "east", **settings: Any) -> Tower:
    return Tower(Authority.create(host, at=time.time() - 100 * 86400), **settings)


def state_dir(folder: Path, name: str = "state") -> Path:
    path = folder / name
    path.mkdir(mode=0o700)
    return path

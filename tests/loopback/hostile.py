"""An agent by hand: a WebSocket from a library, the handshake's own classes, and then whatever frames a test sends."""

from __future__ import annotations

import contextlib
import secrets
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from certs.handshake import server_verifier
from certs.identity import StoredIdentity
from certs.keys import PrivateKey, signer
from certs.tls import ClientTrust, client_context
from certs.verify import TrustBundle
from protocol.constants import HEADER, HEADER_SIZE, SUBPROTOCOL, Code, FrameType
from protocol.errors import HandshakeRejected
from protocol.frames import U32, U64, encode
from protocol.handshake import AgentHandshake, Welcome
from tests.lab.world import TowerWorld

PATIENCE = 30.0
Frame = tuple[int, int, bytes]


@dataclass
class Hostile:
    """A link to the tunnel port."""

    socket: ClientConnection
    buffer: bytes = b""

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def frame(self) -> Frame:
        """The next frame: type, stream, payload. ConnectionClosed at the end of the link."""
        while len(self.buffer) < HEADER_SIZE or len(self.buffer) < HEADER_SIZE + self._length():
            data = self.socket.recv(timeout=PATIENCE)
            assert isinstance(data, bytes)
            self.buffer += data
        kind, _, _, stream, length = HEADER.unpack_from(self.buffer)
        payload = self.buffer[HEADER_SIZE : HEADER_SIZE + length]
        self.buffer = self.buffer[HEADER_SIZE + length :]
        return kind, stream, payload

    def _length(self) -> int:
        return int(HEADER.unpack_from(self.buffer)[4])

    def closed(self) -> Code:
        """The code of the CLOSE that must come; other frames before it are skipped."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            kind, _, payload = self.frame()
            if kind == FrameType.CLOSE:
                return Code(U32.unpack_from(payload)[0])
        raise AssertionError("the tunnel was not closed")


def outer(bundle: TrustBundle) -> ssl.SSLContext:
    """The link's TLS as an agent checks it."""
    return client_context(ClientTrust(system=False, ca_pem=bundle.to_pem()))


@contextlib.contextmanager
def linked(world: TowerWorld, bundle: TrustBundle, *, subprotocol: str | None = SUBPROTOCOL) -> Iterator[Hostile]:
    """A WebSocket to the tunnel port, and nothing said in it yet."""
    wanted = [Subprotocol(subprotocol)] if subprotocol else None
    with connect(
        f"wss://127.0.0.1:{world.tunnel_port}/v1/tunnel",
        ssl=outer(bundle),
        subprotocols=wanted,
        compression=None,
        open_timeout=PATIENCE,
        close_timeout=1.0,
        max_size=None,
        proxy=None,
    ) as socket:
        yield Hostile(socket)


def handshake_of(identity: StoredIdentity, *, cluster: str = "", key: PrivateKey | None = None) -> AgentHandshake:
    """An agent's handshake; `cluster` claims another than the identity's, `key` signs in place of its own."""
    return AgentHandshake(
        cluster=cluster or identity.cluster,
        instance="hostile",
        chain=identity.chain,
        sign=signer(key or identity.key),
        verify=server_verifier(identity.bundle, time.time),
        nonce=secrets.token_bytes(32),
        features=["ack"],
    )


def admitted(link: Hostile, handshake: AgentHandshake) -> Welcome:
    """The whole handshake; HandshakeRejected with what the server says."""
    link.send(handshake.hello())
    kind, _, payload = link.frame()
    if kind != FrameType.CHALLENGE:
        handshake.answered(kind, payload)
    link.send(handshake.challenged(payload))
    kind, _, payload = link.frame()
    return handshake.answered(kind, payload)


def rejected(link: Hostile, handshake: AgentHandshake) -> HandshakeRejected:
    try:
        admitted(link, handshake)
    except HandshakeRejected as error:
        return error
    raise AssertionError("the handshake was not rejected")


OPENED = bytes(8)  # the credit in an OPEN_OK
BROKEN: dict[str, tuple[bytes, Code]] = {
    "unknown-stream": (encode(FrameType.DATA, 4711, b"x"), Code.PROTOCOL),
    "oversized-frame": (HEADER.pack(FrameType.DATA, 0, 0, 1, 1 << 30), Code.TOO_LARGE),
    "unknown-frame": (HEADER.pack(99, 0, 0, 0, 0), Code.PROTOCOL),
    "frame-without-its-payload": (encode(FrameType.ACK, 0, b""), Code.PROTOCOL),
    "second-hello": (encode(FrameType.HELLO, 0, b"{}"), Code.PROTOCOL),
    "acknowledges-the-future": (encode(FrameType.ACK, 0, U64.pack(1 << 40)), Code.PROTOCOL),
    "garbage-on-the-control-stream": (encode(FrameType.DATA, 1, b"not json\n"), Code.PROTOCOL),
}

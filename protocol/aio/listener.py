"""The tunnel port: the server's end of the handshake of `tower.v1`, at /v1/tunnel, and the tunnel that it ends in."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from protocol.aio.port import PortListener, ServerLink
from protocol.aio.request import RequestParser
from protocol.aio.tunnel import Tunnel
from protocol.aio.turns import Turns
from protocol.constants import (
    CHECK_INSTANCE,
    FEATURE_ACK,
    FEATURE_RESUME,
    RESUME_HEADER,
    SUBPROTOCOL,
    Code,
    FrameType,
)
from protocol.defaults import COME_BACK, MAX_HANDSHAKE_BYTES, TUNNEL_PATH
from protocol.errors import HandshakeRejected, RemoteProtocolError
from protocol.flow import Budget, Limits
from protocol.frames import FrameDecoder, decode_reason
from protocol.handshake import Chain, Hello, Resume, ServerHandshake, Signer, Verifier, parse_reject, reject
from protocol.session import Session

log = logging.getLogger(__name__)

MAX_SAID: Final = 3 * MAX_HANDSHAKE_BYTES  # by a peer whose handshake is not done: HELLO, PROOF and what frames them
FEATURES: Final = frozenset({FEATURE_ACK, FEATURE_RESUME})


@dataclass(frozen=True, slots=True)
class Admission:
    """What the server's `authenticate` grants an agent."""

    tunnel_id: str
    renew_only: bool = False


@dataclass(frozen=True, slots=True)
class Credentials:
    """The server's own side of a handshake."""

    chain: Chain
    sign: Signer


@dataclass(slots=True, kw_only=True)
class TunnelListener(PortListener):
    """Accepts agents.

    Attributes:
        credentials: asked for at each handshake, so that a rotated certificate takes effect at once.
        verify: chain, transcript, signature -> the agent's identity; HandshakeRejected otherwise.
        authenticate: the last word on a proven identity; HandshakeRejected refuses with a reason and a retry-after.
        on_tunnel: takes over each tunnel; called from the loop, before its first byte is read.
        admit_new: called with who asks, and since when (monotonic), before a tunnel that is new; may raise
            HandshakeRejected.
        find: the tunnel of that id which this identity may go on with over a new link; it hears of that by its own
            `on_resumed`.
        carry: called for a connection that comes back for a tunnel, before anything is known of who that is, with the
            tunnel's name, the request as it came, the transport (which does not read), where it comes from, and what to
            call with whether another server has taken the connection. False: none is asked to.
    """

    credentials: Callable[[], Credentials]
    verify: Verifier
    authenticate: Callable[[Hello, Any, str], Awaitable[Admission]]
    on_tunnel: Callable[[Tunnel], None]
    budget: Budget
    find: Callable[[str, Any], Tunnel | None] = lambda _tunnel, _identity: None
    admit_new: Callable[[Hello, Any, float], None] = lambda _hello, _identity, _since: None
    carry: Callable[[str, bytes, asyncio.Transport, str, Callable[[bool], None]], bool] = lambda *_: False
    limits: Limits = field(default_factory=Limits)
    turns: Turns = field(default_factory=Turns)

    def link(self, *, private: bool, remote: str) -> ServerLink:
        return _TunnelLink(self, private=private, remote=remote)

    def carried(self, remote: str) -> ServerLink:
        """A link for a connection that another server has carried here; it goes no further."""
        link = _TunnelLink(self, private=True, remote=remote)
        link.final = True
        return link


class _TunnelLink(ServerLink):
    """The handshake of `tower.v1`, and the tunnel that it ends in."""

    _listener: TunnelListener

    def __init__(self, listener: TunnelListener, *, private: bool, remote: str) -> None:
        super().__init__(listener, private=private, remote=remote)
        self._frames = FrameDecoder(MAX_HANDSHAKE_BYTES)
        self._handshake: ServerHandshake | None = None
        self._since = 0.0  # when HELLO came
        self._proof_came = False
        self._said = 0  # bytes, in whatever frames, of a peer that has proven nothing
        self.final = False
        """It stays at this server, whoever holds the tunnel that it comes for."""

    def _hello(self) -> Hello | None:
        return self._handshake.hello if self._handshake else None

    def _say_too_late(self) -> None:
        self.write([reject(Code.TIMEOUT, f"no handshake within {self._listener.deadline:g} s")])

    def _say_busy(self, text: str) -> None:
        self.write([reject(Code.BUSY, text, COME_BACK)])

    def _wants_tunnel(self, request: RequestParser) -> bool:
        return request.target.partition("?")[0] == TUNNEL_PATH

    def _upgrade(self, request: RequestParser) -> None:
        offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        if request.upgrade and SUBPROTOCOL not in map(str.strip, offered.split(",")):
            self._turn_away(400, f"no common WebSocket subprotocol: this port speaks {SUBPROTOCOL}")
            return
        if not self.final and self._carried(request):
            return
        # An agent is not a browser and sends no Origin: whoever sends one is turned away.
        protocol = ServerProtocol(origins=[None], subprotocols=[Subprotocol(SUBPROTOCOL)])
        if self._accept_websocket(request, protocol) and request.rest:
            self.received(memoryview(request.rest))

    def _carried(self, request: RequestParser) -> bool:
        """Whether another server is asked to take the connection. Nothing is read until it has answered."""
        self.final = True
        tunnel, transport = next(iter(request.headers.get_all(RESUME_HEADER)), ""), self._transport
        if not tunnel or not request.upgrade or transport is None:
            return False

        def answered(taken: bool) -> None:
            if taken:
                self._settled()
            elif not (self.closing or transport.is_closing()):
                self._stage = "http"
                transport.resume_reading()
                self._upgrade(request)

        transport.pause_reading()
        if self._listener.carry(tunnel, request.whole(), transport, self.remote, answered):
            self._stage = "carried"
            return True
        transport.resume_reading()
        return False

    # ---- the handshake ------------------------------------------------------------------------------------------

    def received(self, data: memoryview) -> None:
        """What is more than a handshake is not even read: a stranger's WebSocket frames cost more than their bytes."""
        if self._request is None and not self.proven and not self.closing:
            self._said += len(data)
            if self._said > MAX_SAID:
                self._reject(HandshakeRejected(Code.TOO_LARGE, f"more than {MAX_SAID} bytes, and no handshake is done"))
                return
        super().received(data)

    def link_received(self, data: memoryview) -> None:
        try:
            for kind, _flags, _stream, payload in self._frames.feed(data):
                self._step(kind, bytes(payload))
        except HandshakeRejected as error:
            self._reject(error)
        except RemoteProtocolError as error:
            self._reject(HandshakeRejected(error.code, error.text))

    def _step(self, kind: int, payload: bytes) -> None:
        listener = self._listener
        if kind == FrameType.REJECT:
            raise parse_reject(payload)
        if kind == FrameType.CLOSE and self._proof_came:  # the agent cannot know whether there is a tunnel by now
            code, text = decode_reason(memoryview(payload))
            raise HandshakeRejected(code, text, by_peer=True)
        if self._handshake is None:
            if kind != FrameType.HELLO:
                raise HandshakeRejected(Code.PROTOCOL, f"a frame of type {kind} in place of HELLO")
            listener.admit(self.remote)
            own = listener.credentials()
            self._since = monotonic()
            self._handshake = ServerHandshake(
                chain=own.chain,
                sign=own.sign,
                verify=listener.verify,
                nonce=secrets.token_bytes(32),
                features=FEATURES,
            )
            self.write([self._handshake.greeted(payload)])
            return
        if kind != FrameType.PROOF or self._proof_came:
            raise HandshakeRejected(Code.PROTOCOL, f"a frame of type {kind} out of place in the handshake")
        self._proof_came = True
        assert self._handshake.hello is not None
        listener.run(self._authenticate(self._handshake, self._handshake.hello, payload), "tunnel-authenticate")

    async def _authenticate(self, handshake: ServerHandshake, hello: Hello, proof: bytes) -> None:
        """Do the expensive parts in slices, so that many agents that answer at once do not keep others waiting."""
        turns = self._listener.turns
        try:
            identity = await turns.do(lambda: None if self.closing else handshake.proven(proof))
            if identity is None:
                return
            self._stage = "authenticate"
            admission = await self._listener.authenticate(hello, identity, self.remote)
            await turns.do(lambda: self._admitted(handshake, hello, identity, admission))
        except HandshakeRejected as error:
            self._reject(error)
            return
        except Exception:  # the boundary: one agent's admission must not take the listener down
            log.exception("the admission of agent %s of cluster %s failed", hello.instance, hello.cluster)
            self._reject(HandshakeRejected(Code.INTERNAL, "internal error; the server's log says more", 5.0))

    def _admitted(self, handshake: ServerHandshake, hello: Hello, identity: Any, admission: Admission) -> None:
        """Admit and welcome a proven agent. HandshakeRejected if it is refused after all."""
        if self.closing:
            return
        if self._frames.buffered:
            raise HandshakeRejected(Code.PROTOCOL, "bytes sent between PROOF and WELCOME")
        refused: HandshakeRejected | None = None
        try:
            if handshake.resume is not None:
                refused = self._go_on(handshake, handshake.resume, identity, renew_only=admission.renew_only)
                if refused is None:
                    return
            self._listener.admit_new(hello, identity, self._since)
        except HandshakeRejected as error:
            raise refused or error from None  # first of all its streams have to learn that the tunnel is over
        if refused is not None:
            self._report(refused.code, refused.text)
        self._settled(proven=True)
        self.write([handshake.welcome(admission.tunnel_id, renew_only=admission.renew_only, refused=refused)])
        tunnel = self._tunnel(handshake, hello, identity, admission)
        try:
            self._listener.on_tunnel(tunnel)
        except Exception:  # the same boundary
            log.exception("tunnel %s could not be taken over", tunnel.id)
            tunnel.close(Code.INTERNAL, "internal error; the server's log says more")

    def _go_on(
        self, handshake: ServerHandshake, resume: Resume, identity: Any, *, renew_only: bool
    ) -> HandshakeRejected | None:
        """Give a tunnel this link, or refuse, which changes nothing.

        The refusal is returned if the agent accepts a new tunnel in its place, else raised.
        """
        try:
            tunnel = None if renew_only else self._listener.find(resume.tunnel, identity)
            if tunnel is None:
                text = "this server has no such tunnel for this agent: it has ended, or the time to come back was over"
                raise HandshakeRejected(Code.UNKNOWN_TUNNEL, text)
            tunnel.session.check_attach(resume.received, resume.epoch)
        except HandshakeRejected as error:
            if resume.anew:
                return error
            raise
        self._settled(proven=True)
        self.write([handshake.welcome(tunnel.id, received=tunnel.session.frames_received)])
        try:
            tunnel.attach(self, peer_received=resume.received, epoch=resume.epoch, peer=identity, remote=self.remote)
        except Exception:  # the same boundary as for a new tunnel
            log.exception("tunnel %s could not be taken up again", tunnel.id)
            tunnel.close(Code.INTERNAL, "internal error; the server's log says more")
        return None

    def _tunnel(self, handshake: ServerHandshake, hello: Hello, identity: Any, admission: Admission) -> Tunnel:
        lasting = not admission.renew_only and not hello.instance.startswith(CHECK_INSTANCE)
        session = Session(
            opens_odd=True,
            accepts=False,
            limits=self._listener.limits,
            budget=self._listener.budget,
            now=monotonic(),
            features=handshake.features - (set() if lasting else {FEATURE_RESUME}),
        )
        return Tunnel(
            session=session,
            link=self,
            tunnel_id=admission.tunnel_id,
            peer=identity,
            instance=hello.instance,
            remote=self.remote,
            software=hello.software,
            renew_only=admission.renew_only,
        )

    def _reject(self, error: HandshakeRejected) -> None:
        if not error.by_peer:
            self.write([reject(error.code, error.text, error.retry_after)])
        self._refuse(error.code, error.text)

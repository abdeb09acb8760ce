"""The agent's way to a tunnel: the hops below (`proxydial`), the WebSocket upgrade, the handshake.

Every failure is a DialError that names the hop. Each step has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Final, Generic, TypeVar, cast

from protocol.aio.hops import DialError, Hop, HopName, OnHop, unnoted
from protocol.aio.link import Link
from protocol.aio.proxydial import DialTarget, open_connection
from protocol.aio.stream import IncomingStream
from protocol.aio.tunnel import Tunnel
from protocol.aio.upgrade import ClientUpgrade
from protocol.constants import FEATURE_ACK, FEATURE_RESUME, RESUME_HEADER, SUBPROTOCOL, Code, FrameType
from protocol.defaults import HANDSHAKE_DEADLINE, MAX_HANDSHAKE_BYTES
from protocol.errors import HandshakeRejected, RemoteProtocolError
from protocol.flow import Budget, Limits
from protocol.frames import FrameDecoder, encode_reason
from protocol.handshake import REFUSED_RESUME, AgentHandshake, Resume, Welcome, parse_reject, reject
from protocol.session import Session

_OVER: Final = REFUSED_RESUME | {Code.REVOKED, Code.DELETED}  # what a server ends tunnels by may go with their link
FEATURES: Final = frozenset({FEATURE_ACK, FEATURE_RESUME})

T = TypeVar("T")


async def dial(
    target: DialTarget,
    *,
    handshake: AgentHandshake,
    instance: str,
    budget: Budget,
    on_stream: Callable[[IncomingStream], None],
    limits: Limits | None = None,
    on_hop: OnHop | None = None,
    deadline: float = HANDSHAKE_DEADLINE,
    resume: Tunnel | None = None,
    anew: bool = False,
) -> Tunnel:
    """Dial a tower server and open a tunnel.

    Args:
        handshake: a fresh one (its nonce is used once).
        instance: this process, as the server lists it.
        deadline: seconds for TLS, the upgrade and the handshake together, after the connection stands.
        resume: a tunnel that lost its link, to go on with. It is what is returned if the server agrees; if the server
            does not, it ends with the reason, and what is returned or dialled next is a new one.
        anew: take a new one over the same link then. The server ends other tunnels of this instance for it.

    Raises:
        DialError: `hop` says where, `code` is the HTTP status or wire code, `retry_after` what the server asked for.
    """
    loop = asyncio.get_running_loop()
    connected = loop.time()

    def note(hop: Hop) -> None:
        nonlocal connected
        if hop.name != "tls":
            connected = loop.time()
        (on_hop or unnoted)(hop)

    if resume is not None:
        handshake.resume, handshake.needs = replace(resume.propose(), anew=anew), resume.features

    def take_over(link: Link, welcome: Welcome) -> Tunnel:
        if resume is not None and _goes_on(resume, link, welcome, handshake, remote=target.authority):
            return resume
        session = Session(
            opens_odd=False,
            accepts=True,
            limits=limits or Limits(),
            budget=budget,
            now=monotonic(),
            features=welcome.features - ({FEATURE_RESUME} if welcome.renew_only else set()),
        )
        return Tunnel(
            session=session,
            link=link,
            tunnel_id=welcome.tunnel,
            peer=handshake.server,
            instance=instance,
            remote=target.authority,
            renew_only=welcome.renew_only,
            on_stream=on_stream,
        )

    _transport, client = await open_connection(target, lambda: _ClientLink(target, handshake, take_over), on_hop=note)
    started = loop.time()
    try:
        async with asyncio.timeout_at(connected + deadline):
            tunnel = await client.opened
    except TimeoutError as error:
        failure = client.overdue(_STEP[client.hop], deadline)
        client.give_up("the handshake took too long", over=resume is None)
        raise failure from error
    except BaseException as error:
        client.give_up("whoever dialled waits no longer", over=resume is None or resume.closed is not None)
        if resume is not None and isinstance(error, DialError) and error.hop == "handshake":
            _refused(resume, handshake.resume, error)
        raise
    note(Hop("handshake", f"server {client.server_name}, tunnel {tunnel.id}", loop.time() - started))
    return tunnel


def _goes_on(resume: Tunnel, link: Link, welcome: Welcome, handshake: AgentHandshake, *, remote: str) -> bool:
    """Whether the tunnel has the link now. If not it has ended, and WELCOME is for a new one in its place.

    Raises:
        DialError: it has ended, or another link was dialled for it, while this one was: nobody wants what was opened.
    """
    if welcome.received is None and welcome.refused is None:
        resume.lose(Code.UNKNOWN_TUNNEL, "it cannot go on over the new link: a new tunnel took its place")
        return False
    assert handshake.resume is not None
    stands = resume.stands(handshake.resume)
    if welcome.refused is not None:
        if resume.closed is None and not stands:
            link.write([encode_reason(FrameType.CLOSE, 0, Code.CANCELLED, "another link was dialled meanwhile")])
            raise DialError("handshake", "another link was dialled for the tunnel meanwhile")
        resume.lose(welcome.refused.code, f"it cannot go on: {welcome.refused.text}")
        return False
    if resume.closed is not None:  # the server need not wait for it
        link.write([encode_reason(FrameType.CLOSE, 0, resume.closed.code, resume.closed.text)])
        raise DialError("handshake", f"the tunnel has ended meanwhile: {resume.closed.text}")
    if not stands:
        raise DialError("handshake", "another link was dialled for the tunnel meanwhile")
    assert welcome.received is not None
    epoch = handshake.resume.epoch
    resume.attach(link, peer_received=welcome.received, epoch=epoch, peer=handshake.server, remote=remote)
    return True


def _refused(resume: Tunnel, proposal: Resume | None, error: DialError) -> None:
    """The tunnel ends by this, unless it was refused to a dial that another has overtaken."""
    if error.code in _OVER and proposal is not None and resume.stands(proposal):
        resume.lose(Code(error.code), f"it cannot go on: {error.text}")


_STEP: Final = {"http": "WebSocket upgrade", "handshake": "handshake"}


class UpgradingLink(Link, Generic[T]):
    """A link that first asks for the upgrade. Attributes:

    hop: where it is now, for the error of a dial that takes too long.
    opened: what the dial waits for; DialError.
    """

    def __init__(self, target: DialTarget, upgrade: ClientUpgrade) -> None:
        super().__init__(client=True, private=target.ssl_context is not None, owner=self)
        self._upgrade: ClientUpgrade | None = upgrade
        self._authority = target.authority
        self.hop: HopName = "http"
        self.opened: asyncio.Future[T] = self._loop.create_future()

    def upgraded(self) -> None:
        """It is a WebSocket now."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._upgrade is not None
        cast("asyncio.Transport", transport).write(self._upgrade.request())

    def received(self, data: memoryview) -> None:
        if self._upgrade is None:
            super().received(data)
            return
        try:
            rest = self._upgrade.receive(data)
        except DialError as error:
            self.fail(error)
            return
        if rest is not None:
            self._upgrade = None
            self.hop = "handshake"
            self.upgraded()
            if rest:
                super().received(memoryview(rest))

    def overdue(self, step: str, deadline: float) -> DialError:
        """What a dial that has taken too long came to."""
        return self._broken(f"{self._authority} did not complete the {step} within {deadline:g} s")

    def _broken(self, text: str) -> DialError:
        """What the far end has said so far tells more than that it says no more."""
        try:
            if self._upgrade is not None:
                self._upgrade.ended()
        except DialError as error:
            return error
        return DialError(self.hop, text)

    def fail(self, error: DialError) -> None:
        """The dial has come to nothing, unless it is over already."""
        if not self.opened.done():
            self.opened.set_exception(error)
            # The awaiting side may have timed out already; the error is then nobody's.
            self.opened.exception()
            self.close(error.text)

    # ---- the owner's side until there is one --------------------------------------------------------------------

    def link_received(self, data: memoryview) -> None:
        """Nothing is binary yet."""

    def link_writable(self) -> None:
        """Nothing waits yet."""

    def link_lost(self, reason: str) -> None:
        self.fail(self._broken(f"{reason} before it answered the upgrade" if self.hop == "http" else reason))


class _ClientLink(UpgradingLink[Tunnel]):
    """It runs the agent's handshake."""

    def __init__(
        self, target: DialTarget, handshake: AgentHandshake, take_over: Callable[[Link, Welcome], Tunnel]
    ) -> None:
        headers = {RESUME_HEADER: handshake.resume.tunnel} if handshake.resume is not None else {}
        super().__init__(target, ClientUpgrade(target, SUBPROTOCOL, headers=headers))
        self._handshake = handshake
        self._take_over = take_over
        self._frames = FrameDecoder(MAX_HANDSHAKE_BYTES)
        self._challenged = False

    @property
    def server_name(self) -> str:
        """Who the server proved to be."""
        return str(getattr(self._handshake.server, "name", "") or "proven")

    def upgraded(self) -> None:
        self.write([self._handshake.hello()])

    def give_up(self, reason: str, *, over: bool) -> None:
        """Nobody waits for the tunnel any more. Once the proof has left the server may hold it: where it is `over` it
        is told so, or it would wait a whole window for an agent that never heard of it."""
        if over and self.owner is not self and not self.closing:
            self.opened.result().close(Code.CANCELLED, reason)
        elif over and self._challenged and not self.closing:
            self.write([encode_reason(FrameType.CLOSE, 0, Code.CANCELLED, reason)])
            self.close(reason)
        else:
            self.abort(reason)

    def link_lost(self, reason: str) -> None:
        if self.hop == "handshake" and not self._challenged:
            reason += " right behind the upgrade: something on the way lets that through, and nothing more"
        super().link_lost(reason)

    def link_received(self, data: memoryview) -> None:
        if self.opened.done():
            return  # it was cancelled: `give_up` comes next, and has the last word
        try:
            for kind, _flags, _stream, payload in self._frames.feed(data):
                self._step(kind, bytes(payload))
                if self.owner is not self:
                    # What follows WELCOME is the tunnel's already.
                    if rest := data[self._frames.taken :]:
                        self.owner.link_received(rest)
                    return
        except HandshakeRejected as error:
            self._refuse(error)
        except RemoteProtocolError as error:
            self._refuse(HandshakeRejected(error.code, error.text))
        except DialError as error:  # the server has taken the link already: REJECT would be out of place
            self.fail(error)

    def _step(self, kind: int, payload: bytes) -> None:
        if kind == FrameType.REJECT:
            raise parse_reject(payload)
        if not self._challenged:
            if kind != FrameType.CHALLENGE:
                raise HandshakeRejected(Code.PROTOCOL, f"a frame of type {kind} in place of CHALLENGE")
            proof = self._handshake.challenged(payload)
            self._challenged = True
            self.write([proof])
            return
        welcome = self._handshake.answered(kind, payload)
        self.opened.set_result(self._take_over(self, welcome))

    def _refuse(self, error: HandshakeRejected) -> None:
        """The dial ends by this, at either end."""
        if not error.by_peer and self._challenged:  # a server that holds a tunnel by now would not know REJECT
            self.write([encode_reason(FrameType.CLOSE, 0, error.code, error.text)])
        elif not error.by_peer:
            self.write([reject(error.code, error.text)])
        who = "the server refused: " if error.by_peer else ""
        self.fail(DialError("handshake", who + error.text, code=int(error.code), retry_after=error.retry_after))

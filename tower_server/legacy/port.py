"""The port of the dialect: WebSocket, SSH, one `config`; then a tunnel. Nothing native is served here.

Until an agent has registered it holds one bounded place (`PortListener`), one deadline for SSH and one for `config`,
and bounded buffers; the places of one network make room for others. A refused agent is told why in the answer to its
`config`, since that is what its log shows, and its connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from websockets.server import ServerProtocol

from daemon.faults import TowerError
from daemon.log import get_logger
from protocol.aio.port import PortListener, ServerLink
from protocol.aio.request import HttpRequest, HttpResponse
from protocol.aio.ssh import ServerConnection
from protocol.aio.sshchannel import Channel, ChannelLimits
from protocol.aio.sshlink import SshLink
from protocol.constants import Code
from protocol.errors import HandshakeRejected
from tower_server.legacy.registration import Registration
from tower_server.legacy.tunnel import DIALECT

LAST_WORDS: Final = 1.0  # seconds that a refused agent gets to read why

log = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class LegacyPort(PortListener):
    """Attributes:
    options: of asyncssh, for all connections.
    limits: of the channels of one connection.
    register: the payload of `config` and the peer's address -> a registration; TowerError refuses.
    on_registered: makes the tunnel; called when the agent has been told that it is in.
    """

    options: Any
    limits: Callable[[], ChannelLimits]
    register: Callable[[bytes, str], Awaitable[Registration]]
    on_registered: Callable[[Registration, ServerConnection, SshLink, str], None]

    def link(self, *, private: bool, remote: str) -> ServerLink:
        return LegacyLink(self, private=private, remote=remote)

    async def stop(self) -> None:
        """As every port does; agents that wait for a decision hear why there is none."""
        for link in self._waiting.all():
            cast("LegacyLink", link).stopping()
        await PortListener.stop(self)


def small_requests(version: str) -> Callable[[HttpRequest], Awaitable[HttpResponse]]:
    """What Go Tower's port answers beside agents: that it is there, and what it was built from."""
    said = {"/health": b"OK\n", "/version": version.encode()}

    async def answer(request: HttpRequest) -> HttpResponse:
        if request.method in ("GET", "HEAD") and request.target in said:
            return HttpResponse(200, said[request.target], "text/plain")
        return HttpResponse(404, f"this port speaks the WebSocket subprotocol {DIALECT}\n".encode(), "text/plain")

    return answer


class LegacyLink(ServerLink):
    """One connection until it is a tunnel, or refused."""

    _listener: LegacyPort

    def __init__(self, listener: LegacyPort, *, private: bool, remote: str) -> None:
        super().__init__(listener, private=private, remote=remote)
        self._wire: ServerConnection | None = None
        self._ssh: SshLink | None = None
        self._refused = False
        self._deciding: asyncio.Task[None] | None = None
        self._undecided: Callable[[bool, bytes], None]

    # ---- WebSocket ----------------------------------------------------------------------------------------------

    def _wants_tunnel(self, request: Any) -> bool:
        return bool(request.upgrade)  # at any path: agents' URLs may have one

    def _upgrade(self, request: Any) -> None:
        offered = request.headers.get_all("Sec-WebSocket-Protocol")
        if offered != [DIALECT]:
            self._turn_away(404, f"this port speaks the WebSocket subprotocol {DIALECT}")
            return
        try:
            self._listener.admit(self.remote)
        except HandshakeRejected as error:
            self._answer(HttpResponse(503, f"{error.text}\n".encode(), "text/plain", [("Retry-After", "1")]))
            self._report(error.code, error.text)
            self._linger()
            return
        # The subprotocol is not echoed, as Go Tower does not; a browser, which says where it comes from, is not let in.
        if not self._accept_websocket(request, ServerProtocol(origins=[None])):
            return
        self._wire = ServerConnection(self, self._listener.options, self._listener.limits())
        self._ssh = SshLink(self, self._wire, remote=self.remote)
        if request.rest:
            self.received(memoryview(request.rest))

    def link_received(self, data: memoryview) -> None:
        """SSH has it by then."""

    def _say_too_late(self) -> None:
        what = {"config": "no config", "register": "no decision on the config"}.get(
            self._stage, "no SSH authentication"
        )
        self._bye(f"{what} within {self._listener.deadline:g} s")

    def _say_busy(self, text: str) -> None:
        self._bye(text)

    # ---- SSH ----------------------------------------------------------------------------------------------------

    def ssh_ready(self) -> None:
        self._stage = "config"
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_later(self._listener.deadline, self._too_late)

    def ssh_request(self, name: str, payload: bytes, answer: Callable[[bool, bytes], None]) -> None:
        if self._stage == "config" and name == "config":
            self._stage = "register"
            self._undecided = answer
            self._deciding = self._listener.run(self._register(payload, answer), "legacy-register")
            return
        twice = name == "config" and self._stage == "register"
        refusal = b"config was sent already" if twice else b"expecting config request"
        if self._stage == "register" and self._deciding is not None:
            self._deciding.cancel()
            self._undecided(False, refusal)  # answers come in the order of the requests
        answer(False, refusal)
        self._turn_out(Code.PROTOCOL, "config twice" if twice else f"the request {name[:40]!r} in place of config")

    def ssh_opened(self, channel: Channel, target: bytes) -> None:
        channel.refuse(1, "this end takes no channels")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deciding is not None:
            self._deciding.cancel()  # nobody hears the decision any more

    def ssh_lost(self, reason: str) -> None:
        if self._timer is not None and not self._refused:
            self._report(Code.TUNNEL_LOST, reason)
        self._settled()
        self.close(reason)

    async def _register(self, payload: bytes, answer: Callable[[bool, bytes], None]) -> None:
        try:
            registration = await self._listener.register(payload, self.remote)
        except TowerError as error:
            answer(False, f"{error.message} ({error.code}); {error.mend}".encode())
            self._turn_out(Code.UNTRUSTED, error.message)
            return
        except Exception:  # the boundary: one agent's registration must not take the port down
            log.exception("the registration of an agent failed", remote=self.remote)
            answer(False, b"internal error; the server's log says more")
            self._turn_out(Code.INTERNAL, "internal error")
            return
        wire, ssh = self._wire, self._ssh
        if self.closing or wire is None or ssh is None or wire.owner is not self:
            return
        self._settled(proven=True)
        answer(True, b"")
        self._stage = "tunnel"
        try:
            self._listener.on_registered(registration, wire, ssh, self.remote)
        except Exception:  # the same boundary
            log.exception("the tunnel of an agent could not be taken over", remote=self.remote)
            wire.end("internal error")

    def _turn_out(self, code: Code, text: str) -> None:
        """Refuse an agent that has been told why: it may read that before the connection goes."""
        if self._refused:
            return
        self._refused = True
        self._stage = "refused"
        self._report(code, text)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LAST_WORDS, self._leave, text)

    def _leave(self, text: str) -> None:
        self._bye(text)
        self._settled()
        self.close(text)

    def stopping(self) -> None:
        if self._stage == "register":
            self._bye("the server stops")

    def _bye(self, text: str) -> None:
        if self._wire is not None and self._ssh is not None:
            if self._stage == "register":  # a Go agent comes again that was refused, and ends that got no answer
                self._undecided(False, text.encode())
            self._wire.bye(text)
            self._ssh.flush()
            self._wire.end(text)

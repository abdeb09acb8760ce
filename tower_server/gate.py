"""Who may come to the tunnel ports, how fast, and what is said of whoever is turned away.

Strangers cost a bounded number of handshakes and of lines of the log; what is left unsaid is counted in the next line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from certs.peers import AgentIdentity
from daemon.log import get_logger
from daemon.metrics import ServerMetrics
from protocol.aio.port import network_of
from protocol.constants import Code
from protocol.errors import HandshakeRejected
from protocol.handshake import REFUSED_RESUME, Hello
from tower_server.agents import Agents
from tower_server.bucket import SharedBucket
from tower_server.config import Admission
from tower_server.tunnels import TunnelRegistry

REFUSAL_LINES_RATE: Final = 10.0  # log lines a second: peers that nobody has authenticated cause them
REFUSAL_LINES_BURST: Final = 100

log = get_logger(__name__)


class Gate:
    """Made on the loop that it serves. `goes_at`: when a server that drains is gone, on the loop's clock."""

    def __init__(
        self,
        config: Admission,
        *,
        agents: Agents,
        registry: TunnelRegistry,
        metrics: ServerMetrics,
        goes_at: Callable[[], float | None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._handshakes = SharedBucket(rate=config.handshakes_per_second, burst=config.handshake_burst, now=now)
        self._lines = SharedBucket(rate=REFUSAL_LINES_RATE, burst=REFUSAL_LINES_BURST, now=now)
        self._unsaid = 0
        self._agents, self._registry, self._metrics, self._goes_at = agents, registry, metrics, goes_at

    def admit(self, remote: str) -> None:
        """Called before a handshake costs anything. HandshakeRejected turns it away."""
        wait = self._handshakes.take(self._loop.time(), network_of(remote))
        if wait is not None:
            self._metrics.throttled.labels("handshakes").inc()
            raise HandshakeRejected(Code.BUSY, "too many handshakes at once", retry_after=max(1.0, wait))

    def admit_new(self, hello: Hello, identity: AgentIdentity, since: float) -> None:
        """Called before a proven agent gets a new tunnel. HandshakeRejected if this server is stopping (it only resumes
        tunnels then), if the agent is not admitted any more, or if it has too many tunnels."""
        goes_at = self._goes_at()
        if goes_at is not None:
            left = max(0.0, goes_at - self._loop.time())
            raise HandshakeRejected(Code.SHUTDOWN, "this server is stopping", retry_after=left)
        self._agents.still_admitted(identity)
        self._registry.check_order(identity, hello.instance, since)
        self._registry.check_room(identity, hello.instance)

    def admit_tunnel(self, tunnel: Any) -> None:
        self._metrics.handshakes.labels("ok").inc()
        self._registry.admit(tunnel)

    def refused(self, *, remote: str, stage: str, code: Code, text: str, hello: Hello | None) -> None:
        """Counts a refusal, adds it to the history of the cluster that the peer named, and logs it within bounds."""
        self._metrics.handshakes.labels(code.name.lower()).inc()
        named: dict[str, Any] = {"cluster": hello.cluster, "instance": hello.instance} if hello is not None else {}
        if self._lines.take(self._loop.time(), network_of(remote)) is None:
            if self._unsaid:
                named["more"] = self._unsaid
            self._unsaid = 0
            log.warning("tunnel-port-refused", remote=remote, stage=stage, code=code.name, text=text, **named)
        else:
            self._unsaid += 1
        member = self._registry.members.get(hello.cluster) if hello is not None else None
        if member is not None and code in REFUSED_RESUME:
            member.metrics.resumed("refused")
        self._agents.refused(remote=remote, stage=stage, code=code, text=text, hello=hello)

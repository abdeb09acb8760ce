"""The server's own code that says whose a tunnel is and which gets the next stream, over simulated tunnels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from certs.peers import AgentIdentity
from protocol.aio.tunnel import Tunnel
from protocol.constants import SUBPROTOCOL
from protocol.defaults import STALL_AFTER
from tests.protocol.handshakes import Identity, verifier
from tower_server.member import DETACHED, Member

if TYPE_CHECKING:
    from tests.simulation.ends import End

AGENT_KEY: Final = b"agents"


def verify_agent(chain: Sequence[bytes], transcript: bytes, signature: bytes) -> Identity:
    """Who an agent is, by its stand-in for a chain: cluster and agent."""
    named: str = verifier(AGENT_KEY)(chain, transcript, signature).cluster
    cluster, _, agent = named.partition("/")
    return Identity(cluster, agent)


class Cluster(Member):
    """Of the server's idea of a member only its tunnels, and the choice among them."""

    def __init__(self) -> None:
        self.tunnels = []


class Face:
    """What that code asks of a tunnel, told of an end."""

    dialect = SUBPROTOCOL
    renew_only = False

    def __init__(self, end: End, identity: Identity) -> None:
        self.end = end
        self.id = end.tunnel
        self.identity = self.peer = identity
        self.instance = end.instance
        self.opened_at = end.world.now

    @property
    def closed(self) -> object:
        return self.end.session.lost

    @property
    def data(self) -> dict[str, Any]:
        return {DETACHED: "lost"} if self.end.session.detached_at is not None else {}

    @property
    def draining(self) -> bool:
        return self.end.session.draining or self.end.session.peer_draining

    @property
    def stalled(self) -> bool:
        session = self.end.session
        if session.detached_at is not None:
            return True
        return session.overdue(self.end.process.clock()) >= max(STALL_AFTER, 4 * (session.rtt or 0.0))

    @property
    def stream_count(self) -> int:
        return self.end.session.stream_count

    @property
    def buffered(self) -> int:
        return self.end.session.budget.used

    @property
    def rtt(self) -> float | None:
        return self.end.session.rtt


def as_tunnel(face: Face) -> Tunnel:
    """For the server's code."""
    return cast("Tunnel", face)


def from_tunnel(tunnel: Tunnel) -> Face:
    """From the server's code."""
    return cast("Face", tunnel)


def as_identity(identity: Identity) -> AgentIdentity:
    """For the server's code, which asks for cluster and agent."""
    return cast("AgentIdentity", identity)

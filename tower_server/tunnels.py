"""Every tunnel that this server holds, by cluster: the one place that knows which of them are alive.

A tunnel enters when its handshake is done and leaves when it has ended. When an agent process opens a newer tunnel, its
older one is closed at once: if only the agent has noticed a cut, no dead tunnel is left for callers to be sent into.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from certs.peers import AgentIdentity
from daemon.log import get_logger
from daemon.wirefault import WIRE_FAULTS
from protocol import events
from protocol.aio.tunnel import Closed, Tunnel
from protocol.constants import SUBPROTOCOL, Code
from protocol.defaults import MAX_LINKS
from protocol.errors import HandshakeRejected
from tower_server.member import DETACHED, Member

MAX_OF_AGENT: Final = 8 * MAX_LINKS  # tunnels, whatever its replicas say their names are; those without a link count
FULL_RETRY: Final = 60.0
LATE_RETRY: Final = 1.0

log = get_logger(__name__)


class TunnelRegistry:
    """Members by name, tunnels by member."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.departed: dict[tuple[str, str], tuple[float, str]] = {}
        """When agents whose tunnel has ended were last there, and their version, until that is written down."""
        self._observers: list[Callable[[Member, Tunnel], None]] = []
        self._resume_observers: list[Callable[[Member, Tunnel], None]] = []

    def __iter__(self) -> Iterator[tuple[Member, Tunnel]]:
        for member in list(self.members.values()):
            for tunnel in list(member.tunnels):
                yield member, tunnel

    def subscribe(
        self, opened: Callable[[Member, Tunnel], None], resumed: Callable[[Member, Tunnel], None] | None = None
    ) -> None:
        """`opened` is called for each new tunnel, `resumed` for each that goes on over another link."""
        self._observers.append(opened)
        if resumed is not None:
            self._resume_observers.append(resumed)

    def admit(self, tunnel: Tunnel) -> None:
        """Takes a tunnel whose handshake is done. One of a cluster that is gone by now is closed."""
        member = self.members.get(tunnel.peer.cluster)
        if member is None or tunnel.closed is not None:
            tunnel.close(Code.DELETED, f"there is no cluster {tunnel.peer.cluster} here")
            return
        tunnel.on_closed = self._closed
        tunnel.on_detached = self._detached
        tunnel.on_resumed = self._resumed
        tunnel.on_going_away = lambda tunnel, event: member.going_away(tunnel, event.text)
        for older in list(member.tunnels):
            if (older.peer.agent, older.instance) == (tunnel.peer.agent, tunnel.instance) and not older.draining:
                older.close(Code.REPLACED, "the same agent process opened a newer tunnel")
            elif DETACHED in older.data and older.peer.agent == tunnel.peer.agent and _restarted(older, tunnel):
                older.close(Code.REPLACED, "its agent's process was started anew")
        member.add(tunnel)
        log.info(
            "tunnel-opened",
            cluster=member.name,
            tunnel=tunnel.id,
            agent=tunnel.peer.agent,
            remote=tunnel.remote,
            renew_only=tunnel.renew_only,
            software=tunnel.software,
        )
        for observer in self._observers:
            observer(member, tunnel)

    def check_room(self, identity: AgentIdentity, instance: str) -> None:
        """HandshakeRejected if an agent has as many tunnels as it may: each costs everybody a descriptor and memory."""
        member = self.members.get(identity.cluster)
        held = [each for each in (member.tunnels if member is not None else ()) if each.peer.agent == identity.agent]
        if sum(each.draining or each.instance != instance for each in held) >= MAX_OF_AGENT:
            text = f"the agent {identity.agent} has {len(held)} tunnels, and {MAX_OF_AGENT} are the most"
            raise HandshakeRejected(Code.BUSY, text, FULL_RETRY)

    def check_order(self, identity: AgentIdentity, instance: str, since: float) -> None:
        """HandshakeRejected if the agent process has opened another tunnel since this handshake began (`since`,
        monotonic): it dials one at a time, so that one is what it holds now."""
        member = self.members.get(identity.cluster)
        for each in member.tunnels if member is not None else ():
            if (each.peer.agent, each.instance) == (identity.agent, instance) and each.opened_at > since:
                text = "the same agent process has opened a tunnel since this handshake began"
                raise HandshakeRejected(Code.REPLACED, text, LATE_RETRY)

    def find(self, tunnel_id: str, identity: AgentIdentity) -> Tunnel | None:
        """The tunnel that this agent may go on with over a new link."""
        member = self.members.get(identity.cluster)
        for tunnel in member.tunnels if member is not None else ():
            if tunnel.id == tunnel_id and tunnel.dialect == SUBPROTOCOL and tunnel.peer.agent == identity.agent:
                return tunnel
        return None

    def close_agent(self, cluster: str, agent: str | None, *, code: Code, text: str) -> int:
        """Closes the tunnels of an agent (None: all of the cluster) at once; how many there were."""
        member = self.members.get(cluster)
        found = [t for t in (member.tunnels if member else []) if agent is None or t.peer.agent == agent]
        for tunnel in found:
            tunnel.close(code, text)
        return len(found)

    def close_serial(self, serial: int) -> None:
        """Closes the tunnels that stand on a revoked certificate."""
        for _, tunnel in self:
            if tunnel.peer.serial == serial:
                tunnel.close(Code.REVOKED, "the certificate of the agent was revoked")

    def drain_all(self, text: str, *, deadline: float, retry_after: Callable[[], float]) -> None:
        """Asks every agent to move elsewhere; each is told another moment to come back. Nothing new is opened."""
        for _, tunnel in self:
            tunnel.drain(Code.SHUTDOWN, text, deadline=deadline, retry_after=retry_after())

    @property
    def busy(self) -> bool:
        """Whether any tunnel carries more than its control stream."""
        return any(tunnel.stream_count > 1 for _, tunnel in self)

    def close_all(self, code: Code, text: str) -> None:
        for _, tunnel in self:
            tunnel.close(code, text)

    def _detached(self, tunnel: Tunnel, lost: events.LinkLost) -> None:
        member = self.members.get(tunnel.peer.cluster)
        if member is not None:
            member.detached(tunnel, lost)
        log.warning(
            "tunnel-detached",
            cluster=tunnel.peer.cluster,
            tunnel=tunnel.id,
            agent=tunnel.peer.agent,
            remote=tunnel.remote,
            code=lost.code.name,
            text=lost.text,
            streams=tunnel.stream_count,
        )

    def _resumed(self, tunnel: Tunnel, pause: float) -> None:
        member = self.members.get(tunnel.peer.cluster)
        if member is not None:
            member.resumed(tunnel, pause)
            member.metrics.resumed("ok")
            for observer in self._resume_observers:
                observer(member, tunnel)
        log.info(
            "tunnel-resumed",
            cluster=tunnel.peer.cluster,
            tunnel=tunnel.id,
            agent=tunnel.peer.agent,
            remote=tunnel.remote,
            seconds=round(pause, 3),
            streams=tunnel.stream_count,
        )

    def _closed(self, tunnel: Tunnel, closed: Closed) -> None:
        member = self.members.get(tunnel.peer.cluster)
        if member is not None:
            if DETACHED in tunnel.data:
                member.metrics.resumed("expired")
            member.remove(tunnel, closed)
            self.departed[member.name, tunnel.peer.agent] = (time.time(), tunnel.software)
        log.info(
            "tunnel-closed",
            cluster=tunnel.peer.cluster,
            tunnel=tunnel.id,
            agent=tunnel.peer.agent,
            code=closed.code.name,
            fault=WIRE_FAULTS.get(closed.code),
            text=closed.text,
            by_peer=closed.by_peer,
            seconds=round(closed.at - tunnel.opened_at, 3),
            bytes_in=tunnel.bytes_in,
            bytes_out=tunnel.bytes_out,
        )


def _restarted(older: Tunnel, newer: Tunnel) -> bool:
    """Whether the newer tunnel's process has replaced the older one's, so that nobody will resume the older one.

    An instance is `<where it runs>-<process>`, with `.<n>` behind it for the further tunnels of one process.
    """
    (home, _, process), (newer_home, _, newer_process) = (each.instance.rpartition("-") for each in (older, newer))
    return bool(home) and home == newer_home and process.partition(".")[0] != newer_process.partition(".")[0]

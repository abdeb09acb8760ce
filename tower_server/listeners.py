"""The ports that callers connect to: one listener for each service of each cluster.

A port that cannot be bound is a condition of its cluster and is tried again until it can; the tunnel and the other
ports go on meanwhile. Listeners may be inherited from systemd (named `port-6012`), so that a restart refuses nobody.

Callers are recognised at the member's end, which cuts off those that are nobody within HEAD_DEADLINE. So a connection
that is older than that has been recognised; of younger ones, a network has a bounded number at each port. Nobody
recognises a caller of another service than `kubernetes`, and its backend may keep whoever says nothing: there a network
has that number in all, and all networks together leave most of a tunnel's memory to `kubernetes`.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from daemon.faults import TowerError, fault
from daemon.log import get_logger
from protocol import defaults
from protocol.aio.keepalive import keep_alive
from protocol.aio.port import network_of
from tower_server.answer import Answer, Answerer
from tower_server.member import Member
from tower_server.records import KUBERNETES
from tower_server.relay import CallerConnection, ConnectionIds, connection_ids
from tower_server.sockets import listening_socket
from tower_server.state import UNHEARD

BACKLOG: Final = 1024
RETRY_EVERY: Final = 5.0  # seconds between attempts to bind a port that another process holds
RETRY_AFTER: Final = 1.0  # told to callers while a return is likely
RAW_SHARE: Final = 4  # one part in so many of a tunnel's memory is for services whose callers nobody recognises
REFUSALS_SAID_EVERY: Final = 60.0  # seconds between log lines about connections that a port refuses

log = get_logger(__name__)
audit = get_logger("audit")


class CallerPort:
    """One listening port. `problem` says why it does not listen, None when it does."""

    def __init__(self, owner: CallerPorts, member: Member, service: str, port: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.member = member
        self.service = service
        self.port = port
        self.problem: TowerError | None = None
        self.since = time.time()
        self.answerer = owner.answerer
        self.connections: set[CallerConnection] = set()
        self._new: dict[CallerConnection, str] = {}  # to the network that they come from, oldest first
        self._new_of: Counter[str] = Counter()
        self._refused = 0
        self._refused_said = float("-inf")
        self._owner = owner
        self._inherited = False
        self._raw = service != KUBERNETES
        self._over = owner.over
        self._streams = member.metrics.streams(service)
        self._server: asyncio.Server | None = None

    @property
    def listening(self) -> bool:
        return self._server is not None

    @property
    def no_tunnel_answers(self) -> bool:
        """Whether a caller without a tunnel gets more than the end of its connection."""
        return self._owner.answers and self.service == KUBERNETES and not self.member.passthrough

    async def listen(self, sock: socket.socket | None = None) -> bool:
        """Binds the port, unless it is bound already or closed. A failure is kept in `problem`, never raised."""
        if self._over and sock is not None:
            sock.close()
        if self._over or self._server is not None:
            return True
        self._inherited = self._inherited or sock is not None
        try:
            sock = sock or listening_socket(self._owner.bind, self.port, backlog=BACKLOG)
            keep_alive(sock)
            self._server = await self.loop.create_server(self._connection, sock=sock)
        except OSError as error:
            if self.problem is None:
                self.since = time.time()
            self.problem = TowerError(
                "TWR110",
                f"port {self.port} of cluster {self.member.name} ({self.service}) cannot be listened on: "
                f"{error.strerror or error}",
            )
            return False
        self.problem = None
        self.since = time.time()
        return True

    def _connection(self) -> CallerConnection:
        return CallerConnection(self, self._owner.ids.next())

    def way(self) -> Any:
        """The tunnel that a new stream goes to, or the way to another server that holds one; None for neither."""
        return self.member.pick() or self._owner.elsewhere(self.member)

    def wait(self, connection: CallerConnection, then: Callable[[bool], None]) -> bool:
        """Whether a caller that finds no tunnel is kept waiting for one; see `Hold.wait`."""
        return self.no_tunnel_answers and not self._owner.draining and self.member.hold.wait(connection, then)

    def no_tunnel(self) -> Answer:
        """The answer to a caller when there is no tunnel."""
        member, hold = self.member, self.member.hold
        if self._owner.draining:
            text = f"cluster {member.name} cannot be reached: this tower server is stopping"
            return Answer("TWR113", text, retry_after=RETRY_AFTER, status=503)
        verdict = member.verdict
        if member.serving:
            cause = "its tunnels take no new streams just now"
        elif hold.full and hold.return_likely:
            cause = f"{verdict.cause}; too many callers wait for it already"
        else:
            cause = verdict.cause
        return Answer(
            verdict.code if verdict.code.startswith("TWR2") or verdict.code == UNHEARD else "TWR201",
            f"cluster {member.name} cannot be reached: {cause}",
            retry_after=RETRY_AFTER if hold.return_likely or member.serving else None,
            status=503,
            cluster=member.name,
        )

    # ---- what connections call ----------------------------------------------------------------------------------

    def entered(self, connection: CallerConnection) -> bool:
        """Whether a new connection may stay: not if its network has too many new ones, or few descriptors are left."""
        network = network_of(connection.caller)
        if not self._raw:
            self._forget_known(connection.opened_at - defaults.HEAD_DEADLINE)
        if self._new_of[network] >= self._owner.per_network:
            when = "open" if self._raw else f"within {defaults.HEAD_DEADLINE:g} s"
            text = f"more than {self._owner.per_network} connections {when}"
            self._refuse(network, text, "raise callers.new_per_network if they are meant")
            return False
        if self._raw and len(self.connections) >= self._owner.raw:
            text = f"{self._owner.raw} connections are open, and what they may buffer is a quarter of a tunnel's memory"
            self._refuse(network, text, "raise memory.tunnel and memory.process, at the agent too, if they are meant")
            return False
        if connection.transport is not None and not descriptors_left(connection.transport):
            out = fault("TWR117")
            self._refuse(network, out.title, out.mend, code=out.code)
            return False
        self._new[connection] = network
        self._new_of[network] += 1
        self.connections.add(connection)
        self._owner.entered()
        return True

    def _forget_known(self, before: float) -> None:
        while self._new and (oldest := next(iter(self._new))).opened_at <= before:
            self._forget(oldest)

    def _forget(self, connection: CallerConnection) -> None:
        network = self._new.pop(connection, None)
        if network is not None:
            self._new_of[network] -= 1
            if not self._new_of[network]:
                del self._new_of[network]

    def _refuse(self, network: str, text: str, mend: str, *, code: str = "") -> None:
        self._owner.throttled.inc()
        self._refused += 1
        now = self.loop.time()
        if now - self._refused_said >= REFUSALS_SAID_EVERY:
            log.warning(
                "callers-refused",
                cluster=self.member.name,
                service=self.service,
                network=network,
                connections=self._refused,
                code=code,
                text=text,
                mend=mend,
            )
            self._refused, self._refused_said = 0, now

    def count(self, result: str) -> None:
        """Counts how an open ended."""
        self.member.metrics.opens[result].inc()

    def unreachable(self) -> None:
        """The agent could not reach what is behind this port."""
        if self.service == KUBERNETES:
            self._owner.unreachable(self.member.name)

    def accepted(self, connection: CallerConnection) -> None:
        self.count("ok")
        self._streams.inc()
        self._owner.open_duration(self.loop.time() - connection.opened_at)

    def stream_ended(self, connection: CallerConnection) -> None:
        self._streams.dec()
        self.sample(connection)

    def left(self, connection: CallerConnection) -> None:
        """The connection is over: its one audit line."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        self._forget(connection)
        self._owner.left()
        stream = connection.stream
        audit.info(
            "connection",
            connection=connection.id,
            caller=connection.caller,
            cluster=self.member.name,
            service=self.service,
            bytes_up=stream.bytes_out if stream is not None else 0,
            bytes_down=stream.bytes_in if stream is not None else 0,
            seconds=round(self.loop.time() - connection.opened_at, 4),
            outcome=connection.outcome,
            **({"code": connection.code} if connection.code else {}),
        )

    def sample(self, connection: CallerConnection) -> None:
        """Adds what a connection has moved since the last time to the counters."""
        stream = connection.stream
        if stream is None:
            return
        up, down = stream.bytes_out, stream.bytes_in
        self.member.metrics.to_member.inc(up - connection.moved_out)
        self.member.metrics.from_member.inc(down - connection.moved_in)
        connection.moved_out, connection.moved_in = up, down

    def drain(self) -> None:
        """From now on, callers of a listener that outlives this process wait in it for the next one; callers of others
        are told why they do not get through."""
        if self._inherited:
            self.stop_listening()

    def stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self, why: str) -> None:
        """Stops listening for good and ends every connection."""
        self._over = True
        self.stop_listening()
        for connection in list(self.connections):
            connection.abort(why)


def descriptors_left(transport: asyncio.Transport) -> bool:
    """Whether callers leave enough descriptors for the rest of the process. The kernel gives out the lowest free
    number, so the newest connection's number tells how many are in use. The limit may change at any time."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = min(defaults.RESERVED_DESCRIPTORS, limit // 4)
    return bool(transport.get_extra_info("socket").fileno() < limit - reserved)


class CallerPorts:
    """All of them. `run` must be running for ports that could not be bound to be tried again."""

    def __init__(
        self,
        *,
        bind: str,
        answerer: Answerer,
        answers: bool,
        open_duration: Any,
        per_network: int,
        raw: int,
        throttled: Any,
        inherited: Mapping[str, list[socket.socket]] | None = None,
    ) -> None:
        self.bind = bind
        self.answerer = answerer
        self.answers = answers
        self.ids: ConnectionIds = connection_ids()
        self.open_duration = open_duration
        self.per_network = per_network
        self.raw = raw
        """Connections to a service other than `kubernetes` of a cluster, at most."""
        self.throttled = throttled
        self.draining = False
        self.over = False
        self.elsewhere: Callable[[Member], Any] = lambda _member: None
        self.unreachable: Callable[[str], object] = lambda _cluster: None
        """Told when a member's agent could not reach its apiserver for a caller."""
        self.connections = 0
        self._inherited = {name: list(socks) for name, socks in (inherited or {}).items()}
        self._ports: dict[tuple[str, str], CallerPort] = {}

    def __iter__(self) -> Any:
        return iter(list(self._ports.values()))

    def of(self, cluster: str) -> list[CallerPort]:
        return [port for (name, _), port in self._ports.items() if name == cluster]

    async def add(self, member: Member, service: str, port: int) -> CallerPort:
        """Listens for a service of a cluster; what went wrong is in the port's `problem`."""
        made = self._ports[member.name, service] = CallerPort(self, member, service, port)
        given = self._inherited.pop(f"port-{port}", None)
        if not await made.listen(given[0] if given else None):
            assert made.problem is not None
            log.warning("port-unavailable", cluster=member.name, port=port, text=made.problem.message)
        return made

    def drop_unclaimed(self) -> None:
        """Closes inherited ports that belong to no cluster: nobody would ever accept callers there."""
        unclaimed = [name for name in self._inherited if name.startswith("port-")]
        for name in unclaimed:
            log.warning("inherited-port-unclaimed", name=name)
            for sock in self._inherited.pop(name):
                sock.close()

    def remove(self, cluster: str, service: str | None = None, *, why: str = "the cluster was deleted") -> None:
        """Ends the ports of a cluster, or the one of a service."""
        for port in self.of(cluster):
            if service in (None, port.service):
                del self._ports[cluster, port.service]
                port.close(why)

    def entered(self) -> None:
        self.connections += 1

    def left(self) -> None:
        self.connections -= 1

    async def run(self) -> None:
        """Tries the ports that do not listen, and samples the counters, until cancelled."""
        while True:
            await asyncio.sleep(RETRY_EVERY)
            for port in self:
                if not (self.draining or port.listening) and await port.listen():
                    log.info("port-listening", cluster=port.member.name, port=port.port)
                for connection in list(port.connections):
                    port.sample(connection)

    def drain(self) -> None:
        """The server is about to stop, and its tunnels take nothing new."""
        self.draining = True
        for port in self:
            port.drain()

    def close(self, why: str) -> None:
        """Closes all ports for good: services that agents still declare get none."""
        self.over = True
        for port in self:
            port.close(why)

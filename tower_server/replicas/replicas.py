"""This server among the others of its host: it tells them what it holds, and knows what they hold.

Whichever server holds a cluster's tunnels knows the truth about it. Where that is another server, the member here shows
what that one says (state, report, number of tunnels), and callers are passed on to it. When no server holds a tunnel
any more, the member goes by its own history again, and callers are held or answered as with a single server.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from certs.ca import Authority
from daemon.faults import TowerError
from daemon.kube.client import Client
from protocol import defaults
from protocol.constants import Code
from tower_server.clusters import Clusters
from tower_server.member import DETACHED, Elsewhere, Member
from tower_server.replicas.asking import Answer
from tower_server.replicas.balance import Balance
from tower_server.replicas.carrying import MAX_CARRIED, AgentEnd
from tower_server.replicas.directory import Directory, Peer
from tower_server.replicas.identity import ReplicaCertificate
from tower_server.replicas.link import CUT, Link
from tower_server.replicas.passing import PassedStream, Start
from tower_server.replicas.port import ReplicaPort
from tower_server.replicas.wire import Asking, Held, Passing, told
from tower_server.tunnels import TunnelRegistry

TOLD_AT_MOST_EVERY: Final = 0.05  # seconds: what changes together is told together
TAG: Final = 8  # characters; if two processes of a host had the same tag, each would only refuse the other's agents
OVERDUE: Final = 1.5 * defaults.LEASE_RETRY
"""Seconds without a renewal that a leader who lives does not let pass: it renews at least each 1.2 retries."""


@dataclass(frozen=True, slots=True)
class Way:
    """The way to a cluster over the server that owns its tunnel. It has the interface of a tunnel."""

    link: Link
    cluster: str
    start: Start

    def start_open(self, service: str, protocol: Any, *, caller: str = "", connection_id: str = "") -> PassedStream:
        return PassedStream(
            self.link, Passing(self.cluster, service, caller, connection_id), protocol, start=self.start
        )


class Replicas:
    """`open` the port, `run` as a task, `close`."""

    def __init__(
        self,
        *,
        authority: Authority,
        name: str,
        registry: TunnelRegistry,
        clusters: Clusters,
        start: Start,
    ) -> None:
        self.name = name
        self.instance = secrets.token_hex(8)
        self.link: Callable[[str], Any] = _no_link
        """Makes a link of the tunnel port for an agent that another server carries here."""
        self.carrying: set[AgentEnd] = set()
        self.lost: Callable[[], None] = lambda: None
        """Called when another server is no longer heard of."""
        self.ready = True
        """False once this server stops: the others send nobody here any more."""
        self.certificate = ReplicaCertificate(authority, name=name, at=time.time())
        self.port = ReplicaPort(self, self.certificate)
        self.links: dict[str, Link] = {}
        self.balance = Balance(registry, others=self._tunnels_of_others, ready=lambda: self.ready)
        self.answer: Answer = _unanswerable
        """To the others' questions; put in place by whoever can answer them."""
        self._registry = registry
        self._clusters = clusters
        self._start = start
        self._directory: Directory | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._told: asyncio.TimerHandle | None = None
        self._closed = False
        self._taking: set[str] = set()  # the servers that take callers, as observers know them
        self._observers: list[Callable[[str], None]] = []

    # ---- life ---------------------------------------------------------------------------------------------------

    async def open(
        self, client: Client, *, namespace: str, listen: tuple[str, int], address: str, callers: str
    ) -> None:
        """Listens. `address` is how the others reach this server, `callers` its address in EndpointSlices."""
        await self.port.start(*listen)
        me = Peer(self.name, self.instance, address, self.port.address[1], callers)
        self._directory = Directory(client, me, namespace=namespace)

    async def run(self) -> None:
        """Until cancelled."""
        assert self._directory is not None
        directory = self._directory
        unsubscribe = self._clusters.subscribe(self._cluster_changed)
        work = {
            asyncio.create_task(each, name=name)
            for each, name in (
                (directory.follow(), "replicas-follow"),
                (directory.publish(), "replicas-publish"),
                (self._beat(), "replicas-beat"),
                (self._link(directory), "replicas-link"),
                (self.balance.run(), "replicas-balance"),
            )
        }
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            unsubscribe()
            for task in (*work, *self._tasks.values()):
                task.cancel()
            await asyncio.wait({*work, *self._tasks.values()})
            self._tasks.clear()
            self.links.clear()

    def drain(self) -> None:
        self.ready = False
        self._tell()

    def close(self) -> None:
        """From here on nothing that is heard of the other servers has any effect."""
        self._closed = True
        if self._told is not None:
            self._told.cancel()
            self._told = None
        self.port.stop()

    async def _beat(self) -> None:
        while True:
            self._tell()
            for member in list(self._registry.members.values()):
                _end_abandoned(member, self._owners(member.name))
            await asyncio.sleep(defaults.REPLICA_HEARTBEAT)

    async def _link(self, directory: Directory) -> None:
        """Keeps a link to each server that the directory names; and to one whose Lease is stale or gone while it is
        heard of, since it may merely be unable to write that, or somebody has deleted it. One that fell silent with a
        stale Lease may go on as well, cut off from all: it is dialled while the Lease stands, unless nobody listens."""
        while True:
            directory.changed.clear()
            wanted = {peer.name: peer for peer in directory.peers()}
            stale = {peer.name: peer for peer in directory.peers(stale=True) if peer.name not in wanted}
            for name, link in list(self.links.items()):
                task = self._tasks[name]
                missed = link.was_up and not link.refused and stale.get(name) == link.peer
                kept = name not in wanted and (link.up or missed)
                if not (kept or wanted.get(name) == link.peer) or task.done():
                    del self.links[name], self._tasks[name]
                    task.cancel()
                    await asyncio.wait({task})
                    if not task.cancelled() and (error := task.exception()) is not None:
                        raise error
            for name, peer in wanted.items():
                if name not in self.links:
                    link = self.links[name] = Link(peer, self.certificate, self._link_changed)
                    self._tasks[name] = asyncio.create_task(link.run(), name=f"replica-link-{name}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(defaults.REPLICA_DEAD_AFTER):  # staleness comes without an event
                    await directory.changed.wait()

    # ---- what this server says ----------------------------------------------------------------------------------

    def held(self) -> dict[str, Held]:
        return {
            name: Held(len(member.serving), member.verdict, told(member.report), tuple(map(process_of, member.serving)))
            for name, member in self._registry.members.items()
            if member.serving
        }

    def member(self, cluster: str) -> Member | None:
        return self._registry.members.get(cluster)

    def _cluster_changed(self, change: str, name: str) -> None:
        if change == "ADDED":
            self._refresh(name, "")
        if self._told is None:
            self._told = asyncio.get_running_loop().call_later(TOLD_AT_MOST_EVERY, self._tell)

    def _tell(self) -> None:
        if self._told is not None:
            self._told.cancel()
            self._told = None
        self.port.tell()

    # ---- what the others say ------------------------------------------------------------------------------------

    def subscribe(self, observer: Callable[[str], None]) -> Callable[[], None]:
        """`observer(cluster)` is called when its callers may have to be sent elsewhere; what is returned ends that."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def elsewhere(self, member: Member) -> Way | None:
        """The way to a cluster over another server; None when nobody holds a tunnel of it."""
        owners = self._owners(member.name)
        if not owners:
            return None
        return Way(min(owners, key=lambda link: len(link.passing)), member.name, self._start)

    def owner(self, cluster: str) -> Link | None:
        """One of the other servers that hold a tunnel of it."""
        return next(iter(self._owners(cluster)), None)

    def serving(self) -> Iterable[tuple[Peer, frozenset[str]]]:
        """The other servers that take callers, and what they hold."""
        return [(link.peer, frozenset(link.holds)) for link in self.links.values() if link.serving]

    @property
    def tag(self) -> str:
        """How the names of this process' tunnels begin, so that every server knows whose one is."""
        return self.instance[:TAG]

    def carry(
        self, tunnel: str, request: bytes, transport: asyncio.Transport, remote: str, done: Callable[[bool], None]
    ) -> bool:
        """Takes an agent's connection to the server whose tunnel it comes for, see `carrying`."""
        owner = next((link for link in self.links.values() if tunnel[:TAG] == link.peer.instance[:TAG]), None)
        if owner is None or not owner.up or len(self.carrying) >= MAX_CARRIED or tunnel[:TAG] == self.tag:
            return False
        AgentEnd(transport, self.carrying, remote, done).begin(owner, tunnel, request, start=self._start)
        return True

    @property
    def identity(self) -> str:
        """The name under which this process holds a lease."""
        return f"{self.name}_{self.instance}"

    def grace(self, holder: str) -> float | None:
        """How long an `Elector` has to wait for the holder of a lease, if it is known to be gone; None if it is not.
        Zero if its process was connected and is there no more, the time of a renewal or two if it is merely silent."""
        name, _, instance = holder.rpartition("_")
        link = self.links.get(name)
        if name == self.name:
            return None if instance == self.instance else OVERDUE  # this server's process of before
        if link is None or not link.was_up:
            return None
        if link.up:
            return None if link.peer.instance == instance else OVERDUE
        return 0.0 if link.refused and link.peer.instance == instance else OVERDUE

    @property
    def callers_address(self) -> str:
        return self._directory.me.callers if self._directory is not None else ""

    def _tunnels_of_others(self) -> dict[str, int]:
        return {
            name: sum(held.tunnels for held in link.holds.values()) for name, link in self.links.items() if link.serving
        }

    def _owners(self, cluster: str) -> list[Link]:
        return [link for link in self.links.values() if link.serving and cluster in link.holds]

    def _link_changed(self, link: Link, clusters: set[str], why: str) -> None:
        if self._closed:
            return
        for cluster in clusters:
            # A tunnel that its owner reports as lost is the member's own trouble; a server that stops is not.
            said = f"server {link.peer.name}, which held its tunnel, is gone: {why}"
            self._refresh(cluster, said, cut=why == CUT, unheard=not link.up)
        touched: Iterable[str] = clusters
        if link.serving != (link.peer.name in self._taking):
            self._taking ^= {link.peer.name}
            touched = list(self._registry.members)  # it answers callers of every cluster without a tunnel
        for observer in list(self._observers):
            for cluster in touched:
                observer(cluster)
        if not link.up:
            self.lost()

    def _refresh(self, cluster: str, why: str, *, cut: bool = False, unheard: bool = False) -> None:
        member = self._registry.members.get(cluster)
        if member is None:
            return
        owners = self._owners(cluster)
        before = member.known_report.get("services")
        if owners:
            best = min(owners, key=lambda link: (link.holds[cluster].verdict.ready != "True", link.peer.name))
            said = best.holds[cluster]
            tunnels = sum(link.holds[cluster].tunnels for link in owners)
            member.note_elsewhere(Elsewhere(tunnels, said.verdict, said.report), why, unheard=unheard)
        else:
            member.note_elsewhere(None, why, cut=cut, unheard=unheard)
        if member.known_report.get("services") != before:
            self._start(self._clusters.declare(member), f"declare-{cluster}")


def _no_link(_remote: str) -> Any:
    raise TowerError("TWR118", "this server takes no agent that another one carries")


async def _unanswerable(asking: Asking) -> dict[str, Any]:
    raise TowerError("TWR612", f"this server answers no question such as {asking.call[:40]!r}")


def process_of(tunnel: Any) -> str:
    """The process at a tunnel's other end, and which of its tunnels it is."""
    return f"{tunnel.peer.agent}/{tunnel.instance}"


def _end_abandoned(member: Member, owners: Iterable[Link]) -> None:
    """End a detached tunnel whose agent has opened another one at another server: nobody will come back for it, so its
    streams end now, and not when its window has passed."""
    for link in owners:
        moved = frozenset(link.holds[member.name].agents)
        for tunnel in list(member.tunnels):
            if DETACHED in tunnel.data and process_of(tunnel) in moved:
                tunnel.close(Code.REPLACED, f"its agent opened a newer tunnel, at server {link.peer.name}")

"""Runs the controller inside one tower server that keeps its records in a host cluster.

It sees the members through the tunnels of this server and of the others; the EndpointSlices it writes name all of them.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

from certs.ca import Authority
from daemon.kube.client import Client
from daemon.log import get_logger
from daemon.metrics import ServerMetrics
from tower_server.clusters import Clusters
from tower_server.config import ServerConfig, url_host
from tower_server.controller.allocation import Allocation
from tower_server.controller.controller import Controller
from tower_server.controller.desired import Replica
from tower_server.controller.errands import Errands
from tower_server.controller.events import Events
from tower_server.controller.facts import Observed
from tower_server.controller.lease import KubeLease
from tower_server.controller.membership import Membership
from tower_server.controller.names import MANAGER
from tower_server.controller.reach import Reach
from tower_server.controller.reconcile import Reconciler
from tower_server.controller.registry import Registry
from tower_server.controller.reporter import Reporter
from tower_server.controller.twins import Twins
from tower_server.controller.view import Watches
from tower_server.controller.writer import Writer
from tower_server.election import Elector, Timing
from tower_server.ports import PortRange, can_bind
from tower_server.records import KUBERNETES, KUBESPHERE
from tower_server.replicas.asking import Silent, ask_all
from tower_server.replicas.directory import Peer
from tower_server.replicas.replicas import Replicas
from tower_server.replicas.wire import Asking
from tower_server.revocations import Revocations
from tower_server.servercert import own_names
from tower_server.store.base import Store
from tower_server.tunnels import TunnelRegistry

ASKED_EVERY: Final = 10.0  # as often as a server looks itself
LOOK_EVERY: Final = 30.0  # what an agent reports changes without a verdict's change; a look in vain asks for nothing

log = get_logger(__name__)


class Others(Protocol):
    """The other servers of the host."""

    ready: bool

    def serving(self) -> Iterable[tuple[Peer, frozenset[str]]]: ...


class OwnFacts:
    """What this server sees itself, and what the others tell it. For the resume window after its start it says nothing
    of who has not come back."""

    def __init__(
        self, registry: TunnelRegistry, replicas: Others, *, name: str, address: str, resume_window: float
    ) -> None:
        self._registry = registry
        self._replicas = replicas
        self._name = name
        self._address = address
        self._early_until = time.monotonic() + resume_window

    def observed(self, cluster: str) -> Observed | None:
        member = self._registry.members.get(cluster)
        if member is None:
            return None
        early = time.monotonic() < self._early_until
        if early and member.verdict.ready != "True" and member.connected is not None:
            return None
        flaps = member.flaps
        return Observed(
            member.verdict,
            member.tunnels_of_host,
            member.known_report,
            flapping=flaps.said(),
            tunnel_flaps=flaps.of_tunnel,
            cluster=cluster,
        )

    def replicas(self) -> Sequence[Replica]:
        """This server and the others; without those that have no address that an EndpointSlice may hold. A cluster that
        comes and goes is nobody's: all of them answer for it, and pass its callers on to whoever holds it just then."""
        members = self._registry.members.items()
        restless = frozenset(name for name, member in members if member.flaps.since is not None)
        held = frozenset(name for name, member in members if member.serving) - restless
        others = [Replica(peer.name, peer.callers, True, holds - restless) for peer, holds in self._replicas.serving()]
        found = [Replica(self._name, self._address, self._replicas.ready, held), *others]
        return [each for each in found if each.address]


class Unheard:
    """The servers that do not say that they have read what is stored; asked again only after a while, so that of many
    clusters that end together each does not wait for a server that is silent."""

    def __init__(self, ask: Callable[[], Awaitable[Iterable[Silent]]], *, clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._asking = asyncio.Lock()
        self._said: list[str] = []
        self._until = float("-inf")

    async def __call__(self) -> Sequence[str]:
        async with self._asking:
            if self._clock() >= self._until:
                self._said = [f"{each.server} has not heard of it: {each.why}" for each in await self._ask()]
                self._until = self._clock() + ASKED_EVERY
            return self._said


class HostController:
    """Made of what a server has; `run` it as a task."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        client: Client,
        store: Store,
        authority: Authority,
        clusters: Clusters,
        registry: TunnelRegistry,
        revocations: Revocations,
        metrics: ServerMetrics,
        replicas: Replicas,
    ) -> None:
        name = replicas.name
        first, last = config.ports.range
        offset = config.ports.kubesphere_offset
        ranges = {KUBERNETES: PortRange(first, last), KUBESPHERE: PortRange(first + offset, last + offset)}
        self._registry = registry
        self._clusters = clusters
        self._client = client
        self._namespace = config.store.namespace
        self._own_names = frozenset(own_names(url_host(config.public_url or "")))
        self._name = name
        self._authority = authority
        self._revocations = revocations
        self._replicas = replicas
        self._facts = OwnFacts(
            registry,
            replicas,
            name=name,
            address=replicas.callers_address,
            resume_window=config.liveness.resume_window,
        )
        allocation = Allocation(
            store, ranges, kubesphere_offset=offset, usable=lambda port: can_bind(config.ports.bind, port)
        )
        self._records = Registry(store, allocation, revoke=lambda upto: revocations.revoke_agents(upto, at=time.time()))
        self._errands = Errands(
            host=authority.host,
            client=client,
            reach=Reach(authority, bind=config.ports.bind),
            ca_pem=lambda: authority.bundle.root_pem,
            known=self._is_known,
        )
        self._unheard = Unheard(self._silent, clock=time.monotonic)
        lease = KubeLease(client, namespace=self._namespace, name=MANAGER)
        self._elector = Elector(
            lease, identity=replicas.identity, timing=Timing(), random=random.random, grace=replicas.grace
        )
        self._controller = Controller(
            client=client,
            elector=self._elector,
            registry=self._records,
            namespace=self._namespace,
            make=self._make,
            gauges=_Gauges(metrics),
        )

    async def run(self) -> None:
        """Until cancelled. What is seen of members anew is looked at at once, the rest now and then."""
        unsubscribe = self._clusters.subscribe(lambda _change, name: self._controller.poke(name))
        unfollow = self._replicas.subscribe(self._controller.poke)
        self._replicas.lost = self._elector.wake  # who dies may have led
        work = {
            asyncio.create_task(self._controller.run(), name="controller-lead"),
            asyncio.create_task(self._errands.run(), name="controller-errands"),
        }
        try:
            while not [each for each in work if each.done()]:
                await asyncio.wait(work, timeout=LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
                for name in list(self._registry.members):
                    self._controller.poke(name)
            for each in work:
                if each.done():
                    await each
        finally:
            unsubscribe()
            unfollow()
            for each in work:
                each.cancel()
            await asyncio.wait(work)

    async def _silent(self) -> Sequence[Silent]:
        return (await ask_all(self._replicas.links.values(), Asking("revocations", "")))[1]

    async def _is_known(self, cluster: str) -> bool:
        return await self._records.get(cluster) is not None

    def _make(self, watches: Watches, writer: Writer, poke: Callable[[str], None]) -> Reconciler:
        self._errands.begin(fence=writer.fence, poke=poke)
        events = Events(self._client, instance=self._name)
        return Reconciler(
            client=self._client,
            registry=self._records,
            view=watches,
            writer=writer,
            events=events,
            facts=self._facts,
            reporter=Reporter(
                view=watches,
                writer=writer,
                events=events,
                authority=self._authority,
                revocations=lambda: self._revocations.current,
            ),
            namespace=self._namespace,
            twins=Twins(poke),
            membership=Membership(errands=self._errands, registry=self._records),
            own_names=self._own_names,
            unheard=self._unheard,
        )


class _Gauges:
    """The controller's figures among the server's metrics."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def leads(self, leads: bool) -> None:
        self._metrics.leader.set(1 if leads else 0)

    def depth(self, keys: int) -> None:
        self._metrics.workqueue_depth.set(keys)

    def reconciled(self, result: str) -> None:
        self._metrics.reconciles.labels(result).inc()


def way_address(apiserver: str) -> str:
    """The address of this machine or pod towards its apiserver; empty when there is no way."""
    host, _, port = apiserver.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        family, kind, _, _, target = found[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # of UDP: nothing is sent, a route is chosen
            address = str(probe.getsockname()[0])
    except OSError as error:
        log.warning("no-own-address", apiserver=apiserver, text=str(error))
        return ""
    return address.split("%")[0]


def slice_address(address: str) -> str:
    """The same; empty for a loopback one, which no EndpointSlice may hold."""
    if address.startswith("127.") or address == "::1":
        log.warning("no-own-address", text=f"{address} cannot stand in an EndpointSlice")
        return ""
    return address

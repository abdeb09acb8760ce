"""A controller at work on a real apiserver: its store a file, its members what the test says they are."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from certs.ca import Authority
from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.errors import Conflict, KubeError, NotFound
from daemon.kube.resources import (
    CLUSTERS,
    ENDPOINT_SLICES,
    LEASES,
    MEMBERS,
    NAMESPACES,
    SECRETS,
    SERVICES,
    Object,
    Resource,
)
from tests.lab.controlplane import ControlPlane
from tower_server.controller.allocation import Allocation
from tower_server.controller.controller import Controller
from tower_server.controller.desired import Replica
from tower_server.controller.events import Events
from tower_server.controller.facts import Observed
from tower_server.controller.lease import KubeLease
from tower_server.controller.reconcile import Reconciler
from tower_server.controller.registry import Registry
from tower_server.controller.reporter import Reporter
from tower_server.controller.twins import Twins
from tower_server.dependents import Upto
from tower_server.election import Elector, Timing
from tower_server.ports import PortRange
from tower_server.state import Verdict
from tower_server.store.base import Kind, Store
from tower_server.store.kubernetes import KubernetesStore
from tower_server.store.kubernetes_objects import WRITER

NAMESPACE = "kubesphere-system"
PATIENCE = 60.0
QUICK = Timing(duration=6.0, renew_deadline=4.0, retry=0.2)
PATIENT = Timing(duration=60.0, renew_deadline=40.0, retry=0.2)
"""Whose lead does not end because the machine was busy for two seconds."""
UP = Observed(Verdict("Connected", "True"), 1, {"uid": "kube-system-1", "version": "v1.35.4", "nodes": 3})


def up(number: int) -> Observed:
    """A healthy member that is nobody's twin."""
    return replace(UP, report={**UP.report, "uid": f"kube-system-{number}"})


DOWN = Observed(Verdict("TunnelDown", "False", "TWR201", "no tunnel since 02:14:07Z"), 0)


@dataclass
class World:
    """What tests decide about the members and the servers of the host."""

    members: dict[str, Observed] = field(default_factory=dict)
    servers: list[Replica] = field(default_factory=lambda: [Replica("tower-0", "10.1.0.1", True, frozenset())])

    def observed(self, cluster: str) -> Observed | None:
        return self.members.get(cluster)

    def replicas(self) -> Sequence[Replica]:
        return self.servers


@dataclass
class Counts:
    leading: bool = False
    results: dict[str, int] = field(default_factory=dict)

    def leads(self, leads: bool) -> None:
        self.leading = leads

    def depth(self, keys: int) -> None:
        pass

    def reconciled(self, result: str) -> None:
        self.results[result] = self.results.get(result, 0) + 1


def reporter(view: Any, writer: Any, events: Events, authority: Authority) -> Reporter:
    return Reporter(view=view, writer=writer, events=events, authority=authority, revocations=lambda: None)


class Host:
    """One apiserver, one store, one tower: and as many controllers as a test starts on them."""

    def __init__(self, plane: ControlPlane, client: Client, store: Store, *, ports: int = 20) -> None:
        self.plane, self.client, self.store = plane, client, store
        self.world = World()
        self.authority = Authority.create("lab", at=time.time())
        self.ranges = {
            "kubernetes": PortRange(6000, 6000 + ports - 1),
            "kubesphere": PortRange(16000, 16000 + ports - 1),
        }
        self.revoked: list[str] = []
        self.unheard: list[str] = []
        """Servers that have not heard of what ended."""
        self._open: list[Client] = []

    def new_client(self, name: str, kubeconfig: Path | None = None) -> Client:
        client = Client(Access.find(kubeconfig or self.plane.admin_kubeconfig), user_agent=f"test-{name}")
        self._open.append(client)
        return client

    async def _unheard(self) -> list[str]:
        return self.unheard

    def close(self) -> None:
        for client in self._open:
            client.close()

    def controller(
        self, name: str = "tower-0", *, client: Client | None = None, timing: Timing = PATIENT
    ) -> Controller:
        own = client or self.new_client(name)
        lease = KubeLease(own, namespace=NAMESPACE, name="tower-controller")
        elector = Elector(lease, identity=name, timing=timing, random=random.random)
        allocation = Allocation(self.store, self.ranges, kubesphere_offset=10000, usable=lambda _: True)

        async def revoke(upto: Upto) -> None:
            self.revoked.extend(cluster for cluster, _ in upto)

        registry = Registry(self.store, allocation, revoke=revoke)

        def make(watches: Any, writer: Any, poke: Callable[[str], None]) -> Reconciler:
            events = Events(own, instance=name)
            return Reconciler(
                client=own,
                registry=registry,
                view=watches,
                writer=writer,
                events=events,
                facts=self.world,
                reporter=reporter(watches, writer, events, self.authority),
                namespace=NAMESPACE,
                twins=Twins(poke),
                own_names=frozenset({"tower.example.com"}),
                unheard=self._unheard,
            )

        self.counts = Counts()
        return Controller(
            client=own,
            elector=elector,
            registry=registry,
            namespace=NAMESPACE,
            make=make,
            gauges=self.counts,
        )

    # ---- what a person does -------------------------------------------------------------------------------------

    async def create(self, name: str, **more: Any) -> Object:
        """A Cluster resource as KubeSphere's console makes it."""
        annotations, external = more.pop("annotations", {}), more.pop("external", False)
        finalizers = more.pop("finalizers", [])
        spec: dict[str, Any] = {"connection": {"type": "proxy", **more}, "joinFederation": False, "provider": "x"}
        if external:
            spec["externalKubeAPIEnabled"] = True
        body = {
            "apiVersion": CLUSTERS.api_version,
            "kind": CLUSTERS.kind,
            "metadata": {"name": name, "annotations": annotations, "finalizers": finalizers},
            "spec": spec,
        }
        return await self.client.create(CLUSTERS, body)

    async def get(self, resource: Resource, name: str) -> Object | None:
        with contextlib.suppress(NotFound):
            return await self.client.get(resource, name, namespace=NAMESPACE if resource.namespaced else None)
        return None

    async def edit(self, resource: Resource, name: str, patch: Any) -> Object:
        return await self.client.patch(resource, name, patch, namespace=NAMESPACE if resource.namespaced else None)

    async def set_status(self, resource: Resource, name: str, **fields: Any) -> Object:
        """As `kubectl edit --subresource=status`; None takes a field away."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self.client.get(resource, name, namespace=NAMESPACE if resource.namespaced else None)
                status = {**found.get("status", {}), **fields}
                kept = {field: value for field, value in status.items() if value is not None}
                with contextlib.suppress(Conflict):  # somebody else wrote it meanwhile
                    return await self.client.replace(resource, {**found, "status": kept}, subresource="status")

    async def until(self, what: str, true: Callable[[], Any], *, deadline: float = PATIENCE) -> Any:
        """Waits until `true()` (a coroutine) gives something; what it gave."""
        end = asyncio.get_running_loop().time() + deadline
        while True:
            found = await true()
            if found:
                return found
            if asyncio.get_running_loop().time() > end:
                raise AssertionError(f"not within {deadline:g} s: {what}")
            await asyncio.sleep(0.05)

    async def cluster(self, name: str, true: Callable[[Object], Any], what: str) -> Object:
        """The Cluster resource once it is as asked."""

        async def look() -> Object | None:
            found = await self.get(CLUSTERS, name)
            return found if found is not None and true(found) else None

        return await self.until(f"Cluster {name}: {what}", look)

    async def initialised(self, name: str) -> Object:
        return await self.cluster(name, lambda found: said(found, "Initialized") == "True", "initialised")

    async def service(self, name: str, true: Callable[[Object], Any] = bool) -> Object:
        async def look() -> Object | None:
            found = await self.get(SERVICES, name)
            return found if found is not None and true(found) else None

        return await self.until(f"Service {name}", look)

    async def slices(self, service: str) -> list[Object]:
        listing = await self.client.list(
            ENDPOINT_SLICES, namespace=NAMESPACE, labels=f"kubernetes.io/service-name={service}"
        )
        return listing.items

    async def settled(self, controller: Controller) -> None:
        """Until the controller has nothing to do, and has had nothing to do for a moment of watch events."""
        quiet = 0
        end = asyncio.get_running_loop().time() + PATIENCE
        while quiet < 10:
            assert asyncio.get_running_loop().time() < end, "the controller finds no rest"
            await asyncio.sleep(0.05)
            quiet = quiet + 1 if controller.idle else 0


def said(body: Object, kind: str, key: str = "status") -> Any:
    """What a condition of an object says."""
    conditions = (body.get("status") or {}).get("conditions") or []
    return next((each.get(key) for each in conditions if each.get("type") == kind), None)


@asynccontextmanager
async def running(*controllers: Controller) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run(), name=f"controller-{number}") for number, each in enumerate(controllers)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def host(plane: ControlPlane, **more: Any) -> AsyncIterator[Host]:
    """An apiserver without anything of an earlier test."""
    client = Client(Access.find(plane.admin_kubeconfig), user_agent="test")
    with contextlib.suppress(KubeError):
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        await client.create(NAMESPACES, body)
    store = await KubernetesStore.open(
        Client(Access.find(plane.admin_kubeconfig), user_agent=WRITER), namespace=NAMESPACE
    )
    made = Host(plane, client, store, **more)
    try:
        yield made
        await _sweep(client)
    finally:
        made.close()
        client.close()
        await store.close()


async def _sweep(client: Client) -> None:
    for resource in (CLUSTERS, MEMBERS):
        for body in (await client.list(resource)).items:
            name = body["metadata"]["name"]
            if body["metadata"].get("finalizers"):
                await client.patch(resource, name, {"metadata": {"finalizers": None}})
            with contextlib.suppress(NotFound):
                await client.delete(resource, name)
    for resource in (SERVICES, ENDPOINT_SLICES, SECRETS, LEASES):
        for body in (await client.list(resource, namespace=NAMESPACE)).items:
            with contextlib.suppress(NotFound):
                await client.delete(resource, body["metadata"]["name"], namespace=NAMESPACE)


async def records(store: Store) -> dict[str, Any]:
    return {record.name: record.data for record in (await store.list(Kind.CLUSTER)).items}

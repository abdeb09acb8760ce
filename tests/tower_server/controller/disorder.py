"""A host on which nothing is told in time: people, two controllers and an apiserver by one seed, in a time of its own.

What must hold is checked at every change: a cluster that somebody wants keeps its record, port, Service and agents, and
nobody is revoked for it. It is wanted by its resource, by hand, or because its resource went with its whole kind. Who
looked within the last GRACE seconds may still act on what was so then; a watch may be later than that by far.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import selectors
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from certs.ca import Authority
from certs.revocation import ALL_AGENTS
from daemon.faults import TowerError
from daemon.kube.resources import (
    CLUSTERS,
    ENDPOINT_SLICES,
    LEASES,
    MEMBERS,
    SECRETS,
    SERVICES,
    Object,
    Resource,
    name_of,
)
from tests.tower_server.controller.apiserver import Apiserver, Caller, copied
from tests.tower_server.controller.kit import NAMESPACE, Counts, World, reporter, said
from tower_server.controller.allocation import Allocation
from tower_server.controller.controller import Controller
from tower_server.controller.events import Events
from tower_server.controller.lease import KubeLease
from tower_server.controller.names import CLUSTER_LABEL, FINALIZER
from tower_server.controller.reconcile import Reconciler
from tower_server.controller.registry import Registry
from tower_server.controller.twins import Twins
from tower_server.dependents import Upto
from tower_server.election import Elector, Timing
from tower_server.ports import PortRange
from tower_server.records import Agent, Cluster
from tower_server.store.base import Kind, StoreError
from tower_server.store.kubernetes import KubernetesStore

GRACE = 1.5  # of one look: a dozen calls of 10 ms on average
LAGS = (0.0, 0.0, 0.02, 0.3, 2.0, 7.0)
NAMES = ("alpha", "beta", "gamma", "delta")
RANGES = {"kubernetes": PortRange(6000, 6007), "kubesphere": PortRange(16000, 16007)}
OTHERS = "others.example.com/finalizer"
QUIET = 420.0  # more than the longest back-off


class Wrong(AssertionError):
    """Something was done that must never be done."""


class _NoSelector(selectors.SelectSelector):
    """Nothing comes from outside."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time goes on only while everybody waits, and then at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_NoSelector())

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        if not ready and not scheduled:
            raise RuntimeError("everybody waits, and for nothing")
        if not ready and not scheduled[0]._cancelled:
            self.now = max(self.now, scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


@dataclass
class Checker:
    """Hears of every change, and knows since when each record has been wanted."""

    server: Apiserver
    since: dict[str, float] = field(default_factory=dict)
    """By the record's uid: since when it has been wanted without a break."""
    made: dict[str, float] = field(default_factory=dict)
    fates: dict[str, str] = field(default_factory=dict)
    """By the resource's uid, of those that went: asked, kind (kept is what follows), unknown."""
    history: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.history.append(f"{asyncio.get_running_loop().time():9.3f} {text}")

    def heard(self, who: str, resource: Resource, body: Object, old: Object | None) -> None:
        name, gone = name_of(body), old is body
        if resource == LEASES and not name.startswith("port-"):
            return
        if resource.kind != "Event":
            what = "deletes" if gone else "makes" if old is None else "changes"
            more = (body.get("spec") or {}) if resource == MEMBERS else {}
            self.note(f"{who} {what} {resource.kind} {name} {more.get('uid', '')} {more.get('ports', '')}")
        if resource == CLUSTERS:
            self._resource(who, body, gone=gone)
        if resource == MEMBERS:
            self._record(who, body, None if gone else old, gone=gone)
        elif gone and resource in (SERVICES, SECRETS):
            self._taken(who, resource, body)
        self._look()

    def _resource(self, who: str, body: Object, *, gone: bool) -> None:
        meta = body["metadata"]
        if meta.get("deletionTimestamp") and meta["uid"] not in self.fates:
            self.fates[meta["uid"]] = "kind" if who == "crd" else "asked"
        elif meta["uid"] in self.fates and CLUSTERS in self.server.leaving and self.fates[meta["uid"]] == "asked":
            self.fates[meta["uid"]] = "unknown"
        if gone and meta["uid"] not in self.fates:
            self.fates[meta["uid"]] = "unknown" if who == "crd" else "asked"

    def wanted(self, name: str) -> bool | None:
        """None: either would be right."""
        found = self.server.find(MEMBERS, name)
        if found is None:
            return False
        uid = found["spec"].get("resource")
        if not uid:
            return True
        resource = self.server.find(CLUSTERS, name)
        fate = self.fates.get(uid, "")
        if fate:
            if fate == "asked" and (CLUSTERS in self.server.leaving or CLUSTERS in self.server.missing):
                fate = self.fates[uid] = "unknown"
            ours = resource is not None and resource["metadata"]["uid"] == uid
            if fate == "asked" and ours and _others(resource):
                return _proxied(resource)
            return {"kind": True, "unknown": None}.get(fate, False)
        if resource is None or resource["metadata"]["uid"] != uid:
            return None
        return _proxied(resource)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        ports: dict[int, str] = {}
        for (_, name), body in self.server.objects[MEMBERS].items():
            uid = body["spec"]["uid"]
            self.made.setdefault(uid, now)
            if self.wanted(name):
                self.since.setdefault(uid, now)
            else:
                self.since.pop(uid, None)
            for port in (body["spec"].get("ports") or {}).values():
                if ports.setdefault(port, name) != name:
                    raise self._wrong(f"port {port} belongs to {name} and to {ports[port]}")

    def held(self, name: str) -> str:
        """The uid of the record, if that has been wanted for long enough; else empty."""
        found = self.server.find(MEMBERS, name)
        uid = found["spec"]["uid"] if found is not None else ""
        now = asyncio.get_running_loop().time()
        return uid if now - max(self.since.get(uid, now), self.made.get(uid, now)) > GRACE else ""

    def _record(self, who: str, body: Object, old: Object | None, *, gone: bool) -> None:
        now, name, spec = asyncio.get_running_loop().time(), name_of(body), body["spec"]
        if gone:
            since = self.since.pop(spec["uid"], now)
            if who != "person" and now - since > GRACE:
                raise self._wrong(f"{who} deletes the record of {name}, wanted for {now - since:.1f} s")
        elif old is not None:
            if spec["uid"] != old["spec"]["uid"]:
                raise self._wrong(f"{who} gives the record of {name} another uid")
            for service, port in (old["spec"].get("ports") or {}).items():
                if (spec.get("ports") or {}).get(service) != port:
                    raise self._wrong(f"{who} takes port {port} off {name}")

    def _taken(self, who: str, resource: Resource, body: Object) -> None:
        if who == "person":
            return
        if resource == SERVICES:
            name = body["metadata"]["labels"][CLUSTER_LABEL]
            if self.held(name) and (not name_of(body).endswith("-external") or self._published(name)):
                raise self._wrong(f"{who} takes away {name_of(body)}, whose cluster is wanted")
        elif name_of(body).startswith("tower-agent-"):
            name = name_of(body).removeprefix("tower-agent-").partition(".")[0]
            if self.held(name) and body["metadata"]["annotations"]["of"] == self.held(name):
                raise self._wrong(f"{who} takes away an agent of {name}, which is wanted")

    def _published(self, name: str) -> bool:
        """Whether it is to stay published: nobody who may say so has said otherwise."""
        resource = self.server.find(CLUSTERS, name)
        return resource is None

    def revoked(self, name: str, agent: str) -> None:
        """All agents of a cluster, or one: that may be of a cluster which had the name before."""
        self.note(f"revokes {name} {agent}")
        found = self.server.find(SECRETS, f"tower-agent-{name}.{agent}", NAMESPACE)
        of = found["metadata"]["annotations"]["of"] if found is not None else ""
        if self.held(name) and (agent == ALL_AGENTS or of == self.held(name)):
            raise self._wrong(f"{name} is revoked, which is wanted")

    def _wrong(self, text: str) -> Wrong:
        self.note(f"WRONG: {text}")
        return Wrong(text)


def _others(resource: Object | None) -> bool:
    return any(each != FINALIZER for each in ((resource or {}).get("metadata") or {}).get("finalizers") or ())


def _proxied(resource: Object | None) -> bool:
    return bool(resource and resource["spec"]["connection"].get("type") == "proxy")


class Disorder:
    """One run."""

    def __init__(self, seed: int, *, rivals: bool) -> None:
        self.random = random.Random(seed)
        self.server = Apiserver(self.random)
        self.server.failures = self.random.choice((0.0, 0.0, 0.02))
        self.checker = Checker(self.server)
        self.server.hooks.append(self._heard)
        self.person = Caller(self.server, "person")
        self.world = World()
        self.authority = Authority.create("lab", at=1e9)
        self.wrong: list[Wrong] = []
        self.rivals = rivals
        """Two that both believe to lead, all the time."""
        self.lags: dict[tuple[str, Resource, bool], float] = {}
        self.late = True
        self.running: dict[str, tuple[asyncio.Task[None], Controller]] = {}
        self.registries: dict[str, Registry] = {}
        self.agents = 0

    def _heard(self, who: str, resource: Resource, body: Object, old: Object | None) -> None:
        try:
            self.checker.heard(who, resource, body, old)
        except Wrong as error:
            self.wrong.append(error)

    # ---- controllers --------------------------------------------------------------------------------------------

    async def start(self, name: str) -> None:
        client = Caller(self.server, name, lag=functools.partial(self._lag, name))
        store = KubernetesStore(client, NAMESPACE)  # type: ignore[arg-type]
        lease = KubeLease(client, namespace=NAMESPACE, name=f"lead-{name}" if self.rivals else "lead")  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        elector = Elector(
            lease, identity=f"{name}-{loop.time()}", timing=Timing(), random=self.random.random, clock=loop.time
        )
        allocation = Allocation(store, RANGES, kubesphere_offset=10000, usable=lambda _: True)

        async def revoke(upto: Upto) -> None:
            await asyncio.sleep(0.01)
            try:
                for who in upto:
                    self.checker.revoked(*who)
            except Wrong as error:
                self.wrong.append(error)

        registry = self.registries[name] = Registry(store, allocation, revoke=revoke)

        def make(watches: Any, writer: Any, poke: Any) -> Reconciler:
            events = Events(client, instance=name)  # type: ignore[arg-type]
            return Reconciler(
                client=client,  # type: ignore[arg-type]
                registry=registry,
                view=watches,
                writer=writer,
                events=events,
                facts=self.world,
                reporter=reporter(watches, writer, events, self.authority),
                namespace=NAMESPACE,
                twins=Twins(poke),
            )

        controller = Controller(
            client=client,  # type: ignore[arg-type]
            elector=elector,
            registry=registry,
            namespace=NAMESPACE,
            make=make,
            gauges=Counts(),
        )
        self.running[name] = asyncio.create_task(controller.run(), name=f"controller-{name}"), controller

    async def stop(self, name: str) -> None:
        task, _ = self.running.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _lag(self, who: str, resource: Resource, records: bool) -> float:
        return self.lags.get((who, resource, records), 0.0) if self.late else 0.0

    async def _weather(self) -> None:
        """Who hears late of what: another thing every few seconds."""
        while True:
            for who in ("one", "two"):
                for resource in (CLUSTERS, MEMBERS, SERVICES, ENDPOINT_SLICES):
                    self.lags[who, resource, False] = self.random.choice(LAGS)
                self.lags[who, MEMBERS, True] = self.random.choice(LAGS)
            await asyncio.sleep(self.random.uniform(1.0, 12.0))

    # ---- people -------------------------------------------------------------------------------------------------

    async def people(self, deeds: int) -> None:
        acts = (
            [self.ask] * 6
            + [self.end] * 4
            + [self.turn] * 4
            + [self.enrol] * 4
            + [self.by_hand, self.by_hand, self.end_by_hand, self.edit_service, self.edit_service, self.drop_slice]
            + [self.restart, self.restart, self.take_lead, self.publish, self.publish, self.forget_changes]
        )
        for number in range(deeds):
            if number == deeds // 2 and self.random.random() < 0.6:
                await self._try(self.take_kind(), "takes the kind away")
            act, name = self.random.choice(acts), self.random.choice(NAMES)
            await self._try(act(name), f"{act.__name__} {name}")
            await asyncio.sleep(self.random.choice((0.0, 0.01, 0.05, 0.3, 1.0, 4.0)))

    async def _try(self, deed: Coroutine[Any, Any, None], text: str) -> None:
        self.checker.note(f"person: {text}")
        with contextlib.suppress(TowerError, StoreError):
            await deed

    async def ask(self, name: str) -> None:
        connection: dict[str, Any] = {"type": self.random.choice(("proxy", "proxy", "proxy", "direct"))}
        if self.random.random() < 0.2:
            connection["kubernetesAPIServerPort"] = self.random.randrange(6000, 6008)
        meta = {"name": name, "finalizers": [OTHERS] if self.random.random() < 0.15 else []}
        external = self.random.random() < 0.3
        await self.person.create(
            CLUSTERS, {"metadata": meta, "spec": {"connection": connection, "externalKubeAPIEnabled": external}}
        )

    async def end(self, name: str) -> None:
        await self.person.delete(CLUSTERS, name)
        if self.random.random() < 0.5:
            with contextlib.suppress(TowerError):
                while self.server.find(CLUSTERS, name) is not None:
                    await self._release(name)
                    await asyncio.sleep(0.05)
                    if self.random.random() < 0.02:
                        return
                await self.ask(name)

    async def _release(self, name: str) -> None:
        """Whoever else held the resource is done with it."""
        found = self.server.find(CLUSTERS, name)
        if found is not None and _others(found) and found["metadata"].get("deletionTimestamp"):
            left = [each for each in found["metadata"]["finalizers"] if each == FINALIZER]
            with contextlib.suppress(TowerError):
                await self.person.patch(CLUSTERS, name, {"metadata": {"finalizers": left}})

    async def turn(self, name: str) -> None:
        """Another type, and mostly back again."""
        for _ in range(self.random.randrange(1, 4)):
            found = await self.person.get(CLUSTERS, name)
            kind = "direct" if _proxied(found) else "proxy"
            await self.person.patch(CLUSTERS, name, {"spec": {"connection": {"type": kind}}})
            await asyncio.sleep(self.random.choice((0.0, 0.02, 0.2, 3.0)))

    async def publish(self, name: str) -> None:
        external = self.random.random() < 0.7
        await self.person.patch(CLUSTERS, name, {"spec": {"externalKubeAPIEnabled": external}})

    async def by_hand(self, name: str) -> None:
        cluster = Cluster(name, f"hand-{self.random.randrange(10**9)}", 1.0)
        store = KubernetesStore(self.person, NAMESPACE)  # type: ignore[arg-type]
        await store.create(Kind.CLUSTER, name, cluster.data())

    async def end_by_hand(self, name: str) -> None:
        """As `towerctl delete cluster`, which refuses one that has a resource."""
        found = self.server.find(MEMBERS, name)
        if found is not None and not found["spec"].get("resource"):
            self.server.delete("person", MEMBERS, found)
            for body in list(self.server.objects[SECRETS].values()):
                if body["metadata"].get("annotations", {}).get("of") == found["spec"]["uid"]:
                    self.server.delete("person", SECRETS, body)

    async def enrol(self, name: str) -> None:
        found = self.server.find(MEMBERS, name)
        if found is None:
            return
        self.agents += 1
        uid = found["spec"]["uid"]
        agent = Agent(f"a{self.agents}", name, uid, "k", 1.0, "t", 2e9, 2e9)
        labels = {"tower.kubesphere.io/record": "agent"}
        from tower_server.store.kubernetes_objects import PLACES

        body = PLACES[Kind.AGENT].body(Kind.AGENT, agent.record_name, agent.data(), namespace=NAMESPACE)
        body["metadata"] |= {"annotations": {"of": uid}, "labels": labels, "uid": f"secret-{self.agents}"}
        self.server.put("person", SECRETS, copied({"apiVersion": "v1", "kind": "Secret", **body}))

    async def edit_service(self, name: str) -> None:
        patch = self.random.choice(
            (
                {"spec": {"selector": {"app": "x"}}},
                {"spec": {"ports": [{"name": "x", "port": 1, "targetPort": 2}]}},
                {"metadata": {"labels": {"x": str(self.random.random())}}},
            )
        )
        await self.person.patch(SERVICES, f"mc-{name}", patch, namespace=NAMESPACE)

    async def drop_slice(self, name: str) -> None:
        await self.person.delete(ENDPOINT_SLICES, f"mc-{name}-ipv4", namespace=NAMESPACE)

    async def restart(self, _name: str) -> None:
        who = self.random.choice(("one", "two"))
        await self.stop(who)
        await asyncio.sleep(self.random.choice((0.0, 0.5, 20.0)))
        await self.start(who)

    async def take_lead(self, _name: str) -> None:
        """Somebody edits the lease: the leader learns of it at its next renewal."""
        await self.person.patch(LEASES, "lead", {"spec": {"holderIdentity": ""}}, namespace=NAMESPACE)

    async def forget_changes(self, _name: str) -> None:
        self.server.forget_changes(self.random.choice((CLUSTERS, MEMBERS, SERVICES, ENDPOINT_SLICES)))

    async def take_kind(self) -> None:
        others = asyncio.create_task(self._release_all())
        try:
            async with asyncio.timeout(120.0):
                await self.server.take_kind(CLUSTERS)
            await asyncio.sleep(self.random.choice((0.0, 1.0, 15.0)))
        finally:
            others.cancel()
            self.server.leaving.discard(CLUSTERS)
            self.server.give_kind(CLUSTERS)

    async def _release_all(self) -> None:
        while True:
            for name in NAMES:
                await self._release(name)
            await asyncio.sleep(0.2)

    # ---- the end ------------------------------------------------------------------------------------------------

    async def run(self, deeds: int) -> None:
        weather = asyncio.create_task(self._weather())
        try:
            for name in ("one", "two"):
                await self.start(name)
            await self.people(deeds)
            others = asyncio.create_task(self._release_all())
            self.late, self.server.failures = False, 0.0
            weather.cancel()
            await asyncio.sleep(QUIET)
            others.cancel()
            if not self.rivals:
                for registry in self.registries.values():
                    await registry.allocation.tidy()
            self.check()
        finally:
            weather.cancel()
            for name in list(self.running):
                await self.stop(name)

    def check(self) -> None:
        """Everything is as it should be, and nothing is left of what ended."""
        wrong = list(self.wrong) + [Wrong(text) for text in self._amiss()]
        if wrong:
            raise Wrong("\n".join(map(str, [*self.checker.history, *wrong])))

    def _amiss(self) -> Iterator[str]:
        server = self.server
        for _, controller in self.running.values():
            if controller.writer is not None and not controller.idle:
                yield "a controller finds no rest"
        for (_, name), body in server.objects[CLUSTERS].items():
            record = server.find(MEMBERS, name)
            if body["metadata"].get("deletionTimestamp"):
                yield f"the deletion of {name} does not end"
            elif _proxied(body):
                if record is None or record["spec"]["resource"] != body["metadata"]["uid"]:
                    yield f"{name} has no record of its own"
                    continue
                port = record["spec"]["ports"].get("kubernetes")
                if port and body["spec"]["connection"].get("kubernetesAPIServerPort") != port:
                    yield f"the resource of {name} does not show its port {port}"
                if port and said(body, "Initialized") != "True":
                    yield f"{name} is not initialised"
                if port and body["spec"].get("externalKubeAPIEnabled") and not self._service(f"mc-{name}-external"):
                    yield f"{name} is not published"
            elif record is not None and record["spec"].get("resource"):
                yield f"{name} is direct and has a record"
            elif FINALIZER in (body["metadata"].get("finalizers") or ()):
                yield f"{name} is direct and held by our finalizer"
        served = {name for _, name in server.objects[MEMBERS]}
        yield from self._left_over(served)
        for name in served:
            yield from self._served(name)

    def _service(self, name: str) -> Object | None:
        return self.server.find(SERVICES, name, NAMESPACE)

    def _served(self, name: str) -> Iterator[str]:
        record = self.server.find(MEMBERS, name)
        assert record is not None
        port = record["spec"]["ports"].get("kubernetes")
        service = self._service(f"mc-{name}")
        refused = said(record, "PortReady") == "False"
        if refused:
            return
        if self.checker.wanted(name) is False:
            yield f"the record of {name} stands and nobody wants it"
        if not port or service is None or service["spec"]["ports"][0]["targetPort"] != port:
            yield f"{name} is not served at its port {port}"
            return
        if "selector" in service["spec"]:
            yield f"the Service of {name} has a selector"
        slices = self.server.find(ENDPOINT_SLICES, f"mc-{name}-ipv4", NAMESPACE)
        if slices is None or slices["ports"][0]["port"] != port:
            yield f"{name} has no slice"
        claim = self.server.find(LEASES, f"port-{port}", NAMESPACE)
        if claim is None or record["spec"]["uid"] not in claim["metadata"]["annotations"]["tower.kubesphere.io/record"]:
            yield f"the port {port} of {name} is not claimed by it"
        if (record.get("status") or {}).get("address") != service["spec"]["clusterIP"]:
            yield f"the Member {name} shows another address"

    def _left_over(self, served: set[str]) -> Iterator[str]:
        uids = {body["spec"]["uid"] for body in self.server.objects[MEMBERS].values()}
        for resource in (SERVICES, ENDPOINT_SLICES):
            for (_, name), body in self.server.objects[resource].items():
                if body["metadata"]["labels"][CLUSTER_LABEL] not in served:
                    yield f"{resource.kind} {name} is left over"
        for _, name in self.server.objects[LEASES]:
            if name.startswith("port-") and not self.rivals:
                claim = self.server.find(LEASES, name, NAMESPACE)
                if not any(uid in claim["metadata"]["annotations"]["tower.kubesphere.io/record"] for uid in uids):  # type: ignore[index]
                    yield f"the claim {name} is left over"
        for (_, name), body in self.server.objects[SECRETS].items():
            if body["metadata"]["annotations"]["of"] not in uids:
                yield f"{name} is left over"


def play(seed: int, *, deeds: int, rivals: bool) -> None:
    """One run, in a loop of its own. Wrong with all that happened where something is not as it must be."""
    random.seed(seed)  # the back-off of watches
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(Disorder(seed, rivals=rivals).run(deeds))

"""A cluster that ends while whoever ends it dies: at each write, on each store, and whatever comes first afterwards."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from certs.ca import Authority
from certs.errors import Untrusted
from certs.keys import generate_key, key_fingerprint
from certs.peers import AgentIdentity
from certs.revocation import ALL_AGENTS
from certs.verify import load_chain
from daemon.faults import TowerError
from daemon.kube.access import Access
from daemon.kube.client import Client
from protocol.errors import HandshakeRejected
from tests.lab.hostplane import crds
from tests.tower_server.controller.apiserver import Apiserver, Caller
from tower_server.agents import Agents
from tower_server.controller.allocation import Allocation
from tower_server.controller.registry import Registry
from tower_server.dependents import dependents, end, tidy
from tower_server.ports import PortRange
from tower_server.records import Agent, Cluster, Token
from tower_server.revocations import Revocations
from tower_server.store.base import Kind, NotFound, Store
from tower_server.store.kubernetes import KubernetesStore
from tower_server.store.sqlite import SqliteStore

pytestmark = pytest.mark.asyncio
RANGES = {"kubernetes": PortRange(6000, 6007), "kubesphere": PortRange(16000, 16007)}
NUMBERS = itertools.count()
KEY = generate_key()
AGENT = key_fingerprint(KEY.public_key())[:20]
WRITES = 5  # the record, the list, the token, the agent, the claim
Open = Callable[[], Awaitable[Store]]


class Died(Exception):
    """Of a process: nothing that it would have done next is done."""


class Dying(Store):
    """A store whose process dies at its write number `after` + 1: before it is done, or when it is and nobody knows."""

    def __init__(self, under: Store, *, after: int, done: bool) -> None:
        self._under, self._left, self._done = under, after, done

    async def _write(self, write: Callable[[], Awaitable[Any]]) -> Any:
        self._left -= 1
        if self._left >= 0 or (self._left == -1 and self._done):
            result = await write()
            if self._left >= 0:
                return result
        raise Died

    async def get(self, kind, name):
        return await self._under.get(kind, name)

    async def list(self, kind, *, prefix=""):
        return await self._under.list(kind, prefix=prefix)

    def watch(self, kind, *, since):
        return self._under.watch(kind, since=since)

    async def create(self, kind, name, data):
        return await self._write(lambda: self._under.create(kind, name, data))

    async def update(self, kind, name, data, *, expect):
        return await self._write(lambda: self._under.update(kind, name, data, expect=expect))

    async def delete(self, kind, name, *, expect=None):
        return await self._write(lambda: self._under.delete(kind, name, expect=expect))

    async def close(self):
        pass


class Quick(Caller):
    async def _pause(self) -> None:
        await asyncio.sleep(0)


@pytest.fixture(params=["sqlite", "objects"])
def open_store(request, tmp_path) -> Open:
    """Opens the same records each time, as processes do one after the other."""
    if request.param == "sqlite":
        return lambda: SqliteStore.open(tmp_path / "tower.db")
    server = Apiserver(random.Random(1))
    return lambda: KubernetesStore.open(Quick(server, "tower"), namespace="tower")


class Host:
    """One process of a tower, as far as this goes: its list, its agents, what it ends clusters by."""

    def __init__(self, store: Store, authority: Authority, revocations: Revocations) -> None:
        self.store, self.authority, self.revocations = store, authority, revocations
        self.members: dict[str, Cluster] = {}
        self.agents = Agents(store, authority, revocations, self)  # type: ignore[arg-type] # of which it asks the members
        allocation = Allocation(store, RANGES, kubesphere_offset=10000, usable=lambda _: True)
        self.registry = Registry(store, allocation, revoke=lambda upto: revocations.revoke_agents(upto, at=time.time()))

    async def enrol(self, cluster: Cluster, *, at: float, agent: str = AGENT, token: str = "t1") -> AgentIdentity:
        record = Agent(agent, cluster.name, cluster.uid, "k", at, token, at + 1e6, at + 1e6)
        await self.agents.enrol(record)
        issued = self.authority.issue_agent(cluster.name, agent, public_key=KEY.public_key(), at=at)
        return self.authority.bundle.identify_agent(load_chain(issued.chain_pem))

    async def admits(self, identity: AgentIdentity) -> bool:
        try:
            identity.check(time.time(), self.revocations.current)
            await self.agents.authenticate(None, identity, "")  # type: ignore[arg-type] # a HELLO says nothing of who it is
        except (Untrusted, HandshakeRejected):
            return False
        return True

    def names(self, identity: AgentIdentity) -> bool:
        """Whether the list tells of it."""
        held = self.revocations.current.agents
        return (identity.cluster, ALL_AGENTS) in held or (identity.cluster, identity.agent) in held


@asynccontextmanager
async def host(opened: Open, authority: Authority, *, dies: tuple[int, bool] | None = None) -> AsyncIterator[Host]:
    store = await opened()
    try:
        used = store if dies is None else Dying(store, after=dies[0], done=dies[1])
        yield Host(used, authority, await Revocations.load(used, authority, at=time.time()))
    finally:
        await store.close()


async def stands(store: Store, cluster: Cluster) -> bool:
    try:
        return Cluster.read(await store.get(Kind.CLUSTER, cluster.name)).uid == cluster.uid
    except NotFound:
        return False


async def play(open_store: Open, after: int, *, done: bool, tidied_first: bool) -> None:
    """A cluster ends and its tower dies; the next one finds the name taken again, before or after it has tidied up."""
    name, then = f"edge-{next(NUMBERS)}", time.time() - 60.0
    authority = Authority.create("hq", at=then)
    async with host(open_store, authority) as before:
        cluster = await before.registry.follow(name, resource="u1")
        await before.registry.allocation.hold(name, "kubernetes")
        old = await before.enrol(cluster, at=then)
        other = await before.enrol(cluster, at=then, agent="another")
        before.members[name] = cluster
        assert await before.admits(old)
        await before.store.create(Kind.TOKEN, f"t-{name}", Token("t", name, cluster.uid, "h", then, 2e9, 1).data())
    async with host(open_store, authority, dies=(after, done)) as dying:
        ending = await dying.registry.read(name)
        with suppress(Died):
            await dying.registry.delete(ending)
    async with host(open_store, authority) as next_one:
        if await stands(next_one.store, cluster):
            assert (after, done) == (0, False)
            assert not next_one.names(old), "a cluster that stands is not revoked"
            return
        if tidied_first:
            await next_one.registry.tidy()
        next_one.members[name] = again = await next_one.registry.follow(name, resource="u2")
        assert not await next_one.admits(old)
        later = time.time() + 2.0  # a second's ties count as revoked
        new = await next_one.enrol(again, at=later, token="t2")  # the same key, and so the same name
        assert await next_one.admits(new)
        assert not await next_one.admits(old), "an identity of the cluster that ended opens the one of today"
        await next_one.registry.tidy()
        assert next_one.names(old)
        assert next_one.names(other)
        assert await next_one.admits(new)
        assert cluster.uid not in await dependents(next_one.store)
        await next_one.registry.allocation.tidy()
        claims = (await next_one.store.list(Kind.CLAIM)).items
        assert cluster.uid not in {record.data["uid"] for record in claims}
        number = next_one.revocations.current.number
        await next_one.registry.tidy()
        await next_one.agents.tidy()
        assert next_one.revocations.current.number == number, "what is on the list is not written again"
        await next_one.registry.delete(again)


@pytest.mark.parametrize("tidied_first", [True, False], ids=["tidied-first", "added-first"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "unanswered"])
@pytest.mark.parametrize("after", range(WRITES))
async def test_whoever_dies_while_a_cluster_ends_leaves_no_identity_of_it_alive(open_store, after, done, tidied_first):
    await play(open_store, after, done=done, tidied_first=tidied_first)


@pytest.mark.cluster
async def test_the_same_on_a_real_apiserver(host_plane):
    crds(host_plane)
    namespace = f"dependents-{next(NUMBERS)}"
    host_plane.kubectl("create", "namespace", namespace)

    def opened() -> Awaitable[Store]:
        client = Client(Access.find(host_plane.admin_kubeconfig), user_agent="dependents-test")
        return KubernetesStore.open(client, namespace=namespace)

    await play(opened, 1, done=False, tidied_first=False)
    await play(opened, 3, done=True, tidied_first=True)


async def test_tidying_ends_the_dependents_of_clusters_that_are_gone_and_no_others(tmp_path):
    store, then = await SqliteStore.open(tmp_path / "tower.db"), 10.0
    revoked: dict[tuple[str, str], float] = {}

    async def revoke(upto) -> None:
        revoked.update(upto)

    async def dependents_of(name: str, uid: str) -> None:
        agent, token = Agent("a", name, uid, "k", then, "t", 2e9, 2e9), Token(f"t-{name}", name, uid, "h", then, 2e9, 1)
        await store.create(Kind.AGENT, agent.record_name, agent.data())
        await store.create(Kind.TOKEN, token.id, token.data())

    await store.create(Kind.CLUSTER, "edge-1", Cluster("edge-1", "uid-1", then).data())
    await dependents_of("edge-1", "uid-1")
    await dependents_of("edge-0", "gone")
    taken = await tidy(store, revoke=revoke)
    assert sorted((each.kind, each.name) for each in taken) == [(Kind.AGENT, "edge-0.a"), (Kind.TOKEN, "t-edge-0")]
    assert (list(revoked), list(await dependents(store))) == ([("edge-0", "a")], ["uid-1"])
    await store.close()


async def test_tidying_leaves_the_dependents_of_a_cluster_that_is_made_meanwhile(tmp_path, monkeypatch):
    store = await SqliteStore.open(tmp_path / "tower.db")
    listed, new = store.list, Cluster("edge-2", "uid-2", 1.0)

    async def busily(kind, **more):
        found = await listed(kind, **more)
        if not any(record.name == new.name for record in (await listed(Kind.CLUSTER)).items):
            await store.create(Kind.CLUSTER, new.name, new.data())
            await store.create(Kind.TOKEN, "t", Token("t", new.name, new.uid, "h", 1.0, 2e9, 1).data())
        return found

    async def revoke(upto) -> None:
        raise AssertionError(upto)

    monkeypatch.setattr(store, "list", busily)
    assert await tidy(store, revoke=revoke) == []
    assert list(await dependents(store)) == ["uid-2"]
    await store.close()


async def test_who_dies_while_tidying_leaves_it_to_the_next(open_store):
    name, then = f"edge-{next(NUMBERS)}", time.time() - 60.0
    authority = Authority.create("hq", at=then)
    async with host(open_store, authority) as before:
        old = await before.enrol(Cluster(name, "gone", then), at=then)
    for after, done in ((0, False), (0, True), (0, False), (0, True)):  # the list, then the record
        async with host(open_store, authority) as looking:
            assert looking.names(old) or "gone" in await dependents(looking.store), "nothing tells of it any more"
        async with host(open_store, authority, dies=(after, done)) as dying:
            with suppress(Died):
                await dying.agents.tidy()
    async with host(open_store, authority) as looking:
        assert looking.names(old)
        assert not await dependents(looking.store)


async def test_an_answer_from_before_the_end_does_not_take_the_place_of_an_agent_of_today(open_store):
    name, then = f"edge-{next(NUMBERS)}", time.time() - 60.0
    authority = Authority.create("hq", at=then)
    async with host(open_store, authority) as made:
        await made.enrol(Cluster(name, "of today", then), at=then + 30.0)
        with pytest.raises(TowerError, match="was deleted") as caught:
            await made.enrol(Cluster(name, "gone", then), at=then)
        assert caught.value.code == "TWR208"
        assert [each.uid for each in await made.agents.list(name)] == ["of today"]


async def test_a_paper_that_somebody_changes_meanwhile_goes_and_one_that_was_made_anew_stays(tmp_path):
    store = await SqliteStore.open(tmp_path / "tower.db")
    revoked: dict[tuple[str, str], float] = {}
    record = Agent("a", "edge", "gone", "k", 10.0, "t", 2e9, 2e9)
    seen = await store.create(Kind.AGENT, record.record_name, record.data())
    remade = await store.create(Kind.AGENT, "edge.b", {**record.data(), "name": "b"})

    async def revoke(upto) -> None:
        if not revoked:
            renewed = {**record.data(), "renewed": 20.0}
            await store.update(Kind.AGENT, seen.name, renewed, expect=seen.version)
            await store.update(Kind.AGENT, "edge.b", {**renewed, "uid": "new"}, expect=remade.version)
        revoked.update(upto)

    await end(store, [seen, remade], revoke=revoke)
    assert revoked["edge", "a"] == 20.0, "what it was issued last is revoked too"
    assert [each.name for each in (await store.list(Kind.AGENT)).items] == ["edge.b"]
    await store.close()

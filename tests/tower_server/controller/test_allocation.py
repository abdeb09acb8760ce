"""Ports by claims: unique whatever two leaders do at the same time, adopted, given back, and named when taken."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from daemon.faults import TowerError
from tower_server.controller.allocation import Allocation, PortTaken
from tower_server.controller.registry import Registry
from tower_server.ports import PortRange
from tower_server.records import Claim, Cluster
from tower_server.store.base import Change, Conflict, Data, Kind, Listing, NotFound, Record, Store, StoreError, Version

pytestmark = pytest.mark.asyncio


class Shuffled(Store):
    """A store as an apiserver is one: each call is atomic, and anything may happen between two."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.records: dict[tuple[Kind, str], Record] = {}
        self.count = 0

    async def _turn(self) -> None:
        for _ in range(self.random.randrange(6)):
            await asyncio.sleep(0)

    def _put(self, kind: Kind, name: str, data: Data) -> Record:
        self.count += 1
        self.records[kind, name] = Record(kind, name, Version(str(self.count)), dict(data))
        return self.records[kind, name]

    async def get(self, kind: Kind, name: str) -> Record:
        await self._turn()
        if (kind, name) not in self.records:
            raise NotFound(kind, name)
        return self.records[kind, name]

    async def list(self, kind: Kind, *, prefix: str = "") -> Listing:
        await self._turn()
        found = sorted(
            (r for (k, n), r in self.records.items() if k is kind and n.startswith(prefix)), key=lambda r: r.name
        )
        return Listing(tuple(found), Version(str(self.count)))

    async def create(self, kind: Kind, name: str, data: Data) -> Record:
        await self._turn()
        if (kind, name) in self.records:
            raise Conflict(kind, name, "is there already")
        return self._put(kind, name, data)

    async def update(self, kind: Kind, name: str, data: Data, *, expect: Version) -> Record:
        await self._turn()
        if (kind, name) not in self.records:
            raise NotFound(kind, name)
        if self.records[kind, name].version != expect:
            raise Conflict(kind, name, "was changed")
        return self._put(kind, name, data)

    async def delete(self, kind: Kind, name: str, *, expect: Version | None = None) -> None:
        await self._turn()
        if (kind, name) not in self.records:
            raise NotFound(kind, name)
        if expect is not None and self.records[kind, name].version != expect:
            raise Conflict(kind, name, "was changed")
        del self.records[kind, name]

    def watch(self, kind: Kind, *, since: Version) -> AsyncIterator[Change]:
        raise NotImplementedError

    async def close(self) -> None:
        pass


class Counting(Shuffled):
    """It counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, Kind]] = Counter()

    async def list(self, kind: Kind, *, prefix: str = "") -> Listing:
        self.calls["list", kind] += 1
        return await super().list(kind, prefix=prefix)

    async def create(self, kind: Kind, name: str, data: Data) -> Record:
        self.calls["create", kind] += 1
        return await super().create(kind, name, data)


def allocation(store: Store, *, ports: int = 8, usable=lambda _: True) -> Allocation:
    ranges = {"kubernetes": PortRange(6000, 5999 + ports), "kubesphere": PortRange(16000, 15999 + ports)}
    return Allocation(store, ranges, kubesphere_offset=10000, usable=usable)


async def add(store: Store, name: str, **more) -> Cluster:
    cluster = Cluster(name, f"uid-{name}", 1.0, **more)
    await store.create(Kind.CLUSTER, name, cluster.data())
    return cluster


async def test_a_port_is_claimed_noted_and_kept():
    store = Shuffled()
    await add(store, "a")
    ports = allocation(store)
    assert await ports.hold("a", "kubernetes") == 6000
    assert await ports.hold("a", "kubernetes", asked=6005) == 6000
    assert await ports.hold("a", "kubesphere") == 16000
    assert Cluster.read(await store.get(Kind.CLUSTER, "a")).ports == {"kubernetes": 6000, "kubesphere": 16000}
    assert Claim.read(await store.get(Kind.CLAIM, "port-6000")) == Claim("a", "uid-a", "kubernetes")


async def test_a_taken_port_is_refused_by_the_name_of_its_holder():
    store = Shuffled()
    await add(store, "a")
    await add(store, "b")
    ports = allocation(store)
    await ports.hold("a", "kubernetes", asked=6003)
    with pytest.raises(PortTaken, match="port 6003 belongs to cluster a") as caught:
        await ports.hold("b", "kubernetes", asked=6003)
    assert caught.value.code == "TWR121"


async def test_an_exhausted_range_says_who_holds_what():
    store = Shuffled()
    ports = allocation(store, ports=2, usable=lambda port: port != 6001)
    await add(store, "a")
    await add(store, "b")
    await ports.hold("a", "kubernetes")
    with pytest.raises(TowerError, match="1 claimed by clusters, 1 held by other processes") as caught:
        await ports.hold("b", "kubernetes")
    assert caught.value.code == "TWR109"


async def test_a_port_whose_cluster_ended_halfway_is_given_to_the_next_that_asks_for_it():
    """The record is gone and its claim is not: a deletion that was cut short, and its resource made anew."""
    store = Shuffled()
    await store.create(Kind.CLAIM, "port-6003", Claim("a", "the one before", "kubernetes").data())
    await add(store, "a")
    assert await allocation(store).hold("a", "kubernetes", asked=6003) == 6003
    assert Claim.read(await store.get(Kind.CLAIM, "port-6003")).uid == "uid-a"


async def test_tidying_makes_the_claims_of_noted_ports_again_before_anybody_is_given_them():
    store = Shuffled()
    await add(store, "a", ports={"kubernetes": 6000})
    ports = allocation(store)
    assert await ports.tidy() == ["the claim of port 6000 by cluster a was made again: it was missing"]
    assert Claim.read(await store.get(Kind.CLAIM, "port-6000")).cluster == "a"
    assert await ports.tidy() == []


async def test_claims_that_were_damaged_hold_up_nobody_else():
    store = Shuffled()
    await add(store, "a", ports={"kubernetes": 6000})
    await add(store, "b")
    damaged: Data = {"cluster": "a"}
    for name in ("port-6000", "port-6001", "port-abc"):
        await store.create(Kind.CLAIM, name, damaged)
    ports = allocation(store)
    assert await ports.tidy() == ["the claim of port 6000 by cluster a was made again: it was damaged"]
    assert Claim.read(await store.get(Kind.CLAIM, "port-6000")) == Claim("a", "uid-a", "kubernetes")
    assert await ports.hold("b", "kubernetes") == 6002, "nobody knows whose 6001 is"
    assert (await store.get(Kind.CLAIM, "port-6001")).data == damaged
    await add(store, "c")
    with pytest.raises(PortTaken, match="port-6001, which was damaged by hand: delete that Lease") as caught:
        await ports.hold("c", "kubernetes", asked=6001)
    assert caught.value.code == "TWR121"


class Foreign(Shuffled):
    """Of two objects somebody else's labels say that they are claims, and their content does not."""

    async def get(self, kind: Kind, name: str) -> Record:
        if name in ("port-6000", "port-6001"):
            raise TowerError("TWR105", f"the Lease {name} is not a claim record of this tower")
        return await super().get(kind, name)

    async def create(self, kind: Kind, name: str, data: Data) -> Record:
        if name in ("port-6000", "port-6001"):
            raise Conflict(kind, name, "exists already")
        return await super().create(kind, name, data)


async def test_a_lease_of_somebody_else_takes_its_port_and_no_other():
    store = Foreign()
    await add(store, "a")
    assert await allocation(store).hold("a", "kubernetes") == 6002


async def test_a_claim_that_somebody_deleted_is_made_again():
    store = Shuffled()
    await add(store, "a")
    await allocation(store).hold("a", "kubernetes")
    await store.delete(Kind.CLAIM, "port-6000")
    again = allocation(store)
    await again.confirm(Cluster.read(await store.get(Kind.CLUSTER, "a")), "kubernetes")
    assert (Kind.CLAIM, "port-6000") in store.records


async def test_a_claim_that_was_never_noted_is_adopted_and_a_useless_one_taken_back():
    store = Shuffled()
    await add(store, "a")
    await store.create(Kind.CLAIM, "port-6004", Claim("a", "uid-a", "kubernetes").data())
    await store.create(Kind.CLAIM, "port-6005", Claim("gone", "uid-gone", "kubernetes").data())
    ports = allocation(store)
    assert len(await ports.tidy()) == 1
    assert await ports.hold("a", "kubernetes") == 6004
    await store.create(Kind.CLAIM, "port-6006", Claim("a", "uid-a", "kubernetes").data())
    (done,) = await ports.tidy()
    assert "6006" in done
    assert "it uses port 6004" in done


class Meanwhile(Shuffled):
    """Somebody writes the cluster's record, or deletes it, between a claim and its note."""

    ports: dict[str, int] | None = None

    async def update(self, kind: Kind, name: str, data: Data, *, expect: Version) -> Record:
        if kind is Kind.CLUSTER:
            record = self.records.pop((kind, name), None)
            if record is not None and self.ports is not None:
                self._put(kind, name, {**record.data, "ports": self.ports})
        return await super().update(kind, name, data, expect=expect)


async def test_a_claim_of_a_cluster_that_is_deleted_before_it_is_noted_is_taken_back_at_once():
    store = Meanwhile()
    await add(store, "a")
    with pytest.raises(TowerError, match="deleted meanwhile"):
        await allocation(store).hold("a", "kubernetes")
    assert not store.records


async def test_a_claim_of_a_cluster_on_which_another_port_is_noted_first_is_taken_back_at_once():
    store = Meanwhile()
    store.ports = {"kubernetes": 6005}
    await add(store, "a")
    assert await allocation(store).hold("a", "kubernetes", asked=6003) == 6005
    assert [name for kind, name in store.records if kind is Kind.CLAIM] == ["port-6005"]


@pytest.mark.parametrize("seed", range(150))
async def test_two_leaders_at_once_never_give_one_port_to_two_clusters(seed):
    """Both allocate, tidy, delete and make anew, cut off anywhere; then one of them puts in order what is left."""
    store = Shuffled(seed)
    names = ["a", "b", "c", "d"]
    for name in names:
        await add(store, name)
    shown: dict[int, str] = {}

    def check() -> None:
        held: dict[int, str] = {}
        for (kind, name), record in store.records.items():
            if kind is Kind.CLUSTER:
                for port in record.data["ports"].values():
                    assert held.setdefault(port, name) == name, f"port {port} stands on {held[port]} and {name}"
                    shown[port] = name

    async def never(_: object) -> None:
        pass

    async def leader() -> None:
        ports = allocation(store, ports=5)
        registry = Registry(store, ports, revoke=never)
        mine = names * 2
        store.random.shuffle(mine)
        for name in mine:
            try:
                if store.random.random() < 0.2:
                    await ports.tidy()
                if name == "d" and store.random.random() < 0.4:
                    registry.known.clear()
                    if (cluster := await registry.get("d")) is not None:
                        await registry.delete(cluster)
                    await registry.follow("d", resource=f"made-{store.random.random()}")
                for service in ("kubernetes", "kubesphere"):
                    await ports.hold(name, service)
                    check()
            except StoreError:
                pass  # another leader was first
            except TowerError as error:
                if error.code not in ("TWR603", "TWR108", "TWR109"):
                    raise

    tasks = [asyncio.create_task(leader()) for _ in range(3)]
    for _ in range(store.random.randrange(10, 400)):
        await asyncio.sleep(0)
    tasks[0].cancel()  # as a process is killed: between any two calls
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            assert task.exception() is None
    check()
    last = allocation(store, ports=5)
    await last.tidy()
    if (Kind.CLUSTER, "d") not in store.records:
        await add(store, "d")
    for name in names:
        for service in ("kubernetes", "kubesphere"):
            await last.hold(name, service)
    await last.tidy()
    check()
    claims = {name: record.data for (kind, name), record in store.records.items() if kind is Kind.CLAIM}
    noted = {
        f"port-{port}": Claim(name, record.data["uid"], service).data()
        for (kind, name), record in store.records.items()
        if kind is Kind.CLUSTER
        for service, port in record.data["ports"].items()
    }
    assert claims == noted


async def test_a_deleted_cluster_gives_back_all_it_held():
    store = Shuffled()
    cluster = await add(store, "a")
    ports = allocation(store)
    await ports.hold("a", "kubernetes")
    await store.create(Kind.CLAIM, "port-6004", Claim("a", "uid-a", "kubernetes").data())
    await store.delete(Kind.CLUSTER, "a")
    await ports.release(replace(cluster))
    assert (Kind.CLAIM, "port-6000") not in store.records
    await ports.tidy()  # what another leader claimed for it is found at the next look
    assert not store.records


async def test_release_leaves_a_port_that_belongs_to_another_by_now():
    store = Shuffled()
    cluster = await add(store, "a", ports={"kubernetes": 6002})
    await store.create(Kind.CLAIM, "port-6002", Claim("b", "uid-b", "kubernetes").data())
    await allocation(store).release(cluster)
    assert (Kind.CLAIM, "port-6002") in store.records


async def test_many_at_once_read_the_claims_once_and_never_try_one_anothers_port():
    store = Counting()
    ports = allocation(store, ports=60)
    for number in range(50):
        await add(store, f"m{number}")
    store.calls.clear()
    given = await asyncio.gather(*(ports.hold(f"m{number}", "kubernetes") for number in range(50)))
    assert len(set(given)) == 50
    assert store.calls[("list", Kind.CLAIM)] == 1
    assert store.calls[("create", Kind.CLAIM)] == 50, "each claim was met once"
    for number in range(50):
        assert await ports.hold(f"m{number}", "kubernetes") == given[number]
    assert store.calls[("list", Kind.CLAIM)] == 1


async def test_a_port_given_back_by_another_leader_is_found_before_the_range_is_said_to_be_full():
    store = Shuffled()
    one, other = allocation(store, ports=2), allocation(store, ports=2)
    a, _, _ = [await add(store, name) for name in "abc"]
    await one.hold("a", "kubernetes")
    await one.hold("b", "kubernetes")
    await other.hold("a", "kubernetes")
    await store.delete(Kind.CLUSTER, "a")
    await other.release(replace(a, ports={"kubernetes": 6000}))
    assert await one.hold("c", "kubernetes") == 6000

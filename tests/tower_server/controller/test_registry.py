"""Records that follow resources: made, adopted, replaced, and gone with all that hung on them."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from certs.revocation import ALL_AGENTS
from daemon.faults import TowerError
from protocol.defaults import BACKOFF_MIN
from tests.tower_server.controller.test_allocation import Shuffled, add, allocation
from tests.waiting import until
from tower_server.controller.registry import Registry
from tower_server.records import Agent, Claim, Cluster
from tower_server.store.base import Change, ChangeType, Expired, Kind, Record, Version

pytestmark = pytest.mark.asyncio


class Watched(Shuffled):
    async def watch(self, kind, *, since):
        await asyncio.Event().wait()
        yield


class Told(Shuffled):
    """Its watch tells of deletions, of which more is said than which record it was."""

    def __init__(self) -> None:
        super().__init__()
        self.deletions: asyncio.Queue[Record] = asyncio.Queue()

    async def delete(self, kind, name, *, expect=None):
        record = self.records.get((kind, name))
        await super().delete(kind, name, expect=expect)
        if kind is Kind.CLUSTER and record is not None:
            self.deletions.put_nowait(record)

    async def watch(self, kind, *, since):
        while True:
            yield Change(ChangeType.DELETED, await self.deletions.get())


class Revoked(list):
    async def __call__(self, upto) -> None:
        self.extend(cluster for cluster, agent in upto if agent == ALL_AGENTS)


def agent(cluster, uid):
    return Agent("one", cluster, uid, "key", 1.0, "t1", 2e9, 2e9).data()


def made(store):
    revoked = Revoked()
    return Registry(store, allocation(store), revoke=revoked), revoked


async def test_a_record_is_made_once_for_its_resource():
    store = Shuffled()
    registry, _ = made(store)
    first = await registry.follow("a", resource="u1")
    assert await registry.follow("a", resource="u1") == first
    assert first.resource == "u1"


async def test_a_cluster_that_its_resource_asks_for_again_is_another_one():
    """Of type direct meanwhile: what hung on the first, and is still being taken away, must not be the second's."""
    store = Shuffled()
    registry, _ = made(store)
    first = await registry.follow("a", resource="u1")
    await registry.delete(first)
    assert (await registry.follow("a", resource="u1")).uid != first.uid


async def test_one_added_by_hand_is_adopted_with_its_ports():
    store = Shuffled()
    await add(store, "a", ports={"kubernetes": 6003})
    registry, revoked = made(store)
    by_hand = await registry.follow("a", resource="u1")
    assert (by_hand.uid, by_hand.resource) == ("uid-a", "")
    adopted = await registry.adopt(by_hand, resource="u1")
    assert (adopted.uid, adopted.resource, adopted.ports) == ("uid-a", "u1", {"kubernetes": 6003})
    assert await registry.follow("a", resource="u1") == adopted
    assert not revoked


async def test_one_that_another_resource_has_adopted_meanwhile_stays_with_that():
    store = Shuffled()
    await add(store, "a")
    registry, _ = made(store)
    late = await registry.follow("a", resource="u1")
    await Registry(store, allocation(store), revoke=Revoked()).adopt(late, resource="u2")
    assert (await registry.adopt(late, resource="u1")).resource == "u2"


async def test_what_hung_on_a_deleted_cluster_is_gone_and_nothing_of_others():
    store = Shuffled()
    registry, revoked = made(store)
    cluster = await registry.follow("a", resource="u1")
    await store.create(Kind.AGENT, "a.one", agent("a", cluster.uid))
    await store.create(Kind.TOKEN, "t1", {"uid": cluster.uid})
    await store.create(Kind.TOKEN, "t2", {"uid": "another"})
    await registry.delete(cluster)
    assert revoked == ["a"]
    assert [name for _, name in store.records] == ["t2"]


async def test_a_record_that_took_the_place_of_the_one_that_was_to_go_stays():
    """As a leader does that has lost the lead and not noticed: its copy is of the cluster before."""
    store = Shuffled()
    registry, _ = made(store)
    old = await registry.follow("a", resource="u1")
    other, revoked = made(store)
    await other.delete(Cluster.read(await store.get(Kind.CLUSTER, "a")))
    new = await other.follow("a", resource="u2")
    revoked.clear()
    with pytest.raises(TowerError, match="was changed meanwhile"):
        await registry.delete(old)
    assert Cluster.read(await store.get(Kind.CLUSTER, "a")) == new


async def test_one_that_was_released_meanwhile_is_not_deleted():
    store = Shuffled()
    registry, revoked = made(store)
    old = await registry.follow("a", resource="u1")
    other, _ = made(store)
    await other.release(Cluster.read(await store.get(Kind.CLUSTER, "a")))
    with pytest.raises(TowerError, match="was changed meanwhile"):
        await registry.delete(old)
    assert Cluster.read(await store.get(Kind.CLUSTER, "a")).uid == old.uid
    assert not revoked


async def test_a_deletion_that_was_cut_short_is_finished_at_the_next_look():
    store = Shuffled()
    broken = [True]

    async def revoke(_upto) -> None:
        if broken.pop():
            raise TowerError("TWR114", "the apiserver is away")

    registry = Registry(store, allocation(store), revoke=revoke)
    cluster = await registry.follow("a", resource="u1")
    await registry.allocation.hold("a", "kubernetes")
    await store.create(Kind.AGENT, "a.one", agent("a", cluster.uid))
    with pytest.raises(TowerError, match="is away"):
        await registry.delete(cluster)
    broken.append(False)
    await registry.finish("a")
    assert not store.records
    await registry.finish("a")


@pytest.mark.parametrize("noticed_by", ["the watch", "a look"])
async def test_the_ports_of_a_cluster_whose_record_somebody_else_deletes_are_free_at_once(noticed_by):
    store = Told()
    await add(store, "a")
    registry, revoked = made(store)
    changed: list[str] = []
    following = asyncio.create_task(registry.run(changed.append))
    await until(lambda: "a" in registry.known)
    assert await registry.allocation.hold("a", "kubernetes") == 6000
    await store.create(Kind.CLAIM, "port-6001", Claim("b", "uid-b", "kubernetes").data())
    if noticed_by == "a look":
        del store.records[Kind.CLUSTER, "a"]
        assert await registry.read("a") is None
        store.deletions.put_nowait(Record(Kind.CLUSTER, "a", Version("9"), {}))
    else:
        await store.delete(Kind.CLUSTER, "a")
    await until(lambda: changed == ["a", "a"])
    await registry.finish("a")
    assert [name for kind, name in store.records if kind is Kind.CLAIM] == ["port-6001"]
    assert not revoked
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_the_ports_of_a_cluster_that_was_put_back_from_a_copy_stay_claimed():
    store = Told()
    await add(store, "a", ports={"kubernetes": 6000})
    registry, _ = made(store)
    await registry.allocation.tidy()
    changed: list[str] = []
    following = asyncio.create_task(registry.run(changed.append))
    await until(lambda: "a" in registry.known)
    await store.delete(Kind.CLUSTER, "a")
    await add(store, "a", ports={"kubernetes": 6000})
    await until(lambda: "a" not in registry.known)
    await registry.finish("a")
    assert (Kind.CLAIM, "port-6000") in store.records
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_what_is_known_of_an_earlier_term_counts_for_nothing():
    store = Watched()
    registry, _ = made(store)
    await registry.follow("a", resource="u1")
    await store.delete(Kind.CLUSTER, "a")
    following = asyncio.create_task(registry.run(lambda _name: None))
    await asyncio.sleep(0)
    assert await registry.get("a") is None
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


class TooOld(Shuffled):
    """Whose every list is too old to be followed, as one behind an apiserver that lags."""

    async def watch(self, kind, *, since):
        raise Expired(f"changes after {since} are no longer held")
        yield


@pytest.mark.slow
async def test_records_that_cannot_be_listed_for_a_moment_end_no_term():
    """A list, or what is asked before a watch, that fails is asked for again; the one before counts meanwhile."""
    store, refusals = Watched(), []
    listed = store.list

    async def failing(kind, *, prefix=""):
        if len(refusals) < 2:
            refusals.append(kind)
            raise TowerError("TWR114", "the apiserver is ill")
        return await listed(kind, prefix=prefix)

    store.list = failing
    registry, _ = made(store)
    await store.create(Kind.CLUSTER, "a", Cluster("a", "u1", 1.0).data())
    heard = asyncio.Queue()
    following = asyncio.create_task(registry.run(heard.put_nowait))
    async with asyncio.timeout(30.0):
        assert await heard.get() == "a"
    assert len(refusals) == 2
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


@pytest.mark.slow
async def test_a_list_that_cannot_be_followed_is_not_asked_for_without_a_pause():
    store, at = TooOld(), []
    listed = store.list

    async def noted(kind, *, prefix=""):
        at.append(time.monotonic())
        return await listed(kind, prefix=prefix)

    store.list = noted
    following = asyncio.create_task(made(store)[0].run(lambda _name: None))
    await until(lambda: len(at) >= 4)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert min(after - before for before, after in itertools.pairwise(at)) >= BACKOFF_MIN * 0.9


async def test_a_token_that_was_followed_is_not_followed_again_by_a_copy_that_is_late():
    store = Shuffled()
    registry, _ = made(store)
    late = await registry.follow("a", resource="u1")
    taken = await registry.take_token(late, "first")
    await registry._note(taken, legacy_token="by hand")
    assert (await registry.take_token(late, "first")).legacy_token == "by hand"


async def test_the_names_of_its_services_are_noted_once():
    store = Shuffled()
    registry, _ = made(store)
    cluster = await registry.follow("a", resource="u1")
    named = await registry.name_services(cluster, ("mc-a.ks", "10.96.0.9"))
    assert Cluster.read(await store.get(Kind.CLUSTER, "a")).certificate_names == ("mc-a.ks", "10.96.0.9")
    count = store.count
    await registry.name_services(named, ("mc-a.ks", "10.96.0.9"))
    assert store.count == count


async def test_the_token_of_go_agents_is_noted_once():
    store = Shuffled()
    registry, _ = made(store)
    cluster = await registry.take_token(await registry.follow("a", resource="u1"), "hash")
    assert Cluster.read(await store.get(Kind.CLUSTER, "a")).legacy_token == "hash"
    count = store.count
    await registry.take_token(cluster, "hash")
    assert store.count == count


async def test_a_token_that_the_resource_loses_is_gone_and_one_that_was_made_by_hand_stands_until_the_next():
    store = Shuffled()
    registry, _ = made(store)
    cluster = await registry.follow("a", resource="u1")
    assert await registry.take_token(cluster, None) == cluster
    by_hand = await registry._note(cluster, legacy_token="by hand")
    assert (await registry.take_token(by_hand, None)).legacy_token == "by hand"
    taken = await registry.take_token(by_hand, "first")
    assert taken.legacy_token == "first"
    removed_by_hand = await registry._note(taken, legacy_token=None)
    assert (await registry.take_token(removed_by_hand, "first")).legacy_token is None
    assert (await registry.take_token(removed_by_hand, "second")).legacy_token == "second"
    cleared = await registry.take_token(await registry.follow("a", resource="u1"), None)
    assert cleared.legacy_token is None
    assert Cluster.read(await store.get(Kind.CLUSTER, "a")).legacy_token is None

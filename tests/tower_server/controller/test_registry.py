"""Records that follow resources: made, adopted, replaced, and gone with all that hung on them."""

from __future__ import annotations

import pytest

from tests.tower_server.controller.test_allocation import Shuffled, add, allocation
from tower_server.controller.registry import Registry
from tower_server.records import Cluster
from tower_server.store.base import Kind

pytestmark = pytest.mark.asyncio


class Revoked(list):
    async def __call__(self, name: str) -> None:
        self.append(name)


def made(store):
    revoked = Revoked()
    return Registry(store, allocation(store), revoke=revoked), revoked


async def test_a_record_is_made_once_for_its_resource():
    store = Shuffled()
    registry, _ = made(store)
    first = await registry.follow("a", resource="u1")
    assert await registry.follow("a", resource="u1") == first
    assert (first.uid, first.resource) == ("u1", "u1")


async def test_one_added_by_hand_is_adopted_with_its_ports():
    store = Shuffled()
    await add(store, "a", ports={"kubernetes": 6003})
    registry, revoked = made(store)
    followed = await registry.follow("a", resource="u1")
    assert (followed.uid, followed.resource, followed.ports) == ("uid-a", "u1", {"kubernetes": 6003})
    assert not revoked


async def test_a_resource_made_anew_is_another_cluster_and_the_old_ones_papers_are_gone():
    store = Shuffled()
    registry, revoked = made(store)
    await registry.follow("a", resource="u1")
    await store.create(Kind.AGENT, "a.one", {"uid": "u1"})
    await store.create(Kind.TOKEN, "t1", {"uid": "u1"})
    await store.create(Kind.TOKEN, "t2", {"uid": "another"})
    registry.known.clear()
    assert (await registry.follow("a", resource="u2")).uid == "u2"
    assert revoked == ["a"]
    assert [name for kind, name in store.records if kind in (Kind.AGENT, Kind.TOKEN)] == ["t2"]


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

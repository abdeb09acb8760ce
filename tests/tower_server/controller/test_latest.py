"""Cluster records as they were heard of last: read once, written from what is known, made anew where that is behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tower_server.controller.test_allocation import Shuffled, add
from tower_server.controller.latest import Latest
from tower_server.records import Cluster
from tower_server.store.base import Conflict, Kind, NotFound

pytestmark = pytest.mark.asyncio


class Reads(Shuffled):
    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def get(self, kind, name):
        self.reads += 1
        return await super().get(kind, name)


async def test_several_writes_in_a_row_read_nothing():
    store = Reads()
    latest = Latest(store)
    cluster = await latest.create(Cluster("a", "u", 1.0))
    for port in (6000, 6001):
        held = await latest.read("a")
        cluster = await latest.write(replace(Cluster.read(held), ports={"kubernetes": port}), held)
    assert store.reads == 0
    assert Cluster.read(await store.get(Kind.CLUSTER, "a")) == cluster


async def test_a_write_over_what_was_changed_meanwhile_is_refused_and_the_next_read_is_the_stored_one():
    store = Reads()
    latest = Latest(store)
    await latest.create(Cluster("a", "u", 1.0))
    held = await latest.read("a")
    theirs = replace(Cluster.read(held), serving_names=("theirs",))
    await store.update(Kind.CLUSTER, "a", theirs.data(), expect=held.version)
    with pytest.raises(Conflict):
        await latest.write(replace(Cluster.read(held), ports={"kubernetes": 6000}), held)
    assert Cluster.read(await latest.read("a")).serving_names == ("theirs",)
    assert store.reads == 1


async def test_what_is_heard_takes_the_place_of_what_was_read_and_what_is_gone_is_not_there():
    store = Reads()
    latest = Latest(store)
    await add(store, "a")
    held = await latest.read("a")
    heard = await store.update(Kind.CLUSTER, "a", replace(Cluster.read(held), created=2.0).data(), expect=held.version)
    latest.heard(heard)
    assert await latest.read("a") == heard
    assert store.reads == 1
    await store.delete(Kind.CLUSTER, "a")
    with pytest.raises(NotFound):
        await latest.read("a", anew=True)
    with pytest.raises(NotFound):
        await latest.read("a")

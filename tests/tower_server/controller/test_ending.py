"""How a cluster ends on a real apiserver: when it was asked for, with all that is its own, and nothing of another."""

from __future__ import annotations

import pytest
import pytest_asyncio

from daemon.kube.resources import CLUSTERS, EVENTS, MEMBERS, SERVICES
from tests.tower_server.controller.kit import DOWN, Host, host, records, running
from tower_server.controller.names import FINALIZER
from tower_server.records import Cluster
from tower_server.store.base import Kind

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]


@pytest_asyncio.fixture
async def lab(plane):
    async with host(plane) as made:
        yield made


async def test_deletion_waits_for_those_who_need_the_way_and_then_leaves_nothing(lab: Host):
    controller = lab.controller()
    async with running(controller):
        lab.world.members["edge-1"] = DOWN  # the member is not needed for any of it
        await lab.create("edge-1", finalizers=["finalizer.example.com/theirs"])
        await lab.create("edge-2")
        await lab.initialised("edge-1")
        other = await lab.initialised("edge-2")
        await lab.settled(controller)
        await lab.client.delete(CLUSTERS, "edge-1")
        await lab.settled(controller)
        assert await lab.get(SERVICES, "mc-edge-1") is not None
        assert "edge-1" in await records(lab.store)
        left = (await lab.get(CLUSTERS, "edge-1"))["metadata"]["finalizers"]
        await lab.edit(
            CLUSTERS, "edge-1", {"metadata": {"finalizers": [each for each in left if "theirs" not in each]}}
        )

        async def gone() -> bool:
            return await lab.get(CLUSTERS, "edge-1") is None

        await lab.until("the Cluster is gone", gone)
        assert await lab.get(SERVICES, "mc-edge-1") is None
        assert await lab.slices("mc-edge-1") == []
        assert sorted(await records(lab.store)) == ["edge-2"]
        claims = (await lab.store.list(Kind.CLAIM)).items
        assert [claim.data["cluster"] for claim in claims] == ["edge-2"]
        assert lab.revoked == ["edge-1"]
        assert await lab.get(CLUSTERS, "edge-2") == other


async def test_a_server_that_has_not_heard_of_the_end_is_named(lab: Host):
    lab.unheard = ["tower-1 has not heard of it: the apiserver is away"]
    async with running(lab.controller()):
        await lab.create("edge-1")
        await lab.initialised("edge-1")
        await lab.client.delete(CLUSTERS, "edge-1")

        async def told() -> bool:
            events = (await lab.client.list(EVENTS, fields="reason=StillServed,involvedObject.name=edge-1")).items
            return any("server tower-1 has not heard of it: the apiserver" in each["message"] for each in events)

        await lab.until("an Event names it", told)


async def test_a_cluster_made_anew_is_another_one(lab: Host):
    async with running(lab.controller()):
        await lab.create("edge-1")
        await lab.initialised("edge-1")
        first = (await records(lab.store))["edge-1"]["uid"]
        await lab.client.delete(CLUSTERS, "edge-1")

        async def gone() -> bool:
            return await lab.get(CLUSTERS, "edge-1") is None

        await lab.until("the Cluster is gone", gone)
        await lab.create("edge-1")
        await lab.initialised("edge-1")
        assert (await records(lab.store))["edge-1"]["uid"] != first


async def test_a_resource_that_goes_takes_nothing_of_a_cluster_that_was_added_by_hand(lab: Host):
    """It was never the cluster's: its type is another."""
    await lab.store.create(Kind.CLUSTER, "edge-1", Cluster("edge-1", "by-hand", 1.0).data())
    controller = lab.controller()
    async with running(controller):
        service = await lab.service("mc-edge-1")
        await lab.create("edge-1", type="direct", finalizers=[FINALIZER])
        await lab.settled(controller)
        await lab.client.delete(CLUSTERS, "edge-1")

        async def gone() -> bool:
            return await lab.get(CLUSTERS, "edge-1") is None

        await lab.until("the resource is gone", gone)
        await lab.settled(controller)
        assert (await lab.service("mc-edge-1"))["metadata"]["uid"] == service["metadata"]["uid"]
        assert (await records(lab.store))["edge-1"]["uid"] == "by-hand"
        assert lab.revoked == []


async def test_a_record_whose_resource_is_gone_goes_too(lab: Host):
    """Somebody took the finalizer away, or it was deleted while nobody looked."""
    async with running(lab.controller()):
        await lab.create("edge-1")
        await lab.initialised("edge-1")
        ghost = Cluster("ghost", "u", 1.0, resource="one-that-is-gone")
        await lab.store.create(Kind.CLUSTER, "ghost", ghost.data())

        async def gone() -> bool:
            return await lab.get(MEMBERS, "ghost") is None

        await lab.until("the record is gone", gone)
        assert "edge-1" in await records(lab.store)


async def test_what_was_put_back_from_a_copy_is_kept_and_adopted_by_the_clusters_that_are_made_again(lab: Host):
    """As after the loss of the host's etcd: every object is there again, and none has the uid that it had."""
    names = ("edge-1", "edge-2")
    async with running(lab.controller()):
        for name in names:
            await lab.create(name)
            await lab.initialised(name)
    before = await records(lab.store)
    copied = [await lab.client.get(MEMBERS, name) for name in names]
    for name in names:
        await lab.edit(CLUSTERS, name, {"metadata": {"finalizers": None}})
        await lab.client.delete(CLUSTERS, name)
        await lab.client.delete(MEMBERS, name)
    for body in copied:
        kept = {key: body["metadata"][key] for key in ("name", "labels")}
        await lab.client.create(MEMBERS, {**body, "metadata": kept})
    made = await lab.create("edge-1")
    async with running(controller := lab.controller()):
        await lab.initialised("edge-1")
        await lab.settled(controller)
        after = await records(lab.store)
        assert lab.revoked == []
        for name, resource in (("edge-1", made["metadata"]["uid"]), ("edge-2", "")):
            assert after[name] == {**before[name], "resource": resource}
        said = [each["reason"] for each in (await lab.client.list(EVENTS, fields="involvedObject.name=edge-2")).items]
        assert "PutBack" in said
        made = await lab.create("edge-2")

        async def adopted() -> bool:
            return (await records(lab.store))["edge-2"]["resource"] == made["metadata"]["uid"]

        await lab.until("it is adopted by the one that comes later", adopted)
        await lab.client.delete(CLUSTERS, "edge-1")

        async def gone() -> bool:
            return "edge-1" not in await records(lab.store)

        await lab.until("it ends as any other from then on", gone)
    assert lab.revoked == ["edge-1"]

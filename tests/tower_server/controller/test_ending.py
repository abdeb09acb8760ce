"""How a cluster ends on a real apiserver: when it was asked for, with all that is its own, and nothing of another."""

from __future__ import annotations

import pytest
import pytest_asyncio

from daemon.kube.resources import CLUSTERS, MEMBERS, SERVICES
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
        ghost = {"name": "ghost", "uid": "u", "created": 1.0, "resource": "one-that-is-gone"}
        meta = {"name": "ghost", "labels": {"tower.kubesphere.io/record": "cluster"}}
        body = {"apiVersion": MEMBERS.api_version, "kind": "Member", "metadata": meta, "spec": ghost}
        await lab.client.create(MEMBERS, body)

        async def gone() -> bool:
            return await lab.get(MEMBERS, "ghost") is None

        await lab.until("the record is gone", gone)
        assert "edge-1" in await records(lab.store)

"""One cluster while others get in the way: leaders that overlap, a lease and a claim that go."""

from __future__ import annotations

import asyncio
import time

import pytest
import pytest_asyncio

from daemon.kube.errors import KubeError
from daemon.kube.resources import CLUSTERS, ENDPOINT_SLICES, LEASES, SERVICES, Object
from tests.tower_server.controller.kit import NAMESPACE, QUICK, Host, host, records, running
from tower_server.store.base import Kind

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]


@pytest_asyncio.fixture
async def lab(plane):
    async with host(plane) as made:
        yield made


async def test_two_controllers_at_once_end_with_one_port_each(lab: Host):
    """Both believe that they lead: each has a lease of its own."""
    one, two = lab.controller("one"), lab.controller("two")
    two._elector._lease._name = "another-lease"
    names = [f"edge-{number}" for number in range(12)]
    async with running(one, two):
        for name in names:
            await lab.create(name)
        for name in names:
            await lab.initialised(name)

        async def agreed() -> bool:
            noted = {name: data["ports"].get("kubernetes") for name, data in (await records(lab.store)).items()}
            shown = {
                name: (await lab.get(CLUSTERS, name))["spec"]["connection"].get("kubernetesAPIServerPort")
                for name in names
            }
            served = {name: (await lab.get(SERVICES, f"mc-{name}"))["spec"]["ports"][0]["targetPort"] for name in names}
            return noted == shown == served and None not in noted.values()

        await lab.until("record, resource and Service agree", agreed)
        noted = [data["ports"]["kubernetes"] for data in (await records(lab.store)).values()]
        assert len(set(noted)) == len(names)


async def test_a_leader_without_its_lease_stops_and_the_next_one_is_there_in_time(lab: Host):
    one, two = lab.controller("one", timing=QUICK), lab.controller("two", timing=QUICK)
    first = asyncio.create_task(one.run())
    try:
        await lab.until("the first leads", lambda: asyncio.sleep(0, one.writer is not None))
        async with running(two):
            one._client.close()  # cut off from the apiserver, as a partition would

            async def lost(*_args, **_more):
                raise KubeError("TWR114", "cut off")

            one._client._once = lost
            began = time.monotonic()
            await lab.until("the second leads", lambda: asyncio.sleep(0, two.writer is not None))
            taken = time.monotonic() - began
            assert one.writer is None, "the first had stopped before"
            assert taken < 15.0
            await lab.create("edge-1")
            await lab.initialised("edge-1")
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_stop_hands_over_at_once(lab: Host):
    one, two = lab.controller("one"), lab.controller("two")
    async with running(one):
        await lab.until("the first leads", lambda: asyncio.sleep(0, one.writer is not None))
    lease = await lab.get(LEASES, "tower-controller")
    assert lease["spec"]["holderIdentity"] == ""
    async with running(two):
        await lab.until("the second leads", lambda: asyncio.sleep(0, two.writer is not None), deadline=20.0)


async def test_a_lease_that_somebody_deleted_leads_to_a_term_above_that_of_any_object(lab: Host):
    """Slices follow the servers, and Services stay as they are: the controller ended every term at the first slice."""
    async with running(lab.controller("one")):
        await lab.create("edge-1")
        await lab.initialised("edge-1")

        async def made() -> list[Object]:
            return await lab.slices("mc-edge-1")

        name = (await lab.until("the slice is made", made))[0]["metadata"]["name"]
    later = {"metadata": {"annotations": {"tower.kubesphere.io/term": "17"}}, "ports": []}
    await lab.edit(ENDPOINT_SLICES, name, later)
    await lab.client.delete(LEASES, "tower-controller", namespace=NAMESPACE)
    async with running(lab.controller("two")):

        async def mended() -> list[Object]:
            return [each for each in await lab.slices("mc-edge-1") if each["ports"]]

        (found,) = await lab.until("the slice is put right", mended)
        assert int(found["metadata"]["annotations"]["tower.kubesphere.io/term"]) >= 18


async def test_a_lease_that_somebody_deleted_leads_to_a_term_above_what_was_written(lab: Host):
    async with running(lab.controller("one")):
        await lab.create("edge-1")
        await lab.initialised("edge-1")
    await lab.edit(SERVICES, "mc-edge-1", {"metadata": {"annotations": {"tower.kubesphere.io/term": "9"}}})
    await lab.client.delete(LEASES, "tower-controller", namespace=NAMESPACE)
    two = lab.controller("two")
    async with running(two):
        await lab.edit(SERVICES, "mc-edge-1", {"spec": {"selector": {"x": "y"}}})
        found = await lab.service("mc-edge-1", lambda found: "selector" not in found["spec"])
        assert int(found["metadata"]["annotations"]["tower.kubesphere.io/term"]) >= 10


async def test_a_claim_deleted_by_hand_is_made_again_and_never_given_to_another(lab: Host):
    async with running(lab.controller("one")):
        await lab.create("edge-1")
        await lab.initialised("edge-1")
    await lab.store.delete(Kind.CLAIM, "port-6000")
    async with running(lab.controller("two")):
        await lab.create("edge-2")
        found = await lab.initialised("edge-2")
        assert found["spec"]["connection"]["kubernetesAPIServerPort"] != 6000
        assert (await lab.store.get(Kind.CLAIM, "port-6000")).data["cluster"] == "edge-1"

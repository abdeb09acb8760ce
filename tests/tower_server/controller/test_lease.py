"""The lease as an object: what is written is read back, and what somebody broke is a lease that is free."""

from __future__ import annotations

import pytest
import pytest_asyncio

from daemon.kube.resources import LEASES
from tests.tower_server.controller.kit import NAMESPACE, host
from tower_server.controller.lease import KubeLease
from tower_server.election import Held, LeaseConflict

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]


@pytest_asyncio.fixture
async def lab(plane):
    async with host(plane) as made:
        yield made


def lease(lab) -> KubeLease:
    return KubeLease(lab.client, namespace=NAMESPACE, name="tower-controller")


async def test_it_is_made_renewed_and_given_back(lab):
    one = lease(lab)
    assert await one.read() is None
    made = await one.write(Held("a", 1, 15.0, ""))
    stored = await lab.get(LEASES, "tower-controller")
    acquired = stored["spec"]["acquireTime"]
    renewed = await one.write(made)
    stored = await lab.get(LEASES, "tower-controller")
    assert stored["spec"]["acquireTime"] == acquired
    assert stored["spec"]["renewTime"] > acquired
    await one.write(Held("", 1, 1.0, renewed.version))
    assert (await lease(lab).read()).holder == ""


async def test_an_older_version_is_a_conflict_and_so_is_a_second_first(lab):
    one, two = lease(lab), lease(lab)
    made = await one.write(Held("a", 1, 15.0, ""))
    with pytest.raises(LeaseConflict):
        await two.write(Held("b", 1, 15.0, ""))
    seen = await two.read()
    assert seen == made
    await one.write(made)
    with pytest.raises(LeaseConflict):
        await two.write(Held("b", 2, 15.0, seen.version))


async def test_what_others_put_on_it_stays_and_nonsense_reads_as_free(lab):
    one = lease(lab)
    made = await one.write(Held("a", 1, 15.0, ""))
    await lab.edit(LEASES, "tower-controller", {"metadata": {"labels": {"team": "x"}}})
    seen = await one.read()
    assert seen.version != made.version
    await one.write(seen)
    assert (await lab.get(LEASES, "tower-controller"))["metadata"]["labels"] == {"team": "x"}
    await lab.edit(LEASES, "tower-controller", {"spec": {"holderIdentity": None, "leaseTransitions": None}})
    assert await one.read() == Held("", 0, 15.0, (await one.read()).version)

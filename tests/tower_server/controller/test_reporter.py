"""What is said of a cluster where others read it, also while a webhook refuses to have it written."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
import pytest_asyncio

from daemon.kube.errors import KubeError
from daemon.kube.resources import CLUSTERS, MEMBERS, SERVICES, Resource
from tests.tower_server.controller.kit import DOWN, Host, host, running, said, up

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]
WEBHOOKS = Resource(
    "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", False
)


@pytest_asyncio.fixture
async def lab(plane):
    async with host(plane) as made:
        yield made
        with suppress(KubeError):
            await made.client.delete(WEBHOOKS, "kubesphere")


async def refuse_updates(lab: Host) -> None:
    """As KubeSphere 3.4 does while a member is down: every update of a Cluster fails."""
    hook = {
        "name": "validating-cluster.kubesphere.io",
        "clientConfig": {"url": "https://127.0.0.1:1/validate"},
        "rules": [
            {
                "apiGroups": ["cluster.kubesphere.io"],
                "apiVersions": ["*"],
                "operations": ["UPDATE"],
                "resources": ["clusters"],
            }
        ],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 2,
    }
    await lab.client.create(
        WEBHOOKS,
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": WEBHOOKS.kind,
            "metadata": {"name": "kubesphere"},
            "webhooks": [hook],
        },
    )

    async def refuses() -> bool:
        try:
            await lab.edit(CLUSTERS, "first", {"metadata": {"labels": {"try": str(time.time())}}})
        except KubeError:
            return True
        return False

    await lab.until("the webhook refuses", refuses)


async def member(lab: Host, name: str, kind: str, status: str):
    async def look():
        found = await lab.get(MEMBERS, name)
        return found if found is not None and said(found, kind) == status else None

    return await lab.until(f"Member {name}: {kind} is {status}", look)


async def test_a_webhook_that_refuses_every_write_costs_nothing_but_the_mirror_and_is_named(lab: Host):
    controller = lab.controller()
    async with running(controller):
        await lab.create("first")
        await lab.initialised("first")
        await refuse_updates(lab)
        lab.world.members["second"] = DOWN
        await lab.create("second")
        found = await member(lab, "second", "ResourceWritable", "False")
        assert "validating-cluster.kubesphere.io" in said(found, "ResourceWritable", "message")
        assert "TWR122" in said(found, "ResourceWritable", "message")
        assert said(found, "Initialized") == "True"
        assert said(found, "AgentAvailable") == "False"
        assert (await lab.get(SERVICES, "mc-second"))["spec"]["ports"][0]["targetPort"] == 6001
        assert found["spec"]["ports"] == {"kubernetes": 6001}
        await lab.client.delete(WEBHOOKS, "kubesphere")
        controller.poke("second")
        await member(lab, "second", "ResourceWritable", "True")
        await lab.initialised("second")


async def test_what_a_person_reads_of_the_member_is_there(lab: Host):
    lab.world.members["edge-1"] = up(1)
    async with running(lab.controller()):
        await lab.create("edge-1")
        found = await member(lab, "edge-1", "MemberReady", "True")
        assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
        assert found["status"]["version"] == "v1.35.4"
        assert found["status"]["address"]
        table = lab.plane.kubectl("get", "members").text
        assert "Connected" in table

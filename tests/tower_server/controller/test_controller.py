"""The controller on a real apiserver: what it makes for a Cluster, what it mends, and what it leaves alone."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace

import pytest
import pytest_asyncio
import structlog
import yaml

from daemon.kube.resources import CLUSTERS, ENDPOINTS, EVENTS, MEMBERS, SERVICES
from tests.tower_server.controller.kit import DOWN, NAMESPACE, UP, Host, host, records, running, said, up
from tower_server.controller.desired import Replica
from tower_server.controller.names import LB_ANNOTATIONS
from tower_server.records import Cluster
from tower_server.state import Verdict
from tower_server.store.base import Kind

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]


@pytest_asyncio.fixture
async def lab(plane):
    async with host(plane) as made:
        yield made


async def test_a_cluster_gets_its_port_service_slice_and_endpoints(lab: Host):
    async with running(lab.controller()):
        await lab.create("edge-1")
        found = await lab.initialised("edge-1")
        service = await lab.service("mc-edge-1")
        address = service["spec"]["clusterIP"]
        connection = found["spec"]["connection"]
        assert connection["kubernetesAPIServerPort"] == 6000
        assert connection["kubernetesAPIEndpoint"] == f"https://{address}:6443"
        assert "kubesphereAPIEndpoint" not in connection
        assert [(each["port"], each["targetPort"]) for each in service["spec"]["ports"]] == [(6443, 6000)]
        (piece,) = await lab.slices("mc-edge-1")
        assert [each["addresses"] for each in piece["endpoints"]] == [["10.1.0.1"]]
        record = Cluster.read(await lab.store.get(Kind.CLUSTER, "edge-1"))
        assert address in record.certificate_names
        assert f"mc-edge-1.{NAMESPACE}.svc" in record.certificate_names


async def test_what_somebody_changed_or_deleted_is_made_again(lab: Host):
    controller = lab.controller()
    async with running(controller):
        await lab.create("edge-1")
        before = await lab.initialised("edge-1")
        await lab.settled(controller)
        await lab.edit(SERVICES, "mc-edge-1", {"spec": {"selector": {"app": "tower"}}})
        await lab.service("mc-edge-1", lambda found: "selector" not in found["spec"])
        await lab.client.delete(SERVICES, "mc-edge-1", namespace=NAMESPACE)
        old = before["spec"]["connection"]["kubernetesAPIEndpoint"]
        after = await lab.cluster(
            "edge-1", lambda found: found["spec"]["connection"]["kubernetesAPIEndpoint"] != old, "another ClusterIP"
        )
        assert after["spec"]["connection"]["kubernetesAPIServerPort"] == 6000
        (piece,) = await lab.slices("mc-edge-1")
        await lab.client.delete(controller_slices(), piece["metadata"]["name"], namespace=NAMESPACE)
        await lab.until("the slice is back", lambda: lab.slices("mc-edge-1"))
        await lab.edit(CLUSTERS, "edge-1", {"spec": {"connection": {"kubernetesAPIServerPort": 6999}}})
        await lab.cluster(
            "edge-1", lambda found: found["spec"]["connection"]["kubernetesAPIServerPort"] == 6000, "its own port again"
        )


def controller_slices():
    from daemon.kube.resources import ENDPOINT_SLICES

    return ENDPOINT_SLICES


async def test_an_older_services_endpoints_and_selector_are_cleaned_up(lab: Host):
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "mc-edge-1", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "tower"}, "ports": [{"name": "kubernetes", "port": 6443, "targetPort": 6500}]},
    }
    await lab.client.create(SERVICES, body)
    endpoints = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "mc-edge-1", "namespace": NAMESPACE},
        "subsets": [{"addresses": [{"ip": "10.9.9.9"}], "ports": [{"name": "kubernetes", "port": 6500}]}],
    }
    await lab.client.create(ENDPOINTS, endpoints)
    async with running(lab.controller()):
        await lab.create("edge-1", kubernetesAPIServerPort=6007)
        found = await lab.initialised("edge-1")
        assert found["spec"]["connection"]["kubernetesAPIServerPort"] == 6007

        async def gone() -> bool:
            return await lab.get(ENDPOINTS, "mc-edge-1") is None

        await lab.until("the old Endpoints are gone", gone)
        service = await lab.service("mc-edge-1", lambda found: "selector" not in found["spec"])
        assert service["spec"]["ports"][0]["targetPort"] == 6007


async def test_the_kubeconfig_is_written_over_a_healthy_way_and_then_left_alone(lab: Host):
    controller = lab.controller()
    async with running(controller):
        await lab.create("edge-1")
        found = await lab.initialised("edge-1")
        assert "kubeconfig" not in found["spec"]["connection"]
        assert said(found, "KubeconfigReady", "reason") == "Waiting"
        lab.world.members["edge-1"] = UP
        controller.poke("edge-1")
        found = await lab.cluster("edge-1", lambda found: found["spec"]["connection"].get("kubeconfig"), "a kubeconfig")
        text = found["spec"]["connection"]["kubeconfig"]
        config = yaml.safe_load(base64.b64decode(text))
        assert config["clusters"][0]["cluster"]["server"] == found["spec"]["connection"]["kubernetesAPIEndpoint"]
        lab.world.members["edge-1"] = DOWN
        controller.poke("edge-1")
        found = await lab.cluster("edge-1", lambda found: said(found, "AgentAvailable") == "False", "down")
        assert "TWR201" in said(found, "AgentAvailable", "message")
        lab.world.members["edge-1"] = UP
        controller.poke("edge-1")
        found = await lab.cluster("edge-1", lambda found: said(found, "AgentAvailable") == "True", "up again")
        assert found["spec"]["connection"]["kubeconfig"] == text


async def test_a_cluster_that_stays_as_it_is_costs_no_write_and_no_read(lab: Host):
    client = lab.new_client("tower-0")
    controller = lab.controller(client=client)
    lab.world.members = {f"edge-{number}": up(number) for number in range(15)}
    async with running(controller):
        for name in lab.world.members:
            await lab.create(name)
        for name in lab.world.members:
            await lab.cluster(name, lambda found: found["spec"]["connection"].get("kubeconfig"), "a kubeconfig")
        await lab.settled(controller)
        writes, before = controller.writer.writes, client.requests
        for _ in range(5):  # what the probes of five rounds would cause
            for name in lab.world.members:
                controller.poke(name)
            await lab.settled(controller)
        assert controller.writer.writes == writes
        lease_only = client.requests - before
        assert lease_only <= 100  # two requests for each look at the lease, about five looks a second in this test
        lab.world.members["edge-3"] = DOWN
        controller.poke("edge-3")
        await lab.cluster("edge-3", lambda found: said(found, "AgentAvailable") == "False", "down")
        await lab.settled(controller)
        assert controller.writer.writes - writes <= 2  # the Cluster, and our own status where there is one


async def test_a_new_leader_changes_nothing_that_is_as_it_should_be(lab: Host):
    lab.world.members = {f"edge-{number}": up(number) for number in range(5)}
    first = lab.controller("one")
    async with running(first):
        for name in lab.world.members:
            await lab.create(name)
        for name in lab.world.members:
            await lab.cluster(name, lambda found: found["spec"]["connection"].get("kubeconfig"), "a kubeconfig")
        await lab.settled(first)  # what follows from the last kubeconfig is written too
    before = {name: (await lab.get(CLUSTERS, name))["metadata"]["resourceVersion"] for name in lab.world.members}
    second = lab.controller("two")
    with structlog.testing.capture_logs() as lines:
        async with running(second):
            await lab.until("the second leads", lambda: asyncio.sleep(0, second.writer is not None))
            await lab.settled(second)
            assert second.writer.writes == 0
    assert [each["writes"] for each in lines if each["event"] == "all-looked-at"] == [0]
    assert before == {
        name: (await lab.get(CLUSTERS, name))["metadata"]["resourceVersion"] for name in lab.world.members
    }


async def test_bad_clusters_say_what_is_wrong_and_the_others_go_on(lab: Host):
    controller = lab.controller()
    async with running(controller):
        await lab.create("first", kubernetesAPIServerPort=6003)
        await lab.initialised("first")
        await lab.create("taken", kubernetesAPIServerPort=6003)
        await lab.create("far", kubernetesAPIServerPort=9999)
        await lab.create("noted", external=True, annotations={LB_ANNOTATIONS: "{"})
        await lab.create("fine")
        await lab.initialised("fine")
        taken = await lab.cluster("taken", lambda found: said(found, "PortReady") == "False", "refused")
        assert "belongs to cluster first" in said(taken, "PortReady", "message")
        far = await lab.cluster("far", lambda found: said(found, "PortReady") == "False", "refused")
        assert "6000-6019" in said(far, "PortReady", "message")
        noted = await lab.cluster("noted", lambda found: said(found, "ExternalAccessReady") == "False", "refused")
        assert "not JSON" in said(noted, "ExternalAccessReady", "message")
        assert said(noted, "Initialized") == "True"
        await lab.edit(CLUSTERS, "taken", {"spec": {"connection": {"kubernetesAPIServerPort": None}}})
        freed = await lab.initialised("taken")
        assert freed["spec"]["connection"]["kubernetesAPIServerPort"] != 6003
        assert said(freed, "PortReady") == "True"


async def test_two_names_of_one_member_are_told_of_each_other_and_both_go_on(lab: Host):
    controller = lab.controller()
    async with running(controller):
        lab.world.members = {"edge-1": UP, "edge-2": UP}
        await lab.create("edge-1")
        await lab.create("edge-2")
        for name, other in (("edge-1", "edge-2"), ("edge-2", "edge-1")):
            found = await lab.cluster(name, lambda found: said(found, "Unique") == "False", "not unique")
            assert other in said(found, "Unique", "message")
            assert "TWR123" in said(found, "Unique", "message")
            assert found["spec"]["connection"]["kubernetesAPIEndpoint"]
        lab.world.members["edge-2"] = replace(UP, report={"uid": "kube-system-2"})
        controller.poke("edge-2")
        await lab.cluster("edge-1", lambda found: said(found, "Unique") == "True", "unique again")


async def test_a_status_edited_by_hand_is_put_right(lab: Host):
    controller = lab.controller()
    async with running(controller):
        await lab.create("edge-1")
        found = await lab.initialised("edge-1")
        kept = {
            "type": "Ready",
            "status": "True",
            "reason": "x",
            "message": "",
            "lastTransitionTime": "2024-01-01T00:00:00Z",
        }
        listed = [{**each, "status": "False"} for each in found["status"]["conditions"]] + [kept]
        await lab.edit(CLUSTERS, "edge-1", {"status": {"conditions": listed}})
        found = await lab.initialised("edge-1")
        assert kept in found["status"]["conditions"]


async def test_a_cluster_added_by_hand_is_served_too_and_adopted_by_its_resource(lab: Host):
    await lab.store.create(Kind.CLUSTER, "edge-1", Cluster("edge-1", "by-hand", 1.0).data())
    async with running(lab.controller()):
        await lab.service("mc-edge-1")
        await lab.create("edge-1")
        await lab.initialised("edge-1")
        record = (await records(lab.store))["edge-1"]
        assert record["uid"] == "by-hand"
        assert record["resource"]


async def test_external_access_publishes_the_apiserver_alone_and_follows_its_address(lab: Host):
    controller = lab.controller()
    async with running(controller):
        lab.world.members["edge-1"] = replace(UP, report={**UP.report, "services": {"kubesphere": {}}})
        given = {"service.example.com/internal": "true"}
        await lab.create("edge-1", external=True, annotations={LB_ANNOTATIONS: json.dumps(given)})
        service = await lab.service("mc-edge-1-external")
        assert service["spec"]["type"] == "LoadBalancer"
        assert [each["port"] for each in service["spec"]["ports"]] == [6443]
        assert service["metadata"]["annotations"]["service.example.com/internal"] == "true"
        assert len((await lab.service("mc-edge-1"))["spec"]["ports"]) == 2
        found = await lab.cluster("edge-1", lambda found: said(found, "ExternalAccessReady") == "False", "waiting")
        assert said(found, "ExternalAccessReady", "reason") == "NoAddress"
        address = {"ingress": [{"ip": "203.0.113.7"}]}
        await lab.set_status(SERVICES, "mc-edge-1-external", loadBalancer=address)
        found = await lab.cluster("edge-1", lambda found: said(found, "ExternalAccessReady") == "True", "published")
        assert found["spec"]["connection"]["externalKubernetesAPIEndpoint"] == "https://203.0.113.7:6443"
        await lab.settled(controller)
        assert "203.0.113.7" in (await records(lab.store))["edge-1"]["service_names"]
        await lab.create("edge-2", external=True)  # whoever may write what a Service says of itself
        for taken in ("203.0.113.7", "tower.example.com"):
            name = "hostname" if taken.endswith("com") else "ip"
            await lab.service("mc-edge-2-external")
            await lab.set_status(SERVICES, "mc-edge-2-external", loadBalancer={"ingress": [{name: taken}]})
            await lab.cluster(
                "edge-2",
                lambda found, at=taken: at in str(found["spec"]["connection"].get("externalKubernetesAPIEndpoint")),
                "published",
            )
            await lab.settled(controller)
            assert taken not in (await records(lab.store))["edge-2"]["service_names"], "it is another's"
        await lab.edit(CLUSTERS, "edge-1", {"spec": {"externalKubeAPIEnabled": False}})

        async def gone() -> bool:
            return await lab.get(SERVICES, "mc-edge-1-external") is None

        await lab.until("it is published no more", gone)
        await lab.settled(controller)
        assert "externalKubernetesAPIEndpoint" not in (await lab.get(CLUSTERS, "edge-1"))["spec"]["connection"]


@pytest.mark.parametrize("first", ["edge-1", "edge-1-external"])
async def test_no_cluster_takes_the_service_of_another_that_is_called_like_its_external_one(lab: Host, first: str):
    controller = lab.controller()
    async with running(controller):
        await lab.create(first, external=first == "edge-1")
        before = await lab.service("mc-edge-1-external")
        second = "edge-1" if first == "edge-1-external" else "edge-1-external"
        await lab.create(second, external=second == "edge-1")
        if second == "edge-1":
            found = await lab.cluster("edge-1", lambda found: said(found, "ExternalAccessReady") == "False", "refused")
            told = said(found, "ExternalAccessReady", "message")
            assert said(found, "Initialized") == "True", "the rest of it is followed"
        else:
            member = await lab.until("it is said", lambda: refused_name(lab))
            told = said(member, "ResourceWritable", "message")
        assert f"Service mc-edge-1-external belongs to cluster {first}" in told
        after = await lab.service("mc-edge-1-external")
        assert after["spec"] == before["spec"]
        (piece,) = await lab.slices("mc-edge-1-external")
        assert piece["metadata"]["labels"]["tower.kubesphere.io/cluster"] == first
        await lab.client.delete(CLUSTERS, first)

        async def theirs() -> bool:
            held = await lab.get(SERVICES, "mc-edge-1-external")
            return held is not None and held["metadata"]["labels"]["tower.kubesphere.io/cluster"] == second

        await lab.until("the name is free, and taken", theirs)


async def refused_name(lab: Host):
    member = await lab.get(MEMBERS, "edge-1-external")
    return member if member and said(member, "ResourceWritable") == "False" else None


async def test_slices_follow_the_replicas(lab: Host):
    controller = lab.controller()
    async with running(controller):
        await lab.create("edge-1")
        await lab.initialised("edge-1")
        for servers, expected in (
            (
                [Replica("a", "10.1.0.1", True, frozenset()), Replica("b", "10.1.0.2", True, frozenset({"edge-1"}))],
                {"10.1.0.2"},
            ),
            (
                [Replica("a", "10.1.0.1", True, frozenset()), Replica("b", "10.1.0.2", True, frozenset())],
                {"10.1.0.1", "10.1.0.2"},
            ),
            ([], {"10.1.0.1", "10.1.0.2"}),
        ):
            lab.world.servers = servers
            controller.poke("edge-1")

            async def there(expected=expected) -> bool:
                found = await lab.slices("mc-edge-1")
                return {
                    address for each in found for end in each["endpoints"] for address in end["addresses"]
                } == expected

            await lab.until(f"the slices name {expected}", there)


async def test_a_transition_makes_one_event_and_silence_none(lab: Host):
    controller = lab.controller()
    async with running(controller):
        await lab.create("beyond", kubernetesAPIServerPort=9999)
        await lab.cluster("beyond", lambda found: said(found, "PortReady") == "False", "refused")
        await lab.settled(controller)
        for _ in range(3):
            controller.poke("beyond")
            await lab.settled(controller)
        listing = await lab.client.list(EVENTS, namespace="default", fields="involvedObject.name=beyond")
        told = [each for each in listing.items if each["reason"] == "PortOutOfRange"]
        assert len(told) == 1
        assert told[0]["type"] == "Warning"
        assert "9999" in told[0]["message"]


async def test_a_probe_that_only_rewords_keeps_the_transition_time(lab: Host):
    controller = lab.controller()
    async with running(controller):
        lab.world.members["edge-1"] = UP
        await lab.create("edge-1")
        found = await lab.cluster("edge-1", lambda found: said(found, "MemberReady") == "True", "ready")
        since = said(found, "MemberReady", "lastTransitionTime")
        await asyncio.sleep(1.1)  # the clock of conditions counts seconds: a new time would show
        lab.world.members["edge-1"] = replace(UP, verdict=Verdict("Degraded", "True", "TWR202", "one of two tunnels"))
        controller.poke("edge-1")
        found = await lab.cluster(
            "edge-1", lambda found: said(found, "MemberReady", "reason") == "Degraded", "degraded"
        )
        assert said(found, "MemberReady", "lastTransitionTime") == since

"""The CRDs on a real apiserver: KubeSphere's objects come back as they were, people hear what is wrong, ours yields."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.errors import Conflict, Invalid, NotFound
from daemon.kube.resources import CLUSTERS, MEMBERS
from tests.deploy import kubesphere
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import CRDS, crds

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]
OURS = "cluster.kubesphere.io_clusters"
CRD = "clusters.cluster.kubesphere.io"
ESTABLISHED = ("wait", "--for=condition=Established", f"crd/{CRD}", "--timeout=20s")


def install(plane: ControlPlane, shape: str) -> None:
    """The schema of Cluster as one of: `ours`, `3`, `4`."""
    plane.kubectl("delete", "crd", CRD, "--ignore-not-found")
    if shape == "ours":
        crds(plane, OURS)
        return
    plane.kubectl("create", "-f", "-", stdin=json.dumps(kubesphere.crd(int(shape))).encode())
    plane.kubectl(*ESTABLISHED)


@pytest.fixture(scope="module", params=["ours", "3", "4"])
def shape(request: pytest.FixtureRequest, host_plane: ControlPlane) -> Iterator[str]:
    install(host_plane, request.param)
    yield request.param
    install(host_plane, "ours")


@pytest.fixture(scope="module")
def ours(host_plane: ControlPlane) -> None:
    install(host_plane, "ours")
    crds(host_plane)


@pytest_asyncio.fixture
async def client(host_plane: ControlPlane) -> AsyncIterator[Client]:
    made = Client(Access.find(host_plane.admin_kubeconfig), user_agent="crd-test")
    yield made
    for resource in (CLUSTERS, MEMBERS):
        try:
            held = (await made.list(resource)).items
        except NotFound:
            continue
        for body in held:
            name = body["metadata"]["name"]
            if body["metadata"].get("finalizers"):
                await made.patch(resource, name, {"metadata": {"finalizers": None}})
            await made.delete(resource, name)
    made.close()


def given(body: dict[str, Any]) -> dict[str, Any]:
    """What its author wrote: without what every apiserver adds."""
    theirs = copy.deepcopy(body)
    for key in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
        theirs["metadata"].pop(key, None)
    return theirs


def objects(generation: int) -> list[dict[str, Any]]:
    return [kubesphere.proxy(generation), kubesphere.host(generation), kubesphere.bare()]


async def test_what_kubesphere_writes_comes_back_unchanged(shape: str, client: Client) -> None:
    for generation in (3, 4) if shape == "ours" else (int(shape),):
        for wanted in objects(generation):
            await client.create(CLUSTERS, wanted)
            name = wanted["metadata"]["name"]
            assert given(await client.get(CLUSTERS, name)) == wanted
            changed = await client.get(CLUSTERS, name)
            changed["status"] = {**changed.get("status", {}), "nodeCount": 7}
            await client.replace(CLUSTERS, changed)
            assert (await client.get(CLUSTERS, name))["status"]["nodeCount"] == 7, "status is written with the object"
            await client.patch(CLUSTERS, name, {"metadata": {"finalizers": None}})
            await client.delete(CLUSTERS, name)


async def test_what_tower_writes_is_held_by_every_schema_and_loses_to_whoever_was_first(
    shape: str, client: Client
) -> None:
    generation = 4 if shape == "ours" else int(shape)
    await client.create(CLUSTERS, kubesphere.proxy(generation))
    held = await client.get(CLUSTERS, "edge")
    stale = copy.deepcopy(held)
    fields = {
        "kubernetesAPIServerPort": 6012,
        "kubesphereAPIServerPort": 16012,
        "kubernetesAPIEndpoint": "https://10.96.3.4:6443",
        "kubesphereAPIEndpoint": "http://10.96.3.4:80",
        "externalKubernetesAPIEndpoint": "https://203.0.113.9:6443",
        "kubeconfig": "a2luZDogQ29uZmlnCg==",
    }
    held["spec"]["connection"] |= fields
    held["status"]["conditions"].append(kubesphere.condition("MemberReady", "False", "ApiserverDown"))
    await client.replace(CLUSTERS, held)
    written = await client.get(CLUSTERS, "edge")
    assert written["spec"]["connection"] == held["spec"]["connection"]
    assert written["status"] == held["status"]
    with pytest.raises(Conflict):
        await client.replace(CLUSTERS, stale)


async def test_unknown_fields_are_kept_by_ours_and_dropped_by_theirs(shape: str, client: Client) -> None:
    body = kubesphere.bare()
    body["spec"]["connection"]["newer"] = {"deep": [1, None]}
    body["spec"]["newer"] = True
    body["status"] = {"conditions": [{**kubesphere.condition("Ready"), "newer": "x"}], "newer": {}}
    await client.create(CLUSTERS, body)
    held = given(await client.get(CLUSTERS, "new"))
    if shape == "ours":
        assert held == body
    else:
        assert "newer" not in json.dumps(held)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"type": "tunnel"}, "must be proxy (the member's agent dials this host) or direct"),
        ({"type": "proxy", "kubernetesAPIServerPort": 70000}, "should be less than or equal to 65535"),
        (
            {"type": "proxy", "kubernetesAPIServerPort": 6012, "kubesphereAPIServerPort": 6012},
            "kubernetesAPIServerPort and kubesphereAPIServerPort cannot be the same port",
        ),
        ({"type": "proxy", "kubeconfig": "not base64!"}, "spec.connection.kubeconfig in body must be of type byte"),
    ],
)
@pytest.mark.usefixtures("ours")
async def test_a_wrong_cluster_is_refused_with_words(client: Client, change: dict[str, Any], told: str) -> None:
    body = kubesphere.bare()
    body["spec"]["connection"] = change
    with pytest.raises(Invalid) as caught:
        await client.create(CLUSTERS, body)
    assert told in caught.value.message


@pytest.mark.usefixtures("ours")
async def test_a_name_that_no_service_could_have_is_refused_for_a_proxy_cluster_only(client: Client) -> None:
    for name in ("a" * 61, "with.dots"):
        body = kubesphere.bare(name)
        with pytest.raises(Invalid, match="its Service is called mc-NAME"):
            await client.create(CLUSTERS, body)
        body["spec"]["connection"]["type"] = "direct"
        await client.create(CLUSTERS, body)
    await client.create(CLUSTERS, kubesphere.bare("a" * 60))
    await client.create(CLUSTERS, kubesphere.bare("7"))


@pytest.mark.usefixtures("ours")
async def test_people_see_the_state_in_columns(host_plane: ControlPlane, client: Client) -> None:
    await client.create(CLUSTERS, kubesphere.proxy(4))
    await client.create(MEMBERS, {"metadata": {"name": "edge"}, "spec": {"ports": {"kubernetes": 6012}}})
    member = await client.get(MEMBERS, "edge")
    said = kubesphere.condition("MemberReady", "False", "ApiserverDown")
    del said["lastUpdateTime"]
    member["status"] = {"address": "10.96.1.2", "version": "v1.35.4", "conditions": [said]}
    await client.replace(MEMBERS, member, subresource="status")
    head, row = (line.split() for line in host_plane.kubectl("get", "twc").text.splitlines())
    assert head == ["NAME", "TYPE", "AGENT", "MEMBER", "PORT", "VERSION", "AGE"]
    assert row[:5] == ["edge", "proxy", "True", "6443", "v1.26.5"]  # nobody has said yet whether the member is ready
    head, row = (line.split() for line in host_plane.kubectl("get", "twm").text.splitlines())
    assert head == ["NAME", "READY", "STATE", "PORT", "ADDRESS", "VERSION", "AGE"]
    assert row[:6] == ["edge", "False", "ApiserverDown", "6012", "10.96.1.2", "v1.35.4"]


@pytest.mark.usefixtures("ours")
async def test_a_members_status_is_apart_and_only_its_spec_counts_as_a_generation(client: Client) -> None:
    made = await client.create(
        MEMBERS, {"metadata": {"name": "edge"}, "spec": {"name": "edge"}, "status": {"uid": "x"}}
    )
    assert "status" not in made
    made["status"] = {"observedGeneration": 1}
    made["spec"]["uid"] = "changed beside the status, so it is not"
    written = await client.replace(MEMBERS, made, subresource="status")
    assert (written["metadata"]["generation"], written["spec"]) == (1, {"name": "edge"})
    assert written["status"] == {"observedGeneration": 1}
    changed = await client.patch(MEMBERS, "edge", {"spec": {"uid": "u"}})
    assert changed["metadata"]["generation"] == 2


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"name": "other"}, "spec.name is the name of the resource"),
        ({"ports": {"kubernetes": 6012, "kubesphere": 6012}}, "two services of a cluster cannot share a port"),
        ({"ports": {"kubernetes": 0}}, "should be greater than or equal to 1"),
    ],
)
@pytest.mark.usefixtures("ours")
async def test_a_wrong_member_is_refused_with_words(client: Client, spec: dict[str, Any], told: str) -> None:
    with pytest.raises(Invalid) as caught:
        await client.create(MEMBERS, {"metadata": {"name": "edge"}, "spec": spec})
    assert told in caught.value.message


@pytest.mark.usefixtures("ours")
async def test_a_hand_cannot_take_from_a_record_what_makes_it_readable(client: Client) -> None:
    spec = {"name": "edge", "uid": "u", "created": 1.5, "ports": {"kubernetes": 6012}}
    await client.create(MEMBERS, {"metadata": {"name": "edge"}, "spec": spec})
    for key in ("name", "uid", "created"):
        with pytest.raises(Invalid, match="without them it could not be read"):
            await client.patch(MEMBERS, "edge", {"spec": {key: None}})
    await client.patch(MEMBERS, "edge", {"spec": {"ports": None}})


async def test_ours_is_not_forced_on_a_host_that_has_kubespheres(host_plane: ControlPlane) -> None:
    install(host_plane, "4")
    try:
        refused = host_plane.kubectl("create", "-f", str(CRDS / f"{OURS}.yaml"), check=False)
        assert refused.code != 0
        assert b"already exists" in refused.stderr
        held = json.loads(host_plane.kubectl("get", "crd", CRD, "-o", "json").stdout)
        assert "shortNames" not in held["spec"]["names"], "KubeSphere's stands as it was"
    finally:
        install(host_plane, "ours")

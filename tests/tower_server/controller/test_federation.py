"""kubefed's objects on a real apiserver: made, repaired and taken away, and never somebody else's."""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from dataclasses import replace

import pytest
import pytest_asyncio

from daemon.faults import TowerError
from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.errors import NotFound
from daemon.kube.resources import NAMESPACES, SECRETS
from tests.lab import kubefed
from tower_server.controller import federation
from tower_server.controller.federation import (
    CLUSTER_ROLES,
    KUBEFED_CLUSTERS,
    SERVICE_ACCOUNTS,
    SPACE,
    Joining,
    join_host,
    join_member,
    leave_host,
    leave_member,
    member_objects,
    others,
)
from tower_server.controller.writer import Deposed

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(180)]
EDGE = Joining("edge", "here", "https://10.0.0.7:6443", b"-----BEGIN OUR ROOT", {"region": "north"})
THEIRS = replace(EDGE, host="elsewhere")
TOKEN = base64.b64encode(b"a token").decode()


def free():
    """This server leads."""


def deposed():
    raise Deposed("its lease has run out")


@pytest.fixture(scope="module", autouse=True)
def installed(plane):
    kubefed.install(plane)
    yield
    kubefed.let_go(plane, SPACE)


@pytest_asyncio.fixture
async def client(plane):
    made = Client(Access.find(plane.admin_kubeconfig), user_agent="test")
    yield made
    for each in (EDGE, THEIRS):
        for resource, body in member_objects(each):
            await gone(made, resource, body["metadata"]["name"])
    await gone(made, KUBEFED_CLUSTERS, "edge")
    await gone(made, SECRETS, "edge-secret")
    with suppress(NotFound):
        if "deletionTimestamp" in (await made.get(NAMESPACES, SPACE))["metadata"]:
            kubefed.let_go(plane, SPACE)
            kubefed.install(plane)
    made.close()


async def gone(client, resource, name):
    try:
        await client.delete(resource, name, namespace=SPACE if resource.namespaced else None)
    except NotFound:
        return


async def get(client, resource, name):
    try:
        return await client.get(resource, name, namespace=SPACE if resource.namespaced else None)
    except NotFound:
        return None


async def of(client, joining):
    """The kinds of a joining's account that are there."""
    found = [await get(client, resource, body["metadata"]["name"]) for resource, body in member_objects(joining)]
    return [each["kind"] for each in found if each is not None]


async def join(plane, client, joining):
    """With what the token controller does, once the Secret is there; it takes a few runs of kubectl here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federation, "TOKEN_DEADLINE", 60.0)
        joins = asyncio.create_task(join_member(client, joining, fence=free))
        while not joins.done() and await get(client, SECRETS, joining.account) is None:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(kubefed.fill, plane)
        return await joins


async def test_the_account_in_the_member_has_a_token_and_the_rights_and_is_made_once(plane, client):
    token = base64.b64decode(await join(plane, client, EDGE)).decode()
    kubeconfig = plane.kubeconfig("kubefed", token=token)
    assert plane.kubectl("auth", "can-i", "*", "*", kubeconfig=kubeconfig).text == "yes"
    before = [
        (await get(client, r, b["metadata"]["name"]))["metadata"]["resourceVersion"] for r, b in member_objects(EDGE)
    ]
    assert base64.b64decode(await join_member(client, EDGE, fence=free)).decode() == token
    after = [
        (await get(client, r, b["metadata"]["name"]))["metadata"]["resourceVersion"] for r, b in member_objects(EDGE)
    ]
    assert before == after, "what is so already is not written"
    await leave_member(client, EDGE, fence=free)
    assert await of(client, EDGE) == []
    await leave_member(client, EDGE, fence=free)


async def test_two_hosts_in_one_member_have_accounts_of_their_own(plane, client):
    await join(plane, client, EDGE)
    await join(plane, client, THEIRS)
    await leave_member(client, EDGE, fence=free)
    assert await of(client, EDGE) == []
    assert await of(client, THEIRS) == ["ServiceAccount", "Secret", "ClusterRole", "ClusterRoleBinding"]
    space = await client.get(NAMESPACES, SPACE)
    assert "deletionTimestamp" not in space["metadata"], "another host lives in it"


async def test_the_namespace_goes_with_its_last_tenant_where_a_tower_made_it(plane, client):
    plane.kubectl("delete", "namespace", SPACE, "--wait=false")
    kubefed.let_go(plane, SPACE)
    await join(plane, client, EDGE)
    await join(plane, client, THEIRS)
    await leave_member(client, EDGE, fence=free)
    assert "deletionTimestamp" not in (await client.get(NAMESPACES, SPACE))["metadata"]
    await leave_member(client, THEIRS, fence=free)
    assert "deletionTimestamp" in (await client.get(NAMESPACES, SPACE))["metadata"]


async def test_a_namespace_that_others_made_stays(plane, client):
    await join(plane, client, EDGE)
    await leave_member(client, EDGE, fence=free)
    assert "deletionTimestamp" not in (await client.get(NAMESPACES, SPACE))["metadata"]


async def test_objects_of_ours_by_name_alone_are_not_taken_away(client):
    for resource, body in member_objects(EDGE):
        body["metadata"]["labels"] = {}
        if resource in (CLUSTER_ROLES, SERVICE_ACCOUNTS):
            await client.create(resource, body)
    await leave_member(client, EDGE, fence=free)
    assert await of(client, EDGE) == ["ServiceAccount", "ClusterRole"]


async def test_a_member_that_makes_no_token_is_named(client, monkeypatch):
    monkeypatch.setattr(federation, "TOKEN_DEADLINE", 0.2)
    with pytest.raises(TowerError, match=r"has not filled the token Secret kube-federation-system/edge\.here") as error:
        await join_member(client, EDGE, fence=free)
    assert error.value.code == "TWR127"
    assert "kube-controller-manager" in error.value.mend


async def test_the_host_gets_the_token_and_where_it_leads(client):
    assert not await others(client, EDGE, fence=free)
    await join_host(client, EDGE, TOKEN, fence=free)
    made = await get(client, KUBEFED_CLUSTERS, "edge")
    assert made["spec"] == {
        "apiEndpoint": "https://10.0.0.7:6443",
        "caBundle": base64.b64encode(EDGE.ca_pem).decode(),
        "secretRef": {"name": "edge-secret"},
    }
    assert made["metadata"]["labels"]["region"] == "north"
    assert (await get(client, SECRETS, "edge-secret"))["data"] == {"token": TOKEN}
    assert not await others(client, EDGE, fence=free)
    moved = replace(EDGE, ca_pem=b"-----BEGIN NEXT ROOT", server="https://10.0.0.8:6443", labels={})
    await join_host(client, moved, TOKEN, fence=free)
    made = await get(client, KUBEFED_CLUSTERS, "edge")
    assert made["spec"]["apiEndpoint"] == "https://10.0.0.8:6443"
    assert base64.b64decode(made["spec"]["caBundle"]) == b"-----BEGIN NEXT ROOT"
    assert "region" not in made["metadata"]["labels"]
    await leave_host(client, EDGE, fence=free)
    assert await get(client, KUBEFED_CLUSTERS, "edge") is None
    assert await get(client, SECRETS, "edge-secret") is None
    await leave_host(client, EDGE, fence=free)


def foreign(server, ca):
    spec = {"apiEndpoint": server, "caBundle": ca, "secretRef": {"name": "edge-secret"}}
    meta = {"name": "edge", "namespace": SPACE}
    return {"apiVersion": "core.kubefed.io/v1beta1", "kind": "KubeFedCluster", "metadata": meta, "spec": spec}


@pytest.mark.parametrize("ca", [base64.b64encode(b"Go Tower's root").decode(), None])
async def test_one_that_kubesphere_made_keeps_everything_but_the_root(client, ca):
    await client.create(KUBEFED_CLUSTERS, foreign("https://10.0.0.7:6443", ca))
    with pytest.raises(Deposed):
        await others(client, EDGE, fence=deposed)
    assert await others(client, EDGE, fence=free)
    made = await get(client, KUBEFED_CLUSTERS, "edge")
    assert base64.b64decode(made["spec"]["caBundle"]) == EDGE.ca_pem
    assert await others(client, EDGE, fence=deposed), "nothing is left to be written"
    await leave_host(client, EDGE, fence=free)
    assert await get(client, KUBEFED_CLUSTERS, "edge") is not None, "it is somebody else's"


async def test_one_that_leads_elsewhere_is_left_alone_and_named(client):
    await client.create(KUBEFED_CLUSTERS, foreign("https://10.9.9.9:6443", None))
    with pytest.raises(TowerError, match=r"'edge' is another one's: it leads to 'https://10\.9\.9\.9:6443'") as error:
        await others(client, EDGE, fence=free)
    assert error.value.code == "TWR127"
    assert "caBundle" not in (await get(client, KUBEFED_CLUSTERS, "edge"))["spec"]


async def test_without_kubefed_the_join_says_so_and_the_leave_has_nothing_to_do(plane, client):
    plane.kubectl("delete", "crd", "kubefedclusters.core.kubefed.io")
    try:
        with pytest.raises(TowerError, match="kubefed is not installed on this host"):
            await others(client, EDGE, fence=free)
        await leave_host(client, EDGE, fence=free)
    finally:
        kubefed.install(plane)


@pytest.mark.parametrize("step", [join_member, leave_member, leave_host])
async def test_a_leader_that_was_deposed_writes_nothing(client, step):
    with pytest.raises(Deposed):
        await step(client, EDGE, fence=deposed)

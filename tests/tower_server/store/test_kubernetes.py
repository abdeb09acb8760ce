"""The store of a Kubernetes host on a real apiserver: the conformance suite, and what only an apiserver brings."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from daemon.faults import TowerError
from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.resources import LEASES, MEMBERS, SECRETS
from daemon.kube.watch import Event
from protocol.defaults import BACKOFF_MIN
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.tower_server.store.conformance import PATIENCE, StoreConformance, take
from tower_server.hostrights import check_rights
from tower_server.store.base import Conflict, Kind, NotFound, Version
from tower_server.store.kubernetes import KubernetesStore

pytestmark = [pytest.mark.asyncio, pytest.mark.cluster]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def plane(host_plane: ControlPlane) -> ControlPlane:
    crds(host_plane)
    return host_plane


@pytest.fixture
def namespace(plane: ControlPlane) -> str:
    name = f"store-{next(NUMBERS)}"
    plane.kubectl("create", "namespace", name)
    return name


VERBS = ["get", "list", "watch", "create", "patch", "delete"]
RULES = [
    {"apiGroups": [""], "resources": ["secrets"], "verbs": VERBS},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": VERBS},
    {"apiGroups": ["tower.kubesphere.io"], "resources": ["members"], "verbs": VERBS},
]
"""All that the store needs: the conformance suite runs with no more."""


@pytest.fixture(scope="module", autouse=True)
def account(plane: ControlPlane) -> None:
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "store"}}
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "store"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "store"}
    role = {**head, "kind": "ClusterRole", "rules": RULES}
    plane.install([role, {**head, "kind": "ClusterRoleBinding", "roleRef": ref, "subjects": [subject]}])


def client_of(plane: ControlPlane) -> Client:
    return Client(Access.find(plane.kubeconfig("store")), user_agent="store-test")


def admin_of(plane: ControlPlane) -> Client:
    return Client(Access.find(plane.admin_kubeconfig), user_agent="store-test")


@pytest_asyncio.fixture
async def store(plane: ControlPlane, namespace: str) -> AsyncIterator[KubernetesStore]:
    opened = await KubernetesStore.open(client_of(plane), namespace=namespace)
    yield opened
    again = admin_of(plane)  # Members know no namespace: the next test begins with none
    for member in (await again.list(MEMBERS)).items:
        await again.delete(MEMBERS, member["metadata"]["name"])
    again.close()
    await opened.close()


class TestKubernetesStore(StoreConformance):
    pass


async def test_people_see_the_record_and_its_holder(
    plane: ControlPlane, store: KubernetesStore, namespace: str
) -> None:
    await store.create(Kind.CLAIM, "port-6012", {"cluster": "edge", "uid": "u", "service": "kubernetes"})
    await store.create(
        Kind.CLUSTER,
        "edge",
        {"name": "edge", "ports": {"kubernetes": 6012}, "serving_names": ["a"], "expected_tunnels": None},
    )
    leases = plane.kubectl("get", "leases", "-n", namespace, "--no-headers").text
    assert leases.split()[:2] == ["port-6012", "edge.kubernetes"]
    spec = json.loads(plane.kubectl("get", "member", "edge", "-o", "json").stdout)["spec"]
    assert spec == {"name": "edge", "ports": {"kubernetes": 6012}, "servingNames": ["a"], "expectedTunnels": None}
    assert "6012" in plane.kubectl("get", "members").text


async def test_secrets_lie_in_secrets_and_nowhere_else(
    plane: ControlPlane, store: KubernetesStore, namespace: str
) -> None:
    for kind in (Kind.SECRET, Kind.TOKEN, Kind.AGENT, Kind.REVOCATION):
        await store.create(kind, "x", {"pem": "confidential"})
    names = plane.kubectl("get", "secrets", "-n", namespace, "-o", "name").text.split()
    assert names == [f"secret/tower-{kind}-x" for kind in ("agent", "revocation", "secret", "token")]
    others = plane.kubectl("get", "members,leases,configmaps", "-A", "-o", "yaml").text
    assert "confidential" not in others


async def test_what_others_wrote_on_an_object_stays(
    plane: ControlPlane, store: KubernetesStore, namespace: str
) -> None:
    other = admin_of(plane)
    for kind, resource, name, place in (
        (Kind.CLUSTER, MEMBERS, "edge", None),
        (Kind.CLAIM, LEASES, "port-1", namespace),
        (Kind.TOKEN, SECRETS, "tower-token-t", namespace),
    ):
        record = await store.create(kind, name.removeprefix("tower-token-"), {"n": 1})
        marks = {"labels": {"theirs": "label"}, "annotations": {"theirs": "note"}, "finalizers": ["theirs/finalizer"]}
        marked = await other.patch(resource, name, {"metadata": marks}, namespace=place)
        with pytest.raises(Conflict):
            await store.update(kind, record.name, {"n": 2}, expect=record.version)
        now = Version(marked["metadata"]["resourceVersion"])
        await store.update(kind, record.name, {"n": 2}, expect=now)
        held = await other.get(resource, name, namespace=place)
        assert held["metadata"]["labels"]["theirs"] == "label"
        assert held["metadata"]["annotations"]["theirs"] == "note"
        assert held["metadata"]["finalizers"] == ["theirs/finalizer"]
        assert (await store.get(kind, record.name)).data == {"n": 2}
        await other.patch(resource, name, {"metadata": {"finalizers": None}}, namespace=place)
    other.close()


async def test_a_status_beside_the_record_is_no_change_of_it(plane: ControlPlane, store: KubernetesStore) -> None:
    controller = admin_of(plane)
    record = await store.create(Kind.CLUSTER, "edge", {"name": "edge"})
    member = await store.client.get(MEMBERS, "edge")
    member["status"] = {"observedGeneration": 1, "conditions": [], "address": "10.96.0.7"}
    await controller.replace(MEMBERS, member, subresource="status")
    controller.close()
    held = await store.get(Kind.CLUSTER, "edge")
    assert held.data == record.data
    await store.update(Kind.CLUSTER, "edge", {"name": "edge", "uid": "u"}, expect=held.version)
    assert (await store.client.get(MEMBERS, "edge"))["status"]["address"] == "10.96.0.7"


async def test_a_lease_of_somebody_else_is_neither_read_nor_taken(store: KubernetesStore, namespace: str) -> None:
    foreign = {"metadata": {"name": "port-6000", "namespace": namespace}, "spec": {"holderIdentity": "somebody"}}
    await store.client.create(LEASES, foreign)
    with pytest.raises(Conflict):
        await store.create(Kind.CLAIM, "port-6000", {"cluster": "a"})
    for ask in (store.get(Kind.CLAIM, "port-6000"), store.delete(Kind.CLAIM, "port-6000")):
        with pytest.raises(TowerError, match="port-6000") as caught:
            await ask
        assert (caught.value.code, "rename or delete that object" in caught.value.mend) == ("TWR105", True)
    assert (await store.list(Kind.CLAIM)).items == ()


async def test_a_record_that_was_damaged_by_hand_keeps_no_other_from_being_served(
    store: KubernetesStore, namespace: str
) -> None:
    await store.create(Kind.AGENT, "good", {"n": 1})
    await store.create(Kind.AGENT, "bad", {"n": 2})
    await store.client.patch(SECRETS, "tower-agent-bad", {"data": {"record": "e30="[:-1] + "A"}}, namespace=namespace)
    assert [record.name for record in (await store.list(Kind.AGENT)).items] == ["good"]
    with pytest.raises(TowerError, match="damaged by hand"):
        await store.get(Kind.AGENT, "bad")


async def test_a_member_that_somebody_made_by_hand_is_none_of_the_clusters(store: KubernetesStore) -> None:
    await store.client.create(MEMBERS, {"metadata": {"name": "byhand"}, "spec": {"ports": {"kubernetes": 1}}})
    assert (await store.list(Kind.CLUSTER)).items == ()
    with pytest.raises(Conflict):
        await store.create(Kind.CLUSTER, "byhand", {})
    with pytest.raises(TowerError, match="Member byhand is not a cluster record of this tower"):
        await store.get(Kind.CLUSTER, "byhand")


async def test_two_servers_share_a_store(plane: ControlPlane, store: KubernetesStore, namespace: str) -> None:
    other = await KubernetesStore.open(client_of(plane), namespace=namespace)
    since = (await other.list(Kind.CLAIM)).version
    made = await store.create(Kind.CLAIM, "port-6001", {"cluster": "a"})
    with pytest.raises(Conflict):
        await other.create(Kind.CLAIM, "port-6001", {"cluster": "b"})
    (change,) = await take(other, Kind.CLAIM, since, 1)
    assert change.record == made
    await other.close()


async def test_a_watch_goes_on_where_its_connection_was_cut(store: KubernetesStore) -> None:
    since = (await store.list(Kind.TOKEN)).version
    waiting = asyncio.ensure_future(take(store, Kind.TOKEN, since, 2))
    await store.create(Kind.TOKEN, "first", {})
    async with asyncio.timeout(PATIENCE):
        while not (watching := list(store.client._connections._open)):
            await asyncio.sleep(0.01)
    for connection in watching:
        connection.abort()
    await store.create(Kind.TOKEN, "second", {})
    assert [change.record.name for change in await waiting] == ["first", "second"]


async def test_watches_that_end_as_soon_as_they_begin_are_not_asked_for_without_a_pause(
    store: KubernetesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[float] = []

    async def ends(*_args: object, **_more: object) -> AsyncIterator[Event]:
        at.append(time.monotonic())
        for nothing in ():
            yield nothing

    since = (await store.list(Kind.CLUSTER)).version
    monkeypatch.setattr(store.client, "watch", ends)
    following = asyncio.create_task(anext(aiter(store.watch(Kind.CLUSTER, since=since))))
    async with asyncio.timeout(PATIENCE):
        while len(at) < 4:
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert min(after - before for before, after in itertools.pairwise(at)) >= BACKOFF_MIN * 0.9


async def test_a_missing_namespace_and_a_missing_crd_are_named_with_their_mend(plane: ControlPlane) -> None:
    store = await KubernetesStore.open(client_of(plane), namespace="nowhere")
    with pytest.raises(TowerError) as caught:
        await store.create(Kind.SECRET, "authority", {})
    assert 'namespaces "nowhere" not found' in caught.value.message
    assert "kubectl create namespace nowhere" in caught.value.mend
    await store.close()
    plane.kubectl("delete", "crd", "members.tower.kubesphere.io")
    try:
        with pytest.raises(TowerError) as caught:
            await KubernetesStore.open(client_of(plane), namespace="default")
        assert "members.tower.kubesphere.io is not served" in caught.value.message
        assert "apply deploy/crds/" in caught.value.mend
    finally:
        crds(plane)


async def test_a_check_finds_what_keeps_records_from_being_written(
    plane: ControlPlane, store: KubernetesStore, namespace: str
) -> None:
    assert (await store.check()).endswith("takes writes")
    names = plane.kubectl("get", "members,leases,secrets", "-n", namespace, "-o", "name").text
    assert names == "", "it only asks"
    quota = {"metadata": {"name": "full", "namespace": namespace}, "spec": {"hard": {"count/secrets": "0"}}}
    plane.install([{"apiVersion": "v1", "kind": "ResourceQuota", **quota}])
    counted = json.dumps({"status": {"hard": {"count/secrets": "0"}, "used": {"count/secrets": "0"}}})
    plane.kubectl(
        "patch", "resourcequota", "full", "-n", namespace, "--subresource=status", "--type=merge", "-p", counted
    )
    mend = ""
    async with asyncio.timeout(PATIENCE):
        while not mend:  # until the apiserver's own watch has brought the quota
            try:
                await store.check()
            except TowerError as error:
                mend = error.mend if "exceeded quota: full" in error.message else ""
    assert mend.startswith("raise the ResourceQuota")


async def test_the_rights_that_an_account_lacks_are_told_by_the_apiserver(plane: ControlPlane, namespace: str) -> None:
    client = client_of(plane)
    result = await check_rights(client, namespace)
    assert (result.status, result.code) == ("failed", "TWR115")
    assert "update leases" in result.message
    assert "get, list, watch, update clusters" in result.message
    assert " secrets" not in result.message, "it has all of those"
    client.close()
    admin = admin_of(plane)
    assert (await check_rights(admin, namespace)).status == "ok"
    admin.close()


async def test_what_rbac_lacks_is_named(plane: ControlPlane) -> None:
    stranger = Client(Access.find(plane.kubeconfig("stranger")), user_agent="store-test")
    with pytest.raises(TowerError) as caught:
        await KubernetesStore.open(stranger, namespace="default")
    assert caught.value.code == "TWR115"
    assert 'User "stranger" cannot list resource "members"' in caught.value.message
    rule = '{apiGroups: ["tower.kubesphere.io"], resources: ["members"], verbs: ["list"]}'
    assert caught.value.mend == f"add to the ClusterRole of this account: {rule}"


async def test_an_apiserver_that_is_away_is_an_error_with_a_cause_within_its_deadline(
    plane: ControlPlane, store: KubernetesStore, namespace: str
) -> None:
    access = Access.find(plane.admin_kubeconfig)
    access.port = 1  # nobody listens there
    with pytest.raises(TowerError, match=r"port-1 .* 127\.0\.0\.1:1") as caught:
        await KubernetesStore(Client(access, user_agent="x", deadline=1.0), namespace).get(Kind.CLAIM, "port-1")
    assert caught.value.code == "TWR114"
    with pytest.raises(NotFound):
        await store.get(Kind.CLAIM, "port-1")


async def test_a_start_asks_once_for_each_kind_of_object_however_many_records_are_kept_as_one(
    plane: ControlPlane, namespace: str
) -> None:
    client = client_of(plane)
    store = await KubernetesStore.open(client, namespace=namespace)
    assert client.requests == 3, "each of which may take seconds"
    await store.close()

"""What kubefed needs of a cluster, on both sides: made for `joinFederation: true`, taken away for anything else.

In the member a ServiceAccount with a token and the rights that kubefed works with; on the host that token and the
KubeFedCluster, which leads to the cluster's Service and trusts the tower's root. Every object says by its labels whose
it is, names carry cluster and host, and a namespace goes with its last tenant: so hosts that share a member stand side
by side. A KubeFedCluster that somebody else made (KubeSphere 3.x joins by itself) is left alone but for the root that
it trusts, without which it would lead nowhere.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from daemon.faults import TowerError
from daemon.kube.client import Client
from daemon.kube.errors import NotFound, NotServed
from daemon.kube.resources import NAMESPACES, SECRETS, Object, Resource
from tower_server.controller.names import CLUSTER_LABEL, DOMAIN, MANAGER, labels

SPACE: Final = "kube-federation-system"
HOST_LABEL: Final = f"{DOMAIN}/host"
TOKEN_DEADLINE: Final = 10.0  # for the member's token controller, within one errand
TOKEN_EVERY: Final = 0.5
_RBAC: Final = "rbac.authorization.k8s.io"

SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
CLUSTER_ROLES: Final = Resource(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False)
CLUSTER_ROLE_BINDINGS: Final = Resource(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False)
KUBEFED_CLUSTERS: Final = Resource("core.kubefed.io", "v1beta1", "kubefedclusters", "KubeFedCluster")


@dataclass(frozen=True, slots=True)
class Joining:
    """One cluster in the federation of one host."""

    cluster: str
    host: str
    server: str
    """https://... by which kubefed's pods reach the cluster's Service."""
    ca_pem: bytes
    labels: Mapping[str, str]
    """Of the Cluster resource: federated placement selects by them."""

    @property
    def account(self) -> str:
        """A dot keeps the two apart, since neither has one."""
        return f"{self.cluster}.{self.host}"

    @property
    def role(self) -> str:
        return f"kubefed-controller-manager:{self.account}"

    @property
    def secret(self) -> str:
        """On the host, where clusters alone have to differ; the name is what Go Tower's KubeSphere gave."""
        return f"{self.cluster}-secret"

    @property
    def marks(self) -> dict[str, str]:
        return {**labels(self.cluster), HOST_LABEL: self.host}


async def join_member(client: Client, joining: Joining, *, fence: Callable[[], object]) -> str:
    """The account in the member, and its token. Idempotent; TowerError TWR127 when no token appears."""
    fence()
    try:
        await client.get(NAMESPACES, SPACE)
    except NotFound:
        await client.apply(NAMESPACES, _object(NAMESPACES, SPACE, joining), field_manager=MANAGER)
    for resource, body in member_objects(joining):
        await client.apply(resource, body, field_manager=MANAGER, force=True)
    ends = asyncio.get_running_loop().time() + TOKEN_DEADLINE
    while True:
        found = await client.get(SECRETS, joining.account, namespace=SPACE)
        token = str((found.get("data") or {}).get("token") or "")
        if token:
            return token
        if asyncio.get_running_loop().time() > ends:
            text = f"the member has not filled the token Secret {SPACE}/{joining.account} within {TOKEN_DEADLINE:g} s"
            raise TowerError("TWR127", text, mend="see to the token controller of its kube-controller-manager")
        await asyncio.sleep(TOKEN_EVERY)


def member_objects(joining: Joining) -> list[tuple[Resource, Object]]:
    """In an order in which they can be made."""
    subject = {"kind": "ServiceAccount", "name": joining.account, "namespace": SPACE}
    everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    urls = {"nonResourceURLs": ["*"], "verbs": ["get"]}
    token = _object(SECRETS, joining.account, joining, type="kubernetes.io/service-account-token")
    token["metadata"]["annotations"] = {"kubernetes.io/service-account.name": joining.account}
    role = {"apiGroup": _RBAC, "kind": "ClusterRole", "name": joining.role}
    return [
        (SERVICE_ACCOUNTS, _object(SERVICE_ACCOUNTS, joining.account, joining)),
        (SECRETS, token),
        (CLUSTER_ROLES, _object(CLUSTER_ROLES, joining.role, joining, rules=[everything, urls])),
        (
            CLUSTER_ROLE_BINDINGS,
            _object(CLUSTER_ROLE_BINDINGS, joining.role, joining, roleRef=role, subjects=[subject]),
        ),
    ]


async def leave_member(client: Client, joining: Joining, *, fence: Callable[[], object]) -> None:
    """Takes the account away, the rights first; the namespace too where nobody else has anything in it."""
    fence()
    for resource, name in (
        (CLUSTER_ROLE_BINDINGS, joining.role),
        (CLUSTER_ROLES, joining.role),
        (SECRETS, joining.account),
        (SERVICE_ACCOUNTS, joining.account),
    ):
        await _take(client, resource, name, joining)
    try:
        space = await client.get(NAMESPACES, SPACE)
    except NotFound:
        return
    tenants = (await client.list(SERVICE_ACCOUNTS, namespace=SPACE)).items
    if _managed(space) and all(each["metadata"]["name"] == "default" for each in tenants):
        await _delete(client, NAMESPACES, space)


async def others(client: Client, joining: Joining, *, fence: Callable[[], object]) -> bool:
    """Whether somebody else has joined the cluster: then the root that its KubeFedCluster trusts is put right, and no
    more. TowerError TWR127 where the name is taken for another cluster, or there is no kubefed."""
    try:
        found = await client.get(KUBEFED_CLUSTERS, joining.cluster, namespace=SPACE)
    except NotServed as error:
        raise TowerError("TWR127", f"kubefed is not installed on this host: {error.message}") from error
    except NotFound:
        return False
    if _is(found, joining):
        return False
    spec: Mapping[str, Any] = found.get("spec") or {}
    if str(spec.get("apiEndpoint") or "").rstrip("/") != joining.server:
        text = f"the KubeFedCluster {joining.cluster!r} is another one's: it leads to {spec.get('apiEndpoint')!r}"
        raise TowerError("TWR127", text)
    if _decoded(spec.get("caBundle")) != joining.ca_pem:
        fence()
        patch = {"spec": {"caBundle": base64.b64encode(joining.ca_pem).decode()}}
        await client.patch(KUBEFED_CLUSTERS, joining.cluster, patch, namespace=SPACE, field_manager=MANAGER)
    return True


async def join_host(client: Client, joining: Joining, token: str, *, fence: Callable[[], object]) -> None:
    """The token (base64) and the KubeFedCluster on the host. Idempotent; writes nothing that is so already."""
    fence()
    secret = _object(SECRETS, joining.secret, joining, type="Opaque", data={"token": token})
    await client.apply(SECRETS, secret, field_manager=MANAGER, force=True)
    await client.apply(KUBEFED_CLUSTERS, _kubefed_cluster(joining), field_manager=MANAGER, force=True)


async def leave_host(client: Client, joining: Joining, *, fence: Callable[[], object]) -> None:
    """Takes our KubeFedCluster and its token away. A federation that is not installed has nothing of ours."""
    try:
        found = await client.get(KUBEFED_CLUSTERS, joining.cluster, namespace=SPACE)
    except NotServed:
        return
    except NotFound:
        found = None
    if found is not None and not _is(found, joining):
        return
    fence()
    if found is not None:
        await _delete(client, KUBEFED_CLUSTERS, found)
    try:
        await client.delete(SECRETS, joining.secret, namespace=SPACE)
    except NotFound:
        return


def _kubefed_cluster(joining: Joining) -> Object:
    spec = {
        "apiEndpoint": joining.server,
        "caBundle": base64.b64encode(joining.ca_pem).decode(),
        "secretRef": {"name": joining.secret},
    }
    made = _object(KUBEFED_CLUSTERS, joining.cluster, joining, spec=spec)
    made["metadata"]["labels"] = {**joining.labels, **made["metadata"]["labels"]}
    return made


def _object(resource: Resource, name: str, joining: Joining, **content: Any) -> Object:
    meta: dict[str, Any] = {"name": name, "labels": joining.marks}
    if resource.namespaced:
        meta["namespace"] = SPACE
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta, **content}


async def _take(client: Client, resource: Resource, name: str, joining: Joining) -> None:
    try:
        found = await client.get(resource, name, namespace=SPACE if resource.namespaced else None)
    except NotFound:
        return
    if _is(found, joining):
        await _delete(client, resource, found)


async def _delete(client: Client, resource: Resource, found: Object) -> None:
    meta = found["metadata"]
    try:
        await client.delete(resource, meta["name"], namespace=meta.get("namespace"), uid=meta["uid"])
    except NotFound:
        return


def _is(found: Object, joining: Joining) -> bool:
    held = found["metadata"].get("labels") or {}
    return held.get(HOST_LABEL) == joining.host and held.get(CLUSTER_LABEL) == joining.cluster


def _managed(found: Object) -> bool:
    return HOST_LABEL in (found["metadata"].get("labels") or {})


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(str(text or ""), validate=True)
    except ValueError:
        return b""

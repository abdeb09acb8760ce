"""The host's objects as the watches deliver them, by name, and which cluster each of them belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from daemon.kube.client import Client
from daemon.kube.reflector import Change, Reflector
from daemon.kube.resources import (
    CLUSTERS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    MEMBERS,
    SERVICES,
    Object,
    Resource,
    name_of,
)
from daemon.kube.watch import ADDED, DELETED
from tower_server.controller.names import CLUSTER_LABEL, EXTERNAL_SUFFIX, SERVICE_NAME_LABEL, SERVICE_PREFIX

WATCHED: Final = (CLUSTERS, MEMBERS, SERVICES, ENDPOINT_SLICES, ENDPOINTS)
HOST_ROLE: Final = "cluster-role.kubesphere.io/host"  # a label of KubeSphere's
_RELEVANT: Final = ("metadata", "spec", "endpoints", "ports", "addressType", "subsets", "status")


class Watches:
    """Run every one of `reflectors` as a task. `changed(cluster)` is called when something about a cluster changed."""

    def __init__(self, client: Client, *, namespace: str, changed: Callable[[str], None]) -> None:
        self._namespace = namespace
        self._changed = changed
        self._slices: dict[str, dict[str, Object]] = {}
        self.hosted_as = ""
        """The name of the host's own Cluster, where KubeSphere has one."""
        self.reflectors: dict[Resource, Reflector] = {}
        for resource in WATCHED:
            reflector = Reflector(client, resource, namespace=namespace if resource.namespaced else None)
            reflector.subscribe(self._heard)
            self.reflectors[resource] = reflector

    def get(self, resource: Resource, name: str) -> Object | None:
        return self.reflectors[resource].get(name, self._namespace if resource.namespaced else None)

    def of_service(self, resource: Resource, service: str) -> list[Object]:
        """The slices of a Service, whoever made them."""
        assert resource is ENDPOINT_SLICES
        return list(self._slices.get(service, {}).values())

    def clusters(self) -> set[str]:
        """Every cluster that some object is about."""
        return {
            cluster
            for reflector in self.reflectors.values()
            for body in reflector.items.values()
            if (cluster := cluster_of(body))
        }

    def _heard(self, change: Change) -> None:
        for body, there in ((change.old, False), (change.object, change.type != DELETED)):
            service = _service_of(body)
            if body is not None and service:
                slices = self._slices.setdefault(service, {})
                slices.pop(name_of(body), None)
                if there:
                    slices[name_of(body)] = body
                elif not slices:
                    del self._slices[service]
        if change.object.get("kind") == CLUSTERS.kind and HOST_ROLE in (change.object["metadata"].get("labels") or {}):
            self.hosted_as = "" if change.type == DELETED else name_of(change.object)
        if change.type == ADDED or change.type == DELETED or _differs(change):
            cluster = cluster_of(change.object) or cluster_of(change.old or {})
            freed = _could_have(change.object) if change.type == DELETED else set()
            for each in ({cluster} | freed) - {""}:
                self._changed(each)


def cluster_of(body: Object) -> str:
    """The cluster that an object is about; empty for none."""
    kind = body.get("kind")
    if kind in (CLUSTERS.kind, MEMBERS.kind):
        return name_of(body)
    labels = (body.get("metadata") or {}).get("labels") or {}
    if labels.get(CLUSTER_LABEL):
        return str(labels[CLUSTER_LABEL])
    service = _service_of(body) or (name_of(body) if kind in (SERVICES.kind, ENDPOINTS.kind) else "")
    if not service.startswith(SERVICE_PREFIX):
        return ""
    return service.removeprefix(SERVICE_PREFIX).removesuffix(EXTERNAL_SUFFIX)


def _could_have(body: Object) -> set[str]:
    """The clusters that wait for the name of a Service to be free: `mc-a-external` may be wanted by two."""
    name = name_of(body)
    if body.get("kind") != SERVICES.kind or not name.startswith(SERVICE_PREFIX) or not name.endswith(EXTERNAL_SUFFIX):
        return set()
    cluster = name.removeprefix(SERVICE_PREFIX)
    return {cluster, cluster.removesuffix(EXTERNAL_SUFFIX)}


def _service_of(body: Object | None) -> str:
    """The Service that a slice belongs to."""
    if body is None or body.get("kind") != ENDPOINT_SLICES.kind:
        return ""
    return str((body["metadata"].get("labels") or {}).get(SERVICE_NAME_LABEL) or "")


def _differs(change: Change) -> bool:
    """Whether more than the version has changed, so that somebody's heartbeat in an object costs no work."""
    old = change.old or {}
    return any(_said(change.object, key) != _said(old, key) for key in _RELEVANT)


def _said(body: Object, key: str) -> object:
    found = body.get(key)
    return {k: v for k, v in found.items() if k != "resourceVersion"} if key == "metadata" and found else found

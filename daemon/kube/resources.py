"""The kinds of objects that Tower reads and writes, as the apiserver's paths and RBAC name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

Object = dict[str, Any]
"""An object as it stands in JSON: unstructured, so that nothing of a newer or foreign version is lost."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object. `str()` is what kubectl and RBAC errors call it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """Below the apiserver's root. Without a namespace: all of them. Names from outside cannot leave their place."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [self.plural, *([name] if name is not None else []), *([subresource] if subresource else [])]
        return "/" + "/".join(quote(part, safe="") for part in parts)


NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
SECRETS: Final = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
SERVICES: Final = Resource("", "v1", "services", "Service")
ENDPOINTS: Final = Resource("", "v1", "endpoints", "Endpoints")
EVENTS: Final = Resource("", "v1", "events", "Event")
ENDPOINT_SLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
CLUSTERS: Final = Resource("cluster.kubesphere.io", "v1alpha1", "clusters", "Cluster", namespaced=False)
MEMBERS: Final = Resource("tower.kubesphere.io", "v1alpha1", "members", "Member", namespaced=False)


def name_of(body: Object) -> str:
    """The object's name; "" where it has none."""
    return str(body.get("metadata", {}).get("name", ""))


def namespace_of(body: Object) -> str | None:
    """The object's namespace; None for a cluster-wide one."""
    namespace = body.get("metadata", {}).get("namespace")
    return namespace if isinstance(namespace, str) and namespace else None


def version_of(body: Object) -> str:
    """The object's resourceVersion, opaque but for equality (and, since KEP-5504, order)."""
    return str(body.get("metadata", {}).get("resourceVersion", ""))

"""KubeSphere's Cluster resource in words of our own: its schema in two generations, and objects as it writes them.

What matters of it: fields that are not in the schema are dropped, there is no status subresource, and conditions are
one list without a key, so whoever writes one writes all.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
BYTES = {"type": "string", "format": "byte"}
WHOLE = {"type": "integer"}
TIME = {"type": "string", "format": "date-time"}
CONDITION = {
    "type": "object",
    "required": ["status", "type"],
    "properties": {
        "type": TEXT,
        "status": TEXT,
        "reason": TEXT,
        "message": TEXT,
        "lastTransitionTime": TIME,
        "lastUpdateTime": TIME,
    },
}
CONNECTION = {
    "type": TEXT,
    "kubernetesAPIEndpoint": TEXT,
    "kubesphereAPIEndpoint": TEXT,
    "externalKubernetesAPIEndpoint": TEXT,
    "kubeconfig": BYTES,
    "token": TEXT,
    "kubernetesAPIServerPort": WHOLE,
    "kubesphereAPIServerPort": WHOLE,
}
SPEC = {
    "joinFederation": FLAG,
    "enable": FLAG,
    "provider": TEXT,
    "externalKubeAPIEnabled": FLAG,
    "connection": {"type": "object", "properties": CONNECTION},
}
STATUS = {
    "conditions": {"type": "array", "items": CONDITION},
    "kubernetesVersion": TEXT,
    "kubeSphereVersion": TEXT,
    "nodeCount": WHOLE,
    "zones": {"type": "array", "items": TEXT},
    "region": TEXT,
    "configz": {"type": "object", "additionalProperties": FLAG},
    "uid": TEXT,
}


def crd(generation: int) -> dict[str, Any]:
    """The CustomResourceDefinition of KubeSphere 3 or 4."""
    spec = SPEC | ({"config": BYTES} if generation >= 4 else {})
    schema = {
        "type": "object",
        "properties": {
            "apiVersion": TEXT,
            "kind": TEXT,
            "metadata": {"type": "object"},
            "spec": {"type": "object", "properties": spec},
            "status": {"type": "object", "properties": STATUS},
        },
    }
    columns = [{"name": "Provider", "type": "string", "jsonPath": ".spec.provider"}]
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "clusters.cluster.kubesphere.io"},
        "spec": {
            "group": "cluster.kubesphere.io",
            "scope": "Cluster",
            "names": {"kind": "Cluster", "listKind": "ClusterList", "plural": "clusters", "singular": "cluster"},
            "versions": [version | {"additionalPrinterColumns": columns}],
        },
    }


def condition(kind: str, status: str = "True", reason: str = "Told") -> dict[str, Any]:
    at = "2024-05-06T07:08:09Z"
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": at,
        "lastUpdateTime": at,
    }


def proxy(generation: int, name: str = "edge") -> dict[str, Any]:
    """A proxy cluster in use, as its controllers and Go Tower leave it."""
    spec: dict[str, Any] = {
        "joinFederation": generation < 4,
        "enable": True,
        "provider": "",
        "externalKubeAPIEnabled": False,
        "connection": {
            "type": "proxy",
            "kubernetesAPIEndpoint": "https://10.233.12.34:6443",
            "kubesphereAPIEndpoint": "http://10.233.12.34:80",
            "kubeconfig": "YXBpVmVyc2lvbjogdjEK",
            "token": "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
            "kubernetesAPIServerPort": 6443,
            "kubesphereAPIServerPort": 16443,
        },
    }
    kinds = ["Initialized", "AgentAvailable", "Ready", "ExternalAccessReady"]
    kinds += ["Federated"] if generation < 4 else ["KSCoreReady", "Schedulable"]
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {"cluster.kubesphere.io/group": "testing", "label.cluster.kubesphere.io/1234": ""},
        "annotations": {"kubesphere.io/creator": "admin", "tower.kubesphere.io/external-lb-service-annoations": "{}"},
        "finalizers": ["finalizer.cluster.kubesphere.io"],
    }
    if generation >= 4:
        spec["config"] = "Z2xvYmFsOiB7fQo="
    status = {
        "conditions": [condition(kind) for kind in kinds],
        "kubernetesVersion": "v1.26.5",
        "kubeSphereVersion": "v3.4.1" if generation < 4 else "v4.1.2",
        "nodeCount": 3,
        "zones": ["a", "b"],
        "region": "north",
        "configz": {"logging": True, "servicemesh": False},
        "uid": "8f3c1b1e-3a52-4a3c-9d65-111111111111",
    }
    head = {"apiVersion": "cluster.kubesphere.io/v1alpha1", "kind": "Cluster"}
    return {**head, "metadata": metadata, "spec": spec, "status": status}


def host(generation: int) -> dict[str, Any]:
    """The host itself: a direct cluster, with little in it."""
    direct = {"type": "direct", "kubernetesAPIEndpoint": "https://10.233.0.1:443", "kubeconfig": "YQ=="}
    spec = {"joinFederation": True, "enable": True, "provider": "kubesphere", "connection": direct}
    labels = {"cluster-role.kubesphere.io/host": "", "kubesphere.io/managed": "true"}
    head = {"apiVersion": "cluster.kubesphere.io/v1alpha1", "kind": "Cluster"}
    status = {"nodeCount": 1, "conditions": [condition("Ready")]} if generation >= 4 else {"conditions": []}
    return {**head, "metadata": {"name": "host", "labels": labels}, "spec": spec, "status": status}


def bare(name: str = "new") -> dict[str, Any]:
    """What a person or the console creates."""
    spec = {"joinFederation": True, "connection": {"type": "proxy"}}
    head = {"apiVersion": "cluster.kubesphere.io/v1alpha1", "kind": "Cluster"}
    return {**head, "metadata": {"name": name}, "spec": spec}

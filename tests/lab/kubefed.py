"""The parts of a federation that a control plane without controllers lacks: kubefed's CRD, and tokens in Secrets.

The CRD is what kubefed's own says of the fields that are used, in our words; `fill` stands in for the token controller
of kube-controller-manager: it fills the Secrets of ServiceAccounts with real tokens of the apiserver.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from tests.lab.controlplane import ControlPlane
from tests.lab.processes import wait_until

SPACE: Final = "kube-federation-system"
CRD: Final[dict[str, Any]] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "kubefedclusters.core.kubefed.io"},
    "spec": {
        "group": "core.kubefed.io",
        "scope": "Namespaced",
        "names": {"kind": "KubeFedCluster", "plural": "kubefedclusters", "singular": "kubefedcluster"},
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "required": ["spec"],
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["apiEndpoint", "secretRef"],
                                "properties": {
                                    "apiEndpoint": {"type": "string"},
                                    "caBundle": {"type": "string", "format": "byte"},
                                    "disabledTLSValidations": {"type": "array", "items": {"type": "string"}},
                                    "proxyURL": {"type": "string"},
                                    "secretRef": {
                                        "type": "object",
                                        "required": ["name"],
                                        "properties": {"name": {"type": "string"}},
                                    },
                                },
                            },
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}


def install(plane: ControlPlane) -> None:
    """kubefed's CRD and the namespace of its control plane; again is fine."""
    plane.install([CRD, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}}])
    plane.kubectl("wait", "--for=condition=Established", "crd", "kubefedclusters.core.kubefed.io", "--timeout=20s")
    served = ("get", "--raw", f"/apis/core.kubefed.io/v1beta1/namespaces/{SPACE}/kubefedclusters")
    wait_until(lambda: plane.kubectl(*served, check=False).code == 0, "kubefed's kind is served", 60.0)


def let_go(plane: ControlPlane, namespace: str) -> bool:
    """Ends a namespace that was deleted, as the namespace controller does; whether it had been deleted."""
    done = plane.kubectl("get", "namespace", namespace, "-o", "json", check=False)
    if done.code != 0:
        return True
    body = json.loads(done.stdout)
    if not body["metadata"].get("deletionTimestamp"):
        return False
    body["spec"]["finalizers"] = []
    plane.kubectl(
        "replace", "--raw", f"/api/v1/namespaces/{namespace}/finalize", "-f", "-", stdin=json.dumps(body).encode()
    )
    return True


def fill(plane: ControlPlane) -> None:
    """What the token controller does, once: the Secrets of ServiceAccounts that have no token get one."""
    selector = "type=kubernetes.io/service-account-token"
    listed = plane.kubectl("get", "secrets", "-n", SPACE, "--field-selector", selector, "-o", "json", check=False)
    for secret in json.loads(listed.stdout)["items"] if listed.code == 0 else ():
        if (secret.get("data") or {}).get("token"):
            continue
        account = secret["metadata"]["annotations"]["kubernetes.io/service-account.name"]
        token = plane.kubectl("create", "token", account, "-n", SPACE, "--duration=2h", check=False)
        if token.code == 0:
            data = json.dumps({"data": {"token": base64.b64encode(token.text.encode()).decode()}})
            name = secret["metadata"]["name"]
            plane.kubectl("patch", "secret", name, "-n", SPACE, "--type=merge", "-p", data, check=False)

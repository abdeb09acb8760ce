"""The names of what the controller makes and reads on a host. Those that Go Tower gave are an interface and stay."""

from __future__ import annotations

from typing import Final

from daemon.kube.resources import Object

MANAGER: Final = "tower-controller"
SLICES_BY: Final = "tower-controller.tower.kubesphere.io"
DOMAIN: Final = "tower.kubesphere.io"

SERVICE_PREFIX: Final = "mc-"
EXTERNAL_SUFFIX: Final = "-external"
MAX_SERVICE_NAME: Final = 63  # a DNS label (RFC 1035), which is what a Service's name is

CALLER_PORTS: Final = {"kubernetes": 6443, "kubesphere": 80}
"""The ports of a cluster's Service, by service of the member."""

CLUSTER_LABEL: Final = f"{DOMAIN}/cluster"
APPLIED: Final = f"{DOMAIN}/applied"
"""An annotation: the digest of what was last wanted, so that something taken out of it is noticed too."""
TERM: Final = f"{DOMAIN}/term"
"""An annotation: the term of the leader that wrote last. Whoever meets a higher one than its own leads no more."""
PASSED: Final = f"{DOMAIN}/passed-annotations"
"""An annotation: the names of those passed on from a resource, so that one taken out there goes here too."""
LB_ANNOTATIONS: Final = f"{DOMAIN}/external-lb-service-annoations"  # the misspelling is the interface
SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
MANAGED_BY_LABEL: Final = "endpointslice.kubernetes.io/managed-by"

FINALIZER: Final = f"controller.{DOMAIN}/finalizer"


def service_name(cluster: str) -> str:
    return f"{SERVICE_PREFIX}{cluster}"


def external_name(cluster: str) -> str:
    return f"{SERVICE_PREFIX}{cluster}{EXTERNAL_SUFFIX}"


def labels(cluster: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "tower",
        "app.kubernetes.io/managed-by": MANAGER,
        CLUSTER_LABEL: cluster,
    }


def is_of(held: Object, cluster: str) -> bool:
    """Whether an object was made for that cluster."""
    return (held["metadata"].get("labels") or {}).get(CLUSTER_LABEL) == cluster

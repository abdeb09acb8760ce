"""The objects that a cluster stands for on its host, from its ports and the replicas that can serve it. Pure.

The Service has no selector: its slices name the replicas that hold a tunnel of the cluster, or every ready replica when
none does, so that a caller always meets one that can at least say what is wrong. What Kubernetes made for an older
Service with a selector (an Endpoints object, slices of its own) would send callers to strangers and is cleaned up. Only
the port that authenticates its callers is ever published by a LoadBalancer, hence the second Service.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from daemon.kube.resources import Object
from tower_server.controller.names import (
    APPLIED,
    CALLER_PORTS,
    MANAGED_BY_LABEL,
    PASSED,
    SERVICE_NAME_LABEL,
    SLICES_BY,
    TERM,
    external_name,
    labels,
    service_name,
)
from tower_server.records import KUBERNETES

MAX_ENDPOINTS: Final = 100  # of one slice; a host has a handful of replicas


@dataclass(frozen=True, slots=True)
class Replica:
    """One tower server of this host, as it said itself lately."""

    name: str
    address: str
    ready: bool
    clusters: frozenset[str]
    """Those whose tunnels it holds."""


def serving(cluster: str, replicas: Iterable[Replica]) -> list[Replica]:
    """Who callers of a cluster are sent to, ordered by name."""
    ready = sorted((each for each in replicas if each.ready), key=lambda each: each.name)
    return [each for each in ready if cluster in each.clusters] or ready


def service(cluster: str, ports: Mapping[str, int], *, namespace: str) -> Object:
    """`mc-<name>`: a ClusterIP without a selector."""
    return _service(service_name(cluster), cluster, ports, namespace=namespace, spec={"type": "ClusterIP"})


def external_service(
    cluster: str, ports: Mapping[str, int], *, namespace: str, annotations: Mapping[str, str]
) -> Object:
    """The LoadBalancer of a cluster: its apiserver's port and no other."""
    only = {KUBERNETES: ports[KUBERNETES]}
    made = _service(external_name(cluster), cluster, only, namespace=namespace, spec={"type": "LoadBalancer"})
    made["metadata"]["annotations"] = {**annotations, PASSED: ",".join(sorted(annotations))}
    return made


def slices(
    name: str, cluster: str, ports: Mapping[str, int], replicas: Sequence[Replica], *, namespace: str
) -> list[Object]:
    """The EndpointSlices of the Service `name`: one for each address family that a replica has."""
    made = []
    for family, version in (("IPv4", 4), ("IPv6", 6)):
        endpoints = [_endpoint(each) for each in replicas if _version(each.address) == version][:MAX_ENDPOINTS]
        if not endpoints:
            continue
        meta = {
            "name": f"{name}-{family.lower()}",
            "namespace": namespace,
            "labels": {**labels(cluster), SERVICE_NAME_LABEL: name, MANAGED_BY_LABEL: SLICES_BY},
        }
        made.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": meta,
                "addressType": family,
                "endpoints": endpoints,
                "ports": [
                    {"name": service, "port": ports[service], "protocol": "TCP"}
                    for service in CALLER_PORTS
                    if service in ports
                ],
            }
        )
    return made


def leftovers(name: str, found: Iterable[Object], wanted: Iterable[Object]) -> list[Object]:
    """Of the slices and Endpoints found for the Service `name`, those that must go."""
    kept = {each["metadata"]["name"] for each in wanted}
    gone = []
    for each in found:
        meta = each["metadata"]
        if each["kind"] == "Endpoints":
            stale = meta["name"] == name
        else:
            stale = (meta.get("labels") or {}).get(SERVICE_NAME_LABEL) == name and meta["name"] not in kept
        if stale and meta.get("deletionTimestamp") is None:
            gone.append(each)
    return gone


def written(wanted: Object, found: Object | None, *, term: int) -> Object:
    """What to write so that `wanted` stands: `found` with what is ours in its place, or all of it anew.

    Fields that we own are as wanted, whole lists among them, and those wanted to be None are taken away; what others
    added beside them stays, and the version that was read goes along.
    """
    stamp = {APPLIED: digest(wanted), TERM: str(term)}
    if found is None:
        made = _overlaid({}, wanted)
        made["metadata"].setdefault("annotations", {}).update(stamp)
        return made
    result = _overlaid({key: value for key, value in found.items() if key != "status"}, wanted)
    _keep_node_ports(result, found)
    metadata = result["metadata"]
    metadata.pop("managedFields", None)
    annotations = {**(metadata.get("annotations") or {}), **stamp}
    now_passed = wanted["metadata"].get("annotations") or {}
    for gone in str((found["metadata"].get("annotations") or {}).get(PASSED, "")).split(","):
        if gone and gone not in now_passed:
            annotations.pop(gone, None)
    metadata["annotations"] = annotations
    return result


def _overlaid(under: Any, over: Mapping[str, Any]) -> Object:
    result = dict(under) if isinstance(under, Mapping) else {}
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            result[key] = _overlaid(result.get(key), value)
        else:
            result[key] = value
    return result


def _keep_node_ports(result: Object, found: Object) -> None:
    """A LoadBalancer's node ports belong to the apiserver: without them each write would give out new ones."""
    if (result.get("spec") or {}).get("type") != "LoadBalancer":
        return
    held = {each.get("port"): each.get("nodePort") for each in (found.get("spec") or {}).get("ports") or ()}
    result["spec"]["ports"] = [
        {**each, "nodePort": held[each["port"]]} if held.get(each["port"]) else each for each in result["spec"]["ports"]
    ]


def digest(wanted: Object) -> str:
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]


def drifted(wanted: Object, found: Object) -> bool:
    """Whether `found` is no longer what was wanted: somebody changed it, or another thing is wanted now.

    What the apiserver fills in (defaults, an address, a node port) is not a drift.
    """
    annotations = found["metadata"].get("annotations") or {}
    return annotations.get(APPLIED) != digest(wanted) or not _holds(found, wanted)


def written_term(found: Object) -> int:
    """The term of the leader that wrote an object last; 0 where it says none that can be read."""
    text = str((found["metadata"].get("annotations") or {}).get(TERM, ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0


def _service(name: str, cluster: str, ports: Mapping[str, int], *, namespace: str, spec: Mapping[str, Any]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels(cluster)},
        "spec": {
            **spec,
            "selector": None,
            "ports": [
                {"name": each, "port": front, "protocol": "TCP", "targetPort": ports[each]}
                for each, front in CALLER_PORTS.items()
                if each in ports
            ],
        },
    }


def _endpoint(replica: Replica) -> Object:
    return {
        "addresses": [replica.address],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "targetRef": {"kind": "Pod", "name": replica.name},
    }


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version


def _holds(found: Any, wanted: Any) -> bool:
    """Whether all that is wanted stands there; lists must be as long as wanted."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(_holds(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_holds, found, wanted))
    return bool(found == wanted)

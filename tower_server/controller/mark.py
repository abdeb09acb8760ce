"""The mark that a host leaves in each member that it has accepted, and what the marks of other hosts mean. Pure.

It is one ConfigMap for each host in kube-system, so that two hosts never write to the same object and each mark can be
deleted by itself. The oldest mark is the owner's. Several hosts may share a member, but never by accident: the later
ones are accepted only if somebody in the member has agreed, either by an agent that serves them both or by the
annotation `tower.kubesphere.io/shared` on the marks that are in the way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from daemon.kube.resources import Object, name_of
from tower_server.controller.names import DOMAIN, MANAGER

SPACE: Final = "kube-system"  # in every cluster, and never deleted
LABEL: Final = f"{DOMAIN}/mark"
SELECTOR: Final = f"{LABEL}=host"
SHARED: Final = f"{DOMAIN}/shared"


@dataclass(frozen=True, slots=True)
class Owner:
    """A host and one of its clusters. `uid` is that of the host's own kube-system namespace: two hosts may share a
    name, but not that."""

    host: str
    uid: str
    cluster: str


@dataclass(frozen=True, slots=True)
class Mark:
    """One that was found."""

    owner: Owner
    at: str
    """When it was made, RFC 3339."""
    shared: bool
    name: str
    version: str

    @property
    def age(self) -> tuple[str, str]:
        """Orders marks, the oldest first."""
        return self.at, self.name


def mark_name(host: str) -> str:
    return f"tower-host-{host}"


def mark_body(owner: Owner) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": mark_name(owner.host),
            "namespace": SPACE,
            "labels": {LABEL: "host", "app.kubernetes.io/managed-by": MANAGER},
        },
        "data": {"host": owner.host, "uid": owner.uid, "cluster": owner.cluster},
    }


def read_mark(body: Object) -> Mark:
    """What cannot be read is a mark of an unknown host: it still stands for somebody."""
    meta: Mapping[str, Any] = body.get("metadata") or {}
    data: Mapping[str, Any] = body.get("data") or {}
    owner = Owner(*(str(data.get(key) or "") for key in ("host", "uid", "cluster")))
    shared = str((meta.get("annotations") or {}).get(SHARED, "")).lower() == "true"
    at, version = str(meta.get("creationTimestamp") or ""), str(meta.get("resourceVersion") or "")
    return Mark(owner, at, shared, name_of(body), version)


def ours(marks: Iterable[Mark], owner: Owner) -> Mark | None:
    """The one under our name, whoever made it."""
    return next((each for each in marks if each.name == mark_name(owner.host)), None)


def in_the_way(marks: Collection[Mark], owner: Owner, *, served_too: Collection[str]) -> Mark | None:
    """The oldest mark of another host by which this one must not have the member; None where it may.

    `served_too` are the hosts that the member's agent serves beside this one.
    """
    own = ours(marks, owner)
    older = [each for each in marks if each.name != mark_name(owner.host) and (own is None or each.age < own.age)]
    barred = [each for each in older if not each.shared and each.owner.host not in served_too]
    return min(barred, key=lambda each: each.age, default=None)

"""Checks which rights a server lacks at its host's apiserver, before it needs them.

Most rights are used only when something happens: a port is claimed, an agent revoked, a Service repaired. A server that
has lost one of them works until then. So `towerctl check` asks the apiserver about each right (RBAC lets every
account ask about itself) and names the missing ones as lines of `deploy/base/rbac.yaml`; a test compares the two.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from daemon.checks import Result, fail, ok, unknown
from daemon.kube.client import Client
from daemon.kube.errors import KubeError
from daemon.kube.resources import (
    CLUSTERS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    EVENTS,
    LEASES,
    MEMBERS,
    NAMESPACES,
    SECRETS,
    SERVICES,
    Resource,
)

SELF_REVIEWS: Final = Resource(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)
AT_ONCE: Final = 8
PATIENCE: Final = 8.0  # seconds for all of them: a check has 10, and one that is cut short tells of no right
EVENTS_SPACE: Final = "default"  # events about Clusters, which have no namespace


@dataclass(frozen=True, slots=True)
class Needed:
    """Verbs on one kind; `own`: in the server's own namespace only."""

    resource: Resource
    verbs: tuple[str, ...]
    own: bool = False
    subresource: str = ""
    name: str = ""

    @property
    def named(self) -> str:
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural

    def rule(self, verbs: tuple[str, ...]) -> str:
        only = f', resourceNames: ["{self.name}"]' if self.name else ""
        return (
            f'{{apiGroups: ["{self.resource.group}"], resources: ["{self.named}"]{only}, verbs: [{", ".join(verbs)}]}}'
        )


NEEDED: Final = (
    Needed(CLUSTERS, ("get", "list", "watch", "update")),
    Needed(MEMBERS, ("get", "list", "watch", "create", "patch", "delete")),
    Needed(MEMBERS, ("update",), subresource="status"),
    Needed(NAMESPACES, ("get",), name="kube-system"),
    Needed(EVENTS, ("create",)),
    Needed(SECRETS, ("get", "list", "create", "patch", "delete"), own=True),
    Needed(LEASES, ("get", "list", "watch", "create", "update", "delete"), own=True),
    Needed(SERVICES, ("list", "watch", "create", "update", "delete"), own=True),
    Needed(ENDPOINT_SLICES, ("list", "watch", "create", "update", "delete"), own=True),
    Needed(ENDPOINTS, ("list", "watch", "delete"), own=True),
)


async def check_rights(client: Client, namespace: str) -> Result:
    """Which of them the apiserver denies to this server's account."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def denied(needed: Needed, verb: str) -> bool:
        async with slots:
            return not await _allowed(client, needed, verb, namespace)

    pairs = [(needed, verb) for needed in NEEDED for verb in needed.verbs]
    try:
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*(denied(needed, verb) for needed, verb in pairs))
    except TimeoutError:
        text = (
            f"rights could not be asked for: {client.address} took more than {PATIENCE:g} s for {len(pairs)} questions"
        )
        return unknown("TWR114", text)
    except KubeError as error:
        return unknown(error.code, f"rights could not be asked for: {error.message}", next_step=error.mend)
    missing: dict[Needed, tuple[str, ...]] = {}
    for (needed, verb), lacks in zip(pairs, answers, strict=True):
        if lacks:
            missing[needed] = (*missing.get(needed, ()), verb)
    if not missing:
        return ok(f"{len(pairs)} rights")
    what = "; ".join(f"{', '.join(verbs)} {needed.named}" for needed, verbs in missing.items())
    return fail(
        "TWR115",
        f"the host's apiserver does not let this server {what}",
        evidence=[f"{_where(needed, namespace)} lacks {needed.rule(verbs)}" for needed, verbs in missing.items()],
        next_step="apply the overlay again that the server was installed by, such as `kubectl apply -k "
        "deploy/overlays/public` (with the chart: `helm upgrade`)",
    )


async def _allowed(client: Client, needed: Needed, verb: str, namespace: str) -> bool:
    asked = {"group": needed.resource.group, "resource": needed.resource.plural, "verb": verb}
    place = namespace if needed.own else EVENTS_SPACE if needed.resource is EVENTS else ""
    chosen = {"namespace": place, "subresource": needed.subresource, "name": needed.name}
    asked |= {key: value for key, value in chosen.items() if value}
    answer = await client.create(SELF_REVIEWS, {"metadata": {}, "spec": {"resourceAttributes": asked}})
    status = answer.get("status") or {}
    return status.get("allowed") is True and not status.get("denied")


def _where(needed: Needed, namespace: str) -> str:
    return f"the Role in namespace {namespace}" if needed.own else "the ClusterRole"

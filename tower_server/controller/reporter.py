"""Writes what others read of a cluster: its Member's status, our fields on its Cluster resource, and events.

Each is written only when it has changed. Nothing waits for a write to the Cluster, which a webhook may refuse for as
long as the member is down; then a condition on our own resource says which webhook does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from certs.ca import Authority
from certs.kubeconfig import Connection
from certs.names import member_name
from certs.peers import rfc3339
from certs.revocation import RevocationList
from daemon.faults import TowerError
from daemon.kube.errors import Conflict, KubeError, NotFound
from daemon.kube.resources import CLUSTERS, MEMBERS, Object
from tower_server.controller import kubeconfig
from tower_server.controller.conditions import Condition, merged
from tower_server.controller.ending import View
from tower_server.controller.events import Events, transitions
from tower_server.controller.facts import Observed
from tower_server.controller.membership import withheld
from tower_server.controller.names import FINALIZER
from tower_server.controller.status import (
    Mirror,
    Outcome,
    conditions,
    endpoint,
    member_status,
    mirrored,
    refused,
    troubled,
)
from tower_server.controller.wanted import Problem
from tower_server.controller.writer import Writer
from tower_server.records import Cluster

LOOK_AGAIN: Final = 6 * 3600.0  # a date is looked at anew, should the clock have been set meanwhile


@dataclass(frozen=True, slots=True)
class Again:
    """When to look at the cluster again, in seconds; `failed` for something that is tried with a growing back-off."""

    after: float | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """`tell` what a reconcile has come to, or that it has `failed`."""

    view: View
    writer: Writer
    events: Events
    authority: Authority
    revocations: Callable[[], RevocationList | None]

    async def failed(self, name: str, error: Exception) -> None:
        """The cluster's work fails again and again: said where people look, once for each kind of failure."""
        resource, member = self.view.get(CLUSTERS, name), self.view.get(MEMBERS, name)
        about = resource or member
        if about is None:
            return
        fault_of = error if isinstance(error, TowerError) else TowerError("TWR114", str(error) or "it took too long")
        text = f"what follows from the cluster cannot be written: {fault_of.message}"
        said = troubled(Problem("ResourceWritable", fault_of.reason, fault_of.code, text, fault_of.mend))
        holder = member or resource or {}
        status = holder.get("status") if isinstance(holder.get("status"), dict) else {}
        held = (status or {}).get("conditions")
        worth = transitions(held, [said])
        if not worth:
            return
        if member is not None:
            listed = merged(
                held, [said], now=rfc3339(time.time()), generation=int(member["metadata"].get("generation", 0))
            )
            body = {**member, "status": {**(status or {}), "conditions": listed}}
            await self.writer.replace(MEMBERS, body, subresource="status")
        await self.events.tell(about, worth)

    async def tell(
        self, resource: Object | None, outcome: Outcome, observed: Observed | None, *, record: Cluster | None = None
    ) -> Again:
        """Writes what has changed of it. Raises Conflict or NotFound where an object is not as it was heard of."""
        again = Again()
        if resource is not None:
            outcome, again = await self._on_resource(resource, outcome, observed, usable=record is not None)
        member = self.view.get(MEMBERS, record.name) if record is not None else None
        if member is not None:
            await self._on_member(member, resource or member, outcome, observed)
        return again

    async def _on_resource(
        self, resource: Object, outcome: Outcome, observed: Observed | None, *, usable: bool
    ) -> tuple[Outcome, Again]:
        """Our fields on the Cluster resource, the kubeconfig among them."""
        text, again = None, Again()
        if usable and outcome.address:
            outcome, text, again = self._kubeconfig(resource, outcome, observed)
        held = (resource.get("status") or {}).get("conditions")
        mirror = Mirror(outcome, conditions(outcome, observed, held=held), FINALIZER if usable else "", text)
        body = mirrored(resource, mirror, now=rfc3339(time.time()))
        if body is None:
            return outcome, again
        try:
            stored = await self.writer.replace(CLUSTERS, body)
        except (Conflict, NotFound):
            raise
        except KubeError as error:
            return outcome.with_problem(refused(error)), Again(failed=True)
        if not usable:
            await self.events.tell(stored, transitions(held, mirror.conditions))
        return outcome, again

    def _kubeconfig(
        self, resource: Object, outcome: Outcome, observed: Observed | None
    ) -> tuple[Outcome, str | None, Again]:
        name, now = resource["metadata"]["name"], time.time()
        bundle = self.authority.bundle
        server = endpoint("https", outcome.address, 6443)
        connection = Connection(server=server, tls_server_name=member_name(name), ca_pem=bundle.root_pem)
        held: Any = ((resource.get("spec") or {}).get("connection") or {}).get("kubeconfig")
        healthy = observed is not None and observed.healthy
        decision = kubeconfig.decide(
            held, connection, bundle=bundle, revocations=self.revocations(), now=now, healthy=healthy
        )
        if decision.action == "keep":
            due = min(LOOK_AGAIN, max(1.0, (decision.renew_at or now) - now))
            return replace(outcome, kubeconfig=Condition("KubeconfigReady", "True", "Valid")), None, Again(due)
        withheld_for = "" if held else withheld(outcome, (resource.get("status") or {}).get("conditions"))
        if decision.action == "wait" or withheld_for:
            text = f"{decision.why}; {withheld_for or 'it is written once a request gets through to the member'}"
            return replace(outcome, kubeconfig=Condition("KubeconfigReady", "False", "Waiting", text)), None, Again()
        made = kubeconfig.issue(self.authority, connection, cluster=name, now=now)
        return replace(outcome, kubeconfig=Condition("KubeconfigReady", "True", "Valid")), made, Again(LOOK_AGAIN)

    async def _on_member(self, member: Object, about: Object, outcome: Outcome, observed: Observed | None) -> None:
        held = member.get("status") if isinstance(member.get("status"), dict) else {}
        generation = int(member["metadata"].get("generation", 0))
        now = rfc3339(time.time())
        status = member_status(held or {}, outcome, observed, now=now, generation=generation)
        if status == held:
            return
        await self.writer.replace(MEMBERS, {**member, "status": status}, subresource="status")
        listed = (held or {}).get("conditions")
        await self.events.tell(about, transitions(listed, conditions(outcome, observed, held=listed)))

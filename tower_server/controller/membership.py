"""Turns what a reconcile wants of a member into errands, and their results into conditions. Waits for no member."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from daemon.kube.resources import Object
from tower_server.controller.conditions import Condition, find
from tower_server.controller.errands import ACCEPTED, Errand, Errands, Findings
from tower_server.controller.facts import Observed
from tower_server.controller.registry import Registry
from tower_server.controller.status import Outcome, endpoint
from tower_server.controller.wanted import Wanted
from tower_server.records import KUBERNETES, Cluster

UNSEEN: Final = Condition(ACCEPTED, "Unknown", "NotLooked", "it is looked at as soon as a request gets through to it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """`accepted` says whether the kubeconfig may be written for the first time."""

    errands: Errands
    registry: Registry

    async def look(
        self,
        outcome: Outcome,
        *,
        record: Cluster,
        wanted: Wanted,
        resource: Object,
        observed: Observed | None,
        hosted_as: str,
    ) -> Outcome:
        """The outcome with what is known of the member; what is not known now stays as it was said before."""
        errand = _errand(outcome, record=record, wanted=wanted, observed=observed, hosted_as=hosted_as)
        findings = self.errands.ask(errand) or Findings()
        if findings.federation is not None and findings.federation.reason == "Joining" and not record.federated:
            record = await self.registry.note_federated(record, True)
            findings = self.errands.ask(replace(errand, joined=True)) or findings
        elif findings.left and record.federated and not errand.federate:
            await self.registry.note_federated(record, False)
        held = (resource.get("status") or {}).get("conditions")
        said = [each for each in (findings.accepted, findings.federation) if each is not None]
        if findings.accepted is None and find(held, ACCEPTED) is None:
            said.append(UNSEEN)
        return replace(outcome, inside=tuple(said))

    async def farewell(self, record: Cluster, observed: Observed | None, *, hosted_as: str, marked: bool) -> str:
        """Before a cluster is dismantled. What stays behind, for a person; empty for nothing."""
        outcome = Outcome(ports=dict(record.ports))
        errand = _errand(outcome, record=record, wanted=None, observed=observed, hosted_as=hosted_as)
        reachable = KUBERNETES in record.ports and (observed is None or observed.tunnels > 0)
        left = await self.errands.farewell(replace(errand, healthy=reachable))
        return left if marked or record.federated else ""


def _errand(
    outcome: Outcome, *, record: Cluster, wanted: Wanted | None, observed: Observed | None, hosted_as: str
) -> Errand:
    report: Mapping[str, Any] = observed.report if observed is not None else {}
    services = report.get("services")
    entry = services.get(KUBERNETES) if isinstance(services, Mapping) else None
    kubesphere = report.get("kubesphere")
    trouble = kubesphere.get("trouble") if isinstance(kubesphere, Mapping) else None
    hosts = report.get("hosts")
    return Errand(
        cluster=record.name,
        port=outcome.ports.get(KUBERNETES, 0),
        server=endpoint("https", outcome.address, 6443),
        labels=wanted.labels if wanted is not None else {},
        hosted_as=hosted_as,
        served_too=frozenset(str(each) for each in hosts) if isinstance(hosts, list) else frozenset(),
        kubesphere=trouble if isinstance(trouble, str) else "",
        passthrough=isinstance(entry, Mapping) and entry.get("mode") == "passthrough",
        healthy=observed is not None
        and observed.healthy
        and KUBERNETES in outcome.ports
        and bool(outcome.address)
        and not (isinstance(kubesphere, Mapping) and kubesphere.get("pending") is True),
        federate=wanted is not None and wanted.federate and not wanted.deleting,
        joined=record.federated,
    )


def withheld(outcome: Outcome, held: object) -> str:
    """Why a first kubeconfig is not written yet; empty where nothing is in its way."""
    if not outcome.inside and not find(held, ACCEPTED):
        return ""
    found = next((each for each in outcome.inside if each.type == ACCEPTED), None)
    status = found.status if found is not None else (find(held, ACCEPTED) or {}).get("status")
    return "" if status == "True" else "the member has not been accepted (its condition Accepted says more)"

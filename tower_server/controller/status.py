"""What is said of a cluster: the status of our own Member, and what is mirrored into the Cluster resource. Pure.

Every condition has one writer, this module. Nothing here changes with time alone, so a cluster that stays as it is
costs no write: a round trip, a heartbeat or a number of streams is for the metrics. One that comes and goes is said to
do so, once, until it has been well for a while.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from daemon.faults import TowerError, fault
from daemon.kube.errors import KubeError
from daemon.kube.resources import Object
from tower_server.controller.conditions import Condition, find, merged
from tower_server.controller.facts import Observed
from tower_server.controller.wanted import Problem
from tower_server.records import KUBERNETES, KUBESPHERE

MIRRORED: Final = frozenset(
    {
        "Initialized",
        "PortReady",
        "AgentAvailable",
        "MemberReady",
        "ExternalAccessReady",
        "KubeconfigReady",
        "Unique",
        "Accepted",
        "FederationReady",
    }
)
"""The conditions that stand on the Cluster too; `Ready` there is KubeSphere's."""
FLAPPING: Final = "Flapping"
_WEBHOOK: Final = re.compile(r'webhook "([^"]+)"')
_TUNNEL_STATES: Final = frozenset({"NeverConnected", "TunnelDown"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reconcile arrived at."""

    ports: Mapping[str, int] = field(default_factory=dict)
    address: str = ""
    """The ClusterIP of `mc-<name>`."""
    external: bool = False
    external_address: str = ""
    kubeconfig: Condition | None = None
    problems: tuple[Problem, ...] = ()
    inside: tuple[Condition, ...] = ()
    """What the errands to the member have found; what is not in it stays as it was."""

    def with_problem(self, problem: Problem) -> Outcome:
        return replace(self, problems=(*self.problems, problem))


def problem_of(condition: str, error: TowerError) -> Problem:
    return Problem(condition, error.reason, error.code, error.message, error.mend)


def refused(error: KubeError) -> Problem:
    """A write to the Cluster resource that did not come through, by the name of the webhook where there is one."""
    named = _WEBHOOK.search(error.message)
    what = f"the admission webhook {named[1]!r} refuses it" if named else "the apiserver refuses it"
    text = f"the Cluster resource could not be written: {what}: {error.message}"
    reason = "WebhookRefused" if named else "WriteRefused"
    return Problem("ResourceWritable", reason, "TWR122", text, fault("TWR122").mend)


def endpoint(scheme: str, address: str, port: int) -> str:
    """A URL; an IPv6 address in brackets. Empty without an address."""
    if not address:
        return ""
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"


def conditions(outcome: Outcome, observed: Observed | None, *, held: object) -> list[Condition]:
    """All of a cluster's, in a fixed order. What was never known is Unknown rather than left out; what is not known at
    this moment, after a restart, stays as it was `held`."""
    troubles = {problem.condition: problem for problem in reversed(outcome.problems)}
    seen = (_agent_available(observed), _member_ready(observed))
    listed = [
        _port_ready(outcome),
        _initialized(outcome),
        *(each for each in seen if observed is not None or find(held, each.type) is None),
        *([_external(outcome)] if outcome.external or "ExternalAccessReady" in troubles else []),
        *([outcome.kubeconfig] if outcome.kubeconfig is not None else []),
        Condition("ResourceWritable", "True", "Written"),
        Condition("Unique", "True", "OneName"),
        *outcome.inside,
    ]
    return [troubled(troubles[each.type]) if each.type in troubles else each for each in listed]


def troubled(problem: Problem) -> Condition:
    """A problem as the condition that shows it."""
    return Condition(problem.condition, "False", problem.reason, f"{problem.code}: {problem.text}; {problem.mend}")


def _port_ready(outcome: Outcome) -> Condition:
    if KUBERNETES not in outcome.ports:
        return Condition("PortReady", "Unknown", "NotAllocated", "no port is allocated yet")
    told = ", ".join(f"{service} {port}" for service, port in sorted(outcome.ports.items()))
    return Condition("PortReady", "True", "Allocated", told)


def _initialized(outcome: Outcome) -> Condition:
    if outcome.address:
        return Condition("Initialized", "True", "Initialized", f"callers of this host reach it at {outcome.address}")
    return Condition("Initialized", "False", "NotInitialized", "its Service has no address yet")


def _agent_available(observed: Observed | None) -> Condition:
    if observed is None:
        return Condition("AgentAvailable", "Unknown", "NotSeen", "no tower server has looked for its agent yet")
    verdict = observed.verdict
    if observed.flapping and observed.tunnel_flaps:
        return Condition("AgentAvailable", "False", FLAPPING, _because(observed, "TWR229", observed.flapping))
    if observed.tunnels:
        return Condition("AgentAvailable", "True", "Connected", "an agent holds a tunnel open")
    return Condition("AgentAvailable", "False", verdict.state, _because(observed, verdict.code, verdict.cause))


def _member_ready(observed: Observed | None) -> Condition:
    if observed is None:
        return Condition("MemberReady", "Unknown", "NotSeen", "no tower server has looked for its agent yet")
    verdict = observed.verdict
    if observed.flapping:
        return Condition("MemberReady", "False", FLAPPING, _because(observed, "TWR229", observed.flapping))
    status = "Unknown" if verdict.state in _TUNNEL_STATES else verdict.ready
    cause = _because(observed, verdict.code, verdict.cause) or "requests get through to its apiserver"
    return Condition("MemberReady", status, verdict.state, cause)


def _because(observed: Observed, code: str, cause: str) -> str:
    return f"{code}: {cause}; {fault(code).mend_for(observed.cluster)}" if code else cause


def _external(outcome: Outcome) -> Condition:
    if outcome.external_address:
        return Condition("ExternalAccessReady", "True", "Published", f"published at {outcome.external_address}")
    waiting = "the LoadBalancer has given no address yet; its controller's events say why"
    return Condition("ExternalAccessReady", "False", "NoAddress", waiting)


def member_status(
    held: Mapping[str, Any], outcome: Outcome, observed: Observed | None, *, now: str, generation: int
) -> dict[str, Any]:
    """The status of our own resource, equal to `held` when nothing has changed. What is not ours is carried on."""
    status, listed = dict(held), held.get("conditions")
    status["observedGeneration"] = generation
    status["conditions"] = merged(listed, conditions(outcome, observed, held=listed), now=now, generation=generation)
    status["ports"] = dict(outcome.ports)
    status["address"] = outcome.address
    report = observed.report if observed is not None else {}
    for key in ("uid", "version", "nodes"):
        value = report.get(key)
        if isinstance(value, (str, int)) and value != "":
            status[key] = value
    return status


@dataclass(frozen=True, slots=True)
class Mirror:
    """What we own on a Cluster resource. `kubeconfig` None leaves what stands there."""

    outcome: Outcome
    conditions: Sequence[Condition]
    finalizer: str
    """Empty for none."""
    kubeconfig: str | None = None


def mirrored(resource: Object, mirror: Mirror, *, now: str) -> Object | None:
    """The resource with our fields as they should be, or None when they are so already; others' are not touched."""
    result = copy.deepcopy(resource)
    spec = result.setdefault("spec", {})
    connection = spec.setdefault("connection", {})
    outcome = mirror.outcome
    fields = {
        "kubernetesAPIServerPort": outcome.ports.get(KUBERNETES),
        "kubesphereAPIServerPort": outcome.ports.get(KUBESPHERE),
        "kubernetesAPIEndpoint": endpoint("https", outcome.address, 6443),
        "kubesphereAPIEndpoint": endpoint("http", outcome.address, 80) if KUBESPHERE in outcome.ports else None,
        "externalKubernetesAPIEndpoint": endpoint("https", outcome.external_address, 6443),
        "kubeconfig": mirror.kubeconfig,
    }
    connection.update({key: value for key, value in fields.items() if value})
    if not outcome.external:
        connection.pop("externalKubernetesAPIEndpoint", None)
    finalizers = result["metadata"].setdefault("finalizers", [])
    if mirror.finalizer and mirror.finalizer not in finalizers and not result["metadata"].get("deletionTimestamp"):
        finalizers.append(mirror.finalizer)
    ours = [each for each in mirror.conditions if each.type in MIRRORED]
    status = result.get("status") if isinstance(result.get("status"), Mapping) else {}
    assert isinstance(status, Mapping)
    listed = merged(status.get("conditions"), ours, now=now)
    result["status"] = {**status, "conditions": listed}
    return None if result == resource else result

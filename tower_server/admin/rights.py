"""What RBAC calls each call of the admin API, and whether a person of the host cluster may make it.

The names come from the paths: `POST /v1/clusters/edge/tokens` is `create` on `clusters/tokens` named `edge`, in the API
group `admin.tower.kubesphere.io` and the tower's namespace. A caller's certificate names no cluster: whoever has one is
let in by every member that admits its user. So that call is asked about without a name, and a rule that is bound to
single clusters does not give it. The apiserver decides for every call anew, so a right that
is taken away counts at once; only what runs already (a watch, a forward) goes on until it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from certs.login import OPERATOR_GROUP
from daemon.faults import TowerError
from daemon.kube.client import Client
from daemon.kube.resources import Resource

REVIEWS: Final = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False)
LISTS: Final = frozenset({"clusters", "tunnels", "streams", "agents", "tokens", "revocations"})
OF_ALL: Final = ("clusters", "credentials")
"""Made by the path of one cluster, and good for all."""


@dataclass(frozen=True, slots=True)
class Person:
    """As the apiserver wrote them down."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Right:
    """One rule that a call needs."""

    verb: str
    resource: str
    subresource: str
    name: str

    def __str__(self) -> str:
        named = f" named {self.name}" if self.name else ""
        if (self.resource, self.subresource) == OF_ALL:
            named = " of all clusters, each of which a caller's certificate is good for,"
        return f"{self.verb} {'/'.join(filter(None, (self.resource, self.subresource)))}.{OPERATOR_GROUP}{named}"


def right_of(method: str, pattern: Sequence[str], parts: Sequence[str], *, watch: bool = False) -> Right:
    """Of the call whose path matched `pattern`, in which arguments stand in capitals."""
    literal = [part for part in pattern if not part.isupper()]
    arguments = [part for kind, part in zip(pattern, parts, strict=True) if kind.isupper()]
    verb = {"POST": "create", "DELETE": "delete"}.get(method)
    if verb is None:
        verb = "watch" if watch else "list" if len(pattern) == 1 and literal[0] in LISTS else "get"
    resource, subresource = literal[0], "/".join(literal[1:])
    named = bool(arguments) and (resource, subresource) != OF_ALL
    return Right(verb, resource, subresource, arguments[0] if named else "")


async def permit(client: Client, person: Person, right: Right, *, namespace: str) -> None:
    """Returns when the host's apiserver says that they may; TowerError TWR614 when it does not."""
    attributes: dict[str, Any] = {
        "namespace": namespace,
        "verb": right.verb,
        "group": OPERATOR_GROUP,
        "resource": right.resource,
    }
    if right.subresource:
        attributes["subresource"] = right.subresource
    if right.name:
        attributes["name"] = right.name
    spec = {"user": person.name, "uid": person.uid, "groups": list(person.groups), "resourceAttributes": attributes}
    spec["extra"] = {key: list(values) for key, values in person.extra.items()}
    answer = (await client.create(REVIEWS, {"metadata": {}, "spec": spec})).get("status") or {}
    if answer.get("allowed") is True and not answer.get("denied"):
        return
    why = f": {answer['reason']}" if answer.get("reason") else ""
    raise TowerError(
        "TWR614",
        f"{person.name} may not {right} in namespace {namespace} of the host cluster{why}",
        mend=f"let a cluster admin bind them to the Role tower-operator (or tower-viewer) of namespace {namespace}",
    )

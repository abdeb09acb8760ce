"""What a Cluster resource asks of the tower, and what is wrong with it. Pure: an object in, a value out.

Whatever stands in a resource was written by somebody else: every field may be missing, of another type or nonsense. A
field that cannot be followed becomes a `Problem`, which ends as a condition, and the rest of the resource is followed;
only a name that no Service can have leaves nothing to follow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from certs.names import is_label
from certs.token import hash_secret
from daemon.kube.resources import Object
from protocol.jsontext import parse_json
from tower_server.controller.names import DOMAIN, EXTERNAL_SUFFIX, LB_ANNOTATIONS, MAX_SERVICE_NAME, SERVICE_PREFIX
from tower_server.ports import PortRange
from tower_server.records import KUBERNETES, KUBESPHERE, LEGACY_TOKEN

MAX_NAME: Final = MAX_SERVICE_NAME - len(SERVICE_PREFIX)
MAX_EXTERNAL_NAME: Final = MAX_NAME - len(EXTERNAL_SUFFIX)
MAX_LB_ANNOTATIONS: Final = 64
_PORT_FIELDS: Final = {KUBERNETES: "kubernetesAPIServerPort", KUBESPHERE: "kubesphereAPIServerPort"}
_ANNOTATION: Final = re.compile(
    r"((?=.{1,253}/)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a cluster: the condition it shows in, a CamelCase reason and what to do about it."""

    condition: str
    reason: str
    code: str
    text: str
    mend: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A Cluster resource as far as it concerns the tower."""

    name: str
    uid: str
    proxied: bool
    """Reached through a tunnel; a cluster of type `direct` is none of ours."""
    ports: Mapping[str, int]
    """Ports on the resource, by service: asked for, or given out earlier."""
    external: bool
    annotations: Mapping[str, str]
    """For the external Service."""
    deleting: bool
    finalizers: tuple[str, ...]
    problems: tuple[Problem, ...]
    usable: bool
    """False: the name itself cannot be followed, so nothing is made for it."""
    legacy_token: str | None = None
    """Hash of `spec.connection.token`, by which Go agents register; None where there is none."""
    federate: bool = False
    """Whether kubefed is to have it: `spec.joinFederation`."""
    labels: Mapping[str, str] = field(default_factory=dict)


def read_wanted(resource: Object, *, ranges: Mapping[str, PortRange]) -> Wanted:
    """Never raises: what cannot be read is a problem of that cluster."""
    meta, spec = _mapping(resource.get("metadata")), _mapping(resource.get("spec"))
    connection = _mapping(spec.get("connection"))
    name = str(meta.get("name", ""))
    problems: list[Problem] = []
    usable = _check_name(name, problems)
    external = spec.get("externalKubeAPIEnabled") is True
    if usable and external and len(name) > MAX_EXTERNAL_NAME:
        problems.append(_name_problem("ExternalAccessReady", name, MAX_EXTERNAL_NAME, "its external Service"))
        external = False
    token = _token(connection.get("token"), problems)
    ports = _ports(connection, ranges, problems)
    return Wanted(
        name=name,
        uid=str(meta.get("uid", "")),
        proxied=connection.get("type", "proxy") == "proxy",
        ports=ports,
        external=external,
        annotations=_annotations(_mapping(meta.get("annotations")), problems) if external else {},
        deleting=meta.get("deletionTimestamp") is not None,
        finalizers=tuple(str(each) for each in meta.get("finalizers") or ()),
        problems=tuple(problems),
        usable=usable,
        legacy_token=token,
        federate=spec.get("joinFederation") is True,
        labels={str(key): str(value) for key, value in _mapping(meta.get("labels")).items()},
    )


def _token(value: Any, problems: list[Problem]) -> str | None:
    """Kept as its hash alone: the text is a secret of the resource's readers."""
    if value in (None, ""):
        return None
    if isinstance(value, str) and LEGACY_TOKEN.fullmatch(value):
        return hash_secret(value)
    problems.append(
        Problem(
            "Initialized",
            "InvalidToken",
            "TWR605",
            "spec.connection.token is not one of 32 to 512 printable characters without spaces",
            "give it a random token of that length, or take it out where no Go agent serves the cluster",
        )
    )
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _check_name(name: str, problems: list[Problem]) -> bool:
    if len(name) > MAX_NAME:
        problems.append(_name_problem("Initialized", name, MAX_NAME, f"its Service {SERVICE_PREFIX}<name>"))
        return False
    if not is_label(name):
        problems.append(
            Problem(
                "Initialized",
                "InvalidName",
                "TWR120",
                f"the name {name[:80]!r} is not a DNS label, so neither a Service nor a certificate can carry it",
                "make the Cluster anew under a name of lower-case letters, digits and hyphens",
            )
        )
        return False
    return True


def _name_problem(condition: str, name: str, longest: int, what: str) -> Problem:
    return Problem(
        condition,
        "NameTooLong",
        "TWR120",
        f"the name has {len(name)} characters and {what} leaves room for {longest}",
        "make the Cluster anew under a shorter name",
    )


def _ports(connection: Mapping[str, Any], ranges: Mapping[str, PortRange], problems: list[Problem]) -> dict[str, int]:
    found = {}
    for service, key in _PORT_FIELDS.items():
        port = connection.get(key)
        if port is None or port == 0:
            continue
        if isinstance(port, int) and not isinstance(port, bool) and port in ranges[service]:
            found[service] = port
            continue
        problems.append(
            Problem(
                "PortReady",
                "PortOutOfRange",
                "TWR120",
                f"spec.connection.{key} is {str(port)[:20]!r}, and the ports of this host are {ranges[service]}",
                f"take {key} away and a free port is allocated, or widen `ports.range` on the server",
            )
        )
    return found


def _annotations(annotations: Mapping[str, Any], problems: list[Problem]) -> dict[str, str]:
    text = annotations.get(LB_ANNOTATIONS)
    if not text:
        return {}
    why = ""
    try:
        found = parse_json(text)
    except (TypeError, ValueError) as error:
        found, why = None, f"it is not JSON ({error})"
    if not why and not isinstance(found, dict):
        why = "it is not a JSON object"
    if isinstance(found, dict):
        bad = [key for key, value in found.items() if not _is_text(value) or not _ANNOTATION.fullmatch(key)]
        own = [key for key in found if key.partition("/")[0] == DOMAIN]
        if bad:
            why = f"{bad[0][:80]!r} is not an annotation with a text as its value"
        elif own:
            why = f"{own[0][:80]!r} is one that the tower itself writes"
        elif len(found) > MAX_LB_ANNOTATIONS:
            why = f"it holds {len(found)} annotations, more than {MAX_LB_ANNOTATIONS}"
    if not why and isinstance(found, dict):
        return found
    problems.append(
        Problem(
            "ExternalAccessReady",
            "InvalidAnnotation",
            "TWR120",
            f"the annotation {LB_ANNOTATIONS} cannot be passed on: {why}",
            'write a JSON object of texts, such as {"service.example.com/internal": "true"}',
        )
    )
    return {}


def _is_text(value: object) -> bool:
    """Half a character would come back as another one, and be written again at every look."""
    return isinstance(value, str) and not any("\ud800" <= each <= "\udfff" for each in value)

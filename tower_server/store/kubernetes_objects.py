"""Which object holds which kind of record, and how a record is written into it and read back.

- Clusters are `Member` resources (tower.kubesphere.io), one field a key, since people look at them, the controller
  keeps a status beside, and KubeSphere's own Cluster resource must hold nothing that it does not know.
- Claims of ports are Leases: that is what Kubernetes has for "taken by", `kubectl get leases` shows the holder, and a
  Role that may touch them gives nothing else away.
- Everything else are Secrets: the CA and issuers' keys and token hashes because they are secret, agents and revocations
  because who could edit them would let a revoked agent in, and Secrets are the kind that is guarded most closely. One
  rule of RBAC then covers all.

Leases and Members carry the record's own name; Secrets share a namespace, so their names begin with the kind.
"""

from __future__ import annotations

import base64
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

from daemon.kube.resources import LEASES, MEMBERS, SECRETS, Object, Resource
from protocol.jsontext import parse_object
from tower_server.store.base import Data, Invalid, Kind, check_name, encode

LABEL: Final = "tower.kubesphere.io/record"
ANNOTATION: Final = "tower.kubesphere.io/record"
SECRET_TYPE: Final = "tower.kubesphere.io/record"  # noqa: S105 - a type of Secrets
MAX_NAME: Final = 253
MAX_ANNOTATION_BYTES: Final = 200 * 1024  # Kubernetes allows 256 KiB for all annotations together
WRITER: Final = "tower-server"
"""As whom the store writes, in the objects' `managedFields`."""
_SNAKE: Final = re.compile(r"[a-z0-9]+(_[a-z0-9]+)+")
_HUMP: Final = re.compile(r"[A-Z]")

Found = tuple[str, dict[str, Any]]
"""The record's name and its data."""


class Place(ABC):
    """Where one kind of record lies."""

    resource: Resource
    prefix: str = ""
    selector: str
    """Of the labels that make an object a record: what somebody made by hand is none."""

    def name(self, kind: Kind, name: str) -> str:
        """The object's name; Invalid for one that no object can have."""
        full = self.prefix + check_name(kind, name)
        if len(full) > MAX_NAME:
            raise Invalid(f"{kind} name {name!r}: {len(full)} characters with its prefix; at most {MAX_NAME}")
        return full

    def body(self, kind: Kind, name: str, data: Data, *, namespace: str) -> Object:
        """A new object."""
        labels = {"app.kubernetes.io/part-of": "tower", LABEL: kind.value}
        metadata: dict[str, Any] = {"name": self.name(kind, name), "labels": labels}
        if self.resource.namespaced:
            metadata["namespace"] = namespace
        head = {"apiVersion": self.resource.api_version, "kind": self.resource.kind, "metadata": metadata}
        return self._fill(head, data, encode(kind, name, data))

    def patch(self, kind: Kind, name: str, data: Data) -> list[dict[str, Any]]:
        """The JSON patch that gives an object new data and leaves all else."""
        return self._patch(data, encode(kind, name, data))

    def read(self, kind: Kind, body: Object) -> Found | None:
        """None for an object that is not a record of this kind."""
        metadata = body.get("metadata", {})
        name = str(metadata.get("name", ""))
        if (metadata.get("labels") or {}).get(LABEL) != kind.value:
            return None
        data = self._read(body)
        return None if data is None or not name.startswith(self.prefix) else (name.removeprefix(self.prefix), data)

    @abstractmethod
    def _fill(self, body: Object, data: Data, text: str) -> Object: ...
    @abstractmethod
    def _patch(self, data: Data, text: str) -> list[dict[str, Any]]: ...
    @abstractmethod
    def _read(self, body: Object) -> dict[str, Any] | None: ...


class _InSecret(Place):
    resource = SECRETS

    def __init__(self, kind: Kind) -> None:
        self.prefix = f"tower-{kind.value}-"
        self.selector = f"{LABEL}={kind.value}"

    def _fill(self, body: Object, data: Data, text: str) -> Object:
        return {**body, "type": SECRET_TYPE, "data": {"record": _base64(text)}}

    def _patch(self, data: Data, text: str) -> list[dict[str, Any]]:
        return [{"op": "add", "path": "/data/record", "value": _base64(text)}]

    def _read(self, body: Object) -> dict[str, Any] | None:
        try:
            return _object(base64.b64decode((body.get("data") or {})["record"], validate=True))
        except (KeyError, TypeError, ValueError):
            return None


class _InLease(Place):
    resource = LEASES

    def __init__(self, kind: Kind) -> None:
        self.selector = f"{LABEL}={kind.value}"

    def _fill(self, body: Object, data: Data, text: str) -> Object:
        metadata = {**body["metadata"], "annotations": {ANNOTATION: _bounded(text)}}
        return {**body, "metadata": metadata, "spec": {"holderIdentity": _holder(data)}}

    def _patch(self, data: Data, text: str) -> list[dict[str, Any]]:
        escaped = ANNOTATION.replace("~", "~0").replace("/", "~1")
        return [
            {"op": "add", "path": f"/metadata/annotations/{escaped}", "value": _bounded(text)},
            {"op": "add", "path": "/spec/holderIdentity", "value": _holder(data)},
        ]

    def _read(self, body: Object) -> dict[str, Any] | None:
        text = (body["metadata"].get("annotations") or {}).get(ANNOTATION)
        return _object(text) if isinstance(text, str) else None


class _AsMember(Place):
    resource = MEMBERS
    selector = f"{LABEL}={Kind.CLUSTER.value}"

    def _fill(self, body: Object, data: Data, text: str) -> Object:
        return {**body, "spec": _humped(data)}

    def _patch(self, data: Data, text: str) -> list[dict[str, Any]]:
        return [{"op": "add", "path": "/spec", "value": _humped(data)}]

    def _read(self, body: Object) -> dict[str, Any] | None:
        spec = body.get("spec")
        if spec is None:
            return {}
        if not isinstance(spec, dict):
            return None
        return {_HUMP.sub(lambda hump: f"_{hump[0].lower()}", key): value for key, value in spec.items()}


PLACES: Final[Mapping[Kind, Place]] = {
    kind: _AsMember() if kind is Kind.CLUSTER else _InLease(kind) if kind is Kind.CLAIM else _InSecret(kind)
    for kind in Kind
}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")


def _object(text: str | bytes) -> dict[str, Any] | None:
    try:
        return parse_object(text)
    except ValueError:
        return None


def _bounded(text: str) -> str:
    if len(text.encode()) > MAX_ANNOTATION_BYTES:
        raise Invalid(f"{len(text.encode())} bytes of data; an annotation holds at most {MAX_ANNOTATION_BYTES}")
    return text


def _holder(data: Data) -> str:
    """For people: `kubectl get leases` shows it."""
    return ".".join(str(data[key]) for key in ("cluster", "service") if data.get(key)) or "tower"


def _humped(data: Data) -> dict[str, Any]:
    """The keys of a record as those of a resource are written: servingNames."""
    return {
        "".join(word.capitalize() if index else word for index, word in enumerate(key.split("_")))
        if _SNAKE.fullmatch(key)
        else key: value
        for key, value in data.items()
    }

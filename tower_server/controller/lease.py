"""The leader's lease as an object of coordination.k8s.io."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from daemon.kube.client import Client
from daemon.kube.errors import Conflict, NotFound
from daemon.kube.resources import LEASES, Object, version_of
from tower_server.controller.names import MANAGER
from tower_server.election import Held, LeaseConflict

MAX_TERM: Final = 2**31 - 2  # leaseTransitions is an int32


class KubeLease:
    """One Lease; somebody's edit that makes no sense of it reads as a lease that was given back."""

    def __init__(self, client: Client, *, namespace: str, name: str) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._found: Object = {}

    async def read(self) -> Held | None:
        try:
            found = await self._client.get(LEASES, self._name, namespace=self._namespace)
        except NotFound:
            self._found = {}
            return None
        return self._held(found)

    async def write(self, lease: Held) -> Held:
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before: dict[str, Any] = self._found.get("spec") or {}
        spec = {
            **before,
            "holderIdentity": lease.holder,
            "leaseDurationSeconds": max(1, round(lease.duration)),
            "leaseTransitions": lease.term,
            "renewTime": now,
        }
        if lease.holder != before.get("holderIdentity") or "acquireTime" not in before:
            spec["acquireTime"] = now
        metadata = {**(self._found.get("metadata") or {}), "name": self._name, "namespace": self._namespace}
        metadata.pop("managedFields", None)
        body = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}
        try:
            if not lease.version:
                return self._held(await self._client.create(LEASES, _new(body), field_manager=MANAGER))
            metadata["resourceVersion"] = lease.version
            return self._held(await self._client.replace(LEASES, body, field_manager=MANAGER))
        except (Conflict, NotFound) as error:
            raise LeaseConflict(str(error)) from error

    def _held(self, found: Object) -> Held:
        self._found = found
        spec = found.get("spec") or {}
        holder, term, duration = (
            spec.get("holderIdentity"),
            spec.get("leaseTransitions"),
            spec.get("leaseDurationSeconds"),
        )
        return Held(
            holder=holder if isinstance(holder, str) else "",
            term=term if isinstance(term, int) and 0 <= term < MAX_TERM else 0,
            duration=float(duration) if isinstance(duration, int) else 0.0,
            version=version_of(found),
        )


def _new(body: Object) -> Object:
    metadata = {key: body["metadata"][key] for key in ("name", "namespace")}
    return {**body, "metadata": metadata}

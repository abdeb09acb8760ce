"""The agent's manifest by the admin API: what `towerctl manifest` prints, for whoever has no shell at the server."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any, Final

from pydantic import Field

from certs.names import is_label
from daemon.faults import TowerError
from gateway.errors import PolicyError
from gateway.manifest import Plan, objects
from gateway.policy import Policy
from protocol import defaults
from tower_server.admin.body import Body, checked
from tower_server.admin.services import Services

IMAGE: Final = f"tower-tunnel:{importlib.metadata.version('tower-tunnel')}"
_ADDRESS: Final = re.compile(r"\S{1,253}:[0-9]{1,5}")


class ManifestBody(Body):
    namespace: str = "tower-system"
    image: str = Field(default=IMAGE, min_length=1, max_length=512)
    replicas: int = Field(default=defaults.AGENT_REPLICAS, ge=1, le=10)
    services: dict[str, str] = Field(default={}, max_length=32)
    policy: dict[str, Any] | None = None
    """The rules of this host in the policy file; the host's own admins when left out."""
    token: bool = True
    ttl: float | None = None


async def manifest(services: Services, cluster: str, document: dict[str, Any]) -> dict[str, Any]:
    """A List that `kubectl apply` takes in the member, with a fresh token in it unless `token` is false.

    TowerError TWR111 where nobody has said under which URL agents reach this server, TWR605 for what makes no sense.
    """
    asked = checked(ManifestBody, document)
    record, _ = services.clusters.get(cluster)
    if not is_label(asked.namespace):
        raise TowerError("TWR605", f"namespace: {asked.namespace[:80]!r} is not a DNS label")
    for name, address in asked.services.items():
        if not is_label(name) or name == "kubernetes" or not _ADDRESS.fullmatch(address):
            raise TowerError("TWR605", f"services: {name[:80]!r}: {address[:80]!r} is not a name and a HOST:PORT")
    host = services.authority.host
    try:
        policy = Policy.default(host) if asked.policy is None else Policy.from_dict(host, asked.policy)
    except PolicyError as error:
        raise TowerError("TWR605", f"policy: {error}") from error
    token = None
    if asked.token:
        await services.public.url()
        token = (await services.tokens.create(record, ttl=asked.ttl)).text
    plan = Plan(policy, asked.namespace, asked.image, token, replicas=asked.replicas, services=asked.services)
    return {"apiVersion": "v1", "kind": "List", "items": objects(plan)}

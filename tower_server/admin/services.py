"""What the admin API may reach of the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from certs.ca import Authority
from daemon.metrics import ServerMetrics
from tower_server.agents import Agents
from tower_server.clusters import Clusters
from tower_server.probe import ProbeCredential
from tower_server.probing import Probing
from tower_server.publicaddress import PublicAddress
from tower_server.revocations import Revocations
from tower_server.rotation import Rotation
from tower_server.store.base import Store
from tower_server.tokens import Tokens
from tower_server.tunnels import TunnelRegistry

if TYPE_CHECKING:
    from daemon.kube.client import Client
    from tower_server.replicas.replicas import Replicas


@dataclass(slots=True, kw_only=True)
class Services:
    """Made by the server; `listen` is filled in when the tunnel port stands."""

    store: Store
    authority: Authority
    registry: TunnelRegistry
    clusters: Clusters
    agents: Agents
    tokens: Tokens
    rotation: Rotation
    revocations: Revocations
    probing: Probing
    credential: ProbeCredential
    metrics: ServerMetrics
    version: str
    public: PublicAddress
    callers_address: str
    """Empty where the host's Services, in `namespace`, lead callers to their clusters."""
    started: float
    host: Client | None = None
    """Of the host's apiserver, where records lie there."""
    replicas: Replicas | None = None
    """The other servers of the host, where there can be any."""
    namespace: str = ""
    listen: str = field(default="")
    legacy_address: str = field(default="")
    """Of the port of the dialect kubesphere-v1; empty where that is not enabled."""

"""What a server has in addition when its records are kept in its host cluster: the other servers beside it, operators
whom the apiserver authenticates, the controller, and KubeSphere's secret. What needs the Kubernetes client is imported
only when one of these is made.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from daemon.log import get_logger
from daemon.metrics import ServerMetrics
from daemon.units import split_address
from tower_server.admin.app import AdminApp
from tower_server.admin.calls import told_to_servers
from tower_server.admin.services import Services
from tower_server.config import ServerConfig, machine_name
from tower_server.control import Start
from tower_server.kubesphere import HostSecret
from tower_server.listeners import CallerPorts
from tower_server.store.base import Store

if TYPE_CHECKING:
    from daemon.kube.client import Client
    from protocol.aio.listener import TunnelListener
    from tower_server.admin.operators import OperatorPort
    from tower_server.controller.hosting import HostController
    from tower_server.replicas.replicas import Replicas

log = get_logger(__name__)


def client_of(store: Store) -> Client | None:
    """The host's apiserver, where records lie there."""
    from tower_server.store.kubernetes import KubernetesStore

    return store.client if isinstance(store, KubernetesStore) else None


def host_secret(config: ServerConfig, client: Client | None) -> HostSecret | None:
    """What members' KubeSpheres are compared with, where the configuration says where it lies."""
    place = config.kubesphere_config
    return HostSecret(client, place=place) if place and client is not None else None


def make_replicas(config: ServerConfig, services: Services, ports: CallerPorts, *, start: Start) -> Replicas:
    from tower_server.replicas.replicas import Replicas

    replicas = Replicas(
        authority=services.authority,
        name=config.replica.name or machine_name(),
        registry=services.registry,
        clusters=services.clusters,
        start=start,
    )
    ports.elsewhere = replicas.elsewhere
    replicas.answer = partial(told_to_servers, services)
    services.replicas = replicas
    services.agents.tag = replicas.tag
    services.rotation.subscribe(lambda: replicas.certificate.renew(at=time.time()))
    return replicas


async def open_replicas(config: ServerConfig, client: Client, replicas: Replicas, *, listener: TunnelListener) -> None:
    from tower_server.controller.hosting import slice_address, way_address

    own = config.callers.cluster_address or way_address(client.address)
    await replicas.open(
        client,
        namespace=config.store.namespace,
        listen=split_address(config.replica.listen),
        address=config.replica.address or own,
        callers=slice_address(own),
    )
    listener.carry, replicas.link = replicas.carry, listener.carried


async def open_operators(config: ServerConfig, client: Client, services: Services, *, server: str) -> OperatorPort:
    """The operators' port of the server of this name."""
    from tower_server.admin.login import Logins
    from tower_server.admin.operators import OperatorApp, OperatorPort

    logins = Logins(client, namespace=config.store.namespace, server=server)
    port = OperatorPort(OperatorApp(AdminApp(services), logins), config.operators.listen)
    await port.start()
    log.info("operators-port", address=port.address)
    return port


def make_controller(
    config: ServerConfig, client: Client, services: Services, *, replicas: Replicas, metrics: ServerMetrics
) -> HostController:
    from tower_server.controller.hosting import HostController

    return HostController(
        config,
        client=client,
        store=services.store,
        authority=services.authority,
        clusters=services.clusters,
        registry=services.registry,
        revocations=services.revocations,
        metrics=metrics,
        replicas=replicas,
    )

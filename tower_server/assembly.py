"""Builds the parts of a server and connects them. Nothing listens or runs yet: `server` starts them in order."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certs.handshake import agent_verifier
from certs.keys import signer
from certs.peers import RENEWAL_GRACE
from certs.sealing import Sealer
from daemon.health import Health
from daemon.log import get_logger
from daemon.metrics import ServerMetrics
from daemon.units import split_address
from protocol import defaults
from protocol.aio.listener import Credentials, TunnelListener
from protocol.flow import Budget
from tower_server.admin.app import AdminApp
from tower_server.admin.services import Services
from tower_server.admin.socket import AdminSocket
from tower_server.agents import Agents
from tower_server.answer import Answerer
from tower_server.authority import load_or_create
from tower_server.bucket import SharedBucket
from tower_server.clusters import Clusters
from tower_server.config import ServerConfig, machine_name, url_host
from tower_server.control import Control, Start
from tower_server.enrolment import Enrolment
from tower_server.gate import Gate
from tower_server.hosted import client_of, host_secret, make_replicas
from tower_server.kubesphere import HostSecret
from tower_server.listeners import RAW_SHARE, CallerPorts
from tower_server.ports import PortAllocator, PortRange
from tower_server.probe import ProbeCredential
from tower_server.probing import Probing
from tower_server.publicaddress import PublicAddress
from tower_server.revocations import Revocations
from tower_server.rotation import Rotation
from tower_server.servercert import FileCertificate, ServerCertificate, own_names
from tower_server.store.base import Store
from tower_server.tokens import Tokens
from tower_server.tunnels import TunnelRegistry

if TYPE_CHECKING:
    from tower_server.admin.operators import OperatorPort
    from tower_server.legacy.service import LegacyAgents
    from tower_server.replicas.replicas import Replicas

log = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Parts:
    """The parts of a server, in the order in which they are made."""

    store: Store
    certificate: ServerCertificate
    services: Services
    ports: CallerPorts
    listener: TunnelListener
    admin: AdminSocket
    health: Health
    sealer: Sealer
    file_certificate: FileCertificate | None = None
    legacy: LegacyAgents | None = None
    host_secret: HostSecret | None = None
    replicas: Replicas | None = None
    operators: OperatorPort | None = None

    def renew_certificate(self) -> None:
        """Renew the server's certificate, before it expires or under a new root: for handshakes from now on."""
        self.certificate.renew(at=time.time())
        issued, bundle = self.certificate.issued, self.services.authority.bundle
        self.sealer.vouch(bundle=bundle, chain_pem=issued.chain_pem, sign=signer(self.certificate.key))
        log.info("server-certificate-renewed", expires=issued.not_after)

    def reached_as(self, url: str) -> None:
        """Agents that dial this address verify its name, whichever server answers them."""
        if self.certificate.name_also(own_names(url_host(url))):
            self.renew_certificate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """What the parts are made from. `start` owns work that one agent caused; `goes_at` is the loop's time at which a
    draining server will be gone."""

    config: ServerConfig
    version: str
    metrics: ServerMetrics
    budget: Budget
    inherited: dict[str, list[socket.socket]]
    start: Start
    goes_at: Callable[[], float | None]

    async def make(self, store: Store) -> Parts:
        config, metrics, now = self.config, self.metrics, time.time()
        authority, made = await load_or_create(store, host=config.host, fallback_host=machine_name(), at=now)
        if made:
            log.info("authority-made", host=authority.host, fingerprint=authority.bundle.fingerprint)
        names = own_names(url_host(config.public_url or ""), split_address(config.listen)[0])
        certificate = ServerCertificate(authority, names=names, at=now)
        revocations = await Revocations.load(store, authority, at=now)
        registry = TunnelRegistry()
        agents = Agents(store, authority, revocations, registry)
        ports = self._caller_ports(certificate)
        clusters = Clusters(
            store=store,
            allocator=self._allocator(store),
            ports=ports,
            registry=registry,
            agents=agents,
            revocations=revocations,
            metrics=metrics,
            hold_seconds=config.callers.hold,
            hold_waiters=config.callers.hold_waiters,
            resume_window=config.liveness.resume_window,
            own_names=names,
            heartbeat=config.store.kind == "sqlite",
            shared=config.store.kind == "kubernetes",
        )
        credential, client = ProbeCredential(authority), client_of(store)
        public = PublicAddress(config.public_url, client=client, namespace=config.store.namespace)
        rotation = Rotation(store, authority, agents)
        services = Services(
            store=store,
            authority=authority,
            registry=registry,
            clusters=clusters,
            agents=agents,
            rotation=rotation,
            tokens=Tokens(
                store,
                url=lambda: public.known or "",
                fingerprint=lambda: authority.bundle.fingerprint,
                lifetime=config.enrolment.lifetime,
                uses=config.enrolment.uses,
            ),
            revocations=revocations,
            probing=Probing(registry, credential, start=self.start),
            credential=credential,
            metrics=metrics,
            version=self.version,
            public=public,
            callers_address=callers_address(config),
            namespace=config.store.namespace,
            started=now,
            host=client,
        )
        ports.unreachable = services.probing.suspect
        secret = host_secret(config, client)
        self._control(services, secret)
        sealer = Sealer(bundle=authority.bundle, chain_pem=certificate.issued.chain_pem, sign=signer(certificate.key))
        gate = Gate(config.admission, agents=agents, registry=registry, metrics=metrics, goes_at=self.goes_at)
        parts = Parts(
            store=store,
            certificate=certificate,
            services=services,
            ports=ports,
            listener=self._listener(services, certificate, sealer, gate),
            admin=AdminSocket(
                AdminApp(services), config.admin_socket, malformed=metrics.admin_requests.labels("400").inc
            ),
            health=Health(metrics=metrics.render),
            file_certificate=FileCertificate(config.tls.cert, config.tls.key) if config.tls is not None else None,
            sealer=sealer,
            legacy=self._legacy(services, gate) if config.kubesphere_v1.enabled else None,
            host_secret=secret,
        )
        public.changed = parts.reached_as
        rotation.subscribe(parts.renew_certificate)
        rotation.subscribe(lambda: revocations.sign_anew(at=time.time()))
        if client is not None:
            parts.replicas = make_replicas(config, services, ports, start=self.start)
        return parts

    def _caller_ports(self, certificate: ServerCertificate) -> CallerPorts:
        callers, memory = self.config.callers, self.config.memory
        return CallerPorts(
            bind=self.config.ports.bind,
            answerer=Answerer(certificate.answer_context),
            answers=callers.no_tunnel_answer == "status",
            open_duration=self.metrics.stream_open_duration.observe,
            per_network=callers.new_per_network,
            raw=max(1, min(memory.tunnel, memory.process) // defaults.RESERVED_CREDIT // RAW_SHARE),
            throttled=self.metrics.throttled.labels("callers"),
            inherited=self.inherited,
        )

    def _allocator(self, store: Store) -> PortAllocator:
        ports = self.config.ports
        first, last = ports.range
        return PortAllocator(
            store,
            bind_address=ports.bind,
            kubernetes=PortRange(first, last),
            kubesphere_offset=ports.kubesphere_offset,
        )

    def _control(self, services: Services, secret: HostSecret | None) -> None:
        """The control streams. Not one of the parts, since it lives by its subscriptions."""
        clusters = services.clusters
        control = Control(
            registry=services.registry,
            agents=services.agents,
            revocations=services.revocations,
            rotation=services.rotation,
            metrics=self.metrics,
            start=self.start,
            declared=lambda member: self.start(clusters.declare(member), f"declare-{member.name}"),
            suspect=services.probing.suspect,
            names=clusters.certificate_names,
            host=services.authority.host,
        )
        if secret is not None:
            control.kubesphere = lambda: secret.secret
        clusters.subscribe(lambda _change, name: control.renamed(name))

    def _legacy(self, services: Services, gate: Gate) -> LegacyAgents:
        from tower_server.legacy.service import LegacyAgents  # brings SSH, 7 MiB

        return LegacyAgents(
            self.config.kubesphere_v1,
            authority=services.authority,
            clusters=services.clusters,
            agents=services.agents,
            registry=services.registry,
            revocations=services.revocations,
            budget=self.budget,
            limits=self.config.liveness.limits(self.config.memory),
            admit=gate.admit,
            on_refused=gate.refused,
            start_work=self.start,
            handshakes=self.metrics.handshakes,
            suspect=services.probing.suspect,
            version=self.version,
        )

    def _listener(
        self, services: Services, certificate: ServerCertificate, sealer: Sealer, gate: Gate
    ) -> TunnelListener:
        config, now = self.config.admission, asyncio.get_running_loop().time()
        enrolment = Enrolment(
            store=services.store,
            host=services.authority.host,
            trust=lambda: services.authority.bundle,
            sealer=sealer,
            tokens=services.tokens,
            agents=services.agents,
            revocations=services.revocations,
            metrics=self.metrics,
            bucket=SharedBucket(rate=config.enrolments_per_second, burst=config.enrolment_burst, now=now),
        )
        verify = agent_verifier(
            lambda: services.authority.bundle,
            time.time,
            lambda: services.revocations.current,
            allow_expired_for=RENEWAL_GRACE,
        )

        def credentials() -> Credentials:
            return certificate.credentials

        return TunnelListener(
            credentials=credentials,
            verify=verify,
            authenticate=services.agents.authenticate,
            http=enrolment.answer,
            on_tunnel=gate.admit_tunnel,
            find=services.registry.find,
            admit_new=gate.admit_new,
            budget=self.budget,
            limits=self.config.liveness.limits(self.config.memory),
            admit=gate.admit,
            on_refused=gate.refused,
        )


def callers_address(config: ServerConfig) -> str:
    """The host name in kubeconfigs; empty in a pod, where each cluster has a Service."""
    if config.callers.address:
        return config.callers.address
    if config.store.kind == "kubernetes" and config.store.kubeconfig is None:
        return ""
    return url_host(config.public_url or "") or "127.0.0.1"

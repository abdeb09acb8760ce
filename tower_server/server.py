"""The whole server, put together: what is made in which order, what runs, and how it ends.

Start: store, CA, listeners of the clusters, tunnel port, admin API, health; ready is said when all of them stand. Stop:
agents are told to move and to end what would never end; callers that still come are told why nobody serves them, or
wait in a listener that outlives the process; what is left after `drain` ends with a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from certs.handshake import agent_verifier
from certs.keys import signer
from certs.peers import RENEWAL_GRACE
from certs.sealing import Sealer
from daemon.faults import TowerError
from daemon.health import Health
from daemon.log import get_logger
from daemon.metrics import STATES, ServerMetrics, sample_loop_lag
from daemon.process import Process
from daemon.supervisor import Supervisor
from daemon.units import split_address
from protocol.aio.listener import Credentials, TunnelListener
from protocol.constants import Code
from tower_server.admin.app import AdminApp
from tower_server.admin.calls import told_to_servers
from tower_server.admin.services import Services
from tower_server.admin.socket import AdminSocket
from tower_server.agents import Agents
from tower_server.answer import Answerer
from tower_server.authority import load_or_create
from tower_server.bucket import SharedBucket
from tower_server.clusters import Clusters
from tower_server.config import ServerConfig, machine_name, url_host
from tower_server.control import Control
from tower_server.enrolment import Enrolment
from tower_server.gate import Gate
from tower_server.heeding import heed
from tower_server.kubesphere import HostSecret
from tower_server.listeners import CallerPorts
from tower_server.ports import PortAllocator, PortRange
from tower_server.probe import ProbeCredential
from tower_server.probing import Probing
from tower_server.publicaddress import LOOK_EVERY, PublicAddress
from tower_server.revocations import Revocations
from tower_server.rotation import Rotation
from tower_server.servercert import FileCertificate, ServerCertificate, own_names
from tower_server.store.base import Kind, Store
from tower_server.store.place import open_store, state_of
from tower_server.tokens import Tokens
from tower_server.tunnels import TunnelRegistry

HOUSEKEEPING: Final = 10.0
TIDY_EVERY: Final = 3600.0
DRAIN_POLL: Final = 0.05

if TYPE_CHECKING:
    from daemon.kube.client import Client
    from tower_server.admin.operators import OperatorPort
    from tower_server.controller.hosting import HostController
    from tower_server.legacy.service import LegacyAgents
    from tower_server.replicas.replicas import Replicas

log = get_logger(__name__)


@dataclass(slots=True)
class _Parts:
    """What exists of the server so far, in the order in which it was made."""

    store: Store
    certificate: ServerCertificate
    services: Services
    ports: CallerPorts
    listener: TunnelListener
    admin: AdminSocket
    health: Health
    file_certificate: FileCertificate | None = None
    sealer: Sealer | None = None
    legacy: LegacyAgents | None = None
    host_secret: HostSecret | None = None
    replicas: Replicas | None = None
    operators: OperatorPort | None = None


class Server:
    """One tower server. `start`, then `stop`; tasks belong to the process' supervisor."""

    def __init__(self, config: ServerConfig, process: Process, *, version: str) -> None:
        self._config = config
        self._process = process
        self._version = version
        self._metrics = ServerMetrics(version=version)
        self._parts: _Parts | None = None
        self._budget = config.memory.budget()
        self._goes_at: float | None = None  # on the loop's clock, once the server drains
        self._of_peers = Supervisor(on_failure=_is_the_peers)
        self._tidied = 0.0
        self.health_address = ""

    @property
    def services(self) -> Services:
        assert self._parts is not None, "the server has not been started"
        return self._parts.services

    # ---- start --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Everything stands when this returns. TowerError says what is in the way; what stood by then is ended."""
        store = await open_store(self._config, version=self._version)
        try:
            parts = self._parts = await self._make(store)
        except BaseException:
            await store.close()
            raise
        try:
            await self._open(parts)
        except BaseException:
            await self.stop()
            raise

    async def _make(self, store: Store) -> _Parts:
        config, metrics, now = self._config, self._metrics, time.time()
        authority, made = await load_or_create(store, host=config.host, fallback_host=machine_name(), at=now)
        if made:
            log.info("authority-made", host=authority.host, fingerprint=authority.bundle.fingerprint)
        names = own_names(url_host(config.public_url or ""), split_address(config.listen)[0])
        certificate = ServerCertificate(authority, names=names, at=now)
        revocations = await Revocations.load(store, authority, at=now)
        registry = TunnelRegistry()
        agents = Agents(store, authority, revocations, registry)
        first, last = config.ports.range
        ports = CallerPorts(
            bind=config.ports.bind,
            answerer=Answerer(certificate.answer_context),
            answers=config.callers.no_tunnel_answer == "status",
            open_duration=metrics.stream_open_duration.observe,
            per_network=config.callers.new_per_network,
            throttled=metrics.throttled.labels("callers"),
            inherited=self._process.listeners,
        )
        clusters = Clusters(
            store=store,
            allocator=PortAllocator(
                store,
                bind_address=config.ports.bind,
                kubernetes=PortRange(first, last),
                kubesphere_offset=config.ports.kubesphere_offset,
            ),
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
        credential = ProbeCredential(authority)
        public = self._public_address(store)
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
            probing=Probing(registry, credential, start=self._start_for_peer),
            credential=credential,
            metrics=metrics,
            version=self._version,
            public=public,
            callers_address=_callers_address(config),
            namespace=config.store.namespace,
            started=now,
            host=self._host(store),
        )
        control = Control(
            registry=registry,
            agents=agents,
            revocations=revocations,
            rotation=rotation,
            metrics=metrics,
            start=self._start_for_peer,
            declared=lambda member: self._start_for_peer(clusters.declare(member), f"declare-{member.name}"),
            suspect=services.probing.suspect,
            names=clusters.certificate_names,
            host=authority.host,
        )
        ports.unreachable = services.probing.suspect
        host_secret = self._host_secret(store)
        if host_secret is not None:
            control.kubesphere = lambda: host_secret.secret
        clusters.subscribe(lambda _change, name: control.renamed(name))
        rotation.subscribe(self._renew_certificate)
        rotation.subscribe(lambda: revocations.sign_anew(at=time.time()))
        sealer = Sealer(bundle=authority.bundle, chain_pem=certificate.issued.chain_pem, sign=signer(certificate.key))
        gate = Gate(config.admission, agents=agents, registry=registry, metrics=metrics, goes_at=lambda: self._goes_at)
        return _Parts(
            store=store,
            certificate=certificate,
            services=services,
            ports=ports,
            listener=self._listener(services, certificate, sealer, gate),
            admin=AdminSocket(AdminApp(services), config.admin_socket),
            health=Health(metrics=metrics.render),
            file_certificate=FileCertificate(config.tls.cert, config.tls.key) if config.tls is not None else None,
            sealer=sealer,
            legacy=self._legacy(services, gate) if config.kubesphere_v1.enabled else None,
            host_secret=host_secret,
            replicas=self._replicas(services, ports) if config.store.kind == "kubernetes" else None,
        )

    def _public_address(self, store: Store) -> PublicAddress:
        from tower_server.store.kubernetes import KubernetesStore

        client = store.client if isinstance(store, KubernetesStore) else None
        made = PublicAddress(self._config.public_url, client=client, namespace=self._config.store.namespace)
        made.changed = self._reached_as
        return made

    def _reached_as(self, url: str) -> None:
        """Agents that dial this address verify its name, whichever server answers them."""
        assert self._parts is not None
        if self._parts.certificate.name_also(own_names(url_host(url))):
            self._renew_certificate()

    async def _look_for_address(self) -> None:
        await asyncio.sleep(LOOK_EVERY)
        await self.services.public.look()

    def _replicas(self, services: Services, ports: CallerPorts) -> Replicas:
        from tower_server.replicas.replicas import Replicas

        replicas = Replicas(
            authority=services.authority,
            name=self._config.replica.name or machine_name(),
            registry=services.registry,
            clusters=services.clusters,
            start=self._start_for_peer,
        )
        ports.elsewhere = replicas.elsewhere
        replicas.answer = partial(told_to_servers, services)
        services.replicas = replicas
        services.agents.tag = replicas.tag
        services.rotation.subscribe(lambda: replicas.certificate.renew(at=time.time()))
        return replicas

    async def _open_replicas(self, replicas: Replicas, store: Store) -> None:
        from tower_server.controller.hosting import slice_address, way_address
        from tower_server.store.kubernetes import KubernetesStore

        assert isinstance(store, KubernetesStore)
        config = self._config
        own = config.callers.cluster_address or way_address(store.client.address)
        await replicas.open(
            store.client,
            namespace=config.store.namespace,
            listen=split_address(config.replica.listen),
            address=config.replica.address or own,
            callers=slice_address(own),
        )
        assert self._parts is not None
        listener = self._parts.listener
        listener.carry, replicas.link = replicas.carry, listener.carried
        self._process.tasks.restart(replicas.run, name="replicas")

    async def _open_operators(self, parts: _Parts, replicas: Replicas) -> None:
        from tower_server.admin.login import Logins
        from tower_server.admin.operators import OperatorApp, OperatorPort
        from tower_server.store.kubernetes import KubernetesStore

        config = self._config
        assert isinstance(parts.store, KubernetesStore)
        if not config.operators.listen:
            return
        logins = Logins(parts.store.client, namespace=config.store.namespace, server=replicas.name)
        parts.operators = OperatorPort(OperatorApp(AdminApp(parts.services), logins), config.operators.listen)
        await parts.operators.start()
        log.info("operators-port", address=parts.operators.address)

    def _legacy(self, services: Services, gate: Gate) -> LegacyAgents:
        from tower_server.legacy.service import LegacyAgents  # brings SSH, 7 MiB

        return LegacyAgents(
            self._config.kubesphere_v1,
            authority=services.authority,
            clusters=services.clusters,
            agents=services.agents,
            registry=services.registry,
            revocations=services.revocations,
            budget=self._budget,
            credit=self._config.memory.limits(),
            admit=gate.admit,
            on_refused=gate.refused,
            start_work=self._start_for_peer,
            handshakes=self._metrics.handshakes,
            suspect=services.probing.suspect,
        )

    def _listener(
        self, services: Services, certificate: ServerCertificate, sealer: Sealer, gate: Gate
    ) -> TunnelListener:
        config, now = self._config.admission, asyncio.get_running_loop().time()
        enrolment = Enrolment(
            store=services.store,
            host=services.authority.host,
            trust=lambda: services.authority.bundle,
            sealer=sealer,
            tokens=services.tokens,
            agents=services.agents,
            revocations=services.revocations,
            metrics=self._metrics,
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
            budget=self._budget,
            limits=self._config.liveness.limits(self._config.memory),
            admit=gate.admit,
            on_refused=gate.refused,
        )

    async def _open(self, parts: _Parts) -> None:
        config = self._config
        await parts.services.clusters.start()
        inherited = self._process.listeners
        host, port = split_address(config.listen)
        context = parts.certificate.tunnel_context
        if parts.file_certificate is not None:
            context = parts.file_certificate.context
        try:
            address = await parts.listener.start(
                host or None,
                port,
                None if config.plain_http else context,
                sock=_first(inherited, "tunnel"),
            )
        except OSError as error:
            raise TowerError(
                "TWR103",
                f"the tunnel port {config.listen} cannot be listened on: {error.strerror or error}",
                mend="stop what listens there (`ss -ltnp` names it), or set another `listen`",
            ) from error
        parts.services.listen = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        if parts.legacy is not None:
            await parts.legacy.start(_first(inherited, "kubesphere-v1"))
            parts.services.legacy_address = parts.legacy.address
        await parts.admin.start(_first(inherited, "admin"))
        if config.store.kind == "sqlite":  # an apiserver is away for all replicas at once, and callers can do without
            parts.health.check("store", self._store_answers)
        self.health_address = await parts.health.start(config.health_address, sock=_first(inherited, "health"))
        self._metrics.buffer_limit_bytes.set(self._budget.limit)
        self._start(parts.ports.run(), "caller-ports")
        self._start(parts.services.probing.run(), "probing")
        self._start(sample_loop_lag(self._metrics.event_loop_lag), "loop-lag")
        self._process.tasks.restart(self._housekeeping, name="housekeeping")
        if parts.replicas is not None:
            if config.public_url is None:
                await parts.services.public.look()
                self._process.tasks.restart(self._look_for_address, name="public-address")
            await self._open_replicas(parts.replicas, parts.store)
            await self._open_operators(parts, parts.replicas)
            self._process.tasks.restart(parts.services.clusters.follow, name="follow-clusters")
            self._process.tasks.restart(self._controller(parts, parts.replicas).run, name="controller")
            if parts.host_secret is not None:
                self._process.tasks.restart(parts.host_secret.run, name="kubesphere-config")

    def _host(self, store: Store) -> Client | None:
        """The host's apiserver, where records lie there."""
        if self._config.store.kind != "kubernetes":
            return None
        from tower_server.store.kubernetes import KubernetesStore

        assert isinstance(store, KubernetesStore)
        return store.client

    def _host_secret(self, store: Store) -> HostSecret | None:
        """What members' KubeSpheres are compared with, where the configuration says where it lies."""
        client, place = self._host(store), self._config.kubesphere_config
        return HostSecret(client, place=place) if place and client is not None else None

    def _controller(self, parts: _Parts, replicas: Replicas) -> HostController:
        from tower_server.controller.hosting import HostController
        from tower_server.store.kubernetes import KubernetesStore

        services = parts.services
        assert isinstance(parts.store, KubernetesStore)
        return HostController(
            self._config,
            client=parts.store.client,
            store=parts.store,
            authority=services.authority,
            clusters=services.clusters,
            registry=services.registry,
            revocations=services.revocations,
            metrics=self._metrics,
            replicas=replicas,
        )

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> object:
        return self._process.tasks.start(work, name=name)

    def _start_for_peer(self, work: Coroutine[Any, Any, None], name: str) -> object:
        """Work that one agent has brought about: its failure is logged, and no reason to end the others' server."""
        return self._of_peers.start(work, name=name)

    # ---- now and then -------------------------------------------------------------------------------------------

    async def _housekeeping(self) -> None:
        parts = self._parts
        assert parts is not None
        now = time.time()
        if now >= parts.certificate.renew_at:
            self._renew_certificate()
        if parts.replicas is not None and now >= parts.replicas.certificate.renew_at:
            parts.replicas.certificate.renew(at=now)
        if self._config.store.kind == "kubernetes":
            await parts.services.rotation.follow()
            await heed(parts.services.revocations, parts.services.registry)
        self._reload(parts.file_certificate)
        if parts.legacy is not None:
            parts.legacy.housekeeping()
        parts.services.revocations.repeat(at=now)
        await parts.services.agents.close_expired(at=now)
        await parts.services.clusters.save()
        if now - self._tidied > TIDY_EVERY:
            self._tidied = now
            await parts.services.tokens.tidy()
            await parts.services.agents.tidy()
        self._count(parts)
        await asyncio.sleep(HOUSEKEEPING)

    def _renew_certificate(self) -> None:
        """Before its end, or under another root. Contexts take it from the next handshake on."""
        parts = self._parts
        assert parts is not None
        parts.certificate.renew(at=time.time())
        issued, bundle = parts.certificate.issued, parts.services.authority.bundle
        if parts.sealer is not None:
            parts.sealer.vouch(bundle=bundle, chain_pem=issued.chain_pem, sign=signer(parts.certificate.key))
        log.info("server-certificate-renewed", expires=issued.not_after)

    def _reload(self, certificate: FileCertificate | None) -> None:
        """Follows the operator's certificate; one that cannot be used leaves the one before in force."""
        try:
            if certificate is not None and certificate.reload():
                log.info("tunnel-certificate-reloaded")
        except TowerError as error:
            log.error("tunnel-certificate-unusable", code=error.code, text=error.message)

    def _count(self, parts: _Parts) -> None:
        metrics, services = self._metrics, parts.services
        states = [member.verdict.state for member in services.registry.members.values()]
        for state in STATES:
            metrics.clusters.labels(state).set(states.count(state))
        listening = [port.listening for port in parts.ports]
        metrics.ports.labels("caller", "listening").set(listening.count(True))
        metrics.ports.labels("caller", "unavailable").set(listening.count(False))
        metrics.buffer_bytes.set(self._budget.used)
        metrics.certificate_expiration.labels("server", "").set(parts.certificate.issued.not_after)
        root = services.authority.bundle.root.not_valid_after_utc.timestamp()
        metrics.certificate_expiration.labels("ca", "").set(root)

    async def _store_answers(self) -> str | None:
        try:
            await self.services.store.list(Kind.REVOCATION)
        except TowerError as error:
            return error.message
        return None

    # ---- stop ---------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Ends everything; safe to call for a server that has not started wholly."""
        parts = self._parts
        if parts is None or self._goes_at is not None:
            return
        registry = parts.services.registry
        parts.health.stopping = True
        await self._drain(parts)
        await parts.listener.stop()
        if parts.legacy is not None:
            await parts.legacy.stop()
        await parts.admin.stop()
        if parts.operators is not None:
            await parts.operators.stop()
        parts.ports.close("the server stops")
        if parts.replicas is not None:
            parts.replicas.close()
        registry.close_all(Code.SHUTDOWN, "the server stops")
        with contextlib.suppress(TowerError):  # a store that fails now has said so already; the rest must still end
            await parts.services.clusters.save()
        for member in registry.members.values():
            member.hold.close()
        await asyncio.sleep(0)
        await self._of_peers.close()
        await self._process.tasks.close()
        await parts.health.stop()
        await parts.store.close()
        self._parts = None

    async def _drain(self, parts: _Parts) -> None:
        """Lets what runs end, at most until the deadline. Agents are told to come back after it, spread over the time
        that it takes to let them all in; one whose tunnel ends before waits for its share of that time only."""
        registry, deadline = parts.services.registry, self._config.drain
        tunnels, began = sum(1 for _ in registry), asyncio.get_running_loop().time()
        spread = tunnels / self._config.admission.handshakes_per_second
        self._goes_at = began + deadline
        parts.ports.drain()
        if parts.replicas is not None:
            parts.replicas.drain()
        registry.drain_all(
            "the server stops",
            deadline=deadline,
            retry_after=lambda: deadline + random.random() * spread,  # noqa: S311
        )
        for member in registry.members.values():
            member.hold.close()
        log.info("draining", tunnels=tunnels, callers=parts.ports.connections, deadline=deadline)
        while asyncio.get_running_loop().time() < self._goes_at:
            await asyncio.sleep(DRAIN_POLL)  # the first one also lets what was said leave
            if not parts.ports.connections and not registry.busy:
                break
        took = round(asyncio.get_running_loop().time() - began, 3)
        log.info("drained", callers=parts.ports.connections, seconds=took)


def _is_the_peers(_name: str, _error: BaseException) -> None:
    """The supervisor has logged it."""


def _callers_address(config: ServerConfig) -> str:
    """The host name in kubeconfigs; empty in a pod, where each cluster has a Service."""
    if config.callers.address:
        return config.callers.address
    if config.store.kind == "kubernetes" and config.store.kubeconfig is None:
        return ""
    return url_host(config.public_url or "") or "127.0.0.1"


def _first(inherited: dict[str, list[socket.socket]], name: str) -> socket.socket | None:
    found = inherited.get(name)
    return found[0] if found else None


async def serve(config: ServerConfig, process: Process, *, version: str) -> None:
    """Runs a server until the process is told to stop."""
    server = Server(config, process, version=version)
    await server.start()
    services = server.services
    log.info(
        "listening",
        host=services.authority.host,
        version=version,
        tunnel=services.listen,
        public_url=services.public.known,
        admin=str(config.admin_socket),
        health=server.health_address,
        state=state_of(config),
        clusters=len(services.clusters.names()),
        ca=services.authority.bundle.fingerprint,
    )
    if services.public.known is None:
        log.warning("no-public-url", text=services.public.missing.message)
    await process.ready(f"serving {len(services.clusters.names())} clusters on {services.listen}")
    try:
        await process.stop.wait()
    finally:
        await server.stop()
    if process.failure is not None:
        raise process.failure

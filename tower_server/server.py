"""The whole server: in which order its parts open, what runs, and how it ends.

Start: store, CA, listeners of the clusters, tunnel port, admin API, health; ready is said when all of them stand. Stop:
agents are told to move and to end what would never end; callers that still come are told why nobody serves them, or
wait in a listener that outlives the process; what is left after `drain` ends with a reason.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from daemon.faults import TowerError, cannot_listen
from daemon.log import get_logger
from daemon.metrics import ServerMetrics, sample_loop_lag
from daemon.process import Process
from daemon.supervisor import Supervisor
from daemon.units import split_address
from protocol.aio.busypoll import busy_poll
from protocol.constants import Code
from tower_server.admin.services import Services
from tower_server.assembly import Assembly, Parts
from tower_server.config import ServerConfig
from tower_server.expiry import Expiry
from tower_server.hosted import make_controller, open_operators, open_replicas
from tower_server.housekeeping import Housekeeping
from tower_server.publicaddress import LOOK_EVERY
from tower_server.sockets import check_inherited
from tower_server.store.base import Kind
from tower_server.store.place import open_store, state_of

DRAIN_POLL: Final = 0.05
SAVED_WITHIN: Final = 10.0  # seconds, at a stop

if TYPE_CHECKING:
    from daemon.kube.client import Client
    from tower_server.replicas.replicas import Replicas

log = get_logger(__name__)


class Server:
    """One tower server. `start`, then `stop`; tasks belong to the process' supervisor."""

    def __init__(self, config: ServerConfig, process: Process, *, version: str) -> None:
        self._config = config
        self._process = process
        self._version = version
        self._metrics = ServerMetrics(version=version)
        self._parts: Parts | None = None
        self._budget = config.memory.budget()
        self._goes_at: float | None = None  # on the loop's clock, once the server drains
        self._of_peers = Supervisor(on_failure=_is_the_peers)
        self.health_address = ""

    @property
    def services(self) -> Services:
        assert self._parts is not None, "the server has not been started"
        return self._parts.services

    # ---- start --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """When this returns everything is up. TowerError says what is in the way; what had been started is stopped."""
        check_inherited(self._process.listeners, legacy=self._config.kubesphere_v1.enabled)
        busy_poll(asyncio.get_running_loop()).enabled = self._config.busy_poll
        store = await open_store(self._config, version=self._version)
        try:
            assembly = Assembly(
                config=self._config,
                version=self._version,
                metrics=self._metrics,
                budget=self._budget,
                inherited=self._process.listeners,
                start=self._start_for_peer,
                goes_at=lambda: self._goes_at,
            )
            parts = self._parts = await assembly.make(store)
        except BaseException:
            await store.close()
            raise
        try:
            await self._open(parts)
        except BaseException:
            await self.stop()
            raise

    async def _open(self, parts: Parts) -> None:
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
            raise cannot_listen(f"the tunnel port {config.listen}", error, key="listen") from error
        parts.services.listen = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        if parts.legacy is not None:
            await parts.legacy.start(_first(inherited, "kubesphere-v1"))
            parts.services.legacy_address = parts.legacy.address
        await parts.admin.start(_first(inherited, "admin"))
        if config.store.kind == "sqlite":  # an apiserver is away for all replicas at once; callers do not need it
            parts.health.check("store", self._store_answers)
        self.health_address = await parts.health.start(config.health_address, sock=_first(inherited, "health"))
        self._metrics.buffer_limit_bytes.set(self._budget.limit)
        self._start(parts.ports.run(), "caller-ports")
        self._start(parts.services.probing.run(), "probing")
        self._start(sample_loop_lag(self._metrics.event_loop_lag), "loop-lag")
        housekeeping = Housekeeping(parts, metrics=self._metrics, budget=self._budget)
        self._process.tasks.restart(housekeeping.turn, name="housekeeping")
        expiry = Expiry(parts.services.agents, parts.services.registry)
        self._process.tasks.restart(expiry.turn, name="expiry")
        if parts.replicas is not None and parts.services.host is not None:
            await self._open_hosted(parts, parts.replicas, parts.services.host)

    async def _open_hosted(self, parts: Parts, replicas: Replicas, client: Client) -> None:
        config, services, tasks = self._config, parts.services, self._process.tasks
        if config.public_url is None:
            await services.public.look()
            tasks.restart(self._look_for_address, name="public-address")
        await open_replicas(config, client, replicas, listener=parts.listener)
        tasks.restart(replicas.run, name="replicas")
        if config.operators.listen:
            parts.operators = await open_operators(config, client, services, server=replicas.name)
        tasks.restart(services.clusters.follow, name="follow-clusters")
        controller = make_controller(config, client, services, replicas=replicas, metrics=self._metrics)
        tasks.restart(controller.run, name="controller")
        if parts.host_secret is not None:
            tasks.restart(parts.host_secret.run, name="kubesphere-config")

    async def _look_for_address(self) -> None:
        await asyncio.sleep(LOOK_EVERY)
        await self.services.public.look()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> object:
        return self._process.tasks.start(work, name=name)

    def _start_for_peer(self, work: Coroutine[Any, Any, None], name: str) -> object:
        """Start work that one agent caused: its failure is logged, and does not end the server for the others."""
        return self._of_peers.start(work, name=name)

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
        await self._save(parts)
        for member in registry.members.values():
            member.hold.close()
        await asyncio.sleep(0)
        await self._of_peers.close()
        await self._process.tasks.close()
        await parts.health.stop()
        await parts.store.close()
        self._parts = None

    async def _save(self, parts: Parts) -> None:
        """Saves what is not essential. Bounded: lease and replica's name are given back even if the store is slow."""
        try:
            async with asyncio.timeout(SAVED_WITHIN):
                await parts.services.clusters.save()
        except TowerError:
            pass  # a store that fails now has said so already
        except TimeoutError:
            text = f"the store took more than {SAVED_WITHIN:g} s to note when tunnels were there last"
            log.warning("not-saved", text=text, next_start="callers of agents that come back are perhaps not held")

    async def _drain(self, parts: Parts) -> None:
        """Lets streams end, at most until the deadline. Agents are told to come back after it, spread over the time
        that it takes to let them all in; an agent whose tunnel ends sooner waits only for its part of that spread."""
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
        missing = services.public.missing
        log.warning("no-public-url", code=missing.code, text=missing.message, mend=missing.mend)
    await process.ready(f"serving {len(services.clusters.names())} clusters on {services.listen}")
    try:
        await process.stop.wait()
    finally:
        await server.stop()
    if process.failure is not None:
        raise process.failure

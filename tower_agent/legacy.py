"""The agent's process where it serves a host that speaks `kubesphere-v1`: one member, one host, a shipped credential.

It is another program than the native agent in all but name: nothing is enrolled, no gateway runs, no policy holds. The
host acts in the member with the credential that it was given, and this agent relays TCP to two destinations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from certs.errors import AuthorityError
from certs.tls import ClientTrust, client_context
from daemon.faults import TowerError
from daemon.health import Health
from daemon.log import get_logger
from daemon.metrics import AgentMetrics, sample_loop_lag
from daemon.process import Process
from protocol.aio.busypoll import busy_poll
from protocol.aio.proxydial import DialTarget, parse_url
from protocol.aio.sshchannel import ChannelLimits
from protocol.defaults import KUBESPHERE_SERVICE
from protocol.flow import Budget
from tower_agent.config import KUBESPHERE, AgentConfig
from tower_agent.legacychannels import LegacyChannels
from tower_agent.legacylink import LegacyHost, LegacyLink
from tower_agent.member import MemberApi
from tower_agent.probe import Probe, Prober
from tower_agent.shipment import Credential
from tower_agent.token import read_token_file
from tower_agent.version import product_version

SECTION: Final = "kubesphere_v1"
NO_CONSENT: Final = "in the dialect kubesphere-v1 this agent ships a credential of its member"

log = get_logger(__name__)


class LegacyAgent:
    """`run` is the process' main."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._link: LegacyLink | None = None

    async def run(self, process: Process) -> int:
        """Serve until `process.stop` is set. Raises TowerError for what a person must mend before it can start."""
        config, version = self._config, product_version()
        busy_poll(asyncio.get_running_loop()).enabled = config.busy_poll
        metrics = AgentMetrics(version=version)
        channels = LegacyChannels(metrics=metrics, tasks=process.tasks)
        if not config.kubesphere_v1.ship_credential:
            raise TowerError("TWR231", NO_CONSENT)
        credential = credential_of(config)
        host = host_of(config, version=version, rtt=self._rtt)
        link = self._link = LegacyLink(host, credential, channels, metrics=metrics)
        health = Health(metrics=metrics.render)
        health.check("tunnels", self._not_ready)
        address = await health.start(config.health_address)
        try:
            log.warning(
                "credential-shipped",
                text=f"{host.target.authority} gets the credential of {credential.access.source} and may do in this "
                "member whatever that may; the dialect proves no host",
            )
            if host.target.ssl_context is None:
                log.warning("plain-transport", code="TWR227", text="without TLS a middle can take what is shipped")
            prober = Prober(
                MemberApi(credential.access, version=version), changed=lambda probe: _probed(probe, metrics)
            )
            process.tasks.restart(prober.run, name="probe")
            process.tasks.restart(link.run, name="link")
            process.tasks.start(sample_loop_lag(metrics.event_loop_lag), name="loop-lag")
            await process.ready(f"serving {host.target.authority}")
            log.info(
                "agent-started", version=version, host=host.target.authority, dialect=config.dialect, health=address
            )
            await process.stop.wait()
        finally:
            health.stopping = True
            await link.drain(config.drain)
            link.close("the agent is stopping")
            channels.close()
            await asyncio.sleep(0)  # the last words leave in this turn
            await health.stop()
        log.info("agent-stopped")
        return 0

    def _rtt(self) -> float | None:
        return self._link.session.rtt if self._link is not None and self._link.session else None

    def _not_ready(self) -> str | None:
        link = self._link
        if link is None or (link.session is None and link.fault is None):
            return "not registered yet"
        return None if link.fault is None else f"{link.fault.code}: {link.fault.message}"


def credential_of(config: AgentConfig) -> Credential:
    """What is shipped once somebody has agreed to that. TowerError TWR309."""
    declared = config.services.get(KUBESPHERE)
    kubesphere = declared.address if declared is not None and declared.address else KUBESPHERE_SERVICE
    return Credential(config.kubeconfig, config.context, kubesphere)


def host_of(config: AgentConfig, *, version: str, rtt: Callable[[], float | None]) -> LegacyHost:
    """The host, and who this agent is there. TowerError TWR101, TWR104 for what is missing or wrong."""
    section = config.kubesphere_v1
    server = _needed(section.server, "server", "--server ws://HOST:PORT")
    cluster = _needed(section.cluster, "cluster", "--cluster NAME")
    path = config.token_file
    if path is None:
        raise TowerError("TWR101", "token_file is missing", mend="name the file that holds the cluster's token")

    def token() -> str:
        return read_token_file(path).strip()

    token()
    return LegacyHost(
        target=_target(config, server),
        cluster=cluster,
        token=token,
        version=version,
        limits=ChannelLimits(
            budget=Budget(config.memory.tunnel, config.memory.budget()),
            credit=config.liveness.limits(config.memory),
            rtt=rtt,
        ),
    )


def _target(config: AgentConfig, server: str) -> DialTarget:
    """TLS for wss://, verified by the system's authorities and `ca_file`; ws:// was typed here, so it is meant."""
    try:
        address = parse_url(server)
    except ValueError as error:
        raise TowerError("TWR101", f"{SECTION}.server: {error}") from error
    try:
        trust = ClientTrust(system=True, ca_file=str(config.ca_file) if config.ca_file else None)
        context = client_context(trust) if address.tls or config.ca_file else None
    except AuthorityError as error:
        raise TowerError("TWR104", error.text) from error
    return DialTarget(
        host=address.host,
        port=address.port,
        path=address.path,
        ssl_context=context if address.tls else None,
        proxy=config.proxy,
        proxy_env=config.proxy_from_environment,
        proxy_ssl_context=context if config.ca_file else None,
        expected_ca="one of the system's authorities" + (f" or of {config.ca_file}" if config.ca_file else ""),
    )


def _needed(value: str | None, key: str, flag: str) -> str:
    if not value:
        raise TowerError("TWR101", f"{SECTION}.{key} is missing", mend=f"set it, or give `{flag}`")
    return value


def _probed(probe: Probe, metrics: AgentMetrics) -> None:
    metrics.apiserver_up.set(1 if probe.ok else 0)

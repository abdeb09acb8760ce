"""Go agents at this server: their port, their tunnels, and what those of one cluster share.

A tunnel enters the registry like any other, and native ones are preferred there. The agents of one cluster share the
serving certificate and the credential that was sent last, nothing else. Off unless the configuration enables it.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, cast

from certs.ca import Authority
from certs.errors import CertsError
from daemon.faults import TowerError, cannot_listen
from daemon.log import get_logger
from daemon.units import split_address
from protocol import defaults
from protocol.aio.port import Refused
from protocol.aio.ssh import ServerConnection
from protocol.aio.sshchannel import ChannelLimits
from protocol.aio.sshlink import SshLink
from protocol.aio.sshoptions import server_options
from protocol.aio.tunnel import Tunnel
from protocol.constants import Code
from protocol.flow import Budget, Limits
from tower_server.agents import Agents
from tower_server.clusters import Clusters
from tower_server.config import KubesphereV1
from tower_server.legacy.binding import BindingError, bind, binding_name, unbind
from tower_server.legacy.facts import EVERY, read_facts
from tower_server.legacy.port import LegacyPort, small_requests
from tower_server.legacy.registrar import Registrar
from tower_server.legacy.registration import Registration
from tower_server.legacy.serving import Certificates, Shown, make_gateway, use_credential
from tower_server.legacy.tunnel import DIALECT, LegacyTunnel
from tower_server.member import CONDITIONS, Member, is_legacy
from tower_server.revocations import Revocations
from tower_server.servercert import FileCertificate
from tower_server.tunnels import TunnelRegistry

WEAKER: Final = (
    "a Go agent serves in the dialect kubesphere-v1: its credential was shipped to this host, it proves no identity "
    "beyond a token, and a cut link cuts its streams"
)
CHANGED: Final = "the cluster's token for Go agents was changed"
TAKEN_AWAY: Final = "the cluster takes no Go agents any more"
Start = Callable[[Coroutine[Any, Any, None], str], object]

log = get_logger(__name__)


@dataclass(slots=True)
class _Shared:
    """Of one cluster with Go agents: tunnels in the order of their registration."""

    certificates: Certificates
    shown: dict[str, Shown] = field(default_factory=dict)
    """The credential of the agent that came last, by the authorities that prove its apiserver: who names others comes
    in by another way, where the first one's are worth nothing."""
    tunnels: list[LegacyTunnel] = field(default_factory=list)
    bound: bool | None = None
    """Whether the host's group is bound in the member by us; None: not known."""
    said: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    looked_at: float = float("-inf")
    """When it was last found out what a native agent would report (the loop's clock)."""


class LegacyAgents:
    """`start`, now and then `housekeeping`, `stop`. `start_work(work, name)` owns what runs for an agent."""

    def __init__(
        self,
        config: KubesphereV1,
        *,
        authority: Authority,
        clusters: Clusters,
        agents: Agents,
        registry: TunnelRegistry,
        revocations: Revocations,
        budget: Budget,
        limits: Limits,
        admit: Callable[[str], None],
        on_refused: Refused,
        start_work: Start,
        handshakes: Any,
        suspect: Callable[[str], object],
        version: str,
    ) -> None:
        self._config = config
        self._authority = authority
        self._clusters = clusters
        self._registry = registry
        self._revocations = revocations
        self._budget = budget
        self._limits = replace(limits, max_credit=defaults.LEGACY_CREDIT)
        self._admit = admit
        self._on_refused = on_refused
        self._start_work = start_work
        self._handshakes = handshakes
        self._suspect = suspect
        self._version = version
        self._registrar = Registrar(clusters, agents)
        self._port: LegacyPort | None = None
        self._file: FileCertificate | None = None
        self._shared: dict[str, _Shared] = {}
        self._certificates: dict[str, Certificates] = {}
        self.address = ""
        revocations.subscribe(self._revoked)
        clusters.subscribe(self._changed)

    # ---- the port -----------------------------------------------------------------------------------------------

    async def start(self, sock: socket.socket | None = None) -> None:
        """Listens, if that is enabled. TowerError TWR103, TWR104."""
        if not self._config.enabled:
            return
        if self._config.tls is not None:
            self._file = FileCertificate(self._config.tls.cert, self._config.tls.key)
        self._port = LegacyPort(
            http=small_requests(self._version),
            admit=self._admit,
            on_refused=self._on_refused,
            options=await server_options(),
            limits=self._channel_limits,
            register=self._registrar.register,
            on_registered=self._registered,
        )
        host, port = split_address(self._config.listen)
        context = self._file.context if self._file is not None else None
        try:
            found = await self._port.start(host or None, port, context, sock=sock)
        except OSError as error:
            what = f"the port of the dialect {DIALECT}, {self._config.listen},"
            raise cannot_listen(what, error, key="kubesphere_v1.listen") from error
        self.address = f"[{found[0]}]:{found[1]}" if ":" in found[0] else f"{found[0]}:{found[1]}"
        log.warning("dialect-enabled", dialect=DIALECT, address=self.address, tls=self._file is not None)

    async def stop(self) -> None:
        """Takes no more agents; their tunnels are the registry's to end. Idempotent."""
        if self._port is not None:
            await self._port.stop()

    def _channel_limits(self) -> ChannelLimits:
        return ChannelLimits(budget=Budget(self._limits.tunnel_budget, self._budget), credit=self._limits)

    # ---- tunnels ------------------------------------------------------------------------------------------------

    def _registered(self, registration: Registration, wire: ServerConnection, link: SshLink, remote: str) -> None:
        member = self._registry.members.get(registration.name)
        if member is None:
            wire.end("the cluster was deleted meanwhile")
            return
        if registration.token_hash != self._clusters.get(registration.name)[0].legacy_token:
            wire.bye(CHANGED)
            wire.end(CHANGED)
            return
        shared = self._shared_of(registration)
        self._share_credential(shared, registration)
        tunnel = LegacyTunnel(
            tunnel_id=secrets.token_hex(6),
            registration=registration,
            wire=wire,
            link=link,
            remote=remote,
            gateway=lambda made: make_gateway(
                authority=self._authority,
                revocations=self._revocations,
                certificates=shared.certificates,
                target=registration.kubernetes,
                shown=shared.shown[registration.credential.ca_pem],
                connect=made.connect,
                unreachable=lambda: self._suspect(registration.name),
            ),
        )
        tunnel.on_gone = self._gone
        tunnel.facts = shared.facts
        shared.tunnels.append(tunnel)
        self._say(shared)
        self._handshakes.labels("ok").inc()
        # Structurally a tunnel; a test holds the two faces against each other.
        self._registry.admit(cast("Tunnel", tunnel))
        self._start_work(self._keep_bound(registration.name), f"legacy-binding-{registration.name}")
        self._look(registration.name, shared)

    def _shared_of(self, registration: Registration) -> _Shared:
        name = registration.name
        if name not in self._shared:
            if name not in self._certificates:  # kept for its next agent, who may be the same one a moment later
                names = partial(self._clusters.certificate_names, name)
                self._certificates[name] = Certificates(self._authority, name, names)
            self._shared[name] = _Shared(self._certificates[name])
        return self._shared[name]

    @staticmethod
    def _share_credential(shared: _Shared, newest: Registration) -> None:
        """The newest agent's credential serves the streams of all; where it is shown already, connections stay."""
        way = newest.credential.ca_pem
        if way in shared.shown and shared.shown[way].credential == newest.credential:
            return
        shared.shown[way] = Shown.of(newest.kubernetes, newest.credential)
        for tunnel in _of_way(shared, way):
            use_credential(tunnel.gateway.upstreams, shared.shown[way])

    def _gone(self, tunnel: LegacyTunnel) -> None:
        name = tunnel.peer.cluster
        shared = self._shared[name]
        shared.tunnels.remove(tunnel)
        way = tunnel.registration.credential.ca_pem
        if not shared.tunnels:
            del self._shared[name]
        elif others := _of_way(shared, way):
            self._share_credential(shared, others[-1].registration)
        else:
            del shared.shown[way]
        self._start_work(tunnel.gateway.close(), f"legacy-gateway-{tunnel.id}")

    def _revoked(self) -> None:
        for shared in self._shared.values():
            for tunnel in shared.tunnels:
                tunnel.gateway.recheck()

    def _changed(self, change: str, name: str) -> None:
        """A cluster's record may be another one."""
        if change == "DELETED":
            self._certificates.pop(name, None)
            return
        self._check_tokens(name)
        shared = self._shared.get(name)
        if shared is not None:
            self._show_certificate(shared)

    @staticmethod
    def _show_certificate(shared: _Shared) -> None:
        try:
            context = shared.certificates.context()
        except CertsError as error:  # a name that no certificate may carry: callers see the one of before
            log.error("legacy-certificate-not-issued", cluster=shared.certificates.cluster, text=error.text)
            return
        for tunnel in shared.tunnels:
            tunnel.gateway.context = context

    def _check_tokens(self, name: str) -> None:
        """Agents stay for as long as the token that let them in is the cluster's, whoever changed it and wherever."""
        shared, member = self._shared.get(name), self._registry.members.get(name)
        if shared is None or member is None:
            return
        token = self._clusters.get(name)[0].legacy_token
        text = CHANGED if token is not None else TAKEN_AWAY
        for tunnel in list(shared.tunnels):
            if tunnel.registration.token_hash != token:
                log.info("legacy-agent-closed", cluster=name, tunnel=tunnel.id, text=text)
                tunnel.close(Code.REVOKED, text)

    # ---- what is said of the cluster ----------------------------------------------------------------------------

    def _say(self, shared: _Shared) -> None:
        bound = {True: "True", False: "False", None: "Unknown"}[shared.bound]
        reason = {True: "Bound", False: "NotBound", None: "Failed" if shared.said else "NotTried"}[shared.bound]
        for tunnel in shared.tunnels:
            tunnel.data[CONDITIONS] = [
                ("LegacyAgent", "True", "KubesphereV1", WEAKER),
                ("LegacyBinding", bound, reason, shared.said or "the host's group is about to be bound"),
            ]

    async def _keep_bound(self, name: str) -> None:
        """Binds the host's group in a member that only Go agents serve, and takes it away where native ones do."""
        shared, member = self._shared.get(name), self._registry.members.get(name)
        if shared is None or member is None or not shared.tunnels:
            return
        wanted = not _native_serves(member)
        if shared.bound is wanted:
            return
        host, pool = self._authority.host, shared.tunnels[-1].gateway.upstreams.impersonation
        try:
            await (bind(pool, host) if wanted else unbind(pool, host))
        except BindingError as error:
            what = "cannot be made" if wanted else "could not be taken away: delete it by hand"
            said = f"the ClusterRoleBinding {binding_name(host)} {what}: {error}"
            if said != shared.said:
                log.warning("legacy-binding-failed", cluster=name, text=said)
            shared.said = said
        else:
            shared.bound = wanted
            shared.said = (
                f"the ClusterRoleBinding {binding_name(host)} in the member lets this host's admins in"
                if wanted
                else f"native agents serve: the ClusterRoleBinding {binding_name(host)} was taken away"
            )
            log.info("legacy-binding", cluster=name, bound=wanted)
        self._say(shared)

    def housekeeping(self) -> None:
        """Now and then: renewed certificates, a certificate file that has changed, bindings that were not possible."""
        try:
            if self._file is not None and self._file.reload():
                log.info("legacy-certificate-reloaded")
        except TowerError as error:
            log.error("legacy-certificate-unusable", code=error.code, text=error.message)
        for name, shared in list(self._shared.items()):
            self._check_tokens(name)  # a record is also read anew where nobody is told
            self._show_certificate(shared)
            self._start_work(self._keep_bound(name), f"legacy-binding-{name}")
            self._look(name, shared)

    # ---- what a native agent would report -----------------------------------------------------------------------

    def _look(self, name: str, shared: _Shared) -> None:
        """Where Go agents serve: native ones report by themselves."""
        now, member = asyncio.get_running_loop().time(), self._registry.members.get(name)
        if member is None or not shared.tunnels or _native_serves(member) or now - shared.looked_at < EVERY:
            return
        shared.looked_at = now
        self._start_work(self._learn(shared), f"legacy-facts-{name}")

    async def _learn(self, shared: _Shared) -> None:
        if not shared.tunnels:
            return
        facts = await read_facts(shared.tunnels[-1].gateway.upstreams.impersonation)
        shared.facts.update(facts)
        for tunnel in shared.tunnels:
            tunnel.learned(shared.facts)


def _of_way(shared: _Shared, way: str) -> list[LegacyTunnel]:
    return [each for each in shared.tunnels if each.registration.credential.ca_pem == way]


def _native_serves(member: Member) -> bool:
    native = [each for each in member.serving if not is_legacy(each)]
    return any(each.data.get("failing") == "" for each in native)  # probed, and well

"""One host as its agent sees it: trust, tunnels, gateway, control streams. Hosts share nothing but the member.

Every part may fail by itself: a refused renewal or a bad revocation list is said and tried again, and the tunnel stays;
a lost tunnel leaves the gateway's state as it is.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from certs.errors import CertsError, IdentityError
from certs.rotation import trust_id
from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.kube.access import Access
from daemon.log import get_logger
from daemon.metrics import AgentMetrics
from daemon.reminder import Reminder
from daemon.supervisor import Supervisor
from gateway.policy import Policy
from protocol.aio.proxydial import DialTarget
from protocol.aio.stream import IncomingStream
from protocol.aio.tunnel import Tunnel
from protocol.constants import Code
from protocol.flow import Budget
from protocol.messages import Message
from tower_agent.apiserver import make_gateway, renew_upstreams, serving_context
from tower_agent.config import AgentConfig
from tower_agent.control import ControlChannel
from tower_agent.kubesphere import KubeSphere
from tower_agent.observer import RequestObserver
from tower_agent.renewal import Renewal
from tower_agent.services import Services
from tower_agent.supervisor import LinkParts, LinkState, LinkSupervisor
from tower_agent.trust import HostTrust
from tower_agent.wayout import WayOut

TRUST_RETRY: Final = (1.0, 60.0)  # to keep what the host's roots have announced
COMPARE_EVERY: Final = 60.0  # between two looks at the member's KubeSphere, once a host has asked
_TLS_FAULTS: Final = frozenset({"TWR213", "TWR214", "TWR502"})  # a CA file may have been mended since

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentContext:
    """What all hosts of one agent share."""

    config: AgentConfig
    access: Access
    metrics: AgentMetrics
    budget: Budget
    instance: str
    version: str
    probe_fields: Callable[[], dict[str, Any]]
    hosts: Callable[[], list[str]] = list
    """The names of all hosts that this agent serves."""
    kubesphere: KubeSphere | None = None
    """None: the member declares no such service."""
    unreachable: Callable[[], None]  # a caller's request has found no apiserver


class HostAgent:
    """Serves one host. `start`, then `close`; both on the loop that it serves."""

    def __init__(self, trust: HostTrust, policy: Policy, context: AgentContext) -> None:
        entry = next((each for each in context.config.hosts if each.name == trust.host), None)
        raw = entry.raw_services_over_foreign_tls if entry else None
        self.trust: Final = trust
        self.drift: str | None = None
        self._context = context
        self._way = WayOut.of(context.config, trust.host)
        self._target: DialTarget | None = None
        self._tasks = Supervisor(on_failure=self._died)
        self._failure: str | None = None
        self._channels: dict[ControlChannel, Tunnel] = {}
        self.renewal: Final = Renewal(
            trust, self._channels, metrics=context.metrics, use=self._use_identity, report=self.report
        )
        self._trusting = asyncio.Lock()
        self._stale: str | None = None
        # Whatever they say is wrong now: a host may have it another way each time.
        self._refusals = {"revocations": Reminder(), "trust": Reminder()}
        self.observer: Final = RequestObserver(trust.host, context.metrics, unreachable=context.unreachable)
        self.gateway: Final = make_gateway(context.access, trust, policy, observer=self.observer)
        self._generation = context.access.generation
        self.services: Final = Services(
            context.config.services,
            access=context.access,
            gateway=self.gateway,
            control=self._control_opened,
            raw_anywhere=context.config.raw_services_over_foreign_tls if raw is None else raw,
            metrics=context.metrics,
            tasks=self._tasks,
            unreachable=context.unreachable,
        )
        self.links: Final = [self._link(number) for number in range(context.config.links)]
        self._links_changed()

    def _link(self, number: int) -> LinkSupervisor:
        context, trust = self._context, self.trust
        instance = f"{context.instance}.{number}" if number else context.instance  # tells the tunnels apart
        return LinkSupervisor(
            LinkParts(
                host=trust.host,
                target=self._dial_target,
                handshake=lambda: trust.handshake(instance=instance, software=context.version),
                ends_at_tower=trust.ends_at_tower,
                on_stream=self.services.on_stream,
                instance=instance,
                budget=context.budget,
                limits=context.config.liveness.limits(context.config.memory),
                changed=self._links_changed,
                welcomed=self._welcomed,
                leaving=self.gateway.drain,
            ),
            metrics=context.metrics,
            tasks=self._tasks,
        )

    def follow_access(self) -> None:
        """Callers' requests use the access to the apiserver as it was last read."""
        if self._generation != self._context.access.generation:
            self._generation = self._context.access.generation
            renew_upstreams(self.gateway.upstreams, self._context.access)

    def _links_changed(self) -> None:
        open_now = sum(link.state.connected for link in self.links)
        self._context.metrics.tunnels.labels(self.trust.host).set(open_now)
        self._context.metrics.connected.labels(self.trust.host).set(1 if open_now else 0)

    def _welcomed(self) -> None:
        for link in self.links:
            link.host_reached()

    def _dial_target(self) -> DialTarget:
        """Kept between dials, since it holds the system's authorities; made anew after a dial that failed in TLS."""
        faults = {link.state.fault.code for link in self.links if link.state.fault is not None}
        if self._target is None or faults & _TLS_FAULTS:
            self._target = self._way.tunnel(self.trust.identity.url, self.trust.bundle)
        return self._target

    @property
    def state(self) -> LinkState:
        """How the best link is."""
        return next((link.state for link in self.links if link.state.connected), self.links[0].state)

    @property
    def rtt(self) -> float | None:
        """Of the best tunnel, seconds."""
        tunnels = (link.tunnel for link in self.links)
        return min((each.rtt for each in tunnels if each is not None and each.rtt is not None), default=None)

    def start(self) -> None:
        """Begin to dial and serve."""
        self.gateway.start()
        self._note_expiry()
        for number, link in enumerate(self.links):
            self._tasks.restart(link.run, name=f"link {self.trust.host} {number}")
        self._tasks.restart(self.renewal.run, name=f"renewal {self.trust.host}")

    async def drain(self, text: str) -> None:
        """Take no new streams and give those that run a moment to end: the host moves callers to another agent, if any.

        GOAWAY is sent first: a caller that asks again because its stream ended must not be sent here again.
        """
        deadline = self._context.config.drain
        for link in self.links:
            link.leave(text, deadline)
        self.gateway.drain()
        await asyncio.gather(*(link.emptied(deadline) for link in self.links))

    async def close(self, text: str) -> None:
        """End the tunnels with a reason, then everything else."""
        for link in self.links:
            link.close(Code.SHUTDOWN, text)
        self.services.close()
        await asyncio.sleep(0)  # the tunnels' last words leave in this turn
        await self._tasks.close()
        await self.gateway.close()
        self.observer.close()

    def not_ready(self) -> str | None:
        """Why this host cannot use the member through this agent; None when it can."""
        if self._failure is not None:
            return self._failure
        state = self.state
        if state.connected:
            return None
        return "no tunnel yet" if state.fault is None else f"{state.fault.code}: {state.fault.message}"

    def use_policy(self, policy: Policy) -> None:
        """Replace the rules; they hold from the next request on."""
        self.gateway.policy = policy

    # -- the control stream ------------------------------------------------------------------------------------------

    def report(self) -> None:
        """Send the present status to the host, if there is a control stream."""
        for channel in self._channels:
            channel.status(self._status())

    def _status(self) -> dict[str, Any]:
        probe = self._context.probe_fields()
        return {
            "probe": probe,
            "version": probe.get("version"),
            "uid": probe.get("uid"),
            "nodes": probe.get("nodes"),
            "agent_version": self._context.version,
            "services": self.services.report(),
            "hosts": self._context.hosts(),
            "requests": self.observer.figures(),
            "policy": {"drift": self.drift},
            "revocations": {"stale": self._stale_revocations()},
            "identity_expires": self.trust.validity.not_after,
            "serving_expires": self.trust.serving_validity.not_after,
            "trust": trust_id(self.trust.identity.trust_number, self.trust.bundle),
            "renewal": None if self.renewal.fault is None else self.renewal.fault.message,
        }

    def _stale_revocations(self) -> str | None:
        """Why the revocation list is stale; None if it is not. Logged when it begins and when it is over."""
        stale = self.trust.stale_revocations(time.time())
        if (stale is None) != (self._stale is None):
            if stale is not None:
                log.error("revocations-stale", host=self.trust.host, code="TWR508", text=stale)
            else:
                log.info("revocations-fresh", host=self.trust.host)
        self._stale = stale
        return stale

    def _control_opened(self, incoming: IncomingStream) -> None:
        tunnel = incoming.tunnel

        def ready(channel: ControlChannel) -> None:
            self._channels[channel] = tunnel
            self.renewal.reachable(only_renews=tunnel.renew_only)
            channel.status(self._status())

        incoming.accept(
            ControlChannel(
                on_ready=ready,
                on_lost=self._channel_lost,
                on_revocations=self._revocations_came,
                on_trust=self._trust_came,
                on_names=self._names_came,
                on_compare=self._compare_came,
            )
        )

    def _channel_lost(self, channel: ControlChannel) -> None:
        self._channels.pop(channel, None)
        if not self._channels:
            self.renewal.unreachable()

    def _revocations_came(self, text: str) -> None:
        try:
            encoded = base64.b64decode(text, validate=True)
            taken = self.trust.take_revocations(encoded)
        except (CertsError, ValueError) as error:
            if self._refusals["revocations"].due(""):
                log.error("revocations-refused", host=self.trust.host, code="TWR506", text=str(error))
            return
        if taken and self.trust.revocations is not None:
            self.gateway.recheck()
            log.info("revocations-taken", host=self.trust.host, number=self.trust.revocations.number)
            self._tasks.start(self._keep_revocations(encoded), name=f"revocations {self.trust.host}")
        if self._stale is not None:
            self.report()

    def _names_came(self, names: object) -> None:
        if self.trust.take_names(names):
            log.info("names-wanted", host=self.trust.host, names=names)
            self.renewal.due.set()

    def _compare_came(self, channel: ControlChannel, nonce: str) -> None:
        if self._context.kubesphere is None or channel.answers:
            return
        try:
            asked = base64.b64decode(nonce, validate=True)
        except ValueError:
            return  # not of this protocol: no answer is what says so
        channel.answers["kubesphere"] = None
        self._tasks.start(self._compare(channel, asked, self._context.kubesphere), name=f"compare {self.trust.host}")

    async def _compare(self, channel: ControlChannel, nonce: bytes, kubesphere: KubeSphere) -> None:
        """Repeated for as long as the control stream lives, since either secret may be changed."""
        while channel in self._channels:
            cluster = self.trust.identity.cluster
            before = channel.answers["kubesphere"]
            channel.answers["kubesphere"] = await kubesphere.answer(nonce, host=self.trust.host, cluster=cluster)
            if before is None:
                channel.status(self._status())
            await asyncio.sleep(COMPARE_EVERY)

    def _trust_came(self, message: Message) -> None:
        self._tasks.start(self._take_trust(message), name=f"trust {self.trust.host}")

    async def _take_trust(self, message: Message) -> None:
        """From several tunnels the same comes several times; each is held to what is in force by then. What cannot be
        kept now is tried again: it is said once, and the host's next step waits for it."""
        backoff = Backoff(random=random.random, minimum=TRUST_RETRY[0], maximum=TRUST_RETRY[1])
        taken = None
        while taken is None:
            try:
                async with self._trusting:
                    taken = await self.trust.take_trust(message)
            except (IdentityError, TowerError) as error:
                delay = backoff.next()
                log.error("trust-not-kept", host=self.trust.host, text=str(error), next_in=round(delay, 2))
                await asyncio.sleep(delay)
            except CertsError as error:
                if self._refusals["trust"].due(""):
                    log.error("trust-refused", host=self.trust.host, code="TWR509", text=str(error))
                return
        if taken:
            log.info("trust-taken", host=self.trust.host, number=message["number"])
            self._target = None
            self._use_identity()
            self.renewal.due.set()

    async def _keep_revocations(self, encoded: bytes) -> None:
        try:
            await self.trust.keep_revocations(encoded)
        except (CertsError, TowerError) as error:
            log.error("revocations-not-kept", host=self.trust.host, text=str(error))

    # -- what is in force ---------------------------------------------------------------------------------------------

    def _use_identity(self) -> None:
        """From now on everything presents the new identity."""
        self.gateway.context = serving_context(self.trust)
        self._note_expiry()
        for link in self.links:
            link.renewed()
        self.report()

    def _note_expiry(self) -> None:
        gauge = self._context.metrics.certificate_expiration
        gauge.labels("identity", self.trust.identity.cluster).set(self.trust.validity.not_after)
        gauge.labels("serving", self.trust.identity.cluster).set(self.trust.serving_validity.not_after)

    def _died(self, name: str, error: BaseException) -> None:
        """A defect ended one of this host's short tasks: /readyz reports it, and nothing else is touched."""
        self._failure = f"TWR112: the task {name!r} ended by {type(error).__name__}; see the log"

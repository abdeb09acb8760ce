"""Keeps the session with a host of `kubesphere-v1` up: dials, registers, pings, and registers again when it must.

A Go host takes the credential from the agent for which it made its listeners, and keeps it for as long as these live.
So a new credential takes effect only after the session has ended: the agent waits for a moment without traffic, leaves,
gives the host time to close its listeners, and comes back. If it came back at once, a Go host might find its own ports
still taken, and would then serve nobody without saying so.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.metrics import AgentMetrics
from daemon.reminder import Reminder
from protocol.aio.hops import DialError
from protocol.aio.proxydial import DialTarget
from protocol.aio.sshchannel import ChannelLimits
from protocol.aio.sshdial import HostSession, RegistrationRefused, dial_host
from tower_agent.faultof import dial_fault
from tower_agent.legacychannels import LegacyChannels
from tower_agent.shipment import Credential, Shipment

LASTED: Final = 5.0  # seconds after which a session counts as a success
CREDENTIAL_EVERY: Final = 10.0  # how often the credential is looked at
QUIET: Final = 1.0  # seconds without a relayed byte: nobody is in the middle of a request
QUIET_WITHIN: Final = 30.0  # a credential is replaced long before it ends; later than this, what runs is cut
AWAY: Final = 1.0  # between two sessions of which the second brings another credential
_LOOK: Final = 0.1

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyHost:
    """The host, and who this agent is there. `token` reads the cluster's token, anew for each registration: it may have
    been replaced on the host, and where its file comes from. TowerError TWR104."""

    target: DialTarget
    cluster: str
    token: Callable[[], str]
    version: str
    limits: ChannelLimits


class LegacyLink:
    """One host. `run` until cancelled; `drain` and `close` end the session."""

    def __init__(
        self, host: LegacyHost, credential: Credential, channels: LegacyChannels, *, metrics: AgentMetrics
    ) -> None:
        self._host = host
        self._credential = credential
        self._channels = channels
        self._metrics = metrics
        self._backoff = Backoff(random=random.random)
        self._reminder = Reminder()
        self._name = host.target.authority
        self._stopping = False
        self._led_nowhere = ""  # the address that was connected to last time, if there was no more to it
        self.session: HostSession | None = None
        self.fault: TowerError | None = None
        self._connected(False)

    async def run(self) -> None:
        """Until it is cancelled; every failure is a state, a log line and a back-off."""
        self.close("the agent failed; its log says more")  # whoever held a session has failed
        self.session = None
        while not self._stopping:
            try:
                shipment = await self._credential.read()
                session = await self._open(shipment)
            except TowerError as fault:
                await self._failed(fault)
                continue
            self.session, self.fault = session, None
            self._connected(True)
            try:
                await self._hold(session, shipment)
            except TowerError as fault:
                session.close(fault.message)
                self.session = None
                self._connected(False)
                if self._stopping:
                    break
                if time.monotonic() - session.opened_at >= LASTED:
                    self._backoff.reset()
                await self._failed(fault)
            else:
                await self._renew(session)
        await asyncio.get_running_loop().create_future()  # stopping: only cancelling ends this now

    async def drain(self, deadline: float) -> None:
        """Wait for a moment without traffic, at most until the deadline: hosts have no word for `open nothing more`."""
        self._stopping = True
        if self.session is not None:
            await self._quiet(deadline)

    def close(self, text: str) -> None:
        """End the session."""
        if self.session is not None:
            self.session.close(text)

    async def _open(self, shipment: Shipment) -> HostSession:
        host, token = self._host, self._host.token()
        hops: dict[str, str] = {}
        try:
            session = await dial_host(
                replace(host.target, after=self._led_nowhere),
                limits=host.limits,
                on_channel=self._channels.on_channel,
                on_hop=lambda hop: hops.update({hop.name: hop.evidence}),
            )
        except DialError as error:
            self._metrics.dials.labels(self._name, error.hop, "failed").inc()
            self._led_nowhere = hops.get("tcp", self._led_nowhere)
            raise dial_fault(error, hops.get("tcp", "")) from error
        self._channels.announce(shipment)
        try:
            await session.register(shipment.registration(cluster=host.cluster, token=token, version=host.version))
        except RegistrationRefused as error:
            session.close("refused")
            self._metrics.dials.labels(self._name, "handshake", "refused").inc()
            raise TowerError("TWR230", f"{self._name} refused the cluster {host.cluster}: {error}") from error
        except DialError as error:
            session.close("the registration failed")
            self._metrics.dials.labels(self._name, error.hop, "failed").inc()
            raise dial_fault(error) from error
        except BaseException:
            session.close("the agent is stopping")
            raise
        self._metrics.dials.labels(self._name, "none", "ok").inc()
        log.info("host-registered", host=self._name, cluster=host.cluster, shipped=shipment.what)
        return session

    async def _hold(self, session: HostSession, shipment: Shipment) -> None:
        """Until the credential has changed; TowerError when the session has ended."""
        loop = asyncio.get_running_loop()
        closed = loop.create_task(session.wait_closed(), name="session")
        pings = loop.create_task(self._ping(session), name="pings")
        changed = loop.create_task(self._changed(shipment), name="credential")
        tasks: set[asyncio.Task[Any]] = {closed, pings, changed}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                raise TowerError("TWR201", f"the session with {self._name} ended: {closed.result()}")
            if pings.done():
                raise TowerError("TWR222", f"{self._name} fell silent: {pings.exception()}")
            changed.result()  # a defect there is told, not taken for a change
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _renew(self, session: HostSession) -> None:
        """Leave in a moment without traffic, so that the next registration finds the host's listeners gone."""
        log.info("credential-changed", host=self._name, text="leaving, to register again with the new one")
        await self._quiet(QUIET_WITHIN)
        session.close("the credential has changed")
        self.session = None
        self._connected(False)
        self._backoff.reset()
        await asyncio.sleep(AWAY)

    async def _ping(self, session: HostSession) -> None:
        limits = self._host.limits.credit
        while True:
            await asyncio.sleep(max(_LOOK, limits.ping_interval - session.silent_for))
            if session.silent_for >= limits.ping_interval:
                rtt = await session.ping(limits.dead_after - limits.ping_interval)
                self._metrics.tunnel_rtt.labels(self._name).set(rtt)

    async def _changed(self, shipment: Shipment) -> None:
        reminder = Reminder(every=math.inf)
        while True:
            await asyncio.sleep(CREDENTIAL_EVERY)
            try:
                if await self._credential.read() != shipment:
                    return
                reminder.reset()
            except TowerError as fault:  # in the middle of a rotation, or for good: what was shipped still holds
                if reminder.due(fault.message):
                    log.warning("credential-not-read", code=fault.code, text=fault.message)

    async def _quiet(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline
        moved, since = self._channels.moved, loop.time()
        while self.session is not None and not self.session.closed and self.session.streams:
            now = loop.time()
            if self._channels.moved != moved:
                moved, since = self._channels.moved, now
            if now - since >= QUIET or now >= until:
                return
            await asyncio.sleep(_LOOK)

    async def _failed(self, fault: TowerError) -> None:
        self.fault = fault
        delay = self._backoff.next(retry_after=fault.retry_after)
        if self._reminder.due(fault.message):
            log.warning("tunnel-down", host=self._name, code=fault.code, text=fault.message, next_in=round(delay, 2))
        await asyncio.sleep(delay)

    def _connected(self, value: bool) -> None:
        self._metrics.connected.labels(self._name).set(int(value))
        self._metrics.tunnels.labels(self._name).set(int(value))

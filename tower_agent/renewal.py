"""Keeps the agent's identity for one host valid: renews it through a tunnel at two thirds of its life, or adopts the
new one from the store if another replica of the same agent (a sibling) was first.

A refused renewal is tried again after a back-off, or at once when a tunnel opens that may do nothing but renew: nobody
is served until then. Without a tunnel nothing can be requested, but the store is still looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping
from typing import Final

from certs.errors import CertsError
from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.metrics import AgentMetrics
from protocol.aio.tunnel import Tunnel
from tower_agent.control import ControlChannel
from tower_agent.trust import HostTrust

RENEWAL_RETRY: Final = (5.0, 600.0)  # least and most seconds between attempts to renew
SIBLING_CHECK: Final = 60.0  # how often an identity that a sibling has renewed is looked for

log = get_logger(__name__)


class Renewal:
    """`run` it as a task.

    Args:
        channels: the control streams that stand now, each with its tunnel.
        use: called when another identity is in force.
        report: called when a renewal has failed; `fault` says how.
    """

    def __init__(
        self,
        trust: HostTrust,
        channels: Mapping[ControlChannel, Tunnel],
        *,
        metrics: AgentMetrics,
        use: Callable[[], None],
        report: Callable[[], None],
    ) -> None:
        self._trust = trust
        self._channels = channels
        self._metrics = metrics
        self._use = use
        self._report = report
        self._reachable = asyncio.Event()
        self._only_renews = asyncio.Event()  # a tunnel has come that serves nobody until the identity is renewed
        self.due = asyncio.Event()
        """Set by whoever has made it due before its time."""
        self.fault: TowerError | None = None
        """Why the last renewal has failed; None after one that has not."""

    def reachable(self, *, only_renews: bool) -> None:
        """A control stream stands; of a tunnel that `only_renews`, perhaps."""
        self._reachable.set()
        if only_renews:
            self._only_renews.set()

    def unreachable(self) -> None:
        """The last control stream is gone."""
        self._reachable.clear()

    async def run(self) -> None:
        """Until cancelled; a failure is logged, reported and tried again."""
        backoff = Backoff(random=random.random, minimum=RENEWAL_RETRY[0], maximum=RENEWAL_RETRY[1])
        while True:
            wait = self._trust.renew_at - time.time()
            if wait > 0:
                self.due.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(wait, SIBLING_CHECK)):
                        await self.due.wait()
                await self._adopt_sibling()
                continue
            if not self._channels:  # the link's own back-off decides when there is one
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SIBLING_CHECK):
                        await self._reachable.wait()
                await self._adopt_sibling()
                continue
            self._only_renews.clear()
            try:
                await self._renew()
            except TowerError as fault:
                delay = backoff.next()
                self.fault = fault
                self._metrics.certificate_renewals.labels("identity", "failed").inc()
                log.error("renewal-failed", host=self._trust.host, code=fault.code, text=fault.message, next_in=delay)
                self._report()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._only_renews.wait()
            else:
                backoff.reset()

    async def _renew(self) -> None:
        try:
            if not await self._trust.reload():
                csr, serving_csr = self._trust.requests()
                proof = self._trust.prove(csr, serving_csr)
                if not self._channels:
                    raise TowerError("TWR504", "the tunnel was lost before the request could leave")
                channel = min(self._channels, key=lambda each: _trouble(self._channels[each]))
                chain, serving_chain = await channel.renew(csr, serving_csr, proof)
                await self._trust.adopt(chain, serving_chain)
        except CertsError as error:
            raise TowerError("TWR504", f"the renewed identity cannot be used: {error.text}") from error
        if self._trust.renew_at <= time.time():
            raise TowerError("TWR504", "the server sent certificates that are due for renewal already")
        self.fault = None
        self._use()
        self._metrics.certificate_renewals.labels("identity", "ok").inc()
        log.info("identity-renewed", host=self._trust.host, expires=self._trust.validity.not_after)

    async def _adopt_sibling(self) -> None:
        try:
            if await self._trust.reload():
                self._use()
                log.info("identity-adopted", host=self._trust.host, expires=self._trust.validity.not_after)
        except (CertsError, TowerError) as error:
            log.warning("identity-not-read", host=self._trust.host, text=str(error))


def _trouble(tunnel: Tunnel) -> tuple[bool, bool]:
    return tunnel.stalled, tunnel.draining

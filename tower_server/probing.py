"""When each cluster is probed: one task for all of them, however many there are.

A cluster with a tunnel is due every `PROBE_INTERVAL`, at a moment of its own, so that a thousand clusters make a steady
trickle; at once when a tunnel opens; and again after a second when a probe failed. Its tunnels take turns.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from daemon.log import get_logger
from protocol import defaults
from protocol.aio.tunnel import Tunnel
from tower_server.member import Member
from tower_server.probe import ProbeCredential, probe
from tower_server.state import ProbeResult
from tower_server.tunnels import TunnelRegistry

AT_ONCE: Final = 32
AGAIN_AFTER: Final = 1.0  # a failure is looked at once more before it counts
TICK: Final = 1.0
Start = Callable[[Coroutine[Any, Any, None], str], object]

log = get_logger(__name__)


class Probing:
    """Run `run` as a task; `start(work, name)` owns the probes that it begins."""

    def __init__(
        self,
        registry: TunnelRegistry,
        credential: ProbeCredential,
        *,
        start: Start,
        interval: float = defaults.PROBE_INTERVAL,
    ) -> None:
        self._registry = registry
        self._credential = credential
        self._start = start
        self._interval = interval
        self._due: dict[str, float] = {}
        self._busy: set[str] = set()
        self._wake = asyncio.Event()
        registry.subscribe(self._opened)

    def _opened(self, member: Member, tunnel: Tunnel) -> None:
        if not tunnel.renew_only:
            self._due[member.name] = 0.0
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            for member in list(self._registry.members.values()):
                member.tick()
                if member.serving and member.name not in self._busy:
                    due = self._due.setdefault(member.name, now + random.random() * self._interval)  # noqa: S311
                    if due <= now and len(self._busy) < AT_ONCE:
                        self._busy.add(member.name)
                        self._start(self._probe(member), f"probe-{member.name}")
            for gone in self._due.keys() - self._registry.members.keys():
                del self._due[gone]
            self._wake.clear()
            try:
                async with asyncio.timeout(TICK):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _probe(self, member: Member) -> None:
        loop = asyncio.get_running_loop()
        try:
            result = await self.now(member)
            again = AGAIN_AFTER if result is not None and not result.ok and member.failures == 1 else self._interval
            unseen = any("probed" not in tunnel.data for tunnel in member.serving)  # opened while this probe ran
            self._due[member.name] = loop.time() + (0.0 if unseen else again)
            if unseen:
                self._wake.set()
        finally:
            self._busy.discard(member.name)

    async def now(self, member: Member) -> ProbeResult | None:
        """One probe of a cluster through the tunnel whose turn it is; None when it has no tunnel any more."""
        tunnel = min(member.serving, key=lambda each: each.data.get("probed", 0.0), default=None)
        if tunnel is None:
            return None
        tunnel.data["probed"] = asyncio.get_running_loop().time()
        result = await probe(member, tunnel, self._credential)
        if tunnel.closed is not None:
            return None  # its end has its own cause, and a probe cut by it says nothing about the member
        before = member.probe
        tunnel.data["failing"] = "" if result.ok else result.text
        member.probed(result)
        if before is None or before.ok != result.ok:
            level = log.info if result.ok else log.warning
            level("probe", cluster=member.name, tunnel=tunnel.id, ok=result.ok, code=result.code, text=result.text)
        return result

"""Decides when each cluster is probed. One task does it for all clusters, however many there are.

A cluster with a tunnel is probed:
- every `PROBE_INTERVAL`, give or take a tenth, so that a thousand clusters make a steady trickle;
- at once when a tunnel opens or is resumed;
- a second after a failed probe, then after twice as long each time, up to the interval;
- at once when a caller could not reach its apiserver, though no more than once a second for that, and not where that is
  known already.

Its tunnels take turns. No more probes begin in a second than `PACE`, or than it takes to reach every cluster within
`ROUND`: a probe costs as much as a handshake, and when all agents come back at once their handshakes come first.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from daemon.log import get_logger
from protocol import defaults
from protocol.aio.tunnel import Tunnel
from tower_server.bucket import Bucket
from tower_server.member import Member
from tower_server.probe import ProbeCredential, probe
from tower_server.state import ProbeResult
from tower_server.tunnels import TunnelRegistry

AT_ONCE: Final = 256  # probes under way: members that do not answer must not keep others from their turn
PACE: Final = 50.0  # probes a second
PACE_BURST: Final = 8  # in one turn of the loop
ROUND: Final = 0.6 * defaults.PROBE_FRESH_FOR  # so that each is still fresh when its next one begins
LOOK_EVERY: Final = 10.0  # for what only time changes: a probe that is no longer fresh, tunnels long expected
Start = Callable[[Coroutine[Any, Any, None], str], object]

log = get_logger(__name__)


class Probing:
    """`run` it as a task; `start(work, name)` owns the probes that it begins."""

    def __init__(self, registry: TunnelRegistry, credential: ProbeCredential, *, start: Start) -> None:
        self._registry = registry
        self._credential = credential
        self._start = start
        self._due: dict[str, float] = {}  # what counts; the queue may hold older entries of a cluster
        self._queue: list[tuple[float, str]] = []
        self._busy: set[str] = set()
        self._wake = asyncio.Event()
        self._pace = Bucket(rate=PACE, burst=PACE_BURST, now=asyncio.get_running_loop().time())
        registry.subscribe(self._opened, self._opened)

    def _opened(self, member: Member, tunnel: Tunnel) -> None:
        if not tunnel.renew_only:
            self.soon(member.name)

    def soon(self, name: str, *, after: float = 0.0) -> None:
        """Makes a cluster's next probe due `after` so many seconds."""
        self._due[name] = asyncio.get_running_loop().time() + after
        heapq.heappush(self._queue, (self._due[name], name))
        self._wake.set()

    def suspect(self, name: str, tunnel: Tunnel | None = None) -> None:
        """A caller could not reach a cluster's apiserver (through that tunnel, if it is known): probe it out of turn.
        At most one probe a second comes of this, and none once a probe has failed too."""
        member = self._registry.members.get(name)
        if member is None or member.probe is None or not member.probe.ok:
            return
        if tunnel is not None:
            tunnel.data["suspected"] = True
        now = asyncio.get_running_loop().time()
        last = max((each.data.get("probed", 0.0) for each in member.serving), default=0.0)
        at = max(now, last + defaults.PROBE_AGAIN)
        if at < self._due.get(name, float("inf")):
            self.soon(name, after=at - now)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        look_at = loop.time()
        while True:
            if loop.time() >= look_at:
                look_at = loop.time() + LOOK_EVERY
                for member in list(self._registry.members.values()):
                    member.tick()
            pause = self._begin_due(loop.time())
            self._wake.clear()
            until = look_at if not self._queue or len(self._busy) >= AT_ONCE else min(look_at, self._queue[0][0])
            if pause:
                until = loop.time() + pause
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._wake.wait()

    def _begin_due(self, now: float) -> float:
        """Begins what is due; the seconds after which the next may, where the pace is what it waits for."""
        self._pace.rate = max(PACE, len(self._registry.members) / ROUND)
        while self._queue and self._queue[0][0] <= now and len(self._busy) < AT_ONCE:
            if (missing := 1.0 - self._pace.left(now)) > 0:
                return missing / self._pace.rate
            due, name = heapq.heappop(self._queue)
            member = self._registry.members.get(name)
            if self._due.get(name) != due or name in self._busy:
                continue  # put off or brought forward meanwhile, or under way: its end makes the next one due
            del self._due[name]
            if member is not None and member.serving:  # otherwise its next tunnel makes it due
                self._pace.take(now)
                self._busy.add(name)
                self._start(self._probe(member), f"probe-{name}")
        return 0.0

    async def _probe(self, member: Member) -> None:
        again = defaults.PROBE_INTERVAL * (0.9 + random.random() / 5)  # noqa: S311 - spreads what began at one moment
        try:
            result = await self.now(member)
            if result is not None and not result.ok:
                again = min(again, defaults.PROBE_AGAIN * 2 ** min(member.failures - 1, 16))
            if any("probed" not in tunnel.data for tunnel in member.serving):
                again = 0.0  # opened while this probe ran
        finally:
            self._busy.discard(member.name)
            # Whoever asked for the next one meanwhile does not wait for the turn after it.
            due = self._due.get(member.name)
            now = asyncio.get_running_loop().time()
            self.soon(member.name, after=again if due is None else max(0.0, min(again, due - now)))

    async def now(self, member: Member) -> ProbeResult | None:
        """One probe of a cluster through the tunnel whose turn it is; None when it has no tunnel any more."""
        turn = lambda each: ("suspected" not in each.data, each.data.get("probed", 0.0))  # noqa: E731
        tunnel = min(member.serving, key=turn, default=None)
        if tunnel is None:
            return None
        tunnel.data.pop("suspected", None)
        tunnel.data["probed"] = asyncio.get_running_loop().time()
        result = await probe(member, tunnel, self._credential)
        if tunnel.closed is not None or tunnel.detached:
            return None  # that has its own cause, and a probe cut by it says nothing about the member
        before = member.probe
        tunnel.data["failing"] = "" if result.ok else result.text
        member.probed(result)
        if before is None or before.ok != result.ok:
            level = log.info if result.ok else log.warning
            level("probe", cluster=member.name, tunnel=tunnel.id, ok=result.ok, code=result.code, text=result.text)
        return result

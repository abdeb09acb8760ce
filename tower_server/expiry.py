"""Closes tunnels at the moment at which the identity of their agent expires, rather than by looking every so often.

Expiry goes by the wall clock, as certificates do; if the clock jumps, that is noticed within `EVERY` seconds. However
many tunnels open at once, they are checked twice a second at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

from tower_server.agents import Agents
from tower_server.tunnels import TunnelRegistry

EVERY: Final = 10.0
AGAIN: Final = 0.5


class Expiry:
    """`turn` again and again."""

    def __init__(self, agents: Agents, registry: TunnelRegistry) -> None:
        self._agents, self._registry = agents, registry
        self._opened = asyncio.Event()
        registry.subscribe(self._came, self._came)

    async def turn(self) -> None:
        """Closes the tunnels whose identities have expired, then waits for the next expiry or the next new tunnel."""
        self._opened.clear()
        await self._agents.close_expired(at=time.time())
        await asyncio.sleep(AGAIN)
        ends = (each.data.get("expires", each.peer.not_after) for _, each in self._registry if not each.renew_only)
        left = min(ends, default=float("inf")) - time.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(left, EVERY))):
                await self._opened.wait()

    def _came(self, *_: Any) -> None:
        self._opened.set()

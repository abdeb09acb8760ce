"""When tunnels are looked at for identities that run out: at that moment, not now and then.

By the wall clock, which certificates go by; a clock that jumps is noticed within `EVERY`. However many tunnels open at
once, they are looked at twice a second at most.
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
        """Closes what has run out, and waits until the next one does or another tunnel is there."""
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

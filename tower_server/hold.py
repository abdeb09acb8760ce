"""Holds callers for a moment after a cluster's last tunnel was lost, since its agent is probably coming back.

A hold belongs to the outage, not to each caller: it ends `seconds` after the first caller began to wait, and callers
that come later are answered at once until there has been a tunnel again. So a kubectl that asks five times in a row is
held once and still ends within seconds. For the same reason a return counts as likely only until the hold has ended in
vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from daemon.metrics import ClusterMetrics


class Hold:
    """The hold of one cluster. Times are those of the loop."""

    def __init__(self, *, seconds: float, waiters: int, window: float, metrics: ClusterMetrics) -> None:
        """`window`: for how long after the loss a return is likely, which is as long as tunnels wait for a new link."""
        self._loop = asyncio.get_running_loop()
        self.seconds = seconds
        self._most = waiters
        self._window = window
        self._metrics = metrics
        self._lost_at: float | None = None
        self._ends: float | None = None  # of this outage's hold; None before the first caller
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: dict[object, tuple[float, Callable[[bool], None]]] = {}

    def lost(self) -> None:
        """The last tunnel has ended (or the server has just started without one that it had)."""
        self._lost_at = self._loop.time()
        if self._timer is None:  # else this outage's hold is under way
            self._ends = None

    def release(self) -> None:
        """There is a tunnel: all waiting callers go on."""
        self._lost_at = self._ends = None
        self._end(True)

    @property
    def return_likely(self) -> bool:
        """Whether a caller that tries again in a second will probably get through."""
        now = self._loop.time()
        within = self._lost_at is not None and now - self._lost_at < self._window
        return within and (self._ends is None or now < self._ends)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self._most

    def wait(self, key: object, then: Callable[[bool], None]) -> bool:
        """Calls `then(True)` when a tunnel is there, `then(False)` when the hold is over. False: there is no hold."""
        if self.seconds <= 0 or not self.return_likely or self.full:
            return False
        if self._ends is None:
            self._ends = self._loop.time() + self.seconds
            self._timer = self._loop.call_later(self.seconds, self._end, False)
        self._waiting[key] = self._loop.time(), then
        self._metrics.waiting.set(len(self._waiting))
        return True

    def leave(self, key: object) -> None:
        """A caller stops waiting. Harmless for one that did not wait."""
        waited = self._waiting.pop(key, None)
        if waited is not None:
            self._metrics.waiting.set(len(self._waiting))
            self._metrics.held["left"].observe(self._loop.time() - waited[0])

    def close(self) -> None:
        """Ends every wait, in vain."""
        self._end(False)

    def _end(self, found: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        self._metrics.waiting.set(0)
        held, now = self._metrics.held["tunnel" if found else "in_vain"], self._loop.time()
        for since, then in waiting.values():
            held.observe(now - since)
            then(found)

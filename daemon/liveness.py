"""How soon a dead peer is noticed: what both programs let an operator say about pings and silence.

Each end asks before it judges, any byte is life, and every peer answers a ping: so the two ends' settings need not be
the same.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import model_validator

from daemon.config import Duration, Section
from daemon.memory import Memory
from protocol import defaults
from protocol.flow import Limits, check_window


class Liveness(Section):
    """Of every tunnel."""

    ping: Duration = defaults.PING_INTERVAL
    """After so long without a byte from the peer it is asked for one."""
    dead_after: Duration = defaults.DEAD_AFTER
    """After so long without a byte the peer's link is given up."""
    resume_window: Duration = defaults.RESUME_WINDOW
    """So long a tunnel without a link waits for another."""

    @model_validator(mode="after")
    def _asked_twice(self) -> Liveness:
        if not 0 < 2 * self.ping <= self.dead_after:
            raise ValueError("dead_after must be at least twice ping, so that one late answer does not end a tunnel")
        if self.model_fields_set:
            check_window(self.dead_after, self.resume_window)
        return self

    def limits(self, memory: Memory) -> Limits:
        """A tunnel's limits."""
        return replace(
            memory.limits(),
            ping_interval=self.ping,
            dead_after=self.dead_after,
            resume_window=self.resume_window,
        )

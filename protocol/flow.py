"""Credit: how many bytes a peer may send on a stream, and the memory budgets that all credit is taken from.

A grant is an absolute offset into the stream and is never taken back. Each stream reserves a small share of the budgets
when it opens; everything above is borrowed from the tunnel's budget and the process':

- It is renewed only while the stream's reader consumes what arrives: a reader that stops holds one window at most.
- A stream starts with more than its reserve only while less than a quarter of the budgets is in use.
- Under pressure (more than PRESSURE of a budget in use) windows shrink to the reserve as they are consumed. A stream
  whose reader has taken PROVEN bytes keeps a small share, or many readers that stopped would starve those that go on.
- A tunnel that has more than its even share of the process' budget leaves the last quarter of it to the others.

The window doubles while the reader consumes half of it in less than about two round trips (the same signal that QUIC
implementations use), so that neither a long path nor a fast reader is limited by it. A new grant is due after half a
window, and after GRANT_EVERY bytes at the latest: until then what was consumed is missing from the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocol import defaults

PRESSURE: Final = 0.75  # of a budget in use: above it, borrowed windows shrink as they are consumed
PROVEN: Final = 8 * defaults.MIB  # bytes read by a stream: more than the kernel buffers for a reader that stopped
SHARES: Final = 16  # under pressure a proven reader keeps one part in this many of the budget
GROW_WITHIN_ROUND_TRIPS: Final = 2.0
GRANT_EVERY: Final = 2 * defaults.MIB  # consumed, at most; less where that is more than half a window
LEAST_RTT: Final = 0.005  # seconds: a busy peer answers no faster than its loop turns, whatever an idle PING measured
ASSUMED_RTT: Final = 0.1  # until a PING has measured it


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one session, in bytes, counts and seconds."""

    initial_credit: int = defaults.INITIAL_CREDIT
    reserved_credit: int = defaults.RESERVED_CREDIT
    max_credit: int = defaults.MAX_CREDIT
    tunnel_budget: int = defaults.TUNNEL_BUDGET
    max_streams: int = defaults.MAX_STREAMS
    open_backlog: int = defaults.OPEN_BACKLOG
    open_deadline: float = defaults.OPEN_DEADLINE
    ping_interval: float = defaults.PING_INTERVAL
    dead_after: float = defaults.DEAD_AFTER
    resume_window: float = defaults.RESUME_WINDOW
    replay_bytes: int = defaults.REPLAY_BYTES
    send_high: int = defaults.SEND_HIGH
    send_low: int = defaults.SEND_LOW
    control_backlog: int = defaults.CONTROL_BACKLOG

    def __post_init__(self) -> None:
        if not 0 < self.reserved_credit <= self.initial_credit <= self.max_credit:
            raise ValueError("credit limits must be 0 < reserved <= initial <= max")
        if not 0 < self.ping_interval < self.dead_after:
            raise ValueError("ping_interval must be positive and below dead_after")
        if self.resume_window <= 0 or self.replay_bytes <= 0:
            raise ValueError("resume_window and replay_bytes must be positive")


# What an agent needs at the worst to come back: its first three waits, a connection, an upgrade with its handshake.
COME_BACK: Final = 14 * defaults.BACKOFF_MIN + defaults.DIAL_DEADLINE + defaults.HANDSHAKE_DEADLINE


def check_window(dead_after: float, window: float) -> None:
    """ValueError when a lost link could not be replaced in time, or callers would have given up before."""
    if dead_after + window >= defaults.GIVE_UP:
        raise ValueError(
            f"dead_after and resume_window are {dead_after + window:g} s together, and must stay below "
            f"{defaults.GIVE_UP:g} s, after which kubectl gives up on a silent connection: lower one of them"
        )
    if dead_after + COME_BACK > window:
        raise ValueError(
            f"a resume_window of {window:g} s is too short: noticing a lost link ({dead_after:g} s), waiting and "
            f"dialling again ({COME_BACK:.3g} s) must fit into it: raise it to {dead_after + COME_BACK:.3g} s, or "
            "lower dead_after"
        )


class Budget:
    """A bound on bytes, optionally inside a larger one (a tunnel's inside the process').

    Of several inside one, each may always take its even share; above that, only what lies below PRESSURE, so that one
    of them cannot keep the others out.
    """

    __slots__ = ("_holders", "limit", "parent", "used")

    def __init__(self, limit: int, parent: Budget | None = None) -> None:
        self.limit = limit
        self.parent = parent
        self.used = 0
        self._holders = 0  # budgets inside this one of which something is used

    @property
    def free(self) -> int:
        """What can still be taken, here and above."""
        mine = self.limit - self.used
        return max(0, mine if self.parent is None else min(mine, self.parent._free_for(self)))

    def _free_for(self, inner: Budget) -> int:
        free = self.free
        holders = self._holders + (inner.used <= 0)
        if holders < 2:
            return free
        return max(min(free, self.limit // holders - inner.used), free - int((1 - PRESSURE) * self.limit))

    @property
    def full(self) -> bool:
        """Whether nothing is free; `free` costs more, and this is asked for each piece of data."""
        parent = self.parent
        return self.used >= self.limit or (
            parent is not None and parent.used >= PRESSURE * parent.limit and self.free == 0
        )

    @property
    def pressed(self) -> bool:
        """Whether the budget is under pressure, so that borrowed windows should shrink."""
        return self.used > PRESSURE * self.limit or (self.parent is not None and self.parent.pressed)

    @property
    def spare(self) -> int:
        """What streams may have beyond their reserve before they have shown a need: only from the first quarter."""
        mine = max(0, self.limit // 4 - self.used)
        return mine if self.parent is None else min(mine, self.parent.spare)

    def charge(self, size: int) -> None:
        """Account for bytes that exist already. May go over the limit, which puts the budget under pressure."""
        budget = self
        while True:
            before = budget.used
            after = budget.used = before + size
            parent = budget.parent
            if parent is None:
                return
            if (before > 0) != (after > 0):
                parent._holders += 1 if after > 0 else -1
            budget = parent

    def give(self, size: int) -> None:
        """Return bytes."""
        self.charge(-size)


class ReceiveCredit:
    """What the peer may send on one stream, as this end grants it.

    Invariant: `granted - consumed <= window`, and `window` bytes are charged to the budget until `release`.
    """

    __slots__ = ("_budget", "_limits", "_measured_at", "_measured_from", "consumed", "granted", "renew_below", "window")

    def __init__(self, budget: Budget, limits: Limits) -> None:
        """Takes the reserved share, which the caller has checked to be free, and more as far as the budget allows."""
        budget.charge(limits.reserved_credit)
        extra = min(limits.initial_credit - limits.reserved_credit, budget.spare)
        budget.charge(extra)
        self._budget = budget
        self._limits = limits
        self._measured_at, self._measured_from = float("-inf"), 0
        self.window = limits.reserved_credit + extra
        self.renew_below = self.window - min(self.window // 2, GRANT_EVERY)  # of what is granted and not consumed
        self.granted = self.window
        self.consumed = 0

    def consume(self, size: int, now: float, rtt: float | None) -> int | None:
        """Account for `size` bytes passed on; the new absolute grant when one should be announced."""
        self.consumed += size
        if self.granted - self.consumed > self.renew_below:
            return None
        self._resize(now, ASSUMED_RTT if rtt is None else rtt)
        self.renew_below = self.window - min(self.window // 2, GRANT_EVERY)
        if self.consumed + self.window <= self.granted:
            return None
        self.granted = self.consumed + self.window
        return self.granted

    def _resize(self, now: float, rtt: float) -> None:
        most = self._limits.max_credit
        if self._budget.pressed:
            most = self._limits.reserved_credit
            if self.consumed >= PROVEN:
                most = max(most, self._budget.limit // SHARES)
        if self.window > most:
            size = max(most, self.window // 2, self.granted - self.consumed)  # no grant is taken back
            self._budget.give(self.window - size)
            self.window = size
        elif self.consumed - self._measured_from >= self.window // 2:
            took, self._measured_at, self._measured_from = now - self._measured_at, now, self.consumed
            if took < GROW_WITHIN_ROUND_TRIPS * max(rtt, LEAST_RTT):
                more = max(0, min(self.window, most - self.window, self._budget.free))
                self._budget.charge(more)
                self.window += more

    def release(self) -> None:
        """Return the whole share; the stream is gone."""
        self._budget.give(self.window)
        self.window = 0

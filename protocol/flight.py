"""How many bytes may be in flight on a link: as many as its path holds, and a little more.

Whatever a sender puts beyond that only fills some queue of the network, and every API call waits behind it. So every
few milliseconds of data are followed by a PING, called a *mark*. Its PONG tells how much has arrived, how fast, and
after how long; that rate times the smallest round trip is what the path holds (the bandwidth-delay product). Nothing is
bounded before both are known, and the bound never stops a link for good: while no mark is under way some data may
leave, and the next PONG opens more.

A peer that gets little processor time, or a radio link, answers in bursts with pauses between them. So what arrives at
once beyond the measured rate, the *burst*, may be in flight in addition. Without that allowance less would be sent in
the next round, measured as a lower rate, and so on down to nothing. (BBRv2 calls this ACK aggregation.) One pause is no
such peer: a lost packet holds up what follows it too, and more in flight would lose the next. So a burst counts when it
is the RECUR-th of its size.

The smallest round trip is measured anew every RTT_FOR seconds by letting the path run half empty for three round trips,
with PINGs ahead of the data: otherwise the time that data spends in a queue of this end's own making, or on its way
into the path, would pass for distance. Not sooner, though a path that becomes longer is less than full until then:
where many tunnels share a path, each would take the queue of the others for distance, and add to it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from protocol.defaults import KIB

GAIN: Final = 1.25  # of what the path holds: enough to find out that it holds more
STARTUP_GAIN: Final = 1.9  # until the rate grows no more: a queue that holds as much as the path does not overflow
GROWS: Final = 1.25  # a round in which it grew less
FULL_AFTER: Final = 3  # rounds without growth
GRACE: Final = 0.005  # seconds of data beyond that: ends answer no faster than their event loops turn; LEAST at least
LEAST: Final = 32 * KIB
MARK_BYTES: Final = 16 * KIB  # between two marks, at least
IDLE_MARK_BYTES: Final = 64 * KIB  # while nothing waits
MARK_EVERY: Final = 0.005  # seconds, or what the path moves in so many
MOST_MARKS: Final = 4096  # without an answer: twenty seconds of them
RATE_FOR: Final = 1.0  # seconds for which a rate counts (or ten round trips, and up to twice as long)
BURST_FOR: Final = 1.0  # seconds for which a burst counts, as with the rate
RECUR: Final = 3  # bursts in that time
MOST_BURST: Final = 0.2  # seconds of data: an end that is later than this slows its own data
RTT_FOR: Final = 10.0
NO_BOUND: Final = 1 << 62
PACE_FROM: Final = 0.005  # seconds of a round trip: a nearer peer has queues for all that may be under way
PACE_UP_TO: Final = 125_000_000  # bytes a second: beyond 1 Gbit/s the kernel's timers cost more than bursts do
FIRST_TOKEN: Final = 1 << 63  # so that no PONG is taken for another's

# Of a mark: its PING's token; bytes sent up to it, and when; of what had arrived by then how much, since when, and when
# that had been sent; whether there was nothing more to send.
_Mark = tuple[int, int, float, int, float, float, bool]


class Flight:
    """Of one link; `reset` when another takes its place. Bytes are those of DATA payloads."""

    __slots__ = (
        "_arrived", "_arrived_at", "_arrived_sent_at", "_best", "_best_before", "_best_since", "_burst", "_bursts",
        "_bursts_before", "_bursts_since", "_drain_least", "_drains_since", "_full", "_full_rate", "_holds", "_marked",
        "_marks", "_next_mark_at", "_paused_at", "_round_until", "_rounds_flat", "_rtt_at", "_sent", "_sent_at",
        "_since_pause", "_token", "bound", "rate", "rtt",
    )  # fmt: skip

    def __init__(self) -> None:
        self._token = FIRST_TOKEN
        self.reset()

    def reset(self) -> None:
        """What was measured was another link."""
        self.rate: float | None = None  # bytes a second that arrive while the path is full
        self.rtt: float | None = None  # the least of RTT_FOR seconds
        self.bound = self._holds = NO_BOUND  # the latter also while the path runs half empty
        self._sent = self._marked = self._arrived = 0
        self._sent_at = self._arrived_at = self._arrived_sent_at = self._next_mark_at = float("-inf")
        self._marks: deque[_Mark] = deque()
        self._best = self._best_before = 0.0
        self._best_since = self._rtt_at = float("-inf")
        self._burst = 0.0  # bytes beyond what the rate explains
        self._bursts: list[float] = []  # the largest, RECUR at most
        self._bursts_before: list[float] = []
        self._bursts_since = self._paused_at = float("-inf")
        self._since_pause = 0  # bytes that arrived after `_paused_at`, until which the rate explains all
        self._full, self._full_rate, self._rounds_flat, self._round_until = False, 0.0, 0, 0
        self._drains_since: float | None = None
        self._drain_least = float("inf")

    @property
    def room(self) -> int:
        """Bytes that may follow now."""
        room = self.bound - (self._sent - self._arrived)
        return room if self._marks else max(room, LEAST)

    @property
    def pace(self) -> float:
        """Bytes a second at which a burst should leave, or all that was held up comes to a queue at once; 0: any."""
        rtt, rate = self.rtt or 0.0, self.rate or 0.0
        return GAIN * self._holds / rtt if self._full and rtt >= PACE_FROM and rate <= PACE_UP_TO else 0.0

    @property
    def draining(self) -> bool:
        """Whether the least round trip is looked for: a PING ahead of data tells it, one behind data does not."""
        return self._drains_since is not None

    def sending(self, size: int, now: float, *, idle: bool) -> bool:
        """`size` bytes leave now; whether a mark has to follow them. `idle` says that nothing more waits."""
        if not self._marks and now - self._sent_at > max(MARK_EVERY, self.rtt or 0.0):  # nothing was under way
            self._arrived, self._arrived_at, self._arrived_sent_at = self._sent, now, now
        self._sent += size
        self._sent_at = now
        unmarked = self._sent - self._marked
        if unmarked < (IDLE_MARK_BYTES if idle else MARK_BYTES) or len(self._marks) >= MOST_MARKS:
            return False
        if now >= self._next_mark_at or self._sent - self._arrived >= self.bound:
            return True
        # All that leaves at once after a pause would be answered at once, and leave so again, for good.
        return self.rate is not None and unmarked >= self.rate * MARK_EVERY

    def mark(self, now: float, *, idle: bool) -> int:
        """The token of a PING that follows what was sent."""
        self._token += 1
        then = (self._arrived, self._arrived_at, self._arrived_sent_at)
        self._marks.append((self._token, self._sent, now, *then, idle))
        self._marked = self._sent
        self._next_mark_at = now + MARK_EVERY
        return self._token

    def answered(self, token: int, now: float) -> bool:
        """A PONG has come; False when it answers no mark."""
        if not self._marks or not self._marks[0][0] <= token <= self._token:
            return False
        while self._marks[0][0] < token:  # a peer that passed one over owes it no more
            self._marks.popleft()
        _, sent, sent_at, arrived, arrived_at, arrived_sent_at, idle = self._marks.popleft()
        self._note_burst(sent - self._arrived, now)
        self._arrived, self._arrived_at, self._arrived_sent_at = sent, now, sent_at
        self.measured(now - sent_at, now)
        took = max(now - arrived_at, sent_at - arrived_sent_at)
        if took > 0:
            self._note_rate((sent - arrived) / took, now, idle=idle)
        self._drain(now, idle=idle)
        if self.rate is not None and self.rtt is not None:
            bursts = sorted(self._bursts + self._bursts_before)
            burst = bursts[-RECUR] if len(bursts) >= RECUR else 0.0
            seconds = GAIN * self.rtt + max(GRACE, max(burst, LEAST) / self.rate)
            most = self.rate * (seconds if self._full else max(seconds, STARTUP_GAIN * self.rtt))
            self._holds = max(LEAST, int(most))
            self.bound = max(LEAST, int(self.rate * self.rtt / 2)) if self.draining else self._holds
        return True

    def measured(self, rtt: float, now: float) -> None:
        """A round trip of some PING."""
        if self.draining:
            self._drain_least = min(self._drain_least, rtt)
        if self.rtt is None or rtt <= self.rtt:
            self.rtt, self._rtt_at = max(0.0, rtt), now

    def _note_rate(self, sample: float, now: float, *, idle: bool) -> None:
        if idle and sample <= (self.rate or 0.0):
            return  # the path was not full
        if idle and self.rate is None:
            return
        if now - self._best_since > max(RATE_FOR, 10 * (self.rtt or 0.0)):
            self._best_before, self._best, self._best_since = self._best, sample, now
        self._best = max(self._best, sample)
        self.rate = max(self._best, self._best_before)
        if not self._full and self._arrived >= self._round_until:
            self._round_until = self._sent
            if self.rate >= GROWS * self._full_rate:
                self._full_rate, self._rounds_flat = self.rate, 0
            else:
                self._rounds_flat += 1
                self._full = self._rounds_flat >= FULL_AFTER

    def _note_burst(self, size: int, now: float) -> None:
        """So many more bytes have arrived. What passes a rate that still grows is no burst."""
        if not self._full or self.rate is None:
            return
        if now - self._bursts_since > max(BURST_FOR, 10 * (self.rtt or 0.0)):
            self._bursts_before, self._bursts, self._bursts_since, self._burst = self._bursts, [], now, 0.0
        extra = self._since_pause + size - self.rate * (now - self._paused_at)
        if extra > 0:
            self._since_pause += size
            self._burst = max(self._burst, min(extra, MOST_BURST * self.rate))
            return
        self._bursts = sorted((*self._bursts, self._burst))[-RECUR:]
        self._paused_at, self._since_pause, self._burst = now, 0, 0.0

    def _drain(self, now: float, *, idle: bool) -> None:
        """Begin to look for the least round trip, or end it."""
        if self.rtt is None:
            return
        if self._drains_since is None:
            if not idle and now - self._rtt_at > RTT_FOR:
                self._drains_since, self._drain_least = now, float("inf")
        elif now - self._drains_since > 3 * self.rtt + GRACE and self._drain_least < float("inf"):
            self.rtt, self._rtt_at, self._drains_since = self._drain_least, now, None

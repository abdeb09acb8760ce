"""Whether the peer is still alive, and how far away: what was heard from it, which PINGs are open, which came back.

Any received byte proves life. A PING is sent when the link is silent, and now and then to measure the round trip. PINGs
that were sent on a link that is lost are forgotten: nobody will answer them.
"""

from __future__ import annotations

from collections import deque
from typing import Final

RTT_SAMPLES: Final = 8
RTT_STALE_AFTER: Final = 30.0  # on an idle tunnel


class Liveness:
    """The PINGs of one end of a tunnel, and the times that matter to them."""

    __slots__ = ("_asked", "_next", "_samples", "answered_at", "asked_at", "heard_at", "rtt")

    def __init__(self, now: float) -> None:
        self.heard_at = now  # when the last byte came
        self.asked_at = now  # when the last PING was made
        self.answered_at = now  # when the last answer came: a PONG, or an ACK of more
        self.rtt: float | None = None  # the least of the last samples, seconds
        self._samples: deque[float] = deque(maxlen=RTT_SAMPLES)
        self._asked: dict[int, float] = {}  # tokens without an answer yet, oldest first
        self._next = 1

    def asked_since(self, now: float) -> float:
        """When the oldest PING left that was not answered; now, if all were."""
        return next(iter(self._asked.values()), now)

    def due(self, interval: float) -> float:
        """When to ask again: after so long a silence, or when the measure is stale."""
        silence = max(self.heard_at, self.asked_at) + interval
        return min(silence, self.asked_at + RTT_STALE_AFTER)

    def ask(self, now: float, *, linked: bool) -> int:
        """The token of a new PING; without a link nothing will answer it."""
        token = self._next
        self._next += 1
        if linked and len(self._asked) < RTT_SAMPLES:
            self._asked[token] = now
        self.asked_at = now
        return token

    def answered(self, token: int, now: float) -> float | None:
        """Seconds that a PING took; None for one that was not asked."""
        sent = self._asked.pop(token, None)
        if sent is None:
            return None
        while (first := next(iter(self._asked), token)) < token:  # a peer that passed one over owes it no more
            del self._asked[first]
        self.answered_at = now
        seconds = max(0.0, now - sent)
        self._samples.append(seconds)
        self.rtt = min(self._samples)
        return seconds

    def link_lost(self) -> None:
        """Nothing more is answered."""
        self._asked.clear()

    def new_link(self, now: float) -> None:
        """Another path, of another length."""
        self.heard_at = self.asked_at = self.answered_at = now
        self._samples.clear()

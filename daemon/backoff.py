"""Back-off with full jitter: each delay is drawn between a floor and a ceiling that doubles with every failure.

The whole delay is random, not just a part of it, so that many agents that lost the same server do not come back
together. A peer's retry-after is a lower bound: the delay is that plus jitter of at most half of it. The back-off adds
no more to it, since a server that sends many agents away tells each another time, and would then be idle for minutes.
Randomness comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from protocol.defaults import BACKOFF_MAX, BACKOFF_MIN

MAX_RETRY_AFTER: Final = 600.0  # a peer must not be able to send us away for good


class Backoff:
    """`random()` gives a number in [0, 1)."""

    def __init__(
        self, *, random: Callable[[], float], minimum: float = BACKOFF_MIN, maximum: float = BACKOFF_MAX
    ) -> None:
        self._random = random
        self._minimum = minimum
        self._maximum = maximum
        self.failures = 0

    def next(self, *, retry_after: float | None = None) -> float:
        """Seconds to wait before the next attempt; counts one more failure."""
        ceiling = min(self._maximum, self._minimum * 2.0 ** min(self.failures + 1, 64))
        self.failures += 1
        asked = 0.0 if retry_after is None else max(0.0, min(retry_after, MAX_RETRY_AFTER))
        if asked:
            ceiling = max(self._minimum, min(ceiling, asked / 2))
        return asked + self._minimum + self._random() * (ceiling - self._minimum)

    def reset(self) -> None:
        """Called after success (for a tunnel: after WELCOME, not after the connection)."""
        self.failures = 0

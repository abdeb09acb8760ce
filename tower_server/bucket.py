"""A token bucket: how fast something expensive is let in, and when to come back."""

from __future__ import annotations


class Bucket:
    """`rate` a second, `burst` at once. Time comes in as an argument and must not go back."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, *, rate: float, burst: int, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._left = float(burst)
        self._at = now

    def take(self, now: float) -> float | None:
        """None when one is let in; otherwise the seconds after which the next would be."""
        self._left = min(float(self.burst), self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return None
        return (1.0 - self._left) / self.rate

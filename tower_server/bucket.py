"""Token buckets: how fast something expensive is let in, and when to come back."""

from __future__ import annotations

from typing import Final

MAX_NETWORKS: Final = 1024  # whose shares are remembered
MAX_TURN: Final = 30.0  # seconds after which the last one is asked to come back, however many there are


class Bucket:
    """`rate` a second, `burst` at once. Time comes in as an argument and must not go back."""

    __slots__ = ("_at", "_left", "_turn", "burst", "rate")

    def __init__(self, *, rate: float, burst: int, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._left = float(burst)
        self._at = now
        self._turn = now

    def left(self, now: float) -> float:
        """How many could be let in at once now."""
        self._left = min(float(self.burst), self._left + (now - self._at) * self.rate)
        self._at = now
        return self._left

    def take(self, now: float) -> float | None:
        """None when one is let in; otherwise the seconds after which the next would be."""
        if self.left(now) >= 1.0:
            self._left -= 1.0
            return None
        return (1.0 - self._left) / self.rate

    def turn(self, now: float, *, rate: float) -> float:
        """Seconds after which one who is not let in should come back: each has a moment of its own, `rate` of them a
        second. Told all the same one, a storm would come back as the same storm."""
        self._turn = min(max(self._turn, now) + 1.0 / rate, now + MAX_TURN)
        return self._turn - now


class SharedBucket:
    """A bucket whose last half is kept for networks that have not had their share: one that storms, or attacks, gets
    all that the others leave and cannot keep them out."""

    __slots__ = ("_all", "_shares")

    def __init__(self, *, rate: float, burst: int, now: float) -> None:
        self._all = Bucket(rate=rate, burst=burst, now=now)
        self._shares: dict[str, Bucket] = {}  # the one that came last is the last

    def take(self, now: float, network: str) -> float | None:
        """As `Bucket.take`, for one that comes from `network`; the seconds are those of its turn in that network."""
        share = self._shares.pop(network, None)
        if share is None:
            share = Bucket(rate=self._all.rate / 2, burst=max(1, self._all.burst // 2), now=now)
            if len(self._shares) >= MAX_NETWORKS:
                del self._shares[next(iter(self._shares))]
        self._shares[network] = share
        wait = share.take(now)
        if wait is not None:
            spare = min(self._all.burst, self._all.burst / 2 + 1)  # beyond its share, it leaves half to the others
            missing = spare - self._all.left(now)
            if missing > 0:
                return max(min(wait, missing / self._all.rate), share.turn(now, rate=self._all.rate))
        wait = self._all.take(now)
        return None if wait is None else max(wait, share.turn(now, rate=self._all.rate))

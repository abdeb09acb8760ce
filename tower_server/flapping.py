"""Detects clusters that come and go, so that what is written about them can stay still. Pure: time is an argument.

A cluster that was lost `LOSSES` times within `WITHIN` seconds flaps until it has been well for `STEADY` seconds without
a break. One that soon begins again has to be well for twice as long each time, up to `WITHIN`. Meanwhile callers are
served, and operators are shown, whatever is true at the moment; only conditions wait, which cost writes and make others
act.

A tunnel that is back before a caller would be refused does not count as lost, unless the cluster had only just come
back from another loss: proxies and balancers commonly cut connections every half minute or more, and members behind
them are as healthy as others.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from protocol.defaults import HOLD

LOSSES: Final = 3
WITHIN: Final = 600.0
STEADY: Final = 60.0
RESTED: Final = 20.0  # seconds for which it has to have been well for a brief loss not to count


class Flaps:
    """Of one cluster. `look` at each verdict and now and then."""

    def __init__(self) -> None:
        self.since: float | None = None
        """When it began to flap; None: it does not."""
        self.of_tunnel = False
        """Whether a tunnel was among what was lost, or only what is behind it."""
        self.steady = STEADY
        """How long it has to be well, seconds."""
        self._losses: deque[tuple[float, bool]] = deque(maxlen=LOSSES)
        self._well_since: float | None = None
        self._back: float | None = None  # when it was well again for the last time
        self._before: tuple[float | None, float | None, bool] = (None, None, False)

    def lost(self, now: float, *, tunnel: bool) -> None:
        """It was well until now, and nobody meant it to end."""
        if self._losses and now - self._losses[-1][0] > WITHIN:
            self.steady = STEADY
        self._losses.append((now, tunnel))
        self._before = self._well_since, self.since, self.of_tunnel
        self._well_since = None
        if self.since is not None:
            self.of_tunnel = self.of_tunnel or tunnel
        elif len(self._losses) == LOSSES and now - self._losses[0][0] <= WITHIN:
            self.since = now
            self.of_tunnel = any(each for _, each in self._losses)

    def look(self, now: float, *, well: bool) -> None:
        """How it is now."""
        if not well:
            self._well_since = None
        elif self._well_since is None:
            self._well_since = now
            if self._never_mind(now):
                self._losses.pop()
                self._well_since, self.since, self.of_tunnel = self._before
            self._back = now
        elif self.since is not None and now - self._well_since >= self.steady:
            self.since = None
            self.steady = min(2 * self.steady, WITHIN)

    def _never_mind(self, now: float) -> bool:
        """Whether the last loss is none, now that it is well again."""
        at, tunnel = self._losses[-1] if self._losses else (0.0, False)
        return tunnel and now - at <= HOLD and self._back is not None and at - self._back >= RESTED

    def said(self) -> str:
        """In words that stay the same for as long as it flaps; empty when it does not."""
        if self.since is None:
            return ""
        return (
            f"it was lost {LOSSES} times within {WITHIN / 60:g} min and may come and go: it counts as back once it has "
            f"been well for {self.steady:g} s"
        )

"""When to log a failure of something that is retried: when it begins, when it changes, now and then while it lasts.

Logging every attempt would fill the log with one line. Logging the first only would leave no trace of why something is
still down once that line has been rotated away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

REMIND_EVERY: Final = 60.0  # seconds between log lines about a failure that stays the same


class Reminder:
    """Of one thing that can fail. `every` is in seconds; with `math.inf` nothing is logged twice in a row."""

    def __init__(self, *, every: float = REMIND_EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._text: str | None = None  # what was logged last; None while it works
        self._at = 0.0

    def due(self, text: str) -> bool:
        """Whether to log now that it fails by `text`; a yes counts as logged."""
        now = self._clock()
        if text == self._text and now - self._at < self._every:
            return False
        self._text, self._at = text, now
        return True

    def reset(self) -> None:
        """It works again: the next failure is logged, whatever it is."""
        self._text = None

"""Letting small writes, of several streams mostly, leave together where they come closely one after another.

Each message of a link costs both ends a system call, an encryption and often a wake-up, whatever it holds. Where
several writes left together the last time, more are likely to follow at once: then what waits to leave waits for one
more turn of the loop, until one has brought nothing. A write that is alone, after another that was, never waits, nor
does bulk.
"""

from __future__ import annotations

from typing import Final

from protocol.aio.busypoll import SHORT

LONGEST: Final = 0.0002  # seconds that a write waits at most


class Gather:
    """One tunnel's. It is told of each write, and asked before they leave."""

    __slots__ = ("_bytes", "_seen", "_several", "_until", "_writes")

    def __init__(self) -> None:
        self._writes = self._bytes = 0  # that wait to leave
        self._seen = 0  # of those writes, when it was asked last
        self._until = 0.0
        self._several = False  # writes left together the last time

    def wrote(self, size: int) -> None:
        """A stream wrote `size` bytes."""
        self._writes += 1
        self._bytes += size

    def waits(self, now: float) -> bool:
        """Whether they wait for another turn, at `now` (monotonic). Where they do not, they leave."""
        writes, seen = self._writes, self._seen
        if self._several and seen < writes and self._bytes < SHORT:
            if not seen:
                self._until = now + LONGEST
            if now < self._until:
                self._seen = writes
                return True
        if writes:
            self._several = writes > 1
            self._writes = self._bytes = self._seen = 0
        return False

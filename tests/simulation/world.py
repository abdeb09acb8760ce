"""Virtual time: a heap of what happens next, a trace of what happened, and what the run counts.

Everything is decided by the seed: no set is iterated, no hash of a string is used, no clock of the machine is read.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any
from zlib import crc32


class Violation(AssertionError):
    """An invariant does not hold. `rule` names it; what is shrunk must keep failing by the same rule."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(rule, text)
        self.rule = rule
        self.text = text

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def require(condition: bool, rule: str, text: str, *values: object) -> None:
    """Raise Violation(rule, text % values) unless `condition`."""
    if not condition:
        raise Violation(rule, text % values)


class Timer:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("args", "at", "call", "order")

    def __init__(self, at: float, order: int, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.at = at
        self.order = order
        self.call: Callable[..., None] | None = call
        self.args = args

    def cancel(self) -> None:
        """Make nothing of it."""
        self.call = None


class World:
    """Time, and what happens in it."""

    def __init__(self, trace: list[str] | None = None) -> None:
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        self.events = 0
        self.trace = trace
        self._hash = 0
        self._order = 0
        self._heap: list[tuple[float, int, Timer]] = []

    @property
    def trace_hash(self) -> str:
        """Of everything that was noted so far."""
        return f"{self._hash:08x}"

    def at(self, when: float, call: Callable[..., None], *args: Any) -> Timer:
        """Call `call(*args)` at `when`; of several at once, the one that was asked for first is first."""
        self._order += 1
        timer = Timer(when, self._order, call, args)
        heapq.heappush(self._heap, (when, self._order, timer))
        return timer

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> Timer:
        """The same, from now."""
        return self.at(self.now + seconds, call, *args)

    def note(self, what: str, a: int = 0, b: int = 0) -> None:
        """Put something on the trace."""
        line = f"{self.now:.6f} {what} {a} {b}"
        self._hash = crc32(line.encode(), self._hash)
        if self.trace is not None:
            self.trace.append(line)

    def run(self, until: float, *, most_events: int) -> None:
        """Let happen what happens up to `until`. Violation when that does not come to an end."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            when, _, timer = heapq.heappop(heap)
            call = timer.call
            if call is None:
                continue
            if when > self.now:
                self.now = when
            self.events += 1
            require(self.events <= most_events, "L6 work", "more than %d events by %.3f s", most_events, self.now)
            timer.call = None
            call(*timer.args)
        self.now = max(self.now, until)

"""Keys that have work to do, each once, each by one worker at a time: what makes the controller level-triggered.

A key added while it waits is merged; one added while it is worked on comes back when that ends, so nothing that
happened meanwhile is missed and no two workers ever hold the same key. Failures come back after a back-off of their own
key, so that one cluster that always fails slows nobody else. `now` is monotonic seconds, handed in; nothing sleeps.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from daemon.backoff import Backoff
from tower_server.controller.limits import RETRY_MAX, RETRY_MIN

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """`take` a key, work on it, then `done`, `failed` or `again`. Bounded by the number of keys."""

    def __init__(self, *, random: Callable[[], float]) -> None:
        self._random = random
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()  # wanted again: waiting in `_ready`, or in work
        self._working: set[K] = set()
        self._due: dict[K, float] = {}
        self._later: list[tuple[float, int, K]] = []
        self._order = 0
        self._backoff: dict[K, Backoff] = {}

    def __len__(self) -> int:
        """Keys that could be taken now."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is in work; what is due later does not count."""
        return not self._ready and not self._working

    def add(self, key: K) -> None:
        """There is something to do for `key`, now."""
        self._due.pop(key, None)
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._ready.append(key)

    def add_at(self, key: K, due: float) -> None:
        """There will be something to do at `due`; the earliest of several counts."""
        if key in self._dirty or self._due.get(key, due + 1.0) <= due:
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._later, (due, self._order, key))

    def tick(self, now: float) -> float | None:
        """Moves on what is due by `now`; when the next is due, or None."""
        while self._later:
            due, _, key = self._later[0]
            if self._due.get(key) != due:
                heapq.heappop(self._later)  # overtaken by an earlier one, or by `add`
            elif due <= now:
                heapq.heappop(self._later)
                self.add(key)
            else:
                return due
        return None

    def take(self) -> K | None:
        if not self._ready:
            return None
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K, *, again_at: float | None = None) -> None:
        """The work went well; `again_at` is when it should be looked at next."""
        self._backoff.pop(key, None)
        self._end(key)
        if again_at is not None:
            self.add_at(key, again_at)

    def failed(self, key: K, now: float, *, retry_after: float | None = None) -> float:
        """The work failed; it comes back after a back-off. How many seconds that is."""
        backoff = self._backoff.setdefault(key, Backoff(random=self._random, minimum=RETRY_MIN, maximum=RETRY_MAX))
        delay = backoff.next(retry_after=retry_after)
        self._end(key)
        self.add_at(key, now + delay)
        return delay

    def failures(self, key: K) -> int:
        """How often in a row the work has failed."""
        return self._backoff[key].failures if key in self._backoff else 0

    def _end(self, key: K) -> None:
        self._working.discard(key)
        if key in self._dirty:
            self._ready.append(key)

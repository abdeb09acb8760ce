"""The recent changes of a single-process store and the watchers that wait for more.

Bounded in both directions: the log keeps the last `size` changes, and a watcher that falls behind it gets `Expired`, so
a reader that stops costs nothing. Positions are the integers that the store numbers its writes with.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from tower_server.store.base import Change, Expired, Kind

KEPT_CHANGES: Final = 1024  # minutes of history on a busy server; a watcher further behind lists anew


class ChangeLog:
    """Belongs to one event loop."""

    def __init__(self, start: int, size: int = KEPT_CHANGES) -> None:
        self._changes: deque[tuple[int, Change]] = deque(maxlen=size)
        self._floor = start  # every change after this position is still held
        self._head = start
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False

    def append(self, position: int, change: Change) -> None:
        if len(self._changes) == self._changes.maxlen:
            self._floor = self._changes[0][0]
        self._changes.append((position, change))
        self._head = position
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def follow(self, kind: Kind, since: int) -> AsyncIterator[Change]:
        if since > self._head:
            raise Expired(f"version {since} is not of this store (its newest is {self._head})")
        position = since
        while True:
            if position < self._floor:
                raise Expired(f"changes after version {position} are no longer held (the oldest held is {self._floor})")
            # A copy: the log moves on while the reader has a change in hand, and what was copied stays complete.
            for at, change in [entry for entry in self._changes if entry[0] > position]:
                position = at
                if change.record.kind is kind:
                    yield change
            if position < self._head:
                continue
            if self._closed:
                return
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

"""Coalesces calls: whoever asks while a call runs shares the next one, which begins after they asked.

When a hundred clusters are deleted together, each has to know what there is at that moment, but they need not list it
one by one. An answer that was begun before somebody asked is never given to them. A call that fails fails for the one
who made it; the next one in line calls anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Coalesced(Generic[T]):
    """`call`, made at most once at a time."""

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._lock = asyncio.Lock()
        self._begun = 0
        self._answered: tuple[int, T] | None = None

    async def ask(self) -> T:
        """The answer of a call that begins after this was called."""
        before = self._begun
        async with self._lock:
            if self._answered is None or self._answered[0] <= before:
                self._answered = None
                self._begun += 1
                number = self._begun
                self._answered = number, await self._call()
            return self._answered[1]

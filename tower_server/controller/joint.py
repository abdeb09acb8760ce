"""One call for all who ask at the same time: each of them gets the answer of a call that began after it had asked.

A hundred clusters that are deleted together each need to know what there is at that moment, and need not ask for it one
by one. An answer from before somebody asked is never given; whose call fails fails alone, and the next one asks anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Joint(Generic[T]):
    """`call` is made by one at a time."""

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._lock = asyncio.Lock()
        self._begun = 0
        self._answered: tuple[int, T] | None = None

    async def ask(self) -> T:
        """The answer of a call that begins from here on."""
        before = self._begun
        async with self._lock:
            if self._answered is None or self._answered[0] <= before:
                self._answered = None
                self._begun += 1
                number = self._begun
                self._answered = number, await self._call()
            return self._answered[1]

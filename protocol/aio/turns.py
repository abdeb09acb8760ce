"""Expensive work in slices, in the order in which it was asked for: a bounded amount of processor time in a turn of the
loop, the rest in those that follow.

The slice is measured in processor time, not by the clock: on a busy machine every turn takes long by the clock, and
doing less in each would only make it worse.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import thread_time
from typing import Any, Final, TypeVar

SLICE: Final = 0.02  # seconds of processor time in one turn

T = TypeVar("T")


class Turns:
    """`do` runs a piece of expensive work when its turn has come."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, once its turn has come. One whose task is cancelled before is not done."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._slice, loop)
        self._waiting.append((done, work))
        return await done

    def _slice(self, loop: asyncio.AbstractEventLoop) -> None:
        end = thread_time() + SLICE
        while self._waiting:
            done, work = self._waiting[0]
            if not done.cancelled():
                try:
                    done.set_result(work())
                except Exception as error:  # whoever waits for it gets it
                    done.set_exception(error)
            self._waiting.popleft()
            if self._waiting and thread_time() >= end:
                loop.call_soon(self._slice, loop)
                return

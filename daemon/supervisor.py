"""Owns tasks: names them, hears of their death, cancels and awaits them.

A task that ends by an error is never silent: it is logged under its name, and then either the owner is told (`start`:
in a process that means a clean stop with exit 1) or the work is started again after a back-off (`restart`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.log import get_logger

CLEANUP_DEADLINE: Final = 10.0
log = get_logger(__name__)


class Supervisor:
    """`on_failure(name, exception)` is called once for each task of kind `start` that dies by an error."""

    def __init__(self, *, on_failure: Callable[[str, BaseException], None]) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Runs `work` as a task; its failure is the owner's failure."""
        if self._closing:
            work.close()
            raise RuntimeError(f"task {name!r} was started while its owner is closing")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def restart(
        self, work: Callable[[], Awaitable[object]], *, name: str, backoff: Backoff | None = None
    ) -> asyncio.Task[Any]:
        """Runs `work()` again and again: after an error with back-off, which a run that returns normally resets."""
        return self.start(self._again(work, name, backoff or Backoff(random=random.random)), name=name)

    async def close(self, *, deadline: float = CLEANUP_DEADLINE) -> None:
        """Cancels every task and waits until all have ended; names in the log those that do not."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, left = await asyncio.wait(set(self._tasks), timeout=deadline)
            if left:
                log.error("tasks-did-not-end", tasks=sorted(task.get_name() for task in left), deadline=deadline)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        exc = None if task.cancelled() else task.exception()
        if exc is not None:
            _log_death("task-failed", task.get_name(), exc)
            self._on_failure(task.get_name(), exc)

    async def _again(self, work: Callable[[], Awaitable[object]], name: str, backoff: Backoff) -> None:
        while True:
            try:
                await work()
            except Exception as exc:  # the boundary that `restart` is
                delay = backoff.next(retry_after=getattr(exc, "retry_after", None))
                _log_death("task-restarts", name, exc, delay=round(delay, 3))
                await asyncio.sleep(delay)
            else:
                backoff.reset()
                await asyncio.sleep(0)


def _log_death(event: str, name: str, exc: BaseException, **keys: Any) -> None:
    if isinstance(exc, TowerError):
        log.error(event, task=name, code=exc.code, text=exc.message, **keys)
    else:
        log.error(event, task=name, exc_info=exc, **keys)

"""Waiting in a test, for a condition and never for a duration; `tests.lab.processes.wait_until` is for threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 30.0
"""Seconds: much more than it takes on a machine that is slow and busy."""


async def until(condition: Callable[[], object], *, what: str = "", deadline: float = PATIENCE) -> None:
    """Waits for what other tasks bring about."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not condition():
        assert loop.time() < end, f"waited {deadline:g} s in vain: {what or 'see the condition'}"
        await asyncio.sleep(0.005)

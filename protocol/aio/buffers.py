"""One read buffer for a whole event loop.

A BufferedProtocol's `get_buffer` and `buffer_updated` run back to back without returning to the loop, so every
connection of a loop can read into the same memory: an idle connection costs no buffer. What must outlive
`buffer_updated` is copied by whoever keeps it.
"""

from __future__ import annotations

import asyncio
from typing import Final
from weakref import WeakKeyDictionary

from protocol.defaults import KIB, READ_BUFFER_BYTES
from protocol.flow import Budget

SHORT_READ: Final = 32 * KIB  # at a time, while others need the memory that a reader could stop with

_budgets: WeakKeyDictionary[asyncio.AbstractEventLoop, Budget] = WeakKeyDictionary()
_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()


def shared_buffer(loop: asyncio.AbstractEventLoop) -> memoryview:
    """The loop's read buffer; the same object for every caller on that loop."""
    buffer = _buffers.get(loop)
    if buffer is None:
        buffer = _buffers[loop] = memoryview(bytearray(READ_BUFFER_BYTES))
    return buffer


def read_by(loop: asyncio.AbstractEventLoop, budget: Budget) -> None:
    """From now on what this loop reads from sockets is bounded by what is left of `budget`, a process' own."""
    _budgets[loop] = budget


def budget_of(loop: asyncio.AbstractEventLoop) -> Budget | None:
    """What `read_by` was told."""
    return _budgets.get(loop)

"""One read buffer for a whole event loop.

A BufferedProtocol's `get_buffer` and `buffer_updated` run back to back without returning to the loop, so every
connection of a loop can read into the same memory: an idle connection costs no buffer. What must outlive
`buffer_updated` is copied by whoever keeps it.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from protocol.defaults import READ_BUFFER_BYTES

_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()


def shared_buffer(loop: asyncio.AbstractEventLoop) -> memoryview:
    """The loop's read buffer; the same object for every caller on that loop."""
    buffer = _buffers.get(loop)
    if buffer is None:
        buffer = _buffers[loop] = memoryview(bytearray(READ_BUFFER_BYTES))
    return buffer

"""One read buffer a loop."""

from __future__ import annotations

import asyncio

from protocol.aio.buffers import shared_buffer
from protocol.defaults import READ_BUFFER_BYTES


def test_a_loop_has_one_buffer_and_another_loop_another() -> None:
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        assert shared_buffer(first) is shared_buffer(first)
        assert shared_buffer(first) is not shared_buffer(second)
        assert len(shared_buffer(first)) == READ_BUFFER_BYTES
        assert not shared_buffer(first).readonly
    finally:
        first.close()
        second.close()

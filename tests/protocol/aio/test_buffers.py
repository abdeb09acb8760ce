"""One read buffer a loop."""

from __future__ import annotations

import asyncio

from protocol.aio.buffers import budget_of, read_by, shared_buffer
from protocol.defaults import READ_BUFFER_BYTES
from protocol.flow import Budget


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


def test_a_loop_reads_by_the_budget_that_it_was_told_and_no_other() -> None:
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        budget = Budget(100)
        read_by(first, budget)
        assert budget_of(first) is budget
        assert budget_of(second) is None
    finally:
        first.close()
        second.close()

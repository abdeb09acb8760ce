"""Two ends of a tunnel over a real socket: opening, refusing, half-closing, back-pressure, ends of every kind."""

from __future__ import annotations

import pytest

from tests.protocol.aio.tunnels import Echo, Recorder, accepting, tower

pytestmark = pytest.mark.asyncio


async def test_a_stream_carries_bytes_both_ways_and_half_closes() -> None:
    echo, caller = Echo(), Recorder()
    async with tower() as made:
        server, _ = await made.pair(accepting(echo))
        stream = await server.open("kubernetes", caller, caller="192.0.2.7:4711", connection_id="c-1")
        stream.write(b"hello")
        stream.write_eof()
        await caller.saw("lost")
        assert bytes(caller.received) == b"hello"
        assert caller.calls == ["made", "eof", "lost"]
        assert caller.error is None
        assert echo.transport.get_extra_info("caller") == "192.0.2.7:4711"
        assert echo.transport.get_extra_info("connection_id") == "c-1"
        assert server.stream_count == 0
